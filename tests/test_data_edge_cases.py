"Real data has flaws: it is read correctly, or reported with file and line."

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from tiny import write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from langsamp.core.errors import UserError
from langsamp.corpora.bible import bible_editions, bible_verses
from langsamp.corpora.dataset_files import data_files
from langsamp.corpora.dataset_rows import read_texts
from langsamp.corpora.evaluation_text import evaluation_sentences
from langsamp.corpora.hub import hub_sources
from langsamp.corpora.lines import raw_lines
from langsamp.corpora.registry import find_corpus
from langsamp.corpora.sources import hub_configs, hub_splits
from langsamp.corpora.text import FilterReport
from langsamp.corpora.text_files import BadLines, tagged_sentences, text_lines, tsv_rows
from langsamp.evaluation.bitext import load_bitexts
from langsamp.evaluation.datasets import DATASETS, LabelledTexts, load_labelled, validate_labels
from langsamp.evaluation.evaluate import evaluate
from langsamp.params.evaluate import EvaluationParams
from langsamp.tokenization.train import pretrained_tokenizer

ODD_NAMES = ["data [v2]", "a::b", "st*r", "wh?t", "[!x]::y"]


def lines_of(paths: list[Path]) -> list[str]:
    "The lines of some parts."
    return [(line or b"").decode() for path in paths for _, line in raw_lines(path)]


def read_hub(folder: Path, home: Path, *languages: str) -> tuple[dict[str, list[str]], list[str]]:
    "The lines of a dataset by code, and the warnings."
    sources, warnings = hub_sources(str(folder), languages, home)
    return {code: lines_of([source.path for source in found]) for code, found in sources.items()}, warnings


def jsonl(*texts: object) -> str:
    "Lines of JSON with a column `text`."
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


CARD = "---\nconfigs:\n- config_name: wol_Latn\n  data_files: [{split: train, path: 'wol_Latn/train/*'}]\n---\n"


# A path is not a pattern


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("card", [False, True], ids=["folders", "card"])
def test_dataset_folder_with_any_name(tmp_path, name, card):
    "The folder itself is read, and not another one that its name matches as a glob pattern."
    write(tmp_path / name / "wol_Latn/train/a.jsonl", jsonl("benn"))
    write(tmp_path / name / "wol_Latn/test/b.jsonl", jsonl("test"))
    for neighbour in ("data v", "data 2", "star", "what", "y"):
        write(tmp_path / neighbour / "wol_Latn/train/a.jsonl", jsonl(neighbour))
    if card:
        write(tmp_path / name / "README.md", CARD)
    assert read_hub(tmp_path / name, tmp_path / "home") == ({"wol_Latn": ["benn"]}, [])


def test_dataset_files_with_any_name(tmp_path):
    write(tmp_path / "glot/wol_Latn/a::b [1]/c::d*.jsonl", jsonl("benn"))
    write(tmp_path / "glot/wol_Latn/train::e.jsonl.gz", "")
    (tmp_path / "glot/wol_Latn/train::e.jsonl.gz").write_bytes(gzip.compress(jsonl("ñaar").encode()))
    assert read_hub(tmp_path / "glot", tmp_path / "home") == ({"wol_Latn": ["benn", "ñaar"]}, [])


def test_format_is_taken_from_the_file_suffix(tmp_path):
    (tmp_path / "from a.jsonl/wol_Latn").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["benn"]}), tmp_path / "from a.jsonl/wol_Latn/a.parquet")
    assert read_hub(tmp_path / "from a.jsonl", tmp_path / "home") == ({"wol_Latn": ["benn"]}, [])


