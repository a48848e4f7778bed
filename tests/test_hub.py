"A Hub dataset becomes the same corpus as a text folder, despite odd files, network errors and kills."

import gzip
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import pyarrow
import pyarrow.parquet
import pytest
from datasets import load_dataset
from datasets.table import CastError

from langsamp.core.errors import UserError
from langsamp.core.manifests import find_damage, read_manifest
from langsamp.corpora import dataset_rows, hub
from langsamp.corpora.dataset_rows import read_texts
from langsamp.corpora.hub import copy_texts, hub_sources
from langsamp.corpora.lines import raw_lines
from langsamp.corpora.text import find_sources
from langsamp.data.shards import write_shard
from langsamp.tokenization.train import trained_tokenizer

TEXTS = [
    "plain",
    "",
    None,
    "two\nlines",
    "\r\n",
    "a\u2028b\u2029c\x85d",
    "ñépp 😀",
    "tab\t\0",
    "x" * 100_000,
    " blanks ",
]
LINES = [(text or "").replace("\r", " ").replace("\n", " ") for text in TEXTS]


def write(path: Path, texts: list, **others: list) -> str:
    "Write rows in the format given by the file name; `.ipc.arrow` is the file format, `.arrow` the stream."
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": texts, **others})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=max(4, len(texts) // 50))
    elif path.suffix == ".arrow":
        new = pyarrow.ipc.new_file if path.name.endswith(".ipc.arrow") else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(3, len(texts) // 50))
    else:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
        path.write_bytes(gzip.compress(rows.encode()) if path.suffix == ".gz" else rows.encode())
    return str(path)


def lines_of(parts: list[Path]) -> list[str]:
    return [(line or b"").decode() for part in parts for _, line in raw_lines(part)]


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def glot(tmp_path) -> Path:
    "Three languages: Arrow with and without an index column, Parquet, JSON; and a description as on the Hub."
    folder = tmp_path / "Glot500"
    write(folder / "eng_Latn/train/data-00000-of-00002.arrow", TEXTS)
    write(folder / "eng_Latn/train/data-00001-of-00002.arrow", ["last"], __index_level_0__=[7])
    write(folder / "wol_Latn/train/a.parquet", ["benn", "ñaar"], url=["-", "-"])
    write(folder / "rus_Cyrl/train.jsonl.gz", ["один"])
    write(folder / "rus_Cyrl/test.jsonl", ["два"])
    return folder


def describe(folder: Path, **paths: str) -> None:
    rows = [f"- config_name: {code}\n  data_files: [{{split: train, path: '{path}'}}]" for code, path in paths.items()]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *rows, "---"]))


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".ipc.arrow", ".jsonl", ".jsonl.gz"])
def test_every_row_becomes_a_line(tmp_path, ending):
    file = write(tmp_path / f"a{ending}", TEXTS, index=list(range(len(TEXTS))))
    copy_texts([file], "test", tmp_path / "kept", rows_per_part=3)
    parts = sorted((tmp_path / "kept").glob("part-*"))
    assert lines_of(parts) == LINES, "a row was lost, broken or changed"
    assert len(parts) == 4 and read_manifest(tmp_path / "kept")["rows"] == len(TEXTS)
    for skip in range(len(TEXTS) + 2):
        assert list(read_texts(file, skip)) == LINES[skip:], f"{skip} rows to skip, but other rows came"


