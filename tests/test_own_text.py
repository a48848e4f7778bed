"A folder of own text: every file that is lost is named with its repair, and stops a run by default."

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny

from langsamp.core.errors import UserError
from langsamp.core.files import content_hash, read_json, sha256
from langsamp.corpora.registry import find_corpus, open_corpus, write_corpus
from langsamp.corpora.text import FilterReport, LostFile, Source, bad_file_warnings, clean_lines, find_sources
from langsamp.corpora.text_column import column_lines
from langsamp.data.shards import source_hash
from langsamp.languages.codes import Code, parse_code
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import main, pretrain
from langsamp.training.shard_tasks import run_shard_task

ONE_STEP = {"max_steps": 1, "warmup_steps": 0, "save_steps": 1, "run_name": "own"}
TEXTS = tiny.sentences("eng_Latn", 400)


def table(path: Path, texts: list[str]) -> Path:
    "Write texts in the format that the ending of the path names."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame({"id": range(len(texts)), "text": texts}).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        pd.DataFrame({"id": 1, "text": texts}).to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    elif path.suffix == ".gz":
        plain = table(path.with_suffix(""), texts)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    else:
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def by_python(p, outputs: Path) -> str:
    try:
        return str(pretrain(p, outputs)["warnings"])
    except UserError as error:
        return f"stopped: {error}"


def by_command(p, outputs: Path) -> str:
    "The command's exit status is 2 when it stops."
    status = main([str(tiny.write_params(outputs / "own.yaml", p)), str(outputs)])
    return f"stopped: {status}" if status == 2 else ""


def by_notebook(p, outputs: Path) -> str:
    try:
        return str(tiny.run_notebook("03_pretrain", p.model_dump(), outputs)["prepared"].report["warnings"])
    except UserError as error:
        return f"stopped: {error}"


# What stops a run

LATIN_1 = "".join(f"{text} \u00e9\n" for text in TEXTS[:120]).encode("latin-1")
LOST = {  # File name -> content, and what the message says
    "wol-Latn.txt": (b"Am na\n", "rename it to wol_Latn.txt"),
    "wolof.txt": (b"Am na\n", "rename it to wol_Latn.txt"),
    "Wolof.csv": (b"text\nAm na\n", "rename it to wol_Latn.csv"),
    "sermons.txt": (b"Am na\n", "a language without a code takes one of `qaa` to `qtz`"),
    "wol_Latn.docx": (b"PK", "not read; write it as wol_Latn.txt, .jsonl"),
    "wol_Latn.txt": (LATIN_1, "120 of 120 lines (100.0%) are dropped: 120 not UTF-8; the first is line 1; convert it"),
    "wol_Cyrl.txt": (b"Am na\n", "1 another script; the first is line 1; name the file by the script of its text"),
    "fra_Latn.txt": ("Un \u00e9t\u00e9\n".encode("utf-16"), "UTF-16, not UTF-8; convert it with iconv -f UTF-16"),
    "deu_Latn.txt.gz": (gzip.compress("eins\n".encode("utf-16-be").join([b"\xfe\xff", b""])), "UTF-16, not UTF-8"),
    "swh_Latn.txt.gz": (gzip.compress("\n".join(TEXTS).encode())[:-99], "fetch or write the file again"),
    "hau_Latn.jsonl": (b'{"content": "one"}\n', "no column `text`; there are content"),
    "yor_Latn.csv": (b"sentence,id\none,1\n", "no column `text`; there are sentence, id"),
    "nso_Latn.txt": (b"", "no line of text; write its text into it, or remove the file"),
    "tsn_Latn.txt": (b"\n \n\n", "no line of text; write its text into it, or remove the file"),
    "sot_Latn.csv": (b"text,id\n", "no line of text; write its text into it, or remove the file"),
    "xho_Latn.jsonl": (
        b'{"id": 7}\n{"text": ""}\n' * 9 + b'{"text": "one"}\n',
        "18 row without text; the first is line 1",
    ),
}
LATE = (
    "wol_Latn.txt",
    "wol_Cyrl.txt",
    "swh_Latn.txt.gz",
    "nso_Latn.txt",
    "tsn_Latn.txt",
    "sot_Latn.csv",
    "xho_Latn.jsonl",
)