def test_plus_in_a_corpus_path(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGSAMP_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a+b/wol_Latn/a.jsonl", jsonl("benn"))
    write(tmp_path / "c+d/wol_Latn.txt", "benn\n")
    for corpus in (f"hub:{tmp_path / 'a+b'}", str(tmp_path / "c+d")):
        sources, warnings = find_corpus(corpus, outputs=tmp_path)
        assert list(sources) == ["wol_Latn"] and warnings == []


def test_cache_folder_with_any_name(tmp_path):
    write(tmp_path / "glot/wol_Latn/a.jsonl", jsonl("benn"))
    for name in ODD_NAMES:
        assert read_hub(tmp_path / "glot", tmp_path / name) == ({"wol_Latn": ["benn"]}, [])


def test_broken_row_is_located(tmp_path):
    "The location is the original file, not the folder of links through which it was found."
    file = tmp_path / "data [v2]" / "wol_Latn/a.jsonl"
    write(file, jsonl("benn") + '{"text":\n')
    _, (warning,) = hub_sources(str(tmp_path / "data [v2]"), [], tmp_path / "home")
    assert f"{file}:2: " in warning


def test_temporary_folder_that_is_a_glob_pattern(tmp_path, monkeypatch):
    (tmp_path / "tmp [1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp [1]"))
    write(tmp_path / "a::b/wol_Latn/a.jsonl", jsonl("benn"))
    with pytest.raises(UserError, match="set TMPDIR to a folder without"):
        hub_sources(str(tmp_path / "a::b"), [], tmp_path / "home")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wol_Latn/a.csv": "text\nbenn\n"}, "wol_Latn: a.csv: not read; rows are read only from"),
        ({"wol_Latn/test/a.jsonl": jsonl("benn")}, "wol_Latn: there is only test; rows are read only from the split"),
        ({"wol_Latn/notes.jsonl": jsonl("a"), "wol_Latn/test.jsonl": jsonl("b")}, "wol_Latn: notes.jsonl: not read"),
        ({"wol_Latn/a.jsonl": ""}, "has no rows for wol_Latn"),
        ({"wol_Latn/.hidden": ""}, "has no file for wol_Latn"),
    ],
)
def test_no_rows_is_reported_only_for_files_that_were_read(tmp_path, files, message):
    write(tmp_path / "glot/eng_Latn/a.jsonl", jsonl("one"))
    for name, text in files.items():
        write(tmp_path / "glot" / name, text)
    for _ in range(2):  # The second time from what was kept
        found, (warning,) = read_hub(tmp_path / "glot", tmp_path / "home")
        assert found == {"eng_Latn": ["one"]} and message in warning
        assert "no rows" not in warning or not (tmp_path / "glot/wol_Latn/a.jsonl").read_text()
    with pytest.raises(UserError) as error:
        read_hub(tmp_path / "glot", tmp_path / "home", "wol_Latn")
    assert message in str(error.value)


def test_files_in_other_formats_are_reported(tmp_path):
    write(tmp_path / "glot/wol_Latn/a.jsonl", jsonl("benn"))
    write(tmp_path / "glot/wol_Latn/b.csv", "text\nñaar\n")
    for name in ("state.json", "dataset_info.json", "README.md"):
        write(tmp_path / "glot/wol_Latn" / name, "{}")
    found, (warning,) = read_hub(tmp_path / "glot", tmp_path / "home")
    assert found == {"wol_Latn": ["benn"]} and "wol_Latn: b.csv: not read" in warning
    assert data_files(str(tmp_path / "glot"), "wol_Latn")[1] == ["b.csv"]


def test_configs_of_one_language_script_are_merged_with_a_notice(tmp_path):
    for name in ("zho_Hans", "zho_Hant"):
        write(tmp_path / f"glot/{name}/a.jsonl", jsonl(name))
    found, (warning,) = read_hub(tmp_path / "glot", tmp_path / "home")
    assert found == {"zho_Hani": ["zho_Hans", "zho_Hant"]}
    assert "zho_Hans and zho_Hant are the same language-script, zho_Hani; their text is merged" in warning


@pytest.mark.parametrize("name", [*ODD_NAMES, "a**b"])
def test_tokenizer_folder_with_any_name_is_opened_once(tmp_path, monkeypatch, name):
    "The second time it is found in the cache."
    words = Tokenizer(WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "go": 5}, unk_token="<unk>"))
    special = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / name)
    kept = pretrained_tokenizer(str(tmp_path / name), tmp_path / "home")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **more: pytest.fail("it was read again"))
    assert pretrained_tokenizer(str(tmp_path / name), tmp_path / "home") == kept


# Lines of JSON