def test_columns_may_differ_between_files(glot):
    files = sorted(map(str, glot.glob("eng_Latn/train/*.arrow")))
    with pytest.raises(CastError):  # When `datasets` no longer fails here, one call can read a configuration
        list(load_dataset("arrow", data_files=files, split="train", streaming=True).select_columns("text"))
    sources, warnings = hub_sources(str(glot), ["eng_Latn"], glot.parent / "text")
    assert lines_of([source.path for source in sources["eng_Latn"]]) == [*LINES, "last"]
    assert not warnings


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl"])
def test_an_empty_file_gives_no_rows(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    if ending == ".jsonl":
        file.touch()
    else:
        write(file, pyarrow.array([], pyarrow.string()))
    copy_texts([str(file), write(tmp_path / f"b{ending}", ["one"])], "test", tmp_path / "kept")
    assert lines_of(sorted((tmp_path / "kept").glob("part-*"))) == ["one"]


def test_only_the_split_train_is_read(glot):
    sources, _ = hub_sources(str(glot), ["rus_Cyrl"], glot.parent / "text")
    folder = sources["rus_Cyrl"][0].path.parent
    assert lines_of([source.path for source in sources["rus_Cyrl"]]) == ["один"], "text of a test split was read"
    assert read_manifest(folder)["splits"] == {"train": 1, "test": 1}


def test_a_dataset_becomes_the_same_shard_as_a_folder(glot, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/eng_Latn.txt").write_text("".join(f"{line}\n" for line in [*LINES, "last"]))
    plain, _ = find_sources(tmp_path / "plain")
    parts, _ = hub_sources(str(glot), ["eng_Latn"], tmp_path / "text", rows_per_part=4)
    tokenizer = trained_tokenizer(plain, "0", tmp_path / "tokenizers", 300)
    one, two = (write_shard("eng_Latn", s["eng_Latn"], tokenizer, tmp_path / "shards") for s in (plain, parts))
    assert one != two and (one / "train.tokens").stat().st_size
    for name in ("train.tokens", "train.ends", "validation.tokens", "validation.ends"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), f"{name} differs between folder and dataset"


def killed_at(where: str, when: int, name: str, folder: Path) -> None:
    "Copy a dataset; the process is killed at the nth call of a function."
    place = dataset_rows if where == "text_line" else hub
    calls, read = [0], getattr(place, where)

    def deadly(*args, **options):
        calls[0] += 1
        if calls[0] == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*args, **options)

    setattr(place, where, deadly)
    hub_sources(name, [], folder, 3)


def test_sigkill_loses_at_most_a_part_and_changes_no_byte(glot, tmp_path):
    chance = random.Random(16)
    hub_sources(str(glot), [], tmp_path / "unbroken", 3)
    before: dict[Path, int] = {}
    for where in ("text_line", "text_line", "write_json", "write_manifest"):
        when = chance.randint(2, 6) if where != "write_manifest" else 1
        fork = multiprocessing.get_context("fork")
        (process := fork.Process(target=killed_at, args=(where, when, str(glot), tmp_path / "killed"))).start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        recorded = [
            path.parent / part
            for path in (tmp_path / "killed").rglob("progress.json")
            for part in json.loads(path.read_text())["parts"]
        ]
        lost = [path for path, written in before.items() if path.stat().st_mtime_ns != written]
        assert not lost, f"finished parts were written again: {lost}"
        before |= {path: path.stat().st_mtime_ns for path in recorded}
    assert before, "no kill left a finished part"
    hub_sources(str(glot), [], tmp_path / "killed", 3)
    for folder in ("eng_Latn", "wol_Latn", "rus_Cyrl"):
        (one,), (two,) = (list((tmp_path / name).glob(f"*/{folder}")) for name in ("unbroken", "killed"))
        assert kept(one) == kept(two), f"{folder} differs after kills"
        assert find_damage(two) == ""


def test_rerun_reads_no_row_and_changes_are_read(glot, tmp_path):
    first, _ = hub_sources(str(glot), [], tmp_path)
    with patch.object(hub, "open_rows", side_effect=AssertionError("a finished language was opened")):
        assert hub_sources(str(glot), [], tmp_path)[0] == first
    write(glot / "wol_Latn/train/a.parquet", ["ñett"])
    again, _ = hub_sources(str(glot), ["wol_Latn"], tmp_path)
    assert lines_of([source.path for source in again["wol_Latn"]]) == ["ñett"], "a changed file was not read again"
    again["wol_Latn"][0].path.unlink()
    hub_sources(str(glot), ["wol_Latn"], tmp_path)
    assert lines_of([again["wol_Latn"][0].path]) == ["ñett"], "a lost part was not written again"


def test_missing_and_unexpected_configs_are_reported(glot, tmp_path):
    for name in ("notes", "en_Latn", "tel_Telu", ".cache", "cmn_Hans", "cmn_Hani"):
        (glot / name).mkdir()
    write(glot / "cmn_Hans/a.jsonl", ["一"])
    write(glot / "cmn_Hani/a.jsonl", ["二"])
    sources, warnings = hub_sources(str(glot), ["cmn_Hans", "wol_Latn", "fra_Latn", "tel_Telu"], tmp_path)
    assert [source.path.parent.name for source in sources.pop("cmn_Hani")] == ["cmn_Hani", "cmn_Hans"]
    assert list(sources) == ["wol_Latn"] and sources["wol_Latn"][0].split == ""
    for part in (
        "`en_Latn` is not",
        "`notes` is not",
        "has no fra_Latn",
        "no file for tel_Telu",
        "and cmn_Hans are the same",
    ):
        assert any(part in warning for warning in warnings), f"no warning about {part}"
    assert len(warnings) == 5
    with pytest.raises(UserError, match="has no fra_Latn"):
        hub_sources(str(glot), ["fra_Latn"], tmp_path)
    with pytest.raises(UserError, match="no file for tel_Telu"):
        hub_sources(str(glot), ["tel_Telu"], tmp_path)


def test_two_folders_of_one_name_stay_separate(glot, tmp_path):
    write(tmp_path / "other/Glot500/wol_Latn/a.jsonl", ["juróom"])
    hub_sources(str(glot), ["wol_Latn"], tmp_path)
    hub_sources(str(tmp_path / "other/Glot500"), ["wol_Latn"], tmp_path)
    with patch.object(hub, "open_rows", side_effect=AssertionError("one folder displaced the other")):
        sources, _ = hub_sources(str(glot), ["wol_Latn"], tmp_path)
    assert lines_of([source.path for source in sources["wol_Latn"]]) == ["benn", "ñaar"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"content": "one"}\n', r"a.jsonl: no column `text`; there are content"),
        ("a.jsonl", b"5", r"a.jsonl: no column `text`"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read \(.*gzip"),
        ("a.parquet", b"PAR1 and nothing", r"a.parquet cannot be read"),
        ("a.arrow", b"ARROW1 and nothing", r"a.arrow cannot be read"),
    ],
)
def test_broken_file_is_located(tmp_path, name, content, message):
    (tmp_path / "glot/wol_Latn").mkdir(parents=True)
    (tmp_path / "glot/wol_Latn" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        hub_sources(str(tmp_path / "glot"), [], tmp_path / "text")


PEAK = """
import re, sys
from pathlib import Path
from langsamp.corpora.hub import hub_sources
hub_sources(sys.argv[1], [], Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("ending", [".arrow", ".parquet", ".jsonl"])
def test_memory_does_not_grow_with_the_text(tmp_path, ending):
    peaks = []
    for count in (20_000, 200_000):
        texts = [f"{i} " + "word " * 40 for i in range(count)]
        write(tmp_path / f"{count}/wol_Latn/a{ending}", texts)
        command = [sys.executable, "-c", PEAK, tmp_path / str(count), tmp_path]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 25_000, f"40 MB more text took {peaks[1] - peaks[0]:,} KiB more memory"


COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    "A minimal Hugging Face Hub that serves one dataset from a local folder."

    protocol_version, root, requested = "HTTP/1.1", Path(), []

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def facts(self, path: Path) -> dict:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        return {"type": kind, "path": path.relative_to(self.root).as_posix(), "oid": "0" * 40, "size": size}

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.requested.append(path)
        match = re.fullmatch(r"(?:/api)?/datasets/cis-lmu/(\w+)(?:/(revision|tree|resolve)/[^/]+/?(.*))?", path)
        if match is None or match[1] != "Glot500":
            gated = "GatedRepo" if match and match[1] == "Gated" else "RepoNotFound"
            return self.answer(401, X_Error_Code=gated)
        if match[2] in (None, "revision"):
            return self.answer(200, json.dumps({"id": "cis-lmu/Glot500", "sha": COMMIT, "siblings": []}).encode())
        if not (target := self.root / match[3]).exists():
            return self.answer(404, X_Error_Code="EntryNotFound")
        if match[2] == "tree":
            return self.answer(200, json.dumps([self.facts(file) for file in sorted(target.iterdir())]).encode())
        self.send_bytes(target.read_bytes())

    do_HEAD = do_GET

    def send_bytes(self, data: bytes) -> None:
        etag, part = (
            f'"{hashlib.sha1(data).hexdigest()}"',
            re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")),
        )
        if part is None:
            return self.answer(200, data, ETag=etag)
        start, end = int(part[1]), min(int(part[2]), len(data) - 1)
        self.answer(206, data[start : end + 1], ETag=etag, Content_Range=f"bytes {start}-{end}/{len(data)}")


@pytest.fixture
def endpoint(glot) -> Iterator[str]:
    "The URL of a local Hub with the dataset `cis-lmu/Glot500`."
    describe(glot, eng_Latn="eng_Latn/train/*.arrow", wol_Latn="wol_Latn/train/*", tel_Telu="tel_Telu/train/*.arrow")
    Hub.root, Hub.requested = glot, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ASK = """
import json, sys
from pathlib import Path
from langsamp.core.errors import UserError
from langsamp.corpora.hub import hub_sources
try:
    sources, warnings = hub_sources(sys.argv[1], [], Path(sys.argv[2]), 4)
    print(json.dumps([{code: [str(s.path) for s in found] for code, found in sources.items()}, warnings]))
except UserError as error:
    print(json.dumps(str(error)))
"""


def ask(name: str, folder: Path, **environment: str):
    "Sources and warnings, or the message of a `UserError`, from a process with another Hub URL."
    names = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", **environment}
    done = subprocess.run([sys.executable, "-c", ASK, name, folder], env=names, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_and_local_clone_agree(glot, endpoint, tmp_path):
    sources, warnings = ask("cis-lmu/Glot500", tmp_path, HF_ENDPOINT=endpoint)
    clone, complaints_of_clone = hub_sources(str(glot), [], tmp_path / "clone", 4)
    assert warnings == ["cis-lmu/Glot500 has no file for tel_Telu"] and len(complaints_of_clone) == 1
    assert list(sources) == list(clone) == ["eng_Latn", "wol_Latn"]
    for code, paths in sources.items():
        parts = [source.path.read_bytes() for source in clone[code]]
        assert [Path(path).read_bytes() for path in paths] == parts, f"{code} differs between hub and clone"
        assert read_manifest(Path(paths[0]).parent)["origin"]["revision"] == COMMIT
    assert any(COMMIT in path and path.endswith("a.parquet") for path in Hub.requested), (
        "files are not requested by commit"
    )
    Hub.requested.clear()
    assert ask("cis-lmu/Glot500", tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1") == [sources, warnings]
    assert not Hub.requested, "a finished dataset was requested from the hub again"


def test_every_hub_error_has_a_hint(glot, endpoint, tmp_path):
    login = "hf auth login"
    assert login in ask("cis-lmu/Unknown", tmp_path, HF_ENDPOINT=endpoint)
    assert login in ask("cis-lmu/Gated", tmp_path, HF_ENDPOINT=endpoint)
    assert "unset it, or give a local folder" in ask("cis-lmu/Glot500", tmp_path, HF_HUB_OFFLINE="1")
    assert "run the command again" in ask("cis-lmu/Glot500", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be read" in ask("./no/such/folder", tmp_path)
    (glot / "Glot500.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert "scripts are no longer supported" in ask("cis-lmu/Glot500", tmp_path, HF_ENDPOINT=endpoint)
    assert not (tmp_path / "owned").exists(), "code of a dataset was run"
