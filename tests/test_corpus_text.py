"Every dropped line of a corpus is counted and reported with its place; there is never a traceback."

import gzip
import lzma
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tiny

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.core.manifests import read_manifest
from langsamp.corpora.text import FilterReport, Source, clean_lines, find_sources
from langsamp.data.shards import TokenDataset, corpus_report, drop_table, write_shard
from langsamp.tokenization.train import trained_tokenizer
from langsamp.training.pretrain import main, prepare

BLANK, TWICE, SCRIPT = {"blank": 1}, {"duplicate": 1}, {"another script": 1}
CORPORA = {  # Bytes of eng_Latn.txt -> kept texts, dropped reasons, where
    "invalid UTF-8": (b"one\n\xff\xfe two\nthree\n", ["one", "three"], {"not UTF-8": 1}, 2),
    "cut in a character": ("one\ntw\u00f6".encode()[:-1], ["one"], {"not UTF-8": 1}, 2),
    "surrogate": (b"one\n\xed\xa0\x80\n", ["one"], {"not UTF-8": 1}, 2),
    "empty file": (b"", [], {}, None),
    "only blanks": (" \t\u00a0\u3000\n".encode(), [], BLANK, 1),
    "NUL": (b"one\nt\0wo\n", ["one"], {"NUL byte": 1}, 2),
    "UTF-16": ("one\n".encode("utf-16"), [], {"NUL byte": 2}, 1),
    "CRLF": (b"one\r\ntwo\r\n", ["one", "two"], {}, None),
    "lone CR": (b"one\rtwo\n", ["one two"], {}, None),
    "line and paragraph separators": (
        "one\u2028two\u2029three\x85four\x1cfive\n".encode(),
        ["one two three four five"],
        {},
        None,
    ),
    "byte order mark": (b"\xef\xbb\xbfone\n", ["one"], {}, None),
    "no newline at the end": (b"one\ntwo", ["one", "two"], {}, None),
    "duplicates": (b"one\ntwo\n one \n", ["one", "two"], TWICE, 3),
    "a line of 10 MB": (
        b"one\n" + b"a" * 10_000_000 + b"\nthree\n",
        ["one", "three"],
        {"longer than 1,000,000 bytes": 1},
        2,
    ),
    "an endless last line": (b"one\n" + b"a" * 10_000_000, ["one"], {"longer than 1,000,000 bytes": 1}, 2),
    "another script": ("one\nодин\n".encode(), ["one"], SCRIPT, 2),
    "numbers only": (b"12 + 30 = 42\n", ["12 + 30 = 42"], {}, None),
}


def source(folder: Path, content: bytes, name: str = "eng_Latn.txt") -> Source:
    (folder / name).write_bytes(content)
    return Source(name.partition(".")[0], folder / name, "train")


def clean(file: Source, stop: bool = False) -> tuple[list[str], FilterReport]:
    "The kept texts of a file, and a filter report that adds up."
    filter_report = FilterReport(file.code)
    texts = [text for _, text in clean_lines([file], filter_report, stop)]
    assert filter_report.lines == len(texts) + sum(filter_report.dropped.values()) and filter_report.kept[
        "train"
    ] == len(texts)
    return texts, filter_report


@pytest.mark.parametrize("name", CORPORA)
def test_bad_line(tmp_path, name):
    "Each kind of bad line is dropped and reported with file and line; other lines are kept."
    content, kept, dropped, where = CORPORA[name]
    file = source(tmp_path, content)
    texts, filter_report = clean(file)
    assert (texts, filter_report.dropped) == (kept, dropped)
    assert filter_report.examples[:1] == ([f"{file.label}:{where}: {min(dropped)}"] if dropped else [])