@pytest.mark.parametrize("name", LOST)
def test_a_lost_file_stops_a_run_by_default(tmp_path, name):
    "With its name and how to fix it; `skip` goes on and reports it."
    content, fix = LOST[name]
    (tmp_path / "text").mkdir()
    table(tmp_path / "text/eng_Latn.txt", TEXTS)
    (tmp_path / "text" / name).write_bytes(content)
    p = tiny.params_of(tmp_path / "text", **ONE_STEP)
    with pytest.raises(UserError, match="text would be left out:") as error:
        prepare(p, tmp_path)
    assert f"{tmp_path / 'text' / name}: " in str(error.value) and fix in str(error.value)
    assert "set on_bad_line to skip" in str(error.value)
    (warning,) = [line for line in prepare(p.replace(on_bad_line="skip"), tmp_path).report["warnings"] if name in line]
    assert fix in warning


@pytest.mark.parametrize("way", [by_python, by_command, pytest.param(by_notebook, marks=pytest.mark.slow)])
def test_every_way_tells_what_is_lost(tmp_path, capfd, monkeypatch, way):
    "One line per file and the share of dropped lines; by default nothing is trained."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path))
    (tmp_path / "text").mkdir()
    table(tmp_path / "text/eng_Latn.txt", TEXTS)
    for name, (content, _) in LOST.items():
        (tmp_path / "text" / name).write_bytes(content)
    p = tiny.params_of(tmp_path / "text", **ONE_STEP)
    stopped = way(p, tmp_path)
    printed = "".join(capfd.readouterr()) + stopped
    early = set(LOST) - set(LATE)
    assert stopped.startswith("stopped: ") and [name for name in early if printed.count(f"/{name}: ") != 1] == []
    assert not (tmp_path / "own/result.json").exists()
    way(p.replace(on_bad_line="skip"), tmp_path)
    printed = capfd.readouterr().out
    assert [name for name in LOST if f"corpus: {tmp_path}/text/{name}: " not in printed] == []
    assert " lines (" in printed and "are dropped: " in printed
    kept = " ".join(read_json(tmp_path / "own/result.json")["warnings"])
    assert [name for name in LOST if f"/{name}: " not in kept] == []


@pytest.mark.parametrize(("bad", "stops"), [(5, False), (6, True)])
def test_up_to_a_twentieth_of_the_lines_of_a_file_may_be_bad(tmp_path, capsys, bad, stops):
    "In each file, blank lines aside, however much good text there is beside it; also for a task of a corpus pass."
    for split, texts in {
        "train": TEXTS[:120],
        "validation": TEXTS[:1] + [f"line {n}" for n in range(99 - bad)],
    }.items():
        (tmp_path / "text" / split).mkdir(parents=True)
        table(tmp_path / "text" / split / "eng_Latn.txt", texts)
    with open(tmp_path / "text/validation/eng_Latn.txt", "ab") as file:
        file.write(b"caf\xe9\n\n\n" * bad)
    for stage in (prepare, lambda p, outputs: run_shard_task(p, outputs, 0, 1)):
        if stops:
            with pytest.raises(UserError, match=r"validation/eng_Latn.txt: 6 of 100 lines \(6.0%\) are dropped"):
                stage(tiny.params_of(tmp_path / "text"), tmp_path)
        else:
            stage(tiny.params_of(tmp_path / "text"), tmp_path)
            assert "validation/eng_Latn.txt: 5 of 100 lines (5.0%) are dropped: 5 not UTF-8" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_without_text_are_bad_lines(tmp_path, capsys, ending):
    "In every format of a table: 315 of 350 stop a run, 5 of 350 are reported; blank lines of a text never stop."
    (tmp_path / "text").mkdir()
    texts = tiny.sentences("eng_Latn", 350)
    name, p = f"text/qaa_Latn.{ending}", tiny.params_of(tmp_path / "text")
    table(tmp_path / "text/eng_Latn.txt", [line for text in texts for line in (text, "", " ")])
    table(tmp_path / name, [text if number % 10 == 0 else None for number, text in enumerate(texts)])
    with pytest.raises(UserError, match=rf"{name}: 315 of 350 lines \(90.0%\) are dropped: 315 row without text"):
        prepare(p, tmp_path)
    assert "eng_Latn" in str(prepare(p.replace(on_bad_line="skip"), tmp_path).report["filter_reports"])
    table(tmp_path / name, [None if number % 70 == 3 else text for number, text in enumerate(texts)])
    prepare(p, tmp_path)
    assert "5 of 350 lines (1.4%) are dropped: 5 row without text" in capsys.readouterr().out


