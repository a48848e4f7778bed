"No language trains on a verse of the evaluation; the verses are the same in all languages; problems are reported."

import re
import tracemalloc
from pathlib import Path

import pytest
import tiny
import yaml
from tiny import write

from langsamp.analysis.neutrality_plots import parallel_text
from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.corpora.bible import verse_id
from langsamp.corpora.bible_corpus import USES, bible_corpus, find_bibles, read_verse_list, split_verses
from langsamp.corpora.decontamination import audit_corpus, build_detector, overlap_table, overlap_totals
from langsamp.corpora.evaluation_text import read_evaluation_sets
from langsamp.corpora.registry import corpus_origins, find_corpus, open_corpus
from langsamp.evaluation.bitext import load_bitexts
from langsamp.evaluation.datasets import load_labelled
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.tasks import get_task
from langsamp.params.evaluate import EvaluationParams
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import pretrain

REFERENCES = [f"{book} 1:{verse}" for book in ("MAT", "MRK", "LUK") for verse in range(1, 21)]
LETTERS = {"eng_Latn": "abcdefghij", "deu_Latn": "klmnopqrst", "rus_Cyrl": "абвгдежзик", "hin_Deva": "कखगघचछजझटठ"}
PLAN = ["train", "train", "train", "retrieval", "retrieval", "taxi1500", "taxi1500", "taxi1500", "train", "validation"]


def words(code: str, reference: str) -> str:
    "The text of a verse: eight words that only this verse has in this language."
    digits = verse_id(reference)
    return " ".join("".join(LETTERS[code][int(d)] for d in f"{digits}{i:02}") for i in range(8))


def verse_of(code: str, text: str) -> str:
    "The number of the verse with a text."
    return "".join(str(LETTERS[code].index(letter)) for letter in text.split()[0][:8])


def uses() -> dict[str, str]:
    "What each verse is for."
    return {verse_id(reference): PLAN[number % len(PLAN)] for number, reference in enumerate(REFERENCES)}


def write_bible(folder: Path, code: str, name: str = "", **lines: str) -> Path:
    "A Bible in eBible's layout; `lines` replaces verses, such as `MRK_1_3`."
    texts = [lines.get(re.sub(r"\W", "_", reference), words(code, reference)) for reference in REFERENCES]
    return write(folder / f"{name or code}.txt", "\n".join(texts) + "\n")