@pytest.mark.parametrize("blank", ["\n", "\r\n", "  \t\n"])
def test_blank_json_lines_are_skipped(tmp_path, blank):
    "At any position; row and line numbers stay correct."
    text = blank + jsonl("benn") + blank + blank + jsonl("ñaar", None) + blank
    file = tmp_path / "glot/wol_Latn/a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode())
    assert list(read_texts(str(file))) == ["benn", "ñaar", ""]
    assert list(read_texts(str(file), skip=1)) == ["ñaar", ""]
    assert read_hub(tmp_path / "glot", tmp_path / "home") == ({"wol_Latn": ["benn", "ñaar", ""]}, [])
    file.write_bytes((text + '{"text": \n').encode())
    list(read_texts(str(file), filter_report=(filter_report := FilterReport("wol_Latn"))))
    assert ["a.jsonl:8: row without text" in example for example in filter_report.examples] == [True]


# Tagged words


def conllu(*forms: str, first: int = 1) -> str:
    "Lines of words, numbered."
    return "".join(f"{i}\t{form}\t_\tNOUN\t_\t_\t_\t_\t_\t_\n" for i, form in enumerate(forms, first))


def sentences_of(folder: Path, text: str | bytes) -> tuple[list[str], list[str]]:
    "The sentences of a treebank's file, and the warnings without its path."
    path = folder / "wo_wtb-ud-test.conllu"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = tagged_sentences(path, 3, bad := BadLines(path))
    assert all(len(sentence.words) == len(sentence.tags) for sentence in found)
    return [sentence.text for sentence in found], [warning.removeprefix(f"{path}:") for warning in bad.warnings()]


@pytest.mark.parametrize(
    "middle",
    [
        "",
        "# sent_id = 2\n",
        "# newpar\n# sent_id = 2\n",
        "# text = Three four\n",
        "1-2\tThreefour\t_\t_\n",
        "0.1\t_\t_\tVERB\n",
    ],
)
def test_missing_blank_line_between_sentences(tmp_path, middle):
    text = f"# sent_id = 1\n# text = One two\n{conllu('One', 'two')}{middle}{conllu('Three', 'four')}"
    assert sentences_of(tmp_path, text) == (["One two", "Three four"], [])


def test_new_sent_id_ends_a_sentence(tmp_path):
    "The second sentence begins with a wrong word number, and only this sentence is dropped."
    text = conllu("One", "two") + "# sent_id = 2\n" + conllu("four", first=2) + "\n" + conllu("Five")
    assert sentences_of(tmp_path, text) == (
        ["One two", "Five"],
        ["4: word 2 where word 1 should be; the sentence is left out"],
    )


def test_ranges_and_empty_nodes_do_not_end_a_sentence(tmp_path):
    lines = ["1-2\tDon't\t_\t_", "1\tDo\t_\tAUX", "1.1\tx\t_\tX", "2\tn't\t_\tPART", "2.1\ty\t_\tX", "3\tgo\t_\tVERB"]
    assert sentences_of(tmp_path, "0.1\tz\t_\tX\n" + "\n".join(lines) + "\n") == (["Do n't go"], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x\ttwo\t_\tNOUN", "`x` in the first column is not a number, range or empty node"),
        ("_\ttwo\t_\tNOUN", "`_` in the first column"),
        ("\ttwo\t_\tNOUN", "`` in the first column"),
        ("2 two _ NOUN", "`2 two _ NOUN` in the first column"),
        ("\u0662\ttwo\t_\tNOUN", "in the first column"),
        ("2-\ttwo\t_\tNOUN", "`2-` in the first column"),
        ("<<<< HEAD", "`<<<< HEAD` in the first column"),
        ("2\ttwo", "fewer than 4 columns between tabs"),
        ("3\ttwo\t_\tNOUN", "word 3 where word 2 should be"),
        ("0\ttwo\t_\tNOUN", "word 0 where word 2 should be"),
        ("2\t\t_\tNOUN", "an empty word"),
        ("2\t \u00a0\t_\tNOUN", "an empty word"),
        (b"2\ttw\xf3\t_\tNOUN", "not UTF-8"),
    ],
)
def test_malformed_line_drops_its_sentence(tmp_path, line, reason):
    "Its location is reported, and the sentences around it are read."
    raw = line if isinstance(line, bytes) else line.encode()
    before, after = conllu("Before"), "\n" + conllu("After", "all")
    text = before.encode() + b"\n" + conllu("One").encode() + raw + b"\n" + after.encode()
    found, (warning,) = sentences_of(tmp_path, text)
    assert found == ["Before", "After all"]
    assert warning.startswith("4: ") and reason in warning and warning.endswith("; the sentence is left out")


