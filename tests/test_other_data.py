"Data of other people, with the flaws that other people's data has: read right, or reported with file and line."

import gzip
import json
from pathlib import Path

import pytest
from tiny import write

from langsamp.core import UserError
from langsamp.corpus import raw_lines
from langsamp.dataset_files import data_files
from langsamp.hub import hub_sources, read_texts

ODD_NAMES = ["data [v2]", "a::b", "st*r", "wh?t", "[!x]::y"]


def lines_of(paths: list[Path]) -> list[str]:
    "The lines of some parts."
    return [(line or b"").decode() for path in paths for _, line in raw_lines(path)]


def read_hub(folder: Path, home: Path, *languages: str) -> tuple[dict[str, list[str]], list[str]]:
    "The lines of a dataset by code, and the complaints."
    sources, complaints = hub_sources(str(folder), languages, home)
    return {code: lines_of([source.path for source in found]) for code, found in sources.items()}, complaints


def jsonl(*texts: object) -> str:
    "Lines of JSON with a column `text`."
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


CARD = "---\nconfigs:\n- config_name: wol_Latn\n  data_files: [{split: train, path: 'wol_Latn/train/*'}]\n---\n"


# A path is not a pattern


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("card", [False, True], ids=["folders", "card"])
def test_a_dataset_folder_of_any_name_is_read(tmp_path, name, card):
    "The folder itself, and not a neighbour that its name would match as a pattern."
    write(tmp_path / name / "wol_Latn/train/a.jsonl", jsonl("benn"))
    write(tmp_path / name / "wol_Latn/test/b.jsonl", jsonl("test"))
    for neighbour in ("data v", "data 2", "star", "what", "y"):
        write(tmp_path / neighbour / "wol_Latn/train/a.jsonl", jsonl(neighbour))
    if card:
        write(tmp_path / name / "README.md", CARD)
    assert read_hub(tmp_path / name, tmp_path / "home") == ({"wol_Latn": ["benn"]}, [])


def test_files_inside_a_dataset_may_have_any_name(tmp_path):
    write(tmp_path / "glot/wol_Latn/a::b [1]/c::d*.jsonl", jsonl("benn"))
    write(tmp_path / "glot/wol_Latn/train::e.jsonl.gz", "")
    (tmp_path / "glot/wol_Latn/train::e.jsonl.gz").write_bytes(gzip.compress(jsonl("ñaar").encode()))
    assert read_hub(tmp_path / "glot", tmp_path / "home") == ({"wol_Latn": ["benn", "ñaar"]}, [])


def test_a_cache_folder_of_any_name_keeps_the_text(tmp_path):
    write(tmp_path / "glot/wol_Latn/a.jsonl", jsonl("benn"))
    for name in ODD_NAMES:
        assert read_hub(tmp_path / "glot", tmp_path / name) == ({"wol_Latn": ["benn"]}, [])


def test_a_broken_row_below_such_a_folder_is_placed_there(tmp_path):
    "Not in the folder of links by which the files were found."
    file = tmp_path / "data [v2]" / "wol_Latn/a.jsonl"
    write(file, jsonl("benn") + '{"text":\n')
    with pytest.raises(UserError) as error:
        hub_sources(str(tmp_path / "data [v2]"), [], tmp_path / "home")
    assert str(error.value).startswith(f"{file}:2: ")


def test_a_temporary_folder_that_is_a_pattern_is_named(tmp_path, monkeypatch):
    (tmp_path / "tmp [1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp [1]"))
    write(tmp_path / "a::b/wol_Latn/a.jsonl", jsonl("benn"))
    with pytest.raises(UserError, match="set TMPDIR to a folder without"):
        hub_sources(str(tmp_path / "a::b"), [], tmp_path / "home")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wol_Latn/a.csv": "text\nbenn\n"}, "wol_Latn: a.csv: not read, for rows are read from"),
        ({"wol_Latn/test/a.jsonl": jsonl("benn")}, "wol_Latn: there is only test, and rows are read from the split"),
        ({"wol_Latn/notes.jsonl": jsonl("a"), "wol_Latn/test.jsonl": jsonl("b")}, "wol_Latn: notes.jsonl: not read"),
        ({"wol_Latn/a.jsonl": ""}, "has no rows for wol_Latn"),
        ({"wol_Latn/.hidden": ""}, "has no file for wol_Latn"),
    ],
)
def test_no_rows_is_said_of_files_that_were_read_only(tmp_path, files, message):
    write(tmp_path / "glot/eng_Latn/a.jsonl", jsonl("one"))
    for name, text in files.items():
        write(tmp_path / "glot" / name, text)
    for _ in range(2):  # The second time from what was kept
        found, (complaint,) = read_hub(tmp_path / "glot", tmp_path / "home")
        assert found == {"eng_Latn": ["one"]} and message in complaint
        assert "no rows" not in complaint or not (tmp_path / "glot/wol_Latn/a.jsonl").read_text()
    with pytest.raises(UserError) as error:
        read_hub(tmp_path / "glot", tmp_path / "home", "wol_Latn")
    assert message in str(error.value)


def test_a_file_in_another_format_beside_those_that_are_read_is_named(tmp_path):
    write(tmp_path / "glot/wol_Latn/a.jsonl", jsonl("benn"))
    write(tmp_path / "glot/wol_Latn/b.csv", "text\nñaar\n")
    for name in ("state.json", "dataset_info.json", "README.md"):
        write(tmp_path / "glot/wol_Latn" / name, "{}")
    found, (complaint,) = read_hub(tmp_path / "glot", tmp_path / "home")
    assert found == {"wol_Latn": ["benn"]} and "wol_Latn: b.csv: not read" in complaint
    assert data_files(str(tmp_path / "glot"), "wol_Latn")[1] == ["b.csv"]


def test_configurations_of_one_language_script_are_joined_and_that_is_said(tmp_path):
    for name in ("zho_Hans", "zho_Hant"):
        write(tmp_path / f"glot/{name}/a.jsonl", jsonl(name))
    found, (complaint,) = read_hub(tmp_path / "glot", tmp_path / "home")
    assert found == {"zho_Hani": ["zho_Hans", "zho_Hant"]}
    assert "zho_Hans and zho_Hant are both zho_Hani: joined" in complaint


# Lines of JSON


@pytest.mark.parametrize("blank", ["\n", "\r\n", "  \t\n"])
def test_blank_lines_of_json_are_skipped(tmp_path, blank):
    "Wherever they stand, and the numbers of rows and lines stay right."
    text = blank + jsonl("benn") + blank + blank + jsonl("ñaar", None) + blank
    file = tmp_path / "glot/wol_Latn/a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode())
    assert list(read_texts(str(file))) == ["benn", "ñaar", ""]
    assert list(read_texts(str(file), skip=1)) == ["ñaar", ""]
    assert read_hub(tmp_path / "glot", tmp_path / "home") == ({"wol_Latn": ["benn", "ñaar", ""]}, [])
    file.write_bytes((text + '{"text": \n').encode())
    with pytest.raises(UserError, match="a.jsonl:8: unreadable"):
        list(read_texts(str(file)))
