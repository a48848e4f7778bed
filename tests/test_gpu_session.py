"The session of a few minutes on a GPU, dry, without one: it ends in time, and says what it did and what not."

import csv
import json
import os
import runpy
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

SCRIPT = tiny.ROOT / "scripts/gpu_session.py"


@pytest.fixture(scope="module")
def script() -> Any:
    "The script as a module."
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture
def session(script, tmp_path) -> Any:
    "A session of six seconds in an empty folder."
    (tmp_path / "results").mkdir()
    options = {"benchmark": "none", "reproduction": "none", "benchmark_share": 0.5, "seconds": 6.0}
    return script.Session(Namespace(folder=tmp_path, results=tmp_path / "results", **options))


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def recorded(results: Path) -> dict[str, dict[str, Any]]:
    "The parts of a session by name."
    return {row["part"]: row for row in map(json.loads, (results / "parts.jsonl").read_text().splitlines())}


def test_a_part_ends_by_its_deadline_whatever_it_does_and_is_recorded(session):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('busy', flush=True)"
    parts = {
        "good": ("print('well')", 5.0),
        "bad": ("print('working'); raise MemoryError('no room')", 5.0),
        "stubborn": (f"{stubborn}\nwhile True: time.sleep(0.1)", 1.5),
        "late": ("print('never')", -1.0),
    }
    begun = time.monotonic()
    for name, (text, seconds) in parts.items():
        session.part(name, python(text), time.monotonic() + seconds)
    assert time.monotonic() - begun < 12
    found = recorded(session.a.results)
    assert {name: row["status"] for name, row in found.items()} == {
        "good": "done", "bad": "failed", "stubborn": "cut", "late": "not started"
    }  # fmt: skip
    assert found["bad"]["why"] == "MemoryError: no room" and found["stubborn"]["why"].endswith("busy")
    summary = (session.a.results / "summary.md").read_text()
    assert all(f"| {name} | {row['status']} |" in summary for name, row in found.items())


def test_processes_that_a_part_started_end_with_it(session):
    child = "import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid)"
    session.part("parent", python(child), time.monotonic() + 5)
    pid = int((session.a.folder / "logs/parent.log").read_text().split()[-1])
    state = Path(f"/proc/{pid}/status")
    time.sleep(0.2)
    assert not state.exists() or "zombie" in state.read_text(encoding="utf-8")


def test_equal_files_are_packed_once_and_a_second_unpacking_changes_nothing(script, tmp_path):
    content = os.urandom(1000) * 2000
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "large").write_bytes(content)
    script.share_equal_files(tmp_path / "in")
    with tarfile.open(tmp_path / "pack.tar", "w") as archive:
        archive.add(tmp_path / "in", "cache")
    assert (tmp_path / "pack.tar").stat().st_size < 2_100_000
    script.unpack(tmp_path / "pack.tar", tmp_path / "out")
    (tmp_path / "out/cache/b/large").unlink()
    script.unpack(tmp_path / "pack.tar", tmp_path / "out")
    assert [path.parent.name for path in (tmp_path / "out").rglob("large")] == ["a"]


def test_the_time_of_a_session_is_divided(session, monkeypatch):
    "Half of it for the benchmark, the reserve for the tables; of two runs the first leaves half to the second."
    limits = {}
    monkeypatch.setattr(session, "part", lambda name, command, until, grace=0: limits.update({name: until}))
    for number, run in enumerate(("a", "b", "c")):
        tiny.write(session.a.folder / f"runs/{number}-{run}.yaml", json.dumps({"run_name": run}))
    tiny.write(session.a.folder / "outputs/c/result.json", "{}")
    session.run()
    shares = {name: (until - session.begun) / 6 for name, until in limits.items()}
    assert list(shares) == ["check", "benchmark", "0-a", "1-b", "tables"]  # c is finished
    wanted = {"check": 0.2, "benchmark": 0.5, "0-a": 0.46, "1-b": 0.92, "tables": 1.0}
    assert shares == pytest.approx(wanted, abs=0.03)


RUNS = ["00-dry-language-script-42", "01-dry-baseline-42", "02-dry-more-42"]