def test_word_numbers_starting_at_zero_are_rejected(tmp_path):
    "The first word must not be lost silently."
    found, (warning,) = sentences_of(tmp_path, conllu("One", "two", first=0))
    assert found == [] and warning.startswith("1: word 0 where word 1 should be")


def test_many_bad_lines_are_counted(tmp_path):
    text = "".join(f"x\t{i}\t_\tNOUN\n\n" for i in range(30))
    found, warnings = sentences_of(tmp_path, text)
    assert found == [] and len(warnings) == 6 and "30 lines were left out" in warnings[-1]


def test_words_stay_in_their_sentence(tmp_path):
    "For each line that is lost, repeated or garbled; a sentence that lost more than its end is reported."
    lines = f"{conllu('a', 'b', 'c')}\n{conllu('d', 'e')}\n{conllu('f', 'g', 'h')}".split("\n")
    for i, line in enumerate(lines[:-1]):
        for change in ([], [line] * 2, [line.replace("\t", " ")], [f"x{line}"]):
            found, warnings = sentences_of(tmp_path, "\n".join(lines[:i] + change + lines[i + 1 :]))
            origins = [next((o for o in ("abc", "de", "fgh") if set(text.split()) <= {*o}), "") for text in found]
            assert all(origins), f"words of two sentences became one: {found}"
            assert warnings or {*origins} == {"abc", "de", "fgh"}, f"a sentence was lost silently: {found}"


# Other layouts: one bad line costs itself


WIKIANN = "sl:Ana\tB-PER\nsl:spi\tO\n\n{}\nsl:tu\tO\n\nsl:Bo\tB-PER\n"


@pytest.mark.parametrize(
    "line", ["sl:Eva", "sl:Eva\t", "Eva\tB-PER", "sl:\tB-PER", "sl: \tB-PER", "\tB-PER", b"sl:E\xff\tO"]
)
def test_missing_tag_drops_its_sentence(tmp_path, line):
    head, tail = WIKIANN.encode().split(b"{}")
    for split in ("train", "dev", "test"):
        write(tmp_path / f"wikiann/sl/{split}", "sl:da\tO\n")
    path = tmp_path / "wikiann/sl/test"
    path.write_bytes(head + (line if isinstance(line, bytes) else line.encode()) + tail)
    (slovene,), (warning,) = load_labelled("wikiann", tmp_path)
    assert slovene.splits["test"] == LabelledTexts([["Ana", "spi"], ["Bo"]], [["B-PER", "O"], ["B-PER"]])
    assert warning.startswith(f"{path}:4: not a word and its tag, as in `en:Paris<TAB>B-LOC`") and warning.endswith(
        "the sentence is left out"
    )


@pytest.mark.parametrize("task", ["ud", "ner"])
def test_empty_word_is_reported_with_file_and_line(tmp_path, task):
    ending = {"ud": "conllu", "ner": "iob2"}[task]
    folder = tmp_path / task / "UD_Wolof-WTB"
    tag = {"ud": "_\tX", "ner": "O"}[task]
    write(folder / f"wo_wtb-ud-test.{ending}", f"1\tAb\t{tag}\n\n1\tBu\t{tag}\n2\t\t{tag}\n")
    (wolof,), (warning,) = load_labelled(task, tmp_path)
    assert wolof.splits["test"].texts == [["Ab"]]
    assert f"test.{ending}:4: an empty word" in warning


@pytest.mark.parametrize("text", [["Ab", ""], ["Ab", " "], ["Ab", None], None, "Ab", ["Ab"]])
def test_examples_with_an_empty_word_are_dropped(text):
    found, (warning,) = validate_labels("ud", "wo test", [text, ["Bu"]], [["X", "X"], ["X"]])
    assert found == LabelledTexts([["Bu"]], [["X"]]) and warning.startswith("wo test: left out, ")


@pytest.mark.parametrize("text", ["", " ", None, 5, 2.5, ["a"], "…", "\u200b"])
def test_topics_need_a_text(text):
    found, (warning,) = validate_labels("sib200", "wo test", [text, "Dem"], ["sports", "travel"])
    assert found == LabelledTexts(["Dem"], ["travel"]) and warning == "wo test: left out, no text: 1"