@pytest.mark.parametrize("name", CORPORA)
def test_on_bad_line_stop(tmp_path, name):
    "With `stop` the first bad line is an error with a hint; blank and duplicate lines never are."
    content, kept, dropped, where = CORPORA[name]
    file = source(tmp_path, content)
    if set(dropped) <= {"blank", "duplicate"}:
        assert clean(file, stop=True)[0] == kept
        return
    with pytest.raises(UserError, match="fix the line, or set on_bad_line to skip") as error:
        clean(file, stop=True)
    assert str(error.value).startswith(f"{file.path}:{where}: ")


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}
LINES = "".join(f"{line}\n" for line in tiny.sentences("eng_Latn", 2000)).encode()
HARM = {
    "truncated": lambda packed: packed[: len(packed) // 2],
    "cut by a byte": lambda packed: packed[:-1],
    "overwritten": lambda packed: packed[:200] + bytes(100) + packed[300:],
    "garbage": lambda packed: b"no archive at all\n" * 9,
    "garbage after it": lambda packed: packed + b"no archive at all\n" * 9,
    "empty": lambda packed: b"",
}


NOTICED = [(s, h) for s in PACKERS for h in HARM if (s, h) != (".zst", "overwritten")]  # zst may have no checksum


@pytest.mark.parametrize(("suffix", "how"), NOTICED)
def test_broken_archive(tmp_path, suffix, how):
    "Lines up to the break are kept, the break is counted and located; with `stop` it is an error."
    file = source(tmp_path, HARM[how](PACKERS[suffix](LINES)), f"eng_Latn.txt{suffix}")
    texts, filter_report = clean(file)
    if how in ("cut by a byte", "garbage after it") and not filter_report.dropped:
        assert texts == LINES.decode().split("\n")[:-1], "nothing lost"
        return
    if how == "empty":
        assert texts == []
        return
    assert filter_report.dropped.get("unreadable") == 1
    assert f"{file.label}:{filter_report.lines}: unreadable from here on" in filter_report.examples[-1]
    with pytest.raises(UserError, match="unreadable from here on"):
        clean(file, stop=True)


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files(tmp_path, suffix):
    "Every compression format is read."
    assert (
        clean(source(tmp_path, PACKERS[suffix](LINES), f"eng_Latn.txt{suffix}"))[0] == LINES.decode().split("\n")[:-1]
    )


# Files and their names


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("english.txt", "not a language-script code"),
        ("eng_latn.txt", "did you mean `eng_Latn`"),
        ("ENG_Latn.txt", "did you mean `eng_Latn`"),
        ("xyq_Latn.txt", "not a language-script code"),
        ("eng_Latn.csv", "no column `text`; there are one"),
        ("eng_Latn.txt.bz2", "not read; write it as eng_Latn.txt"),
        ("eng_Latn.txt.gz.part", "not read; write it as eng_Latn.txt"),
    ],
)
def test_file_name_without_a_code(tmp_path, name, word):
    "Such a file causes a warning and is left out; the others are used."
    (tmp_path / "rus_Cyrl.txt").write_text("один\n")
    (tmp_path / name).write_text("one\n")
    sources, (warning,) = find_sources(tmp_path)
    assert list(sources) == ["rus_Cyrl"] and str(tmp_path / name) in warning and word in warning


@pytest.mark.parametrize("half", ["", "train/"])
def test_two_files_for_one_code(tmp_path, half):
    "Ambiguity is an error."
    for name in ("eng_Latn.txt", "eng_Latn.txt.gz"):
        tiny.write(tmp_path / f"{half}{name}", "one\n")
    with pytest.raises(UserError, match="are both eng_Latn: merge them"):
        find_sources(tmp_path)


@pytest.mark.parametrize(("languages", "word"), [(["deu_Latn"], "no file in .* for deu_Latn"), ([], "named like")])
def test_missing_files(tmp_path, languages, word):
    "A wanted language without a file, and a folder without any, are errors."
    (tmp_path / ("eng_Latn.txt" if languages else "notes.md")).write_text("one\n")
    with pytest.raises(UserError, match=word):
        find_sources(tmp_path, languages)


def test_file_without_permission(tmp_path, monkeypatch):
    "An unreadable file is reported and left out."
    for name in ("eng_Latn.txt", "rus_Cyrl.txt"):
        (tmp_path / name).write_text("one\n")
    if os.geteuid():
        (tmp_path / "rus_Cyrl.txt").chmod(0)
    else:  # Root may read everything
        monkeypatch.setattr(os, "access", lambda path, _: path.name != "rus_Cyrl.txt")
    sources, (warning,) = find_sources(tmp_path)
    assert list(sources) == ["eng_Latn"] and "rus_Cyrl.txt: not readable" in warning


# From text to sequences


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory) -> Path:
    "A tokenizer with a vocabulary of 300."
    return trained_tokenizer(find_sources(corpus)[0], "0", tmp_path_factory.mktemp("tokenizer"), 300)


