"Evaluation sets are read completely in their original layouts; unreadable parts are reported."

from pathlib import Path

import pytest
from tiny import write

from langsamp.core.errors import UserError
from langsamp.corpora.evaluation_text import LAYOUTS, evaluation_sentences, read_evaluation_sets
from langsamp.corpora.text_files import tagged_sentences, tsv_rows

CONLLU = """# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
5.1\tir\tir\tVERB\t_\t_\t_\t_\t_\t_
6\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

# sent_id = 2
1\tNew York\tNew York\tPROPN\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture()
def data(tmp_path) -> Path:
    "A small folder in the layout of each set."
    for split in ("train", "dev", "test"):
        rows = f'index_id\tcategory\ttext\n1\tsports\t"On dit ""{split}""."\n2\thealth\t  {split} deux \n'
        write(tmp_path / "sib200" / "fra_Latn" / f"{split}.tsv", rows)
        for name in ("zho_Hans", "zho_Hant"):
            write(tmp_path / "sib200" / name / f"{split}.tsv", f"index_id\tcategory\ttext\n1\tsports\t{name}{split}\n")
    write(tmp_path / "tatoeba" / "tatoeba.cmn-eng.cmn", "我們試試看！\n\n你好。\n")
    write(tmp_path / "tatoeba" / "tatoeba.cmn-eng.eng", "Let's try!\n-\nHello.\n")
    write(tmp_path / "ud" / "UD_Spanish-X" / "es_x-ud-test.conllu", CONLLU)
    write(tmp_path / "ner" / "UNER_Serbian-SET" / "sr_set-ud-dev.iob2", "# text = Bo spava.\n1\tBo\tB-PER\t-\t-\n")
    write(tmp_path / "ner" / "UNER_Serbian-SET" / "sr_set-ud-test.iob2", "1\tI\tO\t-\t-\n2\tAna\tB-PER\t-\t-\n")
    return tmp_path


def test_quotes_and_spaces_in_sib200(data):
    "Doubled quotes become single ones, values are stripped, and the splits are merged."
    parts, warnings = evaluation_sentences("sib200", data)
    assert warnings == [] and [part.name for part in parts] == ["fra_Latn", "zho_Hans", "zho_Hant"]
    assert sorted(parts[0].sentences) == sorted(
        sentence for split in ("train", "dev", "test") for sentence in (f'On dit "{split}".', f"{split} deux")
    )


def test_folders_of_one_code_stay_separate(data):
    parts, _ = evaluation_sentences("sib200", data)
    assert [(part.name, part.code) for part in parts[1:]] == [("zho_Hans", "zho_Hani"), ("zho_Hant", "zho_Hani")]


def test_both_sides_of_tatoeba(data):
    "The script is detected from the text; blank lines are no sentences."
    parts, warnings = evaluation_sentences("tatoeba", data)
    assert warnings == []
    assert [(part.name, part.code) for part in parts] == [("cmn-eng.cmn", "cmn_Hani"), ("cmn-eng.eng", "eng_Latn")]
    assert parts[0].sentences == ["我們試試看！", "你好。"]


def test_words_of_a_treebank(data):
    "Ranges and empty nodes are not words, a word may contain a space, and `# text =` is used if given."
    first, second = tagged_sentences(data / "ud/UD_Spanish-X/es_x-ud-test.conllu", 3)
    assert first.text == "Vámonos al mar." and first.words == ["Vamos", "nos", "a", "el", "mar", "."]
    assert first.tags == ["VERB", "PRON", "ADP", "DET", "NOUN", "PUNCT"]
    assert (second.text, second.words) == ("New York", ["New York"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ud", ("UD_Spanish-X", "spa_Latn", ["Vámonos al mar.", "New York"])),
        ("ner", ("UNER_Serbian-SET", "srp_Latn", ["Bo spava.", "I Ana"])),
    ],
)
def test_languages_of_treebanks(data, name, expected):
    "ISO 639-1 in the file name, the script of the text, and splits merged under the folder name."
    (part,), warnings = evaluation_sentences(name, data)
    assert warnings == [] and (part.name, part.code, part.sentences) == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_set_is_an_error(tmp_path, name):
    parts, warnings = evaluation_sentences(name, tmp_path)
    assert parts == [] and len(warnings) == 1
    assert LAYOUTS[name].example in warnings[0] and LAYOUTS[name].origin in warnings[0]


@pytest.mark.parametrize("lost", ["sib200/fra_Latn/dev.tsv", "tatoeba/tatoeba.cmn-eng.eng"])
def test_missing_file_is_reported(data, lost):
    (data / lost).unlink()
    parts, warnings = evaluation_sentences(lost.partition("/")[0], data)
    assert warnings == [f"{data / lost} is missing"] and parts


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\n1\tsports\n", "dev.tsv:1: no column `text`"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsports\n", "dev.tsv:2: not 3 columns"),
        ("sib200/fra_Latn/dev.tsv", b'index_id\tcategory\ttext\n1\tsports\t"open\n', "dev.tsv"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsports\t\xff\n", "dev.tsv"),
        ("tatoeba/tatoeba.cmn-eng.cmn", b"\xff\xfe\n", "cmn-eng.cmn"),
        ("ud/UD_Spanish-X/es_x-ud-test.conllu", b"1\tsolo\n", "es_x-ud-test.conllu:1: fewer than 4 columns"),
        ("ner/UNER_Serbian-SET/qz_set-ud-dev.iob2", b"1\tBo\tO\t-\t-\n", "`qz` is not a language"),
    ],
)
def test_unreadable_files_are_reported_and_the_rest_is_read(data, path, content, words):
    before, _ = evaluation_sentences(path.partition("/")[0], data)
    (data / path).write_bytes(content)
    parts, warnings = evaluation_sentences(path.partition("/")[0], data)
    assert len(warnings) == 1 and words in warnings[0] and Path(path).name in warnings[0]
    assert sum(len(part.sentences) for part in parts) > 0 or len(before) == 1


def test_names_and_folders(data, monkeypatch):
    "A misspelled name, no folder and a wrong folder are errors; a repeated name is read once."
    with pytest.raises(UserError, match="did you mean `tatoeba`"):
        evaluation_sentences("tatoebo", data)
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    with pytest.raises(UserError, match="set LANGSAMP_DATA") as error:
        evaluation_sentences("sib200")
    assert all(layout.example in str(error.value) and layout.origin in str(error.value) for layout in LAYOUTS.values())
    monkeypatch.setenv("LANGSAMP_DATA", str(data / "absent"))
    with pytest.raises(UserError, match="absent is not a folder"):
        evaluation_sentences("sib200")
    monkeypatch.setenv("LANGSAMP_DATA", str(data))
    assert len(read_evaluation_sets(["ud", "ner", "ud"])[0]) == 2


def test_text_folder(tmp_path):
    "A folder of xxx_Yyyy.txt files, cleaned like a corpus; dropped lines and other files are reported."
    write(tmp_path / "swe_Latn.txt", "Hej.\n\nHej.\nПривет\n")
    write(tmp_path / "notes.txt", "")
    (part,), warnings = evaluation_sentences(f"folder:{tmp_path}")
    assert (part.name, part.code, part.sentences) == ("swe_Latn", "swe_Latn", ["Hej."])
    assert len(warnings) == 2 and "notes.txt" in warnings[0] and "swe_Latn.txt:4: another script" in warnings[1]


# The real sets, where they are at hand


@pytest.mark.parametrize(
    ("name", "folders", "codes", "sentences"),
    [("sib200", 205, 203, 205_820), ("tatoeba", 224, 112, 177_754), ("ud", 15, 14, 18_502), ("ner", 12, 11, 30_894)],
)
def test_real_sets_are_read_completely(real, name, folders, codes, sentences):
    "The published numbers of sentences, without warnings."
    parts, warnings = evaluation_sentences(name, real)
    assert warnings == []
    assert (len(parts), len({part.code for part in parts})) == (folders, codes)
    assert sum(len(part.sentences) for part in parts) == sentences
    assert all(text and text == text.strip() for part in parts for text in part.sentences)


def test_scripts_of_tatoeba_are_those_of_the_paper(real):
    "The detector gives the published script for all pairs except one, whose file is mostly in another."
    published = {row["language_script"] for row in tatoeba_rows(real / "paper" / "task_languages.csv")}
    found = {part.code for part in evaluation_sentences("tatoeba", real)[0]}
    assert sorted(published - found) == ["uzb_Cyrl"] and len(published) == 98


def tatoeba_rows(path: Path) -> list[dict[str, str]]:
    "The rows for Tatoeba of the table of tasks."
    header, *rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for values in rows if (row := dict(zip(header, values)))["task"] == "retrieval_tatoeba"]


def test_sib200_is_parallel(real):
    "The same ids in the same order in every folder."
    ids = {
        folder.name: tuple(
            row["index_id"] for split in ("train", "dev", "test") for row in tsv_rows(folder / f"{split}.tsv")
        )
        for folder in sorted((real / "sib200").glob("*_*"))[::20]
    }
    assert len(set(ids.values())) == 1 and len(next(iter(ids.values()))) == 1004