ROWS = [b"index_id\tcategory\ttext", b"1\tsports\tOne", b"2\tsports\tTwo", b"3\ttravel\tThree"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"9\tsports", "3: not 3 columns between tabs"),
        (b"9\tsports\tNine\tten", "3: not 3 columns between tabs"),
        (b"9\tsports\tN\xffne", "3: not UTF-8"),
        (b'9\tsports\t"Ni"ne"', "3: not a table row"),
        (b'9\tsports\t"Nine\n\xff"', "4: not UTF-8"),
    ],
)
def test_bad_table_row_is_dropped(tmp_path, row, reason):
    for split in ("train", "dev", "test"):
        path = write(tmp_path / f"sib200/wol_Latn/{split}.tsv", "")
        path.write_bytes(b"\n".join(ROWS) + b"\n")
    path.write_bytes(b"\n".join([*ROWS[:2], row, *ROWS[2:]]) + b"\n")
    (wolof,), (warning,) = load_labelled("sib200", tmp_path)
    assert wolof.splits["test"] == LabelledTexts(["One", "Two", "Three"], ["sports", "sports", "travel"])
    assert warning.startswith(f"{path}:{reason}") and "left out" in warning
    (part,), warnings = evaluation_sentences("sib200", tmp_path)
    assert len(part.sentences) == 9 and warnings == [warning]