def test_the_same_text_gives_the_same_tokenizer(corpus, tokenizer, tmp_path):
    "Byte for byte, in any process; otherwise a run could not resume after its text was prepared again."
    code = f"""
from pathlib import Path
from langsamp.corpora.text import find_sources
from langsamp.tokenization.train import trained_tokenizer
trained_tokenizer(find_sources({str(corpus)!r})[0], "0", Path({str(tmp_path)!r}), 300)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    again = tmp_path / tokenizer.name / "tokenizer.json"
    assert again.read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_no_token_is_lost(corpus, tokenizer, tmp_path):
    "Lines = kept + dropped; the tokens of the kept lines are those of the sequences, in order."
    sources, _ = find_sources(corpus)
    shards = [write_shard(code, files, tokenizer, tmp_path) for code, files in sources.items()]
    facts, report = read_manifest(tokenizer), corpus_report(shards)
    for split in ("train", "validation"):
        sequences = TokenDataset(shards, split, 32, facts["pad"])
        tokens = sequences[np.arange(len(sequences))][0]
        written = [np.fromfile(shard / f"{split}.tokens", "<u4") for shard in shards]
        assert tokens[tokens != facts["pad"]].tolist() == np.concatenate(written).tolist()
        assert [len(w) for w in written] == [
            filter_report["splits"][split]["tokens"] for filter_report in report["filter_reports"]
        ]
    assert {filter_report["lines"] for filter_report in report["filter_reports"]} == {68}


def test_three_lines_are_one_sequence(tokenizer, tmp_path):
    "A file of three lines gives a padded sequence with all its tokens."
    shard = write_shard("eng_Latn", [source(tmp_path, b"abc def\nabc\ndef abc\n")], tokenizer, tmp_path)
    sequences = TokenDataset([shard], "train", 256, pad=1)
    assert len(sequences) == 1
    assert (sequences[[0]][0] != 1).sum() == read_json(shard / "filter_report.json")["splits"]["train"]["tokens"] > 9


def test_special_tokens_written_in_text_are_plain_text(tokenizer, tmp_path):
    "`<mask>`, `</s>` and other special tokens in a line never become the ids that masking and packing use."
    file = source(tmp_path, b"abc <mask> def</s> <s>abc <pad><pad> <unk>\n")
    (line,) = TokenDataset([write_shard("eng_Latn", [file], tokenizer, tmp_path)], "train", 64, pad=1)[[0]][0]
    facts = read_manifest(tokenizer)
    specials = Counter(
        t for t in line[: np.flatnonzero(line != facts["pad"])[-1] + 1].tolist() if t in facts["specials"]
    )
    assert specials.pop(0) == specials.pop(2) == 1, "the two that the tokenizer adds"
    assert set(specials) <= {facts["unk"]}


def test_every_dropped_line_has_a_location(tokenizer, tmp_path):
    "The table of dropped lines has the first places of each reason."
    content = gzip.compress(b"one\n\none\n\xff\n\0\n" + "один\n".encode() + LINES)[:-3000]
    shard = write_shard("eng_Latn", [source(tmp_path, content, "eng_Latn.txt.gz")], tokenizer, tmp_path)
    table = drop_table(corpus_report([shard]))
    assert set(table.index) == {"blank", "duplicate", "not UTF-8", "NUL byte", "another script", "unreadable"}
    assert all("eng_Latn.txt.gz:" in where for where in table["where"])


def random_corpus(folder: Path, seed: int) -> Path:
    "Files of random bytes, random good and bad text, or empty ones, with valid and invalid names."
    random = np.random.default_rng(seed)
    token_ids = [
        b"\n",
        b" ",
        b"\r\n",
        b"\0",
        b"\xff",
        "\u2028".encode(),
        b"<mask>",
        b"abc",
        "где".encode(),
        b"\xe0\xa4",
    ]
    names = [
        "eng_Latn.txt",
        "rus_Cyrl.txt",
        "hin_Deva.txt.gz",
        "zho_Hans.txt.zst",
        "jpn_Jpan.txt.xz",
        "x.txt",
        "deu_latn.txt",
    ]
    folder.mkdir()
    for name in random.choice(names, random.integers(1, 6), replace=False):
        size = int(random.choice([0, 1, 10, 3000]))
        content = random.bytes(size) if random.random() < 0.4 else b"".join(random.choice(token_ids, size))
        pack = PACKERS.get(Path(name).suffix)
        (folder / name).write_bytes(pack(content) if pack and random.random() < 0.6 else content)
    return folder


@pytest.mark.parametrize("seed", range(24))
def test_random_bytes(tmp_path, seed):
    "Random files as a corpus: prepared with a filter report that adds up, or a `UserError`."
    params = tiny.params_of(random_corpus(tmp_path / "noise", seed), on_bad_line=["skip", "stop"][seed % 2])
    try:
        report = prepare(params, tmp_path).report
    except UserError:
        return
    for filter_report in report["filter_reports"]:
        assert filter_report["lines"] == sum(filter_report["kept"].values()) + sum(filter_report["dropped"].values())


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\n" * 9, b"one\n", b"one two three\n" * 3])
def test_run_on_a_tiny_corpus(tmp_path, capsys, content):
    "A corpus too small to train on or to validate with is an error that says so, not a traceback."
    (tmp_path / "corpus").mkdir()
    source(tmp_path / "corpus", content)
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(tmp_path / "corpus", max_steps=2, warmup_steps=0))
    assert main([str(params), str(tmp_path)]) == 2
    assert "langsamp: " in capsys.readouterr().err


def peak(folder: Path, tokenizer: Path, lines: int) -> int:
    "Memory growth of a process that writes a shard of the given number of lines."
    with open(folder / "eng_Latn.txt", "w", encoding="utf-8") as file:
        for number in range(lines):
            file.write(f"line {number} of a text that is as long as it is dull, {number * 7919} times\n")
    code = f"""
import re
from pathlib import Path
from langsamp.data.shards import write_shard
from langsamp.corpora.text import Source
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # Of this program alone
(folder, tokenizer), before = (Path({str(folder)!r}), Path({str(tokenizer)!r})), peak()
write_shard("eng_Latn", [Source("eng_Latn", folder / "eng_Latn.txt", "train")], tokenizer, folder / "shards")
print((peak() - before) * 1024)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path):
    "Five times the text takes no more memory than a few buffers: the caches of lines and words are full in both."
    small, large = peak(tmp_path, tokenizer, 60_000), peak(tmp_path, tokenizer, 300_000)
    assert (tmp_path / "eng_Latn.txt").stat().st_size > 20_000_000
    assert 0 < large < small + 8_000_000, (small, large)