def test_an_empty_file_of_a_split_stops(tmp_path):
    "Also beside other text of its language; a file of lines that other files have loses nothing."
    for split in ("train", "validation"):
        (tmp_path / "text" / split).mkdir(parents=True)
        table(tmp_path / "text" / split / "eng_Latn.txt", TEXTS[:120])
    prepare(tiny.params_of(tmp_path / "text"), tmp_path)
    table(tmp_path / "text/validation/eng_Latn.txt", [])
    with pytest.raises(UserError, match="text/validation/eng_Latn.txt: no line of text"):
        prepare(tiny.params_of(tmp_path / "text"), tmp_path)


def test_a_written_corpus_is_refused_too(tmp_path, capsys):
    "By 01_corpus, before anything is left behind."
    (tmp_path / "text").mkdir()
    (tmp_path / "text/wol_Latn.txt").write_bytes(b"Am na\n" + LATIN_1)
    sources, _ = find_sources(tmp_path / "text")
    with pytest.raises(UserError, match="120 of 121 lines"):
        write_corpus(sources, tmp_path / "corpora/made", on_bad_line="skip_few")
    assert not (tmp_path / "corpora/made").exists()
    write_corpus(sources, tmp_path / "corpora/made")
    assert "120 of 121 lines (99.2%) are dropped" in capsys.readouterr().out


def test_files_that_are_no_text_never_stop(tmp_path, capsys):
    "They are reported. A language that is asked for needs its own file only."
    table(tmp_path / "eng_Latn.txt", TEXTS)
    for name in ("README.txt", "notes.md", "paper.pdf"):
        (tmp_path / name).write_text("about this corpus\n")
    _, warnings = open_corpus(str(tmp_path), on_bad_line="skip_few")
    assert len(warnings) == capsys.readouterr().out.count("corpus: ") == 3
    (tmp_path / "fra-Latn.txt").write_text("un\n")
    assert list(open_corpus(str(tmp_path), ["eng_Latn"], on_bad_line="skip_few")[0]) == ["eng_Latn"]
    with pytest.raises(UserError, match="no file in .* for fra_Latn; .*rename it to fra_Latn.txt"):
        open_corpus(str(tmp_path), ["fra_Latn"])


@pytest.mark.parametrize("copy", ["made/text/train/rus_Cyrl.txt", "glot/rus_Cyrl/part-00000.txt.zst"])
def test_corpora_that_langsamp_makes_only_tell(tmp_path, copy):
    "Nobody can repair the files of UDHR, MediaWiki, Bibles or a copied data set."
    (tmp_path / "made").mkdir()
    (tmp_path / "made/manifest.json").write_text("{}")
    facts = {"bad_files": [{"file": 0, "lines": 9, "bad": {"another script": 9}}], "examples": []}
    (line,) = bad_file_warnings(facts, [Source("rus_Cyrl", tmp_path / copy)])
    assert "9 of 9 lines" in line and not isinstance(line, LostFile)
    (line,) = bad_file_warnings(facts, [Source("rus_Cyrl", tmp_path / "rus_Cyrl.txt")])
    assert isinstance(line, LostFile)


# Codes and formats


@pytest.mark.parametrize("code", ["qaa_Latn", "qmx_Cyrl", "qtz_Tfng"])
def test_private_codes_are_languages(code):
    assert parse_code(code) == Code(*code.split("_"))


@pytest.mark.parametrize("code", ["qua_Xxxx", "qu_Latn", "Qaa_Latn", "qaa1_Latn", "qaa_Qaaa", "qaa_latn"])
def test_other_private_codes_are_not(code):
    with pytest.raises(UserError):
        parse_code(code)


FORMATS = ["qaa_Latn.txt", "qab_Latn.jsonl", "kik_Latn.csv", "luo_Latn.tsv", "hau_Latn.parquet", "ibo_Latn.csv.gz"]


def test_every_format_gives_the_same_text(tmp_path):
    "Quoted commas and line breaks inside a text too, which become spaces."
    texts = [*TEXTS, 'one, "two"', "three\tfour", "a\nb", "NA", "7"]
    for name in FORMATS:
        table(tmp_path / name, [text.replace("\n", " ") for text in texts] if ".txt" in name else texts)
    sources, warnings = find_sources(tmp_path)
    read = {code: list(clean_lines(files, FilterReport(code))) for code, files in sources.items()}
    assert warnings == [] and len(read) == len(FORMATS)
    assert all(one == read["qaa_Latn"] for one in read.values()) and len(read["qaa_Latn"]) == len(texts)