def test_unclosed_quotation_keeps_earlier_rows(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\n".join([*ROWS[:2], b'9\tsports\t"Nine', *ROWS[2:]]) + b"\n")
    found = tsv_rows(path, bad=(bad := BadLines(path)))
    assert [row["text"] for row in found] == ["One"]
    (warning,) = bad.warnings()
    assert warning.startswith(f"{path}:3: not a table row (") and warning.endswith("left out up to line 5")


def test_invalid_utf8_in_tatoeba_drops_its_pair(tmp_path):
    write(tmp_path / "tatoeba/tatoeba.fra-eng.eng", "One.\nTwo.\nThree.\n")
    path = tmp_path / "tatoeba/tatoeba.fra-eng.fra"
    path.write_bytes(b"Un.\nD\xe9ux.\nTrois.\n")
    (bitext,), warnings = load_bitexts("tatoeba", tmp_path)
    assert list(zip(bitext.source_texts, bitext.target_texts)) == [("One.", "Un."), ("Three.", "Trois.")]
    assert warnings[0] == f"{path}:2: not UTF-8; the line is left out"
    with pytest.raises(UserError, match="fra:2: not UTF-8"):
        text_lines(path)


@pytest.mark.parametrize(("english", "other"), [("\n", ""), ("", "\n \n"), ("\n\n", "\n")])
def test_trailing_blank_lines_in_tatoeba(tmp_path, english, other):
    write(tmp_path / "tatoeba/tatoeba.fra-eng.eng", f"One.\nTwo.\n{english}")
    write(tmp_path / "tatoeba/tatoeba.fra-eng.fra", f"Un.\nDeux.\n{other}")
    (bitext,), warnings = load_bitexts("tatoeba", tmp_path)
    assert bitext.target_texts == ["Un.", "Deux."] and not any("fra has 2 lines for" in printed for printed in warnings)


def test_unreadable_taxi1500_verse_is_dropped(tmp_path):
    rows = "40001001\tFaith\tThe book\n40001002\tFaith\nMat 1\tSin\tNo\n40001003\tSin\tJuda\n"
    for split in ("train", "dev", "test"):
        write(tmp_path / f"taxi1500/eng_{split}.tsv", rows)
    (english,), warnings = load_labelled("taxi1500", tmp_path)
    assert english.splits["test"] == LabelledTexts(["The book", "Juda"], ["Faith", "Sin"])
    assert any("eng_test.tsv:2: not verse, label and text" in warning for warning in warnings)
    assert any("eng_test.tsv:3: `Mat 1` is not a verse number" in warning for warning in warnings)


def test_dropped_lines_of_a_text_folder_are_reported(tmp_path):
    write(tmp_path / "own/wol_Latn.txt", "Dem na.\n" + "".join(f"Привет {i}\n" for i in range(9)))
    (part,), warnings = evaluation_sentences(f"folder:{tmp_path / 'own'}")
    assert part.sentences == ["Dem na."] and "wol_Latn: 9 lines in total are left out: another script" in warnings


def test_two_spellings_of_a_script_are_merged_with_a_notice(tmp_path):
    "One rule for a corpus folder, a dataset and evaluation text."
    for name in ("zho_Hans", "zho_Hant"):
        write(tmp_path / f"own/{name}.txt", f"{'走來'[name == 'zho_Hant']}\n")
        write(tmp_path / f"glot/{name}/a.jsonl", jsonl("走來"[name == "zho_Hant"]))
    (part,), (warning,) = evaluation_sentences(f"folder:{tmp_path / 'own'}")
    assert (part.code, part.sentences) == ("zho_Hani", ["走", "來"])
    found, (other,) = read_hub(tmp_path / "glot", tmp_path / "home")
    assert found == {"zho_Hani": ["走", "來"]}
    assert all("zho_Hans and zho_Hant" in printed and "merged" in printed for printed in (warning, other))


# Bibles


VREF = "\n".join(f"MAT 1:{verse}" for verse in range(1, 7)) + "\n"
VERSES = ["The book", "Abraham", "Juda", "Phares", "Esrom", "Aram"]
IDS = [f"400010{verse:02}" for verse in range(1, 7)]


def read_bible(folder: Path, lines: list[str], vref: str = VREF) -> tuple[dict[str, str], list[str]]:
    "The verses of a Bible beside a `vref.txt`, and the warnings about its folder."
    path = folder / "bible/eng-a.txt"
    write(path, "\n".join(lines) + "\n")
    if vref:
        write(folder / "bible/vref.txt", vref)
    found, warnings = bible_editions(folder / "bible")
    return bible_verses(path, BadLines(path)) if found else {}, warnings


@pytest.mark.parametrize("odd", ["The\tbook", "144000", "40001001", "40001001\tThe book", "# a heading"])
def test_one_odd_verse_does_not_decide_the_layout(tmp_path, odd):
    found, warnings = read_bible(tmp_path, [*VERSES[:2], odd, *VERSES[3:]])
    expected = dict(zip(IDS, [*VERSES[:2], odd, *VERSES[3:]]))
    assert warnings == [] and found == {verse: text for verse, text in expected.items() if not text.isdigit()}


@pytest.mark.parametrize("vref", ["", VREF])
def test_numbered_bible_beside_vref(tmp_path, vref):
    "A line without a number drops only itself."
    lines = [f"{number}\t{text}" for number, text in zip(IDS, VERSES)]
    assert read_bible(tmp_path, lines, vref) == (dict(zip(IDS, VERSES)), [])
    found, (warning,) = read_bible(tmp_path, [*lines[:3], "and more", *lines[3:]], vref)
    assert found == dict(zip(IDS, VERSES))
    assert warning.endswith(
        "eng-a.txt:4: `and more` is not a verse number; write it as `40001001` or `MAT 1:1`; the line is left out"
    )


@pytest.mark.parametrize("end", ["\n", "\n\n\n", "  \n"])
def test_trailing_blank_lines_in_an_aligned_bible(tmp_path, end):
    "Of a Bible, and of the list of verses."
    assert read_bible(tmp_path, [*VERSES, *end.split("\n")[:-1]]) == (dict(zip(IDS, VERSES)), [])
    assert read_bible(tmp_path, VERSES, VREF + end) == (dict(zip(IDS, VERSES)), [])


def test_line_count_must_match_vref(tmp_path):
    for lines in ([*VERSES[:2], "", *VERSES[2:]], VERSES[1:], [*VERSES, "More"]):
        found, (warning,) = read_bible(tmp_path, lines)
        assert found == {} and f"has {len(lines)} lines and its vref.txt 6" in warning


@pytest.mark.parametrize("text", ["…", "—", "\u200b", "- - -", "...", "12", "\ufeff", "¶", "<range>", ""])
@pytest.mark.parametrize("numbered", [False, True])
def test_verse_needs_a_letter(tmp_path, text, numbered):
    verses = [text, *VERSES[1:5], text]
    lines = [f"{number}\t{verse}" for number, verse in zip(IDS, verses)] if numbered else verses
    found, warnings = read_bible(tmp_path, lines)
    assert warnings == [] and found == dict(zip(IDS[1:5], VERSES[1:5]))


def test_pairs_need_letters(tmp_path):
    write(tmp_path / "bible/eng_Latn.txt", "40001001\tThe book\n40001002\t…\n")
    write(tmp_path / "bible/deu_Latn.txt", "40001001\tDas Buch\n40001002\tAbraham\n")
    (bitext,), _ = load_bitexts("bible", tmp_path)
    assert bitext.source_texts == ["The book"]
    write(tmp_path / "tatoeba/tatoeba.deu-eng.eng", "Yes.\n\u200b\n—\n")
    write(tmp_path / "tatoeba/tatoeba.deu-eng.deu", "Ja.\nNein.\n…\n")
    (bitext,), warnings = load_bitexts("tatoeba", tmp_path)
    assert bitext.target_texts == ["Ja."] and "deu has 2 lines without a letter" in warnings[0]


def test_bad_vref_is_reported_with_its_line(tmp_path):
    found, (warning,) = read_bible(tmp_path, VERSES, VREF.replace("MAT 1:3", "Mat 1,3"))
    assert found == {} and warning.startswith(str(tmp_path / "bible/vref.txt:3: `Mat 1,3` is not a verse number"))
    assert read_bible(tmp_path, VERSES) == (dict(zip(IDS, VERSES)), []), "the repaired list is not read"


# Folders of evaluation sets of any name


@pytest.mark.parametrize("name", ODD_NAMES)
def test_evaluation_folder_with_any_name(tmp_path, name):
    data = tmp_path / name
    for neighbour in ("data v", "star", "what"):
        write(tmp_path / neighbour / "tatoeba/tatoeba.deu-eng.deu", "Nein.\n")
    for split in ("train", "dev", "test"):
        write(data / f"sib200/wol_Latn/{split}.tsv", "index_id\tcategory\ttext\n1\tsports\tDem\n")
    write(data / "ud/UD_Wolof [x]/wo_wtb-ud-test.conllu", conllu("Dem"))
    write(data / "tatoeba/tatoeba.deu-eng.eng", "Yes.\n")
    write(data / "tatoeba/tatoeba.deu-eng.deu", "Ja.\n")
    write(data / "own/wol_Latn.txt", "Dem na.\n")
    for task, count in (("sib200", 3), ("ud", 1), ("tatoeba", 2)):
        parts, warnings = evaluation_sentences(task, data)
        assert sum(len(part.sentences) for part in parts) == count and warnings == []
    assert [len(load_labelled(task, data)[0]) for task in ("sib200", "ud")] == [1, 1]
    assert load_bitexts("tatoeba", data)[0][0].target_texts == ["Ja."]
    assert evaluation_sentences(f"folder:{data / 'own'}")[0][0].sentences == ["Dem na."]


# The hub


def publish(folder: Path, **files: str) -> str:
    "A dataset with a card, as on the hub: a configuration a file, all in the split test."
    entries = []
    for config, text in files.items():
        write(folder / f"{config}.jsonl", text)
        entries.append(f"- config_name: {config}\n  data_files:\n  - {{split: test, path: {config}.jsonl}}\n")
    write(folder / "README.md", f"---\nconfigs:\n{''.join(entries)}---\n")
    return str(folder)


@pytest.fixture()
def no_folder(tmp_path, monkeypatch):
    "Read from the hub, with a cache folder whose name is a glob pattern."
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept [1]")


def rows(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_local_folder_replaces_a_hub_dataset(tmp_path, no_folder, name):
    home = publish(tmp_path / name, x=rows({"text": "Ja."}))
    publish(tmp_path / "star", x=rows({"text": "Nein."}))
    assert hub_configs(home) == ["x"] and hub_splits(home, "x") == {"test": [{"text": "Ja."}]}
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["README.md", "x.jsonl"]


def test_unreadable_tatoeba_config_is_dropped(tmp_path, monkeypatch, no_folder):
    "Broken JSON and a missing column drop the configuration; a row without text drops its pair."
    pair = {"sentence1": "Ja.", "sentence2": "Yes."}
    broken = rows(pair) + "{broken\n"
    sets = {"deu-eng": "\n" + rows(pair, {"sentence1": None, "sentence2": "No."}) + "\n", "fra-eng": broken}
    home = publish(
        tmp_path / "hub",
        **sets,
        **{"nld-eng": rows({"sentence1": "Ja."}), "swe-eng": rows({"sentence1": 5, "sentence2": "x"})},
    )
    monkeypatch.setitem(DATASETS, "tatoeba", replace(DATASETS["tatoeba"], hub=home))
    (bitext,), warnings = load_bitexts("tatoeba")
    assert (bitext.name, bitext.target_texts) == ("deu", ["Ja."])
    for part in (
        "fra-eng, on the Hugging Face Hub cannot be read",
        "nld-eng: no column `sentence2`",
        "swe has no sentence",
        "deu has 1 lines",
    ):
        assert sum(part in warning for warning in warnings) == 1, (part, warnings)


def test_unreadable_sib200_config_is_dropped(tmp_path, monkeypatch, no_folder):
    row = {"index_id": 1, "category": "sports", "text": "Go"}
    sets = {
        "eng_Latn": rows(row),
        "fra_Latn": rows(row) + "{broken\n",
        "deu_Latn": rows(row, {**row, "index_id": 2, "text": None}),
    }
    home = publish(tmp_path / "hub", **sets)
    monkeypatch.setitem(DATASETS, "sib200", replace(DATASETS["sib200"], hub=home))
    (bitext,), warnings = load_bitexts("sib200-parallel")
    assert bitext.name == "deu_Latn" and len(warnings) == 1 and "fra_Latn, on the Hugging Face Hub" in warnings[0]
    sets, warnings = load_labelled("sib200")
    assert [one.name for one in sets] == [
        "deu_Latn",
        "eng_Latn",
    ] and "deu_Latn test: left out, no text: 1" in warnings
    assert any("fra_Latn, on the Hugging Face Hub cannot be read" in warning for warning in warnings)


# Through the public command


def test_evaluation_reports_dropped_examples(tmp_path, unbroken, outputs):
    "Every warning about a flawed set comes back with its file and line, beside the scores of what was read."
    for split in ("train", "dev", "test"):
        table = b"\n".join([*ROWS, *ROWS[1:]]) + b"\n"
        path = write(tmp_path / f"sib200/eng_Latn/{split}.tsv", "")
        path.write_bytes(table)
    path.write_bytes(table + b"9\tsports\n")
    write(tmp_path / "tatoeba/tatoeba.deu-eng.eng", "Yes.\nNo.\nGo.\n")
    (tmp_path / "tatoeba/tatoeba.deu-eng.deu").write_bytes(b"Ja.\nN\xe9.\nGeh.\n")
    write(tmp_path / "bible/eng_Latn.txt", "40001001\tThe book\nAmen\n40001002\tAbraham\n")
    write(tmp_path / "bible/deu_Latn.txt", "40001001\tDas Buch\n40001002\tAbraham\n")
    tasks = ["sib200", "tatoeba", "bible"]
    p = EvaluationParams(encoder=unbroken.name, tasks=tasks, data_dir=str(tmp_path), seeds=1)
    table, warnings = evaluate(p, outputs)
    for part in (
        "test.tsv:8: not 3 columns",
        "deu-eng.deu:2: not UTF-8",
        "eng_Latn.txt:2: `Amen` is not a verse number",
    ):
        assert sum(part in warning for warning in warnings) == 1, warnings
    assert set(table.task) == set(tasks) and set(table[table.task == "tatoeba"]["items"]) == {2}


def test_error_in_the_source_language_stops_the_evaluation(tmp_path, unbroken, outputs):
    for language in ("eng_Latn", "fra_Latn"):
        for split in ("train", "dev", "test"):
            write(tmp_path / f"sib200/{language}/{split}.tsv", ROWS[0].decode() + "\n1\tsports\tOne\n")
    write(tmp_path / "sib200/eng_Latn/dev.tsv", ROWS[0].decode() + "\n1\tsports\n")
    with pytest.raises(UserError, match=r"(?s)no training data in eng_Latn.*dev.tsv:2: not 3 columns"):
        evaluate(EvaluationParams(encoder=unbroken.name, tasks=["sib200"], data_dir=str(tmp_path), seeds=1), outputs)
