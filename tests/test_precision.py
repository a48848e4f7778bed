"A run takes bf16 where that is native, says so, and keeps its precision."

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import test_distributed
import tiny
import torch
import yaml

from langsamp.analysis import reproduction
from langsamp.benchmark import run as benchmark_run
from langsamp.cli.main import main
from langsamp.core.files import read_json
from langsamp.params.benchmark import BenchmarkParams
from langsamp.params.evaluate import ReproductionParams
from langsamp.training import loop, precision
from langsamp.training.precision import native_bf16

SHORT = {"max_steps": 2, "save_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant_with_warmup"}


@pytest.fixture
def machine(monkeypatch) -> Callable[[bool], None]:
    "Make this a machine with native bf16, or one without."
    return lambda native: monkeypatch.setattr(precision, "native_bf16", lambda device: native)


@pytest.fixture
def pretrained(corpus, tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    "The command `langsamp pretrain` with a name and changed parameters; what it prints."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path))
    path = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, **SHORT, precision="auto"))

    def run(name: str, *words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["pretrain", str(path), f"run_name={name}", *words]) == status
        return "".join(capsys.readouterr())

    return run


def recorded(run: Path) -> list[str]:
    "The precision in params.yaml, and in each session of provenance.json."
    sessions = read_json(run / "provenance.json")["sessions"]
    return [yaml.safe_load((run / "params.yaml").read_text())["precision"], *(one["precision"] for one in sessions)]


# The hardware