def test_a_run_reads_every_format(tmp_path):
    (tmp_path / "text").mkdir()
    for number, name in enumerate(FORMATS):
        table(tmp_path / "text" / name, TEXTS[number:])
    pretrain(tiny.params_of(tmp_path / "text", **ONE_STEP), tmp_path)
    languages = read_json(tmp_path / "own/model/config.json")["languages"]
    assert languages == sorted(name[:3] for name in FORMATS)


def test_rows_that_are_no_rows_are_counted_with_their_line(tmp_path):
    table(tmp_path / "wol_Latn.csv", [])
    rows = b'1,benn\n2,caf\xe9\n3\n4,"\xc3\xb1aar\nju"\n5,"x" y\n6,\n7,fan\n8,"open\n9,juroom\n'
    (tmp_path / "wol_Latn.csv").write_bytes(b"id,text\n" + rows)
    report = FilterReport("wol_Latn")
    sources, _ = find_sources(tmp_path)
    assert [text for _, text in clean_lines(sources["wol_Latn"], report)] == ["benn", "\u00f1aar ju", "fan"]
    assert report.dropped == {"not UTF-8": 1, "row without text": 5}
    places = [example.partition("/")[2] for example in report.examples if "row without" in example]
    assert [place.split(":")[1] for place in places] == ["4", "7", "8", "10", "11"]


def test_a_format_is_part_of_the_identity_of_a_text(tmp_path):
    "The same bytes as lines and as a table are different text, and must not share a shard."
    for name in ("wol_Latn.txt", "wol_Latn.csv", "other.txt"):
        (tmp_path / name).write_text("text\none\n")
    lines, rows, renamed = [source_hash([Source("wol_Latn", path)]) for path in sorted(tmp_path.iterdir())][::-1][:3]
    assert len({lines, rows}) == 2 and renamed == lines


@pytest.mark.parametrize("name", ["eng_Latn.jsonl", "eng_Latn.csv", "eng_Latn.parquet"])
def test_a_table_is_read_in_constant_memory(tmp_path, name):
    path = table(tmp_path / name, ["word " * 200] * 5_000)
    next(column_lines(path))
    tracemalloc.start()
    assert sum(1 for _ in column_lines(path)) == 5_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000, "less than a third of the text"


def test_own_text_is_found_by_name(tmp_path):
    "The folder is a corpus like any other, alone or joined."
    for folder, name in {"a": "wol_Latn.jsonl", "b": "wol_Latn.txt"}.items():
        (tmp_path / folder).mkdir()
        table(tmp_path / folder / name, [folder])
    sources, _ = find_corpus(f"{tmp_path}/a+{tmp_path}/b")
    assert [source.path.name for source in sources["wol_Latn"]] == ["wol_Latn.jsonl", "wol_Latn.txt"]


# What a loss rests on


def test_a_validation_shows_its_interval_and_what_it_rests_on(corpus, tmp_path, capsys):
    "In the log, the metrics and at the end; the loss itself is the mean over all masked tokens."
    p = tiny.params_of(corpus, run_name="own", max_steps=4, save_steps=2, learning_rate=0.9)
    p = p.replace(load_best_model_at_end=False)
    result = pretrain(p, tmp_path)
    printed = capsys.readouterr().out
    lines = {line["step"]: line for line in tiny.metrics_of(tmp_path / "own") if "validation_loss" in line}
    for step, line in lines.items():
        low, high = line["validation_interval"]
        masked = sum(count for _, count in line["by_language_script"].values())
        assert low < line["validation_loss"] < high
        shown = f"validation loss {line['validation_loss']:.3f}, 95 % interval {low:.3f} to {high:.3f} over {masked}"
        assert f"step {step:>6}  {shown} masked tokens (unigram" in printed
    assert result["best_step"] == 0 and f"exports step 4: validation loss {result['validation_loss']:.3f}" in printed
    assert f"; the best was step 0, validation loss {result['best_loss']:.3f}, 95 % interval" in printed
    (warning,) = [line for line in result["warnings"] if "masked tokens of held-out text, fewer than 500" in line]
    assert warning in printed and f"rests on {masked} " in warning


