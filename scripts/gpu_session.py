"""Use a few minutes of one GPU: measure speed, then train the runs of a reproduction, without a network.

    python scripts/gpu_session.py pack session.tar.gz [--wheels FOLDER]       with a network: text, tokenizers, shards
    python scripts/gpu_session.py run FOLDER --pack session.tar.gz --seconds 600        on the GPU; again: it continues

`run` stops in time, whatever happens: each part has a deadline, is asked to stop and then killed; a part that fails is
recorded, and the next begins. FOLDER/results (or --results) has at most eight files: summary.md says what ran, what did
not and why. Without --pack, text is downloaded as usual. Packages that the computer lacks can come as wheels.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from configparser import ConfigParser
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK, REPRODUCTION = "params/benchmarks/gpu-ten-minutes.yaml", "params/reproductions/gpu-ten-minutes.yaml"
MOST = 64 * 2**20  # Bytes of a pack
RESERVE = 0.08  # Share of the time that is kept for the tables


# The parts, each a process of its own, which alone imports the library


def check(a: argparse.Namespace) -> None:
    "Write the versions of the software and of the device, then the parameters of each run."
    from packaging.requirements import Requirement

    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = [Requirement(line) for line in settings["DEFAULT"]["requirements"].split()]
    found = {one.name: installed(one.name) for one in wanted}
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": found,
    }
    machine["not as required"] = [str(r) for r in wanted if not r.specifier.contains(found[r.name] or "0")]
    write(a.results / "machine.json", machine)
    import torch

    device = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    machine["device"] = device.name if device else "no GPU"
    machine["device memory, GB"] = round(device.total_memory / 1e9, 1) if device else 0
    machine |= {"CUDA": str(torch.version.cuda), "processors": os.cpu_count()}
    write(a.results / "machine.json", machine)
    plan(a)


def plan(a: argparse.Namespace) -> list[dict[str, Any]]:
    "Write the parameters of each run, and return them."
    from langsamp.analysis.reproduction import pretraining_jobs
    from langsamp.params.evaluate import ReproductionParams
    from langsamp.params.yaml_reader import read_yaml

    p = ReproductionParams.model_validate(read_yaml(ROOT / a.reproduction))
    runs = [job.parameters for job in pretraining_jobs(p)]
    for number, parameters in enumerate(runs):
        write(a.folder / "runs" / f"{number:02d}-{parameters['run_name']}.yaml", parameters)
    return runs


def benchmark(a: argparse.Namespace) -> None:
    "Measure until the deadline; again without compilation if compiled variants failed."
    from langsamp.benchmark.run import run_benchmark
    from langsamp.params.benchmark import BenchmarkParams
    from langsamp.params.yaml_reader import read_yaml

    p = BenchmarkParams.model_validate(read_yaml(ROOT / a.benchmark))
    rows = run_benchmark(p.replace(time_limit=max(1e-9, a.until - time.time())), a.folder / "outputs")
    failed = rows[rows.measure.str.startswith("failed: ") & rows.variant.str.startswith("langsamp")]
    if p.torch_compile and len(failed):
        eager = p.replace(name=f"{p.name}-eager", torch_compile=False, time_limit=max(1e-9, a.until - time.time()))
        run_benchmark(eager, a.folder / "outputs")


def tables(a: argparse.Namespace) -> None:
    "Write the tables of the benchmark and of the runs; a table that fails is named, after the others."
    import pandas as pd

    from langsamp.benchmark.report import finished_rows, overhead_table, ratio_table, utilization

    def benchmark_table(make: Callable[[Any], Any]) -> Any:
        rows = finished_rows(pd.read_csv(a.results / "rows.csv", keep_default_na=False))
        found = [make(part).assign(benchmark=name) for name, part in rows.groupby("benchmark")]
        found = [table.reset_index() if table.index.names[0] else table for table in found]
        return pd.concat(found) if found else pd.DataFrame()

    makers: dict[str, Callable[[Any], Any]] = {
        "ratios": ratio_table,
        "utilization": utilization,
        "overhead": overhead_table,
    }
    failed = {}
    for name, make in {**makers, "runs": None}.items():
        try:
            table = benchmark_table(make) if make else pd.DataFrame(validations(a.folder))
            table.to_csv(a.results / f"{name}.csv", index=False, float_format="%.6g")
        except Exception as error:  # Each table stands alone
            failed[name] = f"{name}: {type(error).__name__}: {error}"
    if failed:
        sys.exit("; ".join(failed.values()))


def prepare(a: argparse.Namespace) -> None:
    "Prepare all text that a session reads, in the folder's own cache and outputs, and plan its runs."
    from langsamp.benchmark.suites import extend_vocabulary, run_params
    from langsamp.params.benchmark import BenchmarkParams, OverheadParams, TrainingSpeedParams, shape_of
    from langsamp.params.pretrain import PretrainParams
    from langsamp.params.yaml_reader import read_yaml
    from langsamp.training.prepare import prepare

    p, outputs = BenchmarkParams.model_validate(read_yaml(ROOT / a.benchmark)), a.folder / "outputs"
    suites = {size: TrainingSpeedParams.model_validate(given) for size, given in p.sizes.items()}
    if p.overhead:
        overhead = OverheadParams.model_validate(p.overhead)
        suites.setdefault(overhead.size, overhead)
    for size, suite in suites.items():
        extend_vocabulary(prepare(run_params(p, suite, size), outputs), shape_of(size).vocab_size)
    for parameters in plan(a):
        prepare(PretrainParams.model_validate(parameters), outputs)


def downloads(a: argparse.Namespace) -> None:
    "Copy what a session needs from the cache of downloads."
    from langsamp.corpora.udhr import udhr_corpus
    from langsamp.model.e5_small import xlmr_tokenizer

    for folder in (udhr_corpus(), xlmr_tokenizer()):
        shutil.copytree(folder, a.folder / "cache" / folder.name)


# Without the library


def installed(name: str) -> str:
    "The version of a package; empty if there is none."
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def write(path: Path, value: Any) -> None:
    "Write JSON, which is also YAML."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path, lines: bool = False) -> Any:
    "The value of a JSON file, or of each of its lines; nothing if it does not exist or is half written."
    with suppress(OSError, ValueError):
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    return [] if lines else {}


def validations(folder: Path) -> list[dict[str, Any]]:
    "One row per run and validation; a run that was not begun has one row without a loss."
    rows = []
    for path in sorted((folder / "runs").glob("*.yaml")):
        p, run = read(path), folder / "outputs" / read(path)["run_name"]
        key = {name: p.get(name, "") for name in ("run_name", "variant", "seed", "max_steps")}
        key |= {"finished": (run / "result.json").exists()}
        found = [line for line in read(run / "metrics.jsonl", lines=True) if "validation_loss" in line]
        rows += [key | {name: line[name] for name in ("step", "validation_loss")} for line in found] or [key]
    return rows


class Session:
    "The parts of a session, their deadlines, and what became of them."

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.begun, self.parts = a, time.monotonic(), []
        self.grace = min(15.0, RESERVE * a.seconds / 3)  # To stop at a step and save
        self.environment = os.environ | {
            "LANGSAMP_OUTPUTS": str(a.folder / "outputs"),
            "LANGSAMP_ROOT": str(ROOT),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(a.folder / "site"), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if (a.folder / "cache").exists():
            self.environment["LANGSAMP_CACHE"] = str(a.folder / "cache")

    def at(self, share: float) -> float:
        "When that share of the time is over."
        return self.begun + share * self.a.seconds

    def own(self, part: str, until: float) -> list[str]:
        "The command of a part that is a function of this file."
        a, wall = self.a, time.time() + until - time.monotonic()
        options = ["--benchmark", a.benchmark, "--reproduction", a.reproduction, "--results", str(a.results)]
        return [sys.executable, str(Path(__file__)), part, str(a.folder), *options, "--until", str(wall)]

    def part(self, name: str, command: list[str], until: float, grace: float | None = None) -> str:
        "Run a part until its deadline, then ask it to stop, then kill it; its status, which is recorded."
        log, begun, status, why = self.a.folder / "logs" / f"{name}.log", time.monotonic(), "not started", "no time"
        grace = self.grace if grace is None else grace
        if until - grace - begun > 0:
            log.parent.mkdir(parents=True, exist_ok=True)
            status, why = run_until(command, log, self.environment, until - grace - begun, grace)
        self.record(name, status, time.monotonic() - begun, max(0.0, until - begun), why)
        return status

    def record(self, name: str, status: str, seconds: float, limit: float, why: str) -> None:
        "Write what became of a part, and the summary so far."
        row = {"part": name, "status": status, "seconds": round(seconds, 1), "limit": round(limit, 1), "why": why}
        self.parts.append(row)
        with open(self.a.results / "parts.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{name:34}{status:12}{seconds:7.1f} s  {why}", flush=True)
        self.summarise()

    def run(self) -> None:
        "All parts; the last writes the tables in the time that is kept for it."
        a = self.a
        wheels = sorted((a.folder / "wheels").glob("*.whl"))
        if wheels and not (a.folder / "site").exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
            self.part("wheels", [*pip, "--target", str(a.folder / "site"), *map(str, wheels)], self.at(0.1), 0)
        self.part("check", self.own("check", self.at(0.2)), self.at(0.2), 0)
        until = self.at(a.benchmark_share)
        self.part("benchmark", self.own("benchmark", until - 2 * self.grace), until)
        self.collect_rows()
        self.train(self.at(1 - RESERVE))
        self.part("tables", self.own("tables", self.at(1)), self.at(1), 0)

    def train(self, end: float) -> None:
        "Train the runs in turn; the first of each two leaves half of the time to the other."
        paths = [path for path in sorted((self.a.folder / "runs").glob("*.yaml")) if not self.finished(path)]
        for number, path in enumerate(paths):
            now = time.monotonic()
            until = now + (end - now) / (2 if number % 2 == 0 and path != paths[-1] else 1)
            command = [sys.executable, "-m", "langsamp.training.pretrain", str(path), str(self.a.folder / "outputs")]
            self.part(path.stem, command, until)

    def finished(self, path: Path) -> bool:
        "Whether a run has its result."
        return (self.a.folder / "outputs" / read(path)["run_name"] / "result.json").exists()

    def collect_rows(self) -> None:
        "Join the rows of the benchmarks."
        rows: list[dict[str, str]] = []
        for path in sorted((self.a.folder / "outputs/benchmarks").glob("*/rows.csv")):
            with open(path, encoding="utf-8", newline="") as file:
                rows += [{"benchmark": path.parent.name, **row} for row in csv.DictReader(file)]
        if rows:
            with open(self.a.results / "rows.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def summarise(self) -> None:
        "Say what ran, what did not and why, and on which machine."
        self.collect_rows()
        lines = ["# GPU session", "", f"{self.a.seconds:g} s; {json.dumps(read(self.a.results / 'machine.json'))}", ""]
        lines += ["| part | status | seconds | limit | why |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(str(v).replace("|", "/") for v in part.values()) + " |" for part in self.parts]
        lines += ["", "Not measured:", ""] + [f"- {line}" for line in self.missing()]
        lines += ["", "Runs:", ""] + [f"- {json.dumps(row)}" for row in validations(self.a.folder)]
        (self.a.results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def missing(self) -> list[str]:
        "The rows of the benchmark about what failed, was cut or not started."
        with suppress(OSError), open(self.a.results / "rows.csv", encoding="utf-8", newline="") as file:
            rows = [
                row for row in csv.DictReader(file) if row["measure"].startswith(("failed: ", "cut: ", "not started: "))
            ]
            return [" | ".join(r[name] for name in ("stage", "size", "variant", "measure")) for r in rows]
        return []


def run_until(
    command: list[str], log: Path, environment: dict[str, str], seconds: float, grace: float
) -> tuple[str, str]:
    "Run a command for at most so long, and end all its processes; its status and the reason."
    with open(log, "ab") as file:
        options: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "env": environment, "cwd": ROOT}
        process = subprocess.Popen(command, start_new_session=True, **options)
    status = ""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = "cut"
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Its workers too, also when this session is ended
        process.wait()
    lines = [line for line in log.read_bytes().decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[-300:] if lines else f"exit status {process.returncode}"
    if status:
        return status, f"its time was over; {last}"
    return ("done", "") if process.returncode == 0 else ("failed", last)


def unpack(pack: Path, folder: Path) -> None:
    "Unpack once; a half unpacked folder is unpacked again."
    if not (folder / "unpacked").exists():
        with tarfile.open(pack) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer have it
            archive.extractall(folder)
        (folder / "unpacked").write_text(f"{pack.name}\n", encoding="utf-8")


def run(a: argparse.Namespace) -> None:
    "A session: its summary is written whatever happens."
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    a.results.mkdir(parents=True, exist_ok=True)
    wrong = ""
    try:
        if a.pack:
            unpack(a.pack, a.folder)
    except (OSError, tarfile.TarError) as error:
        wrong = f"{a.pack.name} cannot be unpacked: {error}"
    session = Session(a)
    try:
        if wrong:
            session.record("unpack", "failed", 0, 0, wrong)
        session.run()
    finally:
        session.summarise()


def pack(a: argparse.Namespace) -> None:
    "Prepare and pack what a session reads; stop if it is too large."
    with tempfile.TemporaryDirectory() as place:
        target, a.folder, a.results = a.folder, Path(place), Path(place) / "results"
        downloads(a)
        command = Session(a).own("prepare", time.monotonic())
        subprocess.run(command, env=Session(a).environment | {"HF_HUB_OFFLINE": "0"}, check=True)
        if a.wheels:
            shutil.copytree(a.wheels, a.folder / "wheels")
        share_equal_files(a.folder)
        with tarfile.open(target, "w:gz", compresslevel=6) as archive:
            for name in ("cache", "outputs", "runs", "wheels"):
                if (a.folder / name).exists():
                    archive.add(a.folder / name, name, filter=lambda m: None if "/parsed" in m.name else m)
    size = target.stat().st_size
    print(f"{target}: {size / 2**20:.1f} MiB")
    if size > MOST:
        sys.exit(f"{target} has more than {MOST // 2**20} MiB: take fewer languages, sizes or wheels")


def share_equal_files(folder: Path) -> None:
    "Make equal large files one file with several names, which an archive holds once."
    known: dict[bytes, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 2**20):
        first = known.setdefault(path.read_bytes(), path)
        if first != path:
            path.unlink()
            os.link(first, path)


def arguments() -> argparse.Namespace:
    "The command line; a part of a session gets the same options."
    parts = {"pack": pack, "run": run, "check": check, "benchmark": benchmark, "tables": tables, "prepare": prepare}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("folder", type=Path, help="of the session; for pack: the file to write")
    parser.add_argument("--seconds", type=float, default=600, help="of the whole session")
    parser.add_argument("--benchmark-share", type=float, default=0.6, help="of the time")
    parser.add_argument("--benchmark", default=BENCHMARK, help="params file")
    parser.add_argument("--reproduction", default=REPRODUCTION, help="params file; its runs are trained")
    parser.add_argument("--pack", type=Path, help="file from `pack`")
    parser.add_argument("--results", type=Path, help="folder; default: FOLDER/results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to pack")
    parser.add_argument("--until", type=float, default=0, help="of a part, in seconds since 1970")
    a = parser.parse_args()
    a.folder = a.folder.absolute()
    a.results = (a.results or a.folder / "results").absolute()
    a.function = parts[a.part]
    return a


if __name__ == "__main__":
    given = arguments()
    given.function(given)