def write_list(path: Path, **other: str) -> Path:
    "A verses.tsv; `other` replaces uses, such as `v41001003`."
    rows = ["verse\treference\tuse\ttaxi1500_split\ttaxi1500_label"]
    for number, reference in enumerate(REFERENCES):
        verse = verse_id(reference)
        use = other.get(f"v{verse}", uses()[verse])
        split, label = ("train dev test".split()[number % 3], "Faith Sin Grace".split()[number // 3 % 3])
        rows.append("\t".join([verse, reference, use, *([split, label] if use == "taxi1500" else ["", ""])]))
    return write(path, "\n".join(rows) + "\n")


@pytest.fixture()
def bibles(tmp_path, monkeypatch) -> Path:
    "A folder `bible/` with four small Bibles, a verse list and licences; the cache is empty."
    monkeypatch.setenv("LANGSAMP_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "data/bible"
    write(home / "bible/vref.txt", "\n".join(REFERENCES) + "\n")
    for code in LETTERS:
        write_bible(home / "bible", code)
    write_list(home / "verses.tsv")
    rows = ["deu_Latn\tby-nc-nd\t4.0\tWycliffe", "eng_Latn\tPublic Domain\t\t", 'hin_Deva\tby\t4.0\tA "society" of']
    write(home / "licences.tsv", "\n".join(["language_script\tlicence\tversion\tholder", *rows]) + "\n")
    return home


def read_verses(name: str) -> dict[tuple[str, str], list[str]]:
    "The verses in a corpus by language-script and split."
    sources, _ = find_corpus(name)
    return {
        (code, file.split): [verse_of(code, line) for line in file.path.read_text().splitlines()]
        for code, files in sources.items()
        for file in files
    }


# The guarantee


def test_each_language_has_the_verses_of_the_list(bibles):
    found = read_verses(f"bible:{bibles}")
    for code in LETTERS:
        for split in ("train", "validation"):
            assert found[code, split] == [verse for verse, use in uses().items() if use == split]


@pytest.mark.parametrize("rule", ["verses.tsv", "default", "taxi1500", "both"])
def test_no_language_has_seen_a_verse_of_an_evaluation(bibles, rule):
    "Languages lack verses or combine them, so that their texts differ; the list is from any source."
    write_bible(bibles / "bible", "deu_Latn", MRK_1_2="", MRK_1_5="<range>", LUK_1_9="<range>", MAT_1_4="")
    write_bible(bibles / "bible", "rus_Cyrl", MRK_1_4="<range>", MRK_1_5="<range>", LUK_1_1="", LUK_1_10="<range>")
    if rule in ("default", "taxi1500"):
        (bibles / "verses.tsv").unlink()
    if rule in ("taxi1500", "both"):
        for split, verse in {"train": "41001001", "dev": "42001001", "test": "42001002"}.items():
            write(bibles.parent / f"taxi1500/eng_data/eng_{split}.tsv", f"{verse}\tFaith\tA verse\n")
    verse_list, _ = read_verse_list(find_bibles(bibles))
    held_out = {verse for verse in map(verse_id, REFERENCES) if verse_list.use(verse) in ("retrieval", "taxi1500")}
    assert len(held_out) >= 20 and (
        rule in ("verses.tsv", "default") or {"41001001", "42001001", "42001002"} <= held_out
    )
    found = read_verses(f"bible:{bibles}")
    assert {code for code, _ in found} == set(LETTERS)
    for (code, split), verses in found.items():
        assert not held_out & set(verses), code
        assert all(verse_list.use(verse) == split for verse in verses)


def test_a_text_of_several_verses_is_used_only_if_all_are_for_the_same(bibles):
    "Verses 2 and 3 are for training; verse 3 is with 4, which is for retrieval; 9 is with 10, for validation."
    path = write_bible(bibles / "bible", "rus_Cyrl", MRK_1_3="<range>", LUK_1_4="<range>", LUK_1_10="<range>")
    verse_list, _ = read_verse_list(find_bibles(bibles))
    found = {verse_of("rus_Cyrl", text): use for use, text in split_verses(path, verse_list)}
    assert found["41001002"] == "train" and found["42001003"] == found["42001009"] == ""


def test_the_layout_with_numbers_is_read_alike(bibles):
    "An empty verse there is one that the verse before it contains."
    lines = [f"{verse_id(reference)}\t{words('rus_Cyrl', reference)}" for reference in REFERENCES]
    lines[3] = lines[3].partition("\t")[0]
    write(bibles / "bible/rus_Cyrl.txt", "\n".join(lines) + "\n")
    found = read_verses(f"bible:{bibles}")["rus_Cyrl", "train"]
    assert found == [v for v, use in uses().items() if use == "train" and v != "40001003"]


def test_default_is_by_number_and_said(bibles):
    (bibles / "verses.tsv").unlink()
    found, notices = read_verses(f"bible:{bibles}"), find_corpus(f"bible:{bibles}")[1]
    assert not any(verse.startswith("40") for verses in found.values() for verse in verses), "Matthew is for retrieval"
    assert found["eng_Latn", "train"] == found["hin_Deva", "train"] and len(found["eng_Latn", "train"]) > 30
    assert any("Matthew is for retrieval" in line for line in notices) and any("Taxi1500" in line for line in notices)
    open_corpus(f"bible:{bibles}", on_bad_line="stop")


# Layouts and names


def test_a_checkout_of_ebible(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGSAMP_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "ebible"
    write(home / "metadata/vref.txt", "\n".join(REFERENCES) + "\n")
    write(home / "requirements.txt", "wildebeest-nlp\n")
    write_bible(home / "corpus", "eng_Latn", "eng-engwebp")
    write_bible(home / "corpus", "eng_Latn", "eng-engold", MRK_1_1="")
    write_bible(home / "corpus", "deu_Latn", "deu-deu-1912")
    columns = "ID\tLicence Type\tLicence Version\tCopyright Holder"
    write(home / "metadata/licences.tsv", f"{columns}\ndeu_1912\tPublic Domain\t\tPublic Domain\nengwebp\tby\t4.0\tX\n")
    sources, warnings = find_corpus(f"bible:{home}")
    assert list(sources) == ["deu_Latn", "eng_Latn"]
    assert any("eng-engwebp.txt (60 verses) is used, not eng-engold.txt (59)" in line for line in warnings)
    table = read_json(sources["eng_Latn"][0].path.parents[2] / "bibles.json")
    assert table["deu_Latn"]["licence"] == "Public Domain" and table["eng_Latn"]["holder"] == "X"
    open_corpus(f"bible:{home}", on_bad_line="stop")


def test_without_a_folder_it_is_that_of_the_evaluation_data(bibles, monkeypatch):
    monkeypatch.setenv("LANGSAMP_DATA", str(bibles.parent))
    assert read_verses("bible") == read_verses(f"bible:{bibles}")
    monkeypatch.setenv("LANGSAMP_DATA", "")
    with pytest.raises(UserError, match="bible:FOLDER, or set LANGSAMP_DATA"):
        find_corpus("bible")


def test_joined_with_another_corpus(bibles, corpus):
    sources, _ = find_corpus(f"bible:{bibles}+{corpus}")
    assert {code: len(files) for code, files in sources.items()} == {
        "deu_Latn": 2, "eng_Latn": 4, "hin_Deva": 4, "rus_Cyrl": 4
    }  # fmt: skip


# Written once


def test_written_once_and_again_after_a_change(bibles):
    first = bible_corpus(bibles)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert bible_corpus(bibles) == first and before == {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    write_list(bibles / "verses.tsv", v41001001="validation")
    second = bible_corpus(bibles)
    write_bible(bibles / "bible", "deu_Latn", MRK_1_2="")
    assert len({first, second, bible_corpus(bibles)}) == 3
    (second / "text/train/eng_Latn.txt").write_text("changed\n")
    write_list(bibles / "verses.tsv", v41001001="validation")
    write_bible(bibles / "bible", "deu_Latn")
    assert bible_corpus(bibles) == second and "changed" not in (second / "text/train/eng_Latn.txt").read_text()


def test_nothing_is_left_of_a_failed_attempt(bibles, monkeypatch):
    from langsamp.corpora import bible_corpus as module

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", fail)
        with pytest.raises(UserError, match="No space left"):
            bible_corpus(bibles)
    assert not list((bibles.parents[1] / "cache").glob("bible-*"))
    assert bible_corpus(bibles).exists()


def test_memory_does_not_grow_with_the_number_of_languages(bibles):
    def peak() -> int:
        tracemalloc.start()
        bible_corpus(bibles)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few = peak()
    long = {re.sub(r"\W", "_", reference): "word " * 500 for reference in REFERENCES}
    for code in "fra spa ita por ron nob swe dan nld fin est ces slk pol hun".split():
        write_bible(bibles / "bible", "eng_Latn", f"{code}_Latn", **long)
    assert peak() < few + 3 * 60 * 2500, "fifteen Bibles of 150 kB"


# Problems


def test_unreadable_bibles_and_lines_are_reported_and_the_rest_is_read(bibles):
    lines = (bibles / "bible/deu_Latn.txt").read_bytes().split(b"\n")
    lines[20] = b"not UTF-8 \xff"
    (bibles / "bible/deu_Latn.txt").write_bytes(b"\n".join(lines))
    write(bibles / "bible/rus_Cyrl.txt", "one line\n")
    write(bibles / "bible/xyq_Latn.txt", "x\n" * len(REFERENCES))
    for _ in range(2):  # Also when the corpus is read from the cache
        sources, warnings = find_corpus(f"bible:{bibles}")
        assert list(sources) == ["deu_Latn", "eng_Latn", "hin_Deva"]
        text = "\n".join(warnings)
        assert len(warnings) == 3 and "deu_Latn.txt:21: not UTF-8" in text and "`xyq` is not a language" in text
        assert "rus_Cyrl.txt has 1 lines and its vref.txt 60" in text
    assert verse_id(REFERENCES[20]) not in read_verses(f"bible:{bibles}")["deu_Latn", "train"]
    with pytest.raises(UserError, match="set on_bad_line to skip"):
        open_corpus(f"bible:{bibles}", on_bad_line="stop")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tretrieval\t", "\tretreival\t", r"verses.tsv:5: use is `retreival`.*did you mean `retrieval`"),
        ("40001003", "Mat 1,3", r"verses.tsv:4: `Mat 1,3` is not a verse number"),
        ("40001004", "40001003", r"verses.tsv:5: 40001003 is for retrieval and for train"),
        ("verse\treference\tuse", "verse\treference\tpurpose", r"verses.tsv:1: no column `use`"),
    ],
)
def test_a_wrong_verse_list_is_an_error_with_its_place(bibles, old, new, message):
    path = bibles / "verses.tsv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        find_corpus(f"bible:{bibles}")


def test_a_folder_without_a_bible(bibles, tmp_path):
    with pytest.raises(UserError, match="no Bible in .*none; it needs files like eng_Latn.txt"):
        find_corpus(f"bible:{tmp_path / 'none'}")
    for path in (bibles / "bible").glob("*_*.txt"):
        path.write_text("one line\n")
    with pytest.raises(UserError, match="can be read\n.*has 1 lines"):
        find_corpus(f"bible:{bibles}")


# Licences


def test_licences_are_in_the_manifest_and_in_the_report_of_a_run(bibles, tmp_path):
    sources, _ = find_corpus(f"bible:{bibles}")
    (origin,) = corpus_origins(sources)
    assert origin["licences"] == {"by-nc-nd 4.0": 1, "Public Domain": 1, "by 4.0": 1, "unknown": 1}
    assert origin["holders"] == {"unknown": 2, "Wycliffe": 1, 'A "society" of': 1}
    assert origin["verses"] == {"origin": "verses.tsv"} | {use: list(uses().values()).count(use) for use in USES}
    prepared = prepare(tiny.params_of(Path(f"bible:{bibles}")), tmp_path / "outputs")
    assert prepared.report["origins"] == [origin]
    assert [x["kept"] for x in prepared.report["filter_reports"]] == [{"train": 24, "validation": 6}] * 4


# Tasks


def held_out(use: str) -> list[str]:
    "The verses for a use, in order."
    return [verse for verse, its in uses().items() if its == use]


def test_retrieval_is_on_the_verses_of_the_list_in_every_language(bibles):
    write_bible(bibles / "bible", "deu_Latn", MAT_1_4="", MRK_1_4="<range>")
    bitexts, warnings = load_bitexts("bible", bibles.parent)
    assert [(one.name, one.source, one.target) for one in bitexts] == [
        (code, "eng_Latn", code) for code in sorted(LETTERS) if code != "eng_Latn"
    ]
    for one in bitexts:
        lacking = {"40001004", "41001004"} if one.target == "deu_Latn" else set()
        verses = [verse for verse in held_out("retrieval") if verse not in lacking]
        assert [verse_of("eng_Latn", text) for text in one.source_texts] == verses
        assert [verse_of(one.target, text) for text in one.target_texts] == verses
    assert len(warnings) == 1 and "366 of the 369 language-scripts of the paper's list are missing" in warnings[0]


def test_neutrality_compares_the_retrieval_verses_that_all_languages_have(bibles, monkeypatch):
    "German lacks one verse of twelve, and nobody gets it; Hindi lacks two, and is left out."
    monkeypatch.setenv("LANGSAMP_DATA", str(bibles.parent))
    write_bible(bibles / "bible", "deu_Latn", MAT_1_4="")
    write_bible(bibles / "bible", "hin_Deva", MAT_1_4="", MAT_1_5="")
    text = parallel_text("bible")
    assert (text.codes, text.dropped) == (["deu_Latn", "eng_Latn", "rus_Cyrl"], ["hin_Deva"])
    for code, sentences in zip(text.codes, text.texts, strict=True):
        assert [verse_of(code, sentence) for sentence in sentences] == held_out("retrieval")[1:]
    assert parallel_text("bible", ["eng_Latn", "rus_Cyrl"]).codes == ["eng_Latn", "rus_Cyrl"]


def test_taxi1500_needs_no_files_of_its_own(bibles):
    "Splits and topics are in the verse list, for every language, English among them."
    write_bible(bibles / "bible", "deu_Latn", MAT_1_6="")
    sets, warnings = load_labelled("taxi1500", bibles.parent)
    assert [(one.name, one.code) for one in sets] == [(code, code) for code in sorted(LETTERS)]
    english, german = (next(one for one in sets if one.code == code) for code in ("eng_Latn", "deu_Latn"))
    assert sum(len(part.texts) for part in english.splits.values()) == len(held_out("taxi1500")) == 18
    assert set(english.splits) == {"train", "dev", "test"}
    for split, part in english.splits.items():
        for text, label in zip(part.texts, part.labels, strict=True):
            number = REFERENCES.index(next(r for r in REFERENCES if verse_id(r) == verse_of("eng_Latn", text)))
            assert ("train dev test".split()[number % 3], "Faith Sin Grace".split()[number // 3 % 3]) == (split, label)
    assert sum(len(part.texts) for part in german.splits.values()) == 17
    assert warnings == ["deu_Latn test: 1 of 6 labelled verses are missing"]


def test_english_files_of_taxi1500_take_the_place_of_the_list(bibles):
    for number, split in enumerate(("train", "dev", "test"), 6):
        write(bibles.parent / f"taxi1500/eng_{split}.tsv", f"4000100{number}\tGrace\tAnother wording {number}\n")
    sets, warnings = load_labelled("taxi1500", bibles.parent)
    assert sets[0].name == "eng" and sets[0].splits["dev"].texts == ["Another wording 7"]
    assert [part.labels for part in sets[1].splits.values()] == [["Grace"]] * 3
    assert any("eng_Latn.txt is not read" in warning for warning in warnings)


def test_a_wrong_verse_list_stops_neither_task(bibles):
    (bibles / "verses.tsv").write_text("verse\tpurpose\n40001001\ttrain\n")
    assert load_bitexts("bible", bibles.parent)[0] == load_labelled("taxi1500", bibles.parent)[0] == []
    for _, warnings in (load_bitexts("bible", bibles.parent), load_labelled("taxi1500", bibles.parent)):
        assert any("verses.tsv:1: no column `use`" in warning for warning in warnings)


@pytest.mark.parametrize("rule", ["verses.tsv", "default", "taxi1500"])
def test_no_verse_of_a_task_is_in_the_corpus(bibles, rule):
    "End to end: what the tasks load against what the corpus trains on and validates with, all languages together."
    if rule != "verses.tsv":
        (bibles / "verses.tsv").unlink()
    if rule == "taxi1500":
        for number, split in enumerate(("train", "dev", "test"), 6):
            write(bibles.parent / f"taxi1500/eng_{split}.tsv", f"4100100{number}\tGrace\tAnother wording {number}\n")
    read = {verse for verses in read_verses(f"bible:{bibles}").values() for verse in verses}
    bitexts, _ = load_bitexts("bible", bibles.parent)
    asked = {verse_of(one.target, text) for one in bitexts for text in one.target_texts}
    for one in load_labelled("taxi1500", bibles.parent)[0]:
        texts = [text for part in one.splits.values() for text in part.texts]
        asked |= {verse_of(one.code, text) for text in texts if one.name != "eng"}
    assert len(asked) == {"verses.tsv": 30, "default": 20, "taxi1500": 23}[rule] and not asked & read


# The audit


def audit(bibles: Path) -> tuple[dict, list[str]]:
    "Look for the verses of both tasks in the corpus."
    parts, warnings = read_evaluation_sets(["bible", "taxi1500"], bibles.parent)
    return audit_corpus(find_corpus(f"bible:{bibles}")[0], build_detector(parts)), warnings


def test_the_audit_finds_no_verse_of_the_tasks(bibles):
    report, warnings = audit(bibles)
    totals = overlap_totals(report)
    assert warnings == [] and totals.sentences.to_dict() == {"bible": 12 * 4, "taxi1500": 18 * 4}
    assert totals.found.sum() == totals.validation.sum() == totals.languages_unjudged.sum() == 0


def test_the_audit_shows_where_a_verse_repeats_another(bibles):
    "Some verses are literally in two books: Mark 1:4, of retrieval, is also Luke 1:9 in German, which is trained on."
    write_bible(bibles / "bible", "deu_Latn", LUK_1_9=words("deu_Latn", "MRK 1:4"))
    report, _ = audit(bibles)
    first = overlap_table(report).iloc[0]
    assert (first.benchmark, first.code, first.equal, first.found) == ("bible", "deu_Latn", 1, 1)
    assert first["where"] == "train/deu_Latn.txt:20" and first.line == words("deu_Latn", "MRK 1:4")
    assert overlap_totals(report).found.to_dict() == {"bible": 1, "taxi1500": 0}


# Results and commands


def test_results_record_licences_and_the_list(bibles, tmp_path):
    "One file per session, beside the hashes of data and code; other tasks have their own source and licence."
    p = tiny.params_of(Path(f"bible:{bibles}"), run_name="one", max_steps=2, warmup_steps=0, save_steps=2)
    pretrain(p, tmp_path / "outputs")
    request = EvaluationParams(encoder="one", tasks=["bible", "taxi1500"], data_dir=str(bibles.parent), seeds=1)
    rows, warnings = evaluate(request, tmp_path / "outputs")
    assert rows.groupby("task").target.nunique().to_dict() == {"bible": 3, "taxi1500": 4}
    assert {"acc10", "f1_macro"} <= set(rows.metric) and rows.source.unique().tolist() == ["eng_Latn"]
    for path in (tmp_path / "outputs").glob("evaluations/*/*/settings.json"):
        (session,) = read_json(path)["sessions"]
        found = session["dataset"]["bibles"]
        assert found["files"] == 4 and found["licences"]["by-nc-nd 4.0"] == 1 and found["holders"]["Wycliffe"] == 1
        assert found["verses"].startswith("verses.tsv, sha256 ") and found["commit"] == ""
    assert get_task("sib200").describe("")["licence"] == "CC BY-SA 4.0"


@pytest.mark.slow
def test_the_commands(bibles, tmp_path, monkeypatch):
    "Corpus with audit, run, evaluation: as a user gives them, with LANGSAMP_DATA and no path."
    monkeypatch.setenv("LANGSAMP_DATA", str(bibles.parent))

    def command(stage: str, **values) -> str:
        params = write(tmp_path / f"{stage}.yaml", yaml.safe_dump(values))
        output = tmp_path / f"{stage}.ipynb"
        tiny.papermill_command(f"nbs/{stage}.ipynb", output, tmp_path / "outputs", "-f", str(params))
        return output.read_text()

    command("01_corpus", name="verses", corpus="bible", languages=[], benchmarks=["bible", "taxi1500"])
    report = read_json(tmp_path / "outputs/corpora/verses/audit.json")
    assert len(report["sets"]) == 8 and not any(row["found"] for row in report["sets"])
    p = tiny.params_of(Path("verses"), run_name="one", max_steps=2, warmup_steps=0, save_steps=2)
    command("03_pretrain", **vars(p))
    (origin,) = read_json(tmp_path / "outputs/one/corpus.json")["origins"]
    assert origin["licences"]["by-nc-nd 4.0"] == 1
    printed = command("04_evaluate", encoder="one", tasks=["bible", "taxi1500"], seeds=1)
    assert "acc10" in printed and "f1_macro" in printed and "366 of the 369" in printed