@pytest.mark.parametrize(
    "features, native",
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_processors(features, native, monkeypatch):
    "By the instructions that torch names; without oneDNN, whose products use them, there is none."
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert native_bf16(torch.device("cpu")) is native
    assert not native_bf16(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not native_bf16(torch.device("cpu"))


def test_a_version_of_torch_that_names_no_instructions_takes_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not native_bf16(torch.device("cpu"))


@pytest.mark.parametrize("native", [True, False])
def test_gpus(native, monkeypatch):
    "A GPU that only emulates bf16, as those before Ampere, does not have it."
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert native_bf16(torch.device("cuda", 1)) is native


# Runs


@pytest.mark.parametrize("native, own, other", [(True, "bf16", "fp32"), (False, "fp32", "bf16")])
def test_a_run_takes_bf16_where_it_is_native_and_keeps_its_precision(native, own, other, machine, pretrained, tmp_path):
    "The same bytes as with that precision asked for; continued on the other machine, as on its own."
    machine(native)
    for name in ("moved", "stays"):
        assert f"precision {own}" in pretrained(name) and recorded(tmp_path / name) == [own, own]
    pretrained("asked", f"precision={own}")
    pretrained("other", f"precision={other}")
    prints = [tiny.fingerprint(tmp_path / name) for name in ("moved", "asked", "other")]
    assert prints[0] == prints[1] and prints[0]["metrics"] != prints[2]["metrics"]
    more = ["max_steps=4"]
    pretrained("stays", *more)
    machine(not native)
    slow = "precision bf16, slow: not native" if native else "precision fp32; this processor has native bf16"
    assert slow in pretrained("moved", *more) and recorded(tmp_path / "moved") == [own] * 3
    assert tiny.fingerprint(tmp_path / "moved") == tiny.fingerprint(tmp_path / "stays") != prints[0]
    assert "precision" not in pretrained("moved", *more), "it is finished, also here"
    refused = f"moved belongs to a run with other parameters (precision: {own} → {other})"
    assert refused in pretrained("moved", *more, f"precision={other}", status=2)


def test_a_run_begun_before_there_was_a_choice_goes_on_in_fp32(machine, pretrained, tmp_path):
    "A folder whose params.yaml an earlier version wrote, on a machine with native bf16."
    pretrained("old", "precision=fp32")
    machine(True)
    pretrained("old", "max_steps=3")
    assert recorded(tmp_path / "old") == ["fp32"] * 3
    pretrained("next", "backbone=run:old")
    assert recorded(tmp_path / "next") == ["bf16"] * 2, "a new run that begins from its weights"


def resolve_as(rank: int, port: int, folder: Path) -> None:
    "Resolve `auto` in one of two processes, of which the first alone has native bf16."
    test_distributed.as_rank(rank, "ddp", port)
    precision.native_bf16 = lambda device: rank == 0
    (folder / f"{rank}.txt").write_text(precision.resolve_precision("auto", folder))
    raise SystemExit(0)


def test_processes_agree_on_a_precision(tmp_path):
    port = test_distributed.free_port()
    ranks = [tiny.fork(tmp_path, tmp_path, resolve_as, rank, port, tmp_path) for rank in range(2)]
    assert [tiny.exit_code(process) for process in ranks] == [0, 0]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["fp32", "fp32"]


# Plans, benchmarks, reproductions


def test_a_plan_is_made_in_the_precision_of_the_run(machine, pretrained, tmp_path, capsys, monkeypatch):
    "Of the machine, or of the run where it has begun."
    asked, make = [], loop.make_accelerator
    monkeypatch.setattr(loop, "make_accelerator", lambda kind: asked.append(kind) or make(kind))
    plan = ["plan", str(tmp_path / "p.yaml"), "measured_steps=2", "run_name=planned"]
    for native, own in ((True, "bf16"), (False, "fp32")):
        machine(native)
        assert main(plan) == 0 and f"precision {own}" in capsys.readouterr().out
    pretrained("planned", "precision=bf16")
    assert main(plan) == 0 and "precision bf16, slow" in capsys.readouterr().out
    assert asked == ["bf16", "fp32", "bf16", "bf16"]


@pytest.mark.parametrize("native, own", [(True, "bf16"), (False, "fp32")])
def test_a_benchmark_says_which_of_its_programs_are_a_run(native, own, machine, corpus, tmp_path, capsys, monkeypatch):
    machine(native)
    monkeypatch.setattr(benchmark_run, "_jobs", lambda *_: [("training", "nothing", lambda *_: [])])
    benchmark_run.run_benchmark(BenchmarkParams(name="b", corpus=str(corpus), languages=[]), tmp_path)
    assert f"…_bf16 are in bf16, all others in fp32; the default of a run is {own} here" in capsys.readouterr().out
    assert read_json(tmp_path / "benchmarks/b/provenance.json")["sessions"][0]["default_precision"] == own


def test_a_reproduction_has_one_precision(machine, corpus, pretrained, tmp_path, monkeypatch, capsys):
    "That of its first run that has begun, which a machine with native bf16 continues; all new ones take it too."
    given = tiny.params_of(corpus, **SHORT, precision="auto").model_dump()
    shared = {name: value for name, value in given.items() if name not in ("run_name", "variant", "seed")}
    p = ReproductionParams(name="r", variants=["language+script", "baseline"], benchmarks=["sib200"], overrides=shared)
    jobs = []
    monkeypatch.setattr(reproduction, "run_job", lambda job, *_: jobs.append(job.parameters) or {"stage": job.stage})
    monkeypatch.setattr(reproduction, "evaluation_jobs", lambda p: [])
    monkeypatch.setattr(reproduction, "figure_jobs", lambda p: [])
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    reproduction.reproduce(p, tmp_path)
    assert "without LANGSAMP_DATA, " in capsys.readouterr().out, "what cannot be evaluated is said"
    machine(False)
    pretrained("r-baseline-42", "variant=baseline", "seed=42")
    machine(True)
    reproduction.reproduce(p, tmp_path)
    assert [job["precision"] for job in jobs] == ["auto", "auto", "fp32", "fp32"]


# Committed files


def test_a_params_file_that_expects_a_loss_has_a_precision():
    "Else the loss would depend on the machine. The template, whose text is the user's, says it of its example."
    files = {path: path.read_text() for path in sorted((tiny.ROOT / "params").glob("*.yaml"))}
    exact = [path for path, text in files.items() if re.search(r"^# Expected: .*loss .*\d", text, flags=re.M)]
    assert len(exact) > 10
    assert [path.name for path in exact if "precision" not in yaml.safe_load(files[path])] == []
    template = files[tiny.ROOT / "params/template.yaml"]
    assert "in fp32 went from" in template and "precision" not in yaml.safe_load(template)
