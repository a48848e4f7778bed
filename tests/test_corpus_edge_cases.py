"Unusual corpora: what is read, merged, left out and reported; and leftovers of killed processes are removed."

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pycountry
import pytest
import tiny
import yaml

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.core.manifests import atomic_folder, find_damage
from langsamp.corpora import hub
from langsamp.corpora.build import build_corpus
from langsamp.corpora.decontamination import build_detector
from langsamp.corpora.evaluation_text import EvaluationText
from langsamp.corpora.hub import hub_sources
from langsamp.corpora.lines import Deduplicator
from langsamp.corpora.parts import join_parts, write_part
from langsamp.corpora.registry import drop_small_languages, find_corpus, open_corpus, write_corpus
from langsamp.corpora.text import FilterReport, Notice, clean_lines, find_sources
from langsamp.data.shards import corpus_report, write_shards
from langsamp.languages.codes import _aliases, language_facts, parse_code
from langsamp.params.pretrain import CorpusBuildParams
from langsamp.tokenization.train import corpus_characters, trained_tokenizer
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import main, pretrain
from langsamp.training.shard_tasks import run_shard_task

# Scraps

KILLED = """
import os, signal, sys
from pathlib import Path
from langsamp.core.files import write_json
from langsamp.core.manifests import atomic_folder
end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder, Path.replace = Path(sys.argv[1]), end
{}
"""
DEATHS = [
    "with atomic_folder(folder / 'one') as part: (part / 'half').touch(), end()",
    "write_json(folder / 'a.json', 1)",
]