def write_params(folder: Path) -> list[str]:
    "A benchmark with a part that is too long, one that fails and a good one; runs, of which two are too long."
    overhead = {"tokens_per_step": 512, "tokens_per_micro_batch": 256, "variants": ["langsamp"], "languages": [610]}
    overhead |= {"size": "modernbert 1x32x48/300", "rounds": 100_000, "seconds": 0.1}
    encoding = {
        "encoders": ["1x48", "1x32"],
        "sentences": 64,
        "rounds": 1,
        "seconds": 0.1,
    }  # No multiple of 32
    benchmark = {"name": "dry", "sizes": {}, "threads": 1, "overhead": overhead, "encoding": encoding}
    run = tiny.defaults_of("03_pretrain") | {"max_steps": 100_000, "save_steps": 50_000}
    reproduction = {"name": "dry", "params": str(folder / "run.yaml"), "variants": ["language+script", "baseline"]}
    reproduction |= {"more_runs": {"more": {"learning_rate": 1e-4}}}
    for name, values in {"benchmark": benchmark, "run": run, "reproduction": reproduction}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(values), encoding="utf-8")
    return [f"--{name}={folder / f'{name}.yaml'}" for name in ("benchmark", "reproduction")]


def test_the_parts_of_a_session_whose_time_is_over(script, tmp_path, monkeypatch):
    "They write the versions and the runs, a row for each part of the benchmark that did not start, and the tables."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path / "outputs"))
    paths = dict(option.removeprefix("--").split("=") for option in write_params(tmp_path))
    a = Namespace(folder=tmp_path, results=tmp_path / "results", until=0.0, seconds=9.0, **paths)
    for part in (script.check, script.benchmark, lambda a: script.Session(a).summarise(), script.tables):
        part(a)
    machine = json.loads((a.results / "machine.json").read_text())
    assert machine["packages"]["torch"] and machine["device"] and machine["not as required"] == []
    assert [path.stem for path in sorted((tmp_path / "runs").iterdir())] == RUNS
    with open(a.results / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["measure"] for row in rows] == ["not started: no time was left"] * 3
    assert (a.results / "summary.md").read_text().count("not started: no time was left") == 3
    assert len((a.results / "runs.csv").read_text().splitlines()) == 1 + len(RUNS)


@pytest.mark.slow
def test_a_session_from_a_pack_without_a_network(tmp_path):
    "Every part has a row; a part that fails, one that is cut and one without time left say so."
    options, pack = write_params(tmp_path), tmp_path / "pack.tar.gz"
    subprocess.run([sys.executable, SCRIPT, "pack", pack, *options], check=True)
    nowhere = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    environment = os.environ | nowhere | {"LANGSAMP_CACHE": str(tmp_path / "empty")}
    seconds, results = 180, tmp_path / "session/results"
    command = [sys.executable, SCRIPT, "run", tmp_path / "session", "--pack", pack, "--seconds", str(seconds)]
    begun = time.monotonic()
    subprocess.run([*command, *options], env=environment, check=True)
    assert time.monotonic() - begun < seconds + 15
    found = {name: row["status"] for name, row in recorded(results).items()}
    runs = dict.fromkeys(RUNS, "cut") | {RUNS[-1]: "not started"}
    assert found == {"check": "done", "benchmark": "done", "tables": "done"} | runs
    with open(results / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    long = "modernbert 1x32x48/300, 610 languages"
    measured = {(row["size"], row["variant"]) for row in rows if row["measure"] == "speed"}
    both = {"baseline", "language+script"}, {"langsamp", "sentence_transformers"}
    assert measured == {(size, v) for size, variants in zip((long, "1x32"), both) for v in variants}
    missing = {row["size"]: row["measure"] for row in rows if row["variant"] == "all"}
    assert missing["1x48"].startswith("failed: UserError") and missing[long].startswith("cut: ")
    tables = {f"{name}.csv" for name in ("rows", "runs", "ratios", "utilization", "overhead")}
    assert {path.name for path in results.iterdir()} == tables | {"machine.json", "parts.jsonl", "summary.md"}
    machine = json.loads((results / "machine.json").read_text())
    assert machine["packages"]["torch"] and machine["device"] and machine["not as required"] == []
    saved = {path.name for path in (tmp_path / "session/outputs").glob("dry-*/checkpoints/*")}
    assert saved  # Both were stopped at a step, and continue from there
    assert "failed: UserError" in (results / "summary.md").read_text()