def test_enough_held_out_text_causes_no_warning(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("langsamp.training.pretrain.MIN_MASKED", 50)
    result = pretrain(tiny.params_of(corpus, run_name="own", max_steps=1, warmup_steps=0, save_steps=1), tmp_path)
    assert [line for line in result["warnings"] if "masked tokens of held-out text" in line] == []


# How much is held out


def held_out(sources: dict, code: str) -> tuple[int, int]:
    "Characters of held-out text, and of all."
    lines = list(clean_lines(sources[code], FilterReport(code)))
    return sum(len(text) for split, text in lines if split == "validation"), sum(len(text) for _, text in lines)


def own_folder(folder: Path) -> Path:
    "A small and a middling language without a split."
    for code, count in {"hin_Deva": 300, "eng_Latn": 6000}.items():
        tiny.write(folder / f"{code}.txt", "\n".join(tiny.sentences(code, count)) + "\n")
    return folder


def test_own_text_holds_out_enough_to_measure_a_loss(tmp_path):
    "At least the wanted characters, or as near to a tenth as whole lines come; the lines of 2 % are among them."
    folder = own_folder(tmp_path / "own")
    before, now = [open_corpus(str(folder), min_held_out=least)[0] for least in (0, 15_000)]
    out, total = held_out(now, "eng_Latn")
    assert 15_000 <= out < 15_100 and held_out(before, "eng_Latn")[0] < 15_000 and total > 150_000
    out, total = held_out(now, "hin_Deva")
    assert 0.095 * total < out <= 0.1 * total
    for code, files in now.items():
        split = {text: which for which, text in clean_lines(files, FilterReport(code))}
        old = [text for which, text in clean_lines(before[code], FilterReport(code)) if which == "validation"]
        assert all(split[text] == "validation" for text in old)


@pytest.mark.parametrize("huge", [[550_000, 550_000], [200_000], [16_000]])
def test_a_huge_line_leaves_the_held_out_text_as_large(tmp_path, huge):
    "In any order: the others are split as without it. Text without one has the same identity as before."
    short = tiny.sentences("eng_Latn", 350)
    long = [" ".join(tiny.sentences("eng_Latn", 1 + size // 20, seed=size + n))[:size] for n, size in enumerate(huge)]
    found = []
    for number, lines in enumerate([short, long + short, short + long]):
        path = table(tmp_path / str(number) / "eng_Latn.txt", lines)
        found.append(open_corpus(str(path.parent), min_held_out=15_000)[0])
    (plain, characters), first, last = [held_out(one, "eng_Latn") for one in found]
    assert first == last == (plain, characters + sum(huge)) and 0.09 * characters < plain <= 0.1 * characters
    assert [one["eng_Latn"][0].longest > 0 for one in found] == [False, True, True]
    (own,) = found[0]["eng_Latn"]
    facts = ["", sha256(own.path), f"{own.held_out!r} held out"]
    assert source_hash([own]) == content_hash([facts]) != source_hash([replace(own, longest=9)])


def test_documents_in_lines_keep_their_split(tmp_path):
    "Long lines are held out as before if none is more than a tenth of the text."
    documents = [" ".join(tiny.sentences("eng_Latn", 700, seed=n))[:20_000] for n in range(30)]
    path = table(tmp_path / "own/eng_Latn.txt", documents)
    sources, _ = open_corpus(str(path.parent), min_held_out=15_000)
    assert held_out(sources, "eng_Latn")[0] in (20_000, 19_999) and sources["eng_Latn"][0].longest == 0


@pytest.mark.parametrize("corpus", ["udhr", "copy"])
def test_known_corpora_keep_their_split(tmp_path, corpus):
    if corpus == "copy":
        write_corpus(open_corpus(str(own_folder(tmp_path / "own")))[0], tmp_path / "corpora/copy")
    before, now = [open_corpus(corpus, ["eng_Latn"], tmp_path, min_held_out=least)[0] for least in (0, 15_000)]
    assert before == now and source_hash(before["eng_Latn"]) == source_hash(now["eng_Latn"])


def test_a_folder_with_a_split_keeps_it(tmp_path, corpus):
    before, now = [open_corpus(str(corpus), outputs=tmp_path, min_held_out=least)[0] for least in (0, 15_000)]
    assert before == now


def test_an_earlier_run_on_own_text_goes_on_with_its_split(tmp_path):
    "Its params.yaml does not name the parameter; the message says how to continue."
    p = tiny.params_of(own_folder(tmp_path / "text"), run_name="own", max_steps=4, save_steps=4, min_held_out=0)
    result = pretrain(p, tmp_path)
    text = (tmp_path / "own/params.yaml").read_text()
    (tmp_path / "own/params.yaml").write_text(text.replace("min_held_out: 0\n", ""))
    with pytest.raises(UserError, match="other text .*continue a run on own text of an earlier version with min_held"):
        pretrain(p.replace(min_held_out=15_000), tmp_path)
    assert pretrain(p, tmp_path) == result