def scraps(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*part*"))


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    "Also if the next folder has another name, as for a tokenizer of other text."
    for death in DEATHS:
        done = subprocess.run([sys.executable, "-c", KILLED.format(death), tmp_path])
        assert done.returncode == -signal.SIGKILL
    assert len(scraps(tmp_path)) == 2, "there are no leftovers to remove"
    with atomic_folder(tmp_path / "two") as part:
        (part / "whole").write_text("a")
    assert scraps(tmp_path) == [] and find_damage(tmp_path / "two") == ""


def test_files_still_being_written_are_kept(tmp_path):
    with atomic_folder(tmp_path / "one") as part:
        (part / "half").write_text("a")
        with atomic_folder(tmp_path / "one") as other:
            assert other != part
            (other / "half").write_text("b")
        assert (part / "half").read_text() == "a"
    assert (tmp_path / "one/half").read_text() == "a" and scraps(tmp_path) == []


def test_a_run_with_all_data_prepared_removes_leftovers(outputs, corpus):
    "Leftovers among tokenizers, shards and corpora are removed even if all text is prepared."
    p = tiny.params_of(corpus)
    prepare(p, outputs)
    for place in ("data/tokenizers", "data/shards", "corpora"):
        (outputs / place / ".part-killed-0-1").mkdir(parents=True)
    prepare(p, outputs)
    assert scraps(outputs) == []


# What is read


def folder_of(folder: Path, **files: str) -> Path:
    "Write a corpus folder; `__` in a name means `/`."
    for name, text in files.items():
        tiny.write(folder / f"{name.replace('__', '/')}.txt", text)
    return folder


def read(sources) -> dict[str, list[str]]:
    return {code: [text for _, text in clean_lines(files, FilterReport(code))] for code, files in sources.items()}


FOREIGN = ["test", "Validation", "dev", "validation/old", "train/part", "TRAIN", "eng_Latn"]


@pytest.mark.parametrize("other", FOREIGN)
def test_only_the_documented_layout_is_read(tmp_path, other):
    "Other folders cause a warning with a suggestion, and are not used."
    folder_of(tmp_path, train__eng_Latn="one\n", validation__eng_Latn="two\n", rus_Cyrl="один\n")
    tiny.write(tmp_path / other / "eng_Latn.txt", "a test sentence\n")
    tiny.write(tmp_path / other / "fra_Latn.txt", "une phrase\n")
    sources, (warning,) = find_sources(tmp_path)
    assert read(sources) == {"eng_Latn": ["one", "two"], "rus_Cyrl": ["один"]}
    assert warning.startswith(f"{tmp_path / other}: not read")
    assert not isinstance(warning, Notice)
    if other in ("Validation", "TRAIN"):
        assert f"did you mean `{other.lower()}`" in warning


def test_corpus_with_only_unexpected_subfolders(tmp_path):
    folder_of(tmp_path, test__eng_Latn="one\n")
    with pytest.raises(UserError, match="named like(.|\n)*test: not read"):
        find_sources(tmp_path)


def test_two_names_of_one_language_script_are_merged_with_a_notice(tmp_path):
    "As in a dataset; the notice never stops a run."
    for half in ("", "train/"):
        tiny.write(tmp_path / f"{half}zho_Hans.txt", f"简体{half}\n")
        tiny.write(tmp_path / f"{half}zho_Hant.txt.gz", "")
        tiny.write(tmp_path / f"{half}zho_Hani.txt", f"漢字{half}\n")
    sources, notes = find_sources(tmp_path)
    assert read(sources) == {"zho_Hani": ["漢字", "简体"]}, "text was lost"
    assert len(notes) == 1 and "zho_Hani and zho_Hans and zho_Hant are the same language-script" in notes[0]
    assert open_corpus(str(tmp_path), on_bad_line="stop")[0] == sources


def test_duplicate_name_is_an_error(tmp_path):
    "A file and its compressed copy are ambiguous."
    for name in ("eng_Latn.txt", "eng_Latn.txt.gz"):
        tiny.write(tmp_path / name, "one\n")
    with pytest.raises(UserError, match="are both eng_Latn: merge them into one file, or remove one"):
        find_sources(tmp_path)


# Messages


@pytest.fixture
def noisy(corpus, tmp_path) -> Path:
    "A corpus with four unexpected files and folders: four warnings."
    folder = tiny.write_corpus(tmp_path / "noisy")
    for name in ("de_Latn", "DEU_Latn", "de-DE"):
        tiny.write(folder / "train" / f"{name}.txt", "Alle Menschen sind frei geboren.\n")
    tiny.write(folder / "train/deu_Latn.txt/eng_Latn.txt", "All human beings are born free.\n")
    (folder / "validation/rus_Cyrl.txt").unlink()
    return folder


LOST = ["de_Latn.txt", "DEU_Latn.txt", "de-DE.txt", "deu_Latn.txt: not read"]


def test_command_line_reports_what_is_left_out(noisy, tmp_path, capfd):
    "At the start and in the result; including languages without validation text."
    p = tiny.params_of(noisy, run_name="run", max_steps=2, warmup_steps=0, save_steps=2, on_bad_line="skip")
    assert main([str(tiny.write_params(tmp_path / "p.yaml", p)), str(tmp_path)]) == 0
    before, begun, after = capfd.readouterr().out.partition("step      1")
    kept = read_json(tmp_path / "run/result.json")["warnings"]
    for part in [*LOST, "1 of 3 language-scripts have no held-out text"]:
        assert part in before, f"not reported at the start: {part}"
        assert part in after, f"not reported in the summary: {part}"
        assert any(part in line for line in kept), f"not kept: {part}"
    assert pretrain(p, tmp_path)["warnings"] == kept, "a finished run reports something else"
    again = capfd.readouterr().out
    assert [part for part in LOST if part not in again] == []


def test_shard_tasks_report_what_is_left_out(noisy, tmp_path, capsys):
    run_shard_task(tiny.params_of(noisy, on_bad_line="skip"), tmp_path, 0, 1)
    printed = capsys.readouterr().out
    assert [part for part in LOST if part not in printed] == []
    for stage in (lambda p: run_shard_task(p, tmp_path, 0, 1), lambda p: prepare(p, tmp_path)):
        with pytest.raises(UserError, match="set on_bad_line to skip"):
            stage(tiny.params_of(noisy, on_bad_line="stop"))


def test_building_a_corpus_names_the_small_languages(tmp_path, capsys):
    tiny.write_corpus(tmp_path / "in")
    (tmp_path / "in/train/ell_Grek.txt").write_text("και\n")
    values = {"name": "two", "corpus": str(tmp_path / "in"), "languages": [], "benchmarks": [], "min_characters": 500}
    folder = build_corpus(CorpusBuildParams(**values), tmp_path)
    assert {path.stem for path in folder.glob("text/*/*.txt")} == set(tiny.ALPHABETS) - {"ell_Grek"}
    assert "ell_Grek is left out" in capsys.readouterr().out


def test_many_warnings_are_shortened(tmp_path, capsys):
    "Those about files of other kinds; each lost file keeps its line."
    folder_of(tmp_path, eng_Latn="one\n", **{f"x{n}": "one\n" for n in range(9)})
    for number in range(40):
        (tmp_path / f"x{number}.pdf").write_text("one\n")
    assert len(open_corpus(str(tmp_path))[1]) == 49
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 + 6 and "and 35 more" in lines[-1] and all(".txt: " in line for line in lines[:9])


# The policy is not cached


def test_skipped_lines_stop_a_later_strict_run(tmp_path):
    "`on_bad_line: stop` after `skip` on the same text, also if the shards exist already."
    folder = tiny.write_corpus(tmp_path / "corpus")
    with open(folder / "train/eng_Latn.txt", "ab") as file:
        file.write(b"caf\xe9\n\nna\xefve\n")
    prepare(tiny.params_of(folder), tmp_path)
    for again in (lambda p: prepare(p, tmp_path), lambda p: run_shard_task(p, tmp_path, 0, 1)):
        with pytest.raises(UserError, match=r"eng_Latn.txt:61: not UTF-8 \(2 such lines\); fix the line, or set"):
            again(tiny.params_of(folder, on_bad_line="stop"))
    assert prepare(tiny.params_of(folder), tmp_path).report["filter_reports"][0]["dropped"] == {
        "not UTF-8": 2,
        "blank": 1,
    }


def test_dropped_lines_of_a_written_corpus_are_reported_again(tmp_path):
    "Bad lines and unexpected files of its sources; lines dropped by a rule are no problem."
    folder = folder_of(tmp_path / "corpus", eng_Latn="one\none\nтри\nfour\n", rus_Cyrl="один\n", readme="")
    sources, warnings = find_sources(folder)
    rule = [lambda code, split, text: "evaluation text" * (text == "four")]
    write_corpus(sources, tmp_path / "corpora/made", rule, warnings=warnings)
    for name in ("made", str(tmp_path / "corpora/made")):
        found, (one, two) = find_corpus(name, outputs=tmp_path)
        assert "when corpus made was created: " in one and "readme.txt" in one
        assert two.endswith("eng_Latn.txt:3: another script") and list(found) == ["eng_Latn", "rus_Cyrl"]
        with pytest.raises(UserError, match="readme.txt"):
            open_corpus(name, outputs=tmp_path, on_bad_line="stop")
        _, (only,) = find_corpus(name, ["rus_Cyrl"], tmp_path)
        assert "readme.txt" in only
    (tmp_path / "corpora/made/text/train/rus_Cyrl.txt").write_text("one, two, three\n")
    with pytest.raises(UserError, match="rus_Cyrl.txt has 16 bytes"):
        find_corpus("made", outputs=tmp_path)


def test_full_temporary_folder():
    seen = Deduplicator(in_memory=0)
    seen.table.execute("PRAGMA max_page_count = 3")
    with pytest.raises(UserError, match="set SQLITE_TMPDIR"):
        for number in range(2000):
            seen.add(str(number))


# Datasets


ROWS = {  # Beside two good rows in lines of JSON -> the line and why
    "a number": (b'{"text": 7}', "`text` is int"),
    "zero": (b'{"text": 0}', "`text` is int"),
    "false": (b'{"text": false}', "`text` is bool"),
    "an empty list": (b'{"text": []}', "`text` is list"),
    "a list": (b'{"text": ["one"]}', "`text` is list"),
    "broken JSON": (b'{"text": ', "Expecting value"),
    "a row of another kind": (b'["one"]', "list"),
    "no JSON": (b"\0\1\2", "Expecting value"),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", ROWS)
def test_row_without_text_is_counted_and_skipped(tmp_path, monkeypatch, name, first):
    "With its place, also for the first row; with `stop` it is an error, even if the dataset was copied before."
    monkeypatch.setenv("LANGSAMP_CACHE", str(tmp_path / "cache"))
    row, why = ROWS[name]
    good = [b'{"text": "benn"}', b'{"text": "two"}', b'{"text": null}']
    rows = [row, *good, row] if first else [good[0], row, *good[1:], row]
    tiny.write(tmp_path / "glot/wol_Latn/a.jsonl", "").write_bytes(b"\n".join(rows) + b"\n")
    for _ in range(2):
        sources, (warning,) = find_corpus(f"hub:{tmp_path}/glot", outputs=tmp_path)
        filter_report = FilterReport("wol_Latn")
        assert [text for _, text in clean_lines(sources["wol_Latn"], filter_report)] == ["benn", "two"]
        assert filter_report.dropped == {"row without text": 2, "blank": 1} and filter_report.lines == 5
        assert f"a.jsonl:{1 if first else 2}: row without text" in warning and why in warning
        assert "(2 such lines)" in warning
    with pytest.raises(UserError, match="row without text"):
        open_corpus(f"hub:{tmp_path}/glot", outputs=tmp_path, on_bad_line="stop")
    with pytest.raises(UserError, match="row without text; fix the line, or set"):
        list(clean_lines(sources["wol_Latn"], FilterReport("wol_Latn"), stop=True))


def test_invalid_utf8_drops_only_its_row(tmp_path):
    rows = b'{"text": "un"}\n{"text": "caf\xe9"}\n{"text": "trois"}\n'
    tiny.write(tmp_path / "glot/fra_Latn/a.jsonl", "").write_bytes(rows)
    sources, warnings = hub_sources(str(tmp_path / "glot"), [], tmp_path / "home")
    filter_report = FilterReport("fra_Latn")
    assert [text for _, text in clean_lines(sources["fra_Latn"], filter_report)] == ["un", "trois"]
    assert filter_report.dropped == {"not UTF-8": 1} and warnings == []


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_rows_without_text_are_counted_once(tmp_path, cut):
    "An interrupted copy continues after its last part, with the counts of an uninterrupted one."
    rows = [{"text": 1 if n % 3 else "benn"} for n in range(30)]
    tiny.write(tmp_path / "glot/wol_Latn/a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    _, whole = hub_sources(str(tmp_path / "glot"), [], tmp_path / "whole", 4)
    calls = iter([hub.write_json] * cut)
    with patch.object(hub, "write_json", side_effect=lambda *a: next(calls)(*a)), pytest.raises(StopIteration):
        hub_sources(str(tmp_path / "glot"), [], tmp_path / "cut", 4)
    _, again = hub_sources(str(tmp_path / "glot"), [], tmp_path / "cut", 4)
    assert again == whole and "(20 such lines)" in whole[0]


# Codes


WITHDRAWN = {"iw": "heb", "in": "ind", "ji": "yid", "jw": "jav", "mo": "ron", "sh": "hbs", "bh": "bih", "jaw": "jav"}


@pytest.mark.parametrize("old", WITHDRAWN)
def test_withdrawn_code_suggests_its_language(old):
    "File names and requested codes get the same suggestion."
    with pytest.raises(UserError, match=f"did you mean `{WITHDRAWN[old]}_Latn`"):
        parse_code(f"{old}_Latn")
    with pytest.raises(UserError, match=f"the script is missing; write `{WITHDRAWN[old]}_`"):
        parse_code(old)
    with pytest.raises(UserError, match=f"did you mean `{WITHDRAWN[old]}`"):
        language_facts(old)


def test_every_alias_resolves_to_a_code():
    for kind in ("withdrawn", "retired", "macrolanguage"):
        for old, new in _aliases(kind).items():
            assert str(parse_code(f"{new}_Latn")) == f"{new}_Latn", f"{kind}: {old} leads nowhere"


# Open files


@contextmanager
def at_most(files: int) -> Iterator[None]:
    "Limit the process to the given number of additional open files."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def codes(count: int) -> list[str]:
    "Language-scripts, in order."
    names = sorted(f"{x.alpha_3}_Latn" for x in pycountry.languages if x.scope == "I")
    return [name for name in names if str(parse_code(name)) == name][:count]


def test_open_files_do_not_grow_with_written_languages(corpus, tmp_path):
    "Characters, corpus, audit and shards of 40 languages, and a dataset of 20, with at most twelve more open files."
    names = codes(40)
    folder = folder_of(tmp_path / "many", **{f"train__{c}": f"abc {c}\nabc def\n" for c in names})
    for code in names[:20]:
        tiny.write(tmp_path / f"glot/{code}/a.jsonl", json.dumps({"text": f"abc {code}"}))
    tokenizer = trained_tokenizer(find_sources(corpus)[0], "0", tmp_path / "tokenizer", 300)
    gc.collect()
    gc.disable()  # Files are closed where they are no longer needed, and not when somebody comes by
    try:
        with at_most(12):
            sources, _ = find_sources(folder)
            assert len(corpus_characters(sources)) > 5 and len(drop_small_languages(sources, 1)[0]) == len(names)
            detector = build_detector([EvaluationText("mine", "x", names[0], ["abc def"])])
            write_part(sources, tmp_path / "part", detector)
            join_parts([tmp_path / "part"], tmp_path / "made", detector)
            assert len(corpus_report(write_shards(sources, tokenizer, tmp_path / "shards"))["filter_reports"]) == len(
                names
            )
            assert len(hub_sources(str(tmp_path / "glot"), [], tmp_path / "home")[0]) == 20
    finally:
        gc.enable()


@pytest.mark.slow
def test_notebooks_report_what_is_left_out(noisy, tmp_path):
    "When a corpus is made from the folder, and in each run on it; at the start and in the summary."
    values = {"name": "made", "corpus": str(noisy), "languages": [], "benchmarks": [], "on_bad_line": "skip"}
    params = tiny.write(tmp_path / "corpus.yaml", yaml.safe_dump(values))
    printed = tiny.papermill_command("nbs/01_corpus.ipynb", tmp_path / "corpus.ipynb", tmp_path, "-f", str(params))
    assert [part for part in LOST if printed.count(f"{part}") < 2] == []
    p = tiny.params_of(Path("made"), run_name="run", max_steps=2, warmup_steps=0, save_steps=2)
    params = tiny.write_params(tmp_path / "run.yaml", p)
    printed = tiny.papermill_command("nbs/03_pretrain.ipynb", tmp_path / "run.ipynb", tmp_path, "-f", str(params))
    cells = json.loads((tmp_path / "run.ipynb").read_text(encoding="utf-8"))["cells"]
    (result,) = [str(cell["outputs"]) for cell in cells if "\npretrain(params" in "\n" + "".join(cell["source"])]
    for part in ["when corpus made was created: ", *LOST, "1 of 3 language-scripts have no held-out text"]:
        assert part in printed, f"not reported at the start: {part}"
        assert part in result, f"not reported in the summary: {part}"


# Nothing to learn from

EMPTY = {
    "no line": ({"eng_Latn": "", "rus_Cyrl": "\n\n"}, "no text to train on: "),
    "another script": (
        {"zho_Hans": "only letters\nof another script\n"},
        "none of its 2 lines .* as in .*zho_Hans.txt:1",
    ),
    "only held out": ({"validation__eng_Latn": "one two\nthree four\n"}, "none of its 2 lines is kept for training"),
}


@pytest.mark.parametrize("packing", ["sentences", "stream"])
@pytest.mark.parametrize("kind", EMPTY)
def test_corpus_without_training_lines(tmp_path, outputs, stock, kind, packing):
    "The error names the corpus, not the model."
    files, printed = EMPTY[kind]
    folder_of(tmp_path, **files)
    p = tiny.params_of(tmp_path, run_name=f"empty-{packing}", tokenizer=str(stock), packing=packing, on_bad_line="skip")
    with pytest.raises(UserError, match=f"{tmp_path.name}` has no text to train on: ") as error:
        pretrain(p, outputs)
    assert re.search(printed, str(error.value)), error.value
    assert not (outputs / p.run_name / "params.yaml").exists()


@pytest.mark.parametrize("name", ["fra_Latn.TXT", "fr_Latn.txt", "FRA_Latn.txt"])
def test_error_names_the_unreadable_file_of_a_wanted_language(tmp_path, name):
    "And suggests no other language with a similar code."
    folder_of(tmp_path, ita_Latn="una frase\n")
    tiny.write(tmp_path / name, "une phrase\n")
    with pytest.raises(UserError, match="for fra_Latn; ") as error:
        find_corpus(str(tmp_path), ["fra_Latn"])
    assert name in str(error.value) and "ita_Latn" not in str(error.value)
