"No language trains on a verse of the evaluation; the verses are the same in all languages; problems are reported."

import re
import tracemalloc
from pathlib import Path

import pytest
import tiny
from tiny import write

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.corpora.bible import verse_id
from langsamp.corpora.bible_corpus import USES, bible_corpus, find_bibles, read_verse_list, split_verses
from langsamp.corpora.registry import corpus_origins, find_corpus, open_corpus
from langsamp.training.prepare import prepare

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
    open_corpus(f"bible:{bibles}", stop=True)


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
    open_corpus(f"bible:{home}", stop=True)


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
    write(bibles / "bible/qqq_Latn.txt", "x\n" * len(REFERENCES))
    for _ in range(2):  # Also when the corpus is read from the cache
        sources, warnings = find_corpus(f"bible:{bibles}")
        assert list(sources) == ["deu_Latn", "eng_Latn", "hin_Deva"]
        text = "\n".join(warnings)
        assert len(warnings) == 3 and "deu_Latn.txt:21: not UTF-8" in text and "`qqq` is not a language" in text
        assert "rus_Cyrl.txt has 1 lines and its vref.txt 60" in text
    assert verse_id(REFERENCES[20]) not in read_verses(f"bible:{bibles}")["deu_Latn", "train"]
    with pytest.raises(UserError, match="set on_bad_line to skip"):
        open_corpus(f"bible:{bibles}", stop=True)


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
