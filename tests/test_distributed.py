"Any number of processes gives the result of one, with DDP or FSDP, and the number may change during a run."

import json
import math
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForMaskedLM, XLMRobertaConfig

from langsamp.benchmark import suites
from langsamp.benchmark.report import process_table
from langsamp.core.errors import UserError
from langsamp.core.manifests import find_damage
from langsamp.model.langsamp import from_backbone
from langsamp.params.benchmark import BenchmarkParams
from langsamp.params.pretrain import TrainingParams
from langsamp.training.distributed import apply_fsdp, encoder_layers
from langsamp.training.loop import Trainer

CLUSTER = tiny.ROOT / "params/cluster"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
NOTEBOOK = """import sys; from accelerate import notebook_launcher; from langsamp.training.pretrain import main
notebook_launcher(main, (sys.argv[-2:],), num_processes=2)"""
LAUNCHERS = {"torchrun": TORCHRUN, "notebook": [sys.executable, "-c", NOTEBOOK]}
LAUNCHERS |= {name: [*ACCELERATE, str(CLUSTER / f"{name}.yaml")] for name in ("ddp-4gpu", "fsdp2")}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
KINDS: dict[str, dict[str, str]] = {"ddp": {}, "fsdp2": FSDP2}


@pytest.fixture(scope="module")
def alone(new_run, outputs) -> Path:
    "The folder of a run by one process, without dropout."
    params, run = new_run("alone", dropout=0.0, max_steps=36)
    assert tiny.exit_code(tiny.fork(params, outputs)) == 0
    return run


def furthest(a: Path, b: Path) -> float:
    "The largest difference between two files of tensors of the same names."
    ours, theirs = load_file(a), load_file(b)
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def assert_close(a: Path, b: Path) -> None:
    "The same steps with losses, weights and moments to 1e-5; the same tokens and masks exactly."
    ours, theirs = tiny.metrics_of(a), tiny.metrics_of(b)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for x, y in zip(ours, theirs):
        assert [x.get(name) for name in ("masked", "tokens")] == [y.get(name) for name in ("masked", "tokens")]
        assert max(abs(x[k] - y[k]) for k in ("loss", "validation_loss") if k in x) < 1e-5, (x, y)
    newest = max((a / "checkpoints").iterdir()).name
    files = ["model", "backbone", f"checkpoints/{newest}"]
    assert not find_damage(a / f"checkpoints/{newest}")
    assert [f for f in files if furthest(*(run / f / "model.safetensors" for run in (a, b))) >= 1e-5] == []
    assert furthest(*(run / f"checkpoints/{newest}/optimizer.safetensors" for run in (a, b))) < 1e-5


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("notebook", "ddp-4gpu"))) for name in LAUNCHERS],
)
def test_two_processes_equal_one(launcher, new_run, alone):
    "Started like a user does, over gloo: losses, final weights and moments are within 1e-5 of one process."
    params, run = new_run(launcher, dropout=0.0, max_steps=36)
    assert tiny.finish(params, run.parent, *LAUNCHERS[launcher]).count("  validation loss ") == 7, "one process speaks"
    assert_close(run, alone)


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_the_run(new_run, alone):
    "SIGTERM to torchrun, as a cluster sends it: both processes save and end, and the same command finishes the run."
    params, run = new_run("stopped", dropout=0.0, max_steps=36)
    process = tiny.start(params, run.parent, *TORCHRUN)
    tiny.wait_for(lambda: tiny.steps_of(run) >= 8, lambda: process.poll() is None)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "is saved for the same command" in out
    assert tiny.steps_of(run) < 36
    tiny.finish(params, run.parent, *TORCHRUN)
    assert_close(run, alone)


def workers_of(launcher: int) -> list[int]:
    "The processes that a launcher started."
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text("utf-8").split()]


@pytest.mark.slow
def test_a_killed_worker_is_replaced(new_run, alone):
    "torchrun with --max-restarts: one of two workers is killed without warning, both start again, and nothing is lost."
    params, run = new_run("replaced", dropout=0.0, max_steps=36)
    process = tiny.start(params, run.parent, *TORCHRUN, "--max-restarts", "1")
    tiny.wait_for(lambda: tiny.steps_of(run) >= 14, lambda: process.poll() is None)
    first = workers_of(process.pid)
    os.kill(first[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert len(first) == 2 and process.returncode == 0, err
    assert len(json.loads((run / "provenance.json").read_text())["sessions"]) == 2
    assert_close(run, alone)


# Two processes without a launcher, which takes seconds to start


def as_rank(rank: int, kind: str, port: int, until: int | None = None) -> None:
    "Set the environment variables of a launcher; the first process gets SIGTERM after a step."
    if until is not None and rank == 0:
        tiny.at_step(until, signal.SIGTERM)
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)} | world | KINDS[kind]


def free_port() -> int:
    "A free port."
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def session(params: Path, run: Path, kind: str, until: int | None = None) -> int:
    "One session of a run by one process or two; SIGTERM to the first of them after a step. The exit code of all."
    port = free_port()
    one = [(tiny.at_step, until, signal.SIGTERM)] if until is not None else [()]
    ranks = one if kind == "one" else [(as_rank, rank, kind, port, until) for rank in range(2)]
    processes = [tiny.fork(params, run.parent, *rank) for rank in ranks]
    (code,) = {tiny.exit_code(process) for process in processes}
    return code


def test_run_changes_hands(new_run, alone):
    "2 -> 1 -> 2 -> 2 processes, with FSDP, DDP and FSDP again: the same run from any of their checkpoints."
    params, run = new_run("changing", dropout=0.0, max_steps=36)
    for kind, until in [("fsdp2", 4), ("one", 10), ("ddp", 16), ("fsdp2", 22), ("one", 28)]:
        assert session(params, run, kind, until) == 143
        assert until <= tiny.steps_of(run) < 36
    assert session(params, run, "fsdp2") == 0
    assert_close(run, alone)


def look(kind: str, precision: str, folder: Path, rank: int = 0) -> dict:
    "Three steps and a validation; losses, what this process holds, and whether words are still read and written alike."
    data = tiny.synthetic_data(folder / f"data-{kind}-{rank}", {"eng_Latn": 700, "rus_Cyrl": 300})
    p = TrainingParams(global_batch_size=8, micro_batch_size=2, precision=precision, warmup_steps=0)
    assert -(-len(data.validation) // p.micro_batch_size) % 2, "one process has a batch less"
    config = XLMRobertaConfig(vocab_size=257, **tiny.SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    t = Trainer(from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], seed=1).train(), data, p)
    losses = [t.train_step(step)["loss"] for step in range(3)] + [t.validate()["validation_loss"]]
    t.state["step"] = 3
    t.save(folder / kind)
    held = [w.to_local() if isinstance(w, DTensor) else w for w in t.plain.parameters()]
    moments = [m for entry in t.optimizer.optimizer.state.values() for m in entry.values() if m.dim()]
    kept = sum((m.to_local() if isinstance(m, DTensor) else m).numel() for m in moments)
    tied = t.plain.get_input_embeddings().weight is t.plain.get_output_embeddings().weight
    return {"losses": losses, "weights": sum(w.numel() for w in held), "moments": kept, "tied": tied}


def spy(rank: int, kind: str, port: int, precision: str, folder: Path) -> None:
    "What one of two processes sees; ends before anything else is run."
    as_rank(rank, kind, port)
    (folder / f"{kind}-{rank}.json").write_text(json.dumps(look(kind, precision, folder, rank)))
    sys.exit(0)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def seen(request, tmp_path_factory) -> tuple[str, Path, dict[str, list[dict]]]:
    "Precision, folder, and what one process and the two of each kind saw."
    folder, found = tmp_path_factory.mktemp(request.param), {}
    found["one"] = [look("one", request.param, folder)]
    for kind in KINDS:
        port = free_port()
        ranks = [tiny.fork(folder, folder, spy, rank, kind, port, request.param, folder) for rank in range(2)]
        assert [tiny.exit_code(process) for process in ranks] == [0, 0]
        found[kind] = [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    return request.param, folder, found


def test_fsdp_shards_weights_and_moments(seen):
    "With FSDP2 each of two processes holds a part of weights and moments, without overlap; with DDP each has all."
    _, _, found = seen
    (one,) = found["one"]
    for name in ("weights", "moments"):
        assert [rank[name] for rank in found["ddp"]] == [one[name]] * 2
        assert sum(rank[name] for rank in found["fsdp2"]) == one[name]
        assert max(rank[name] for rank in found["fsdp2"]) < 0.6 * one[name]
    assert one["moments"] == 2 * one["weights"]


def test_precision_and_ties_do_not_depend_on_the_kind(seen):
    "Losses agree between DDP and FSDP, also in bf16; input and output embeddings stay one matrix."
    precision, folder, found = seen
    expected, near = found["one"][0]["losses"], {"fp32": 1e-5, "bf16": 2e-3}[precision]
    for rank in [rank for ranks in found.values() for rank in ranks]:
        assert rank["tied"]
        assert max(abs(x - y) for x, y in zip(rank["losses"], expected, strict=True)) < near
    names = {kind: load_file(folder / kind / "checkpoints/step-00000003/model.safetensors").keys() for kind in found}
    assert names["fsdp2"] == names["ddp"] == names["one"] >= {"language_embeddings.weight", "script_embeddings.weight"}


# What cannot be


def test_old_kind_of_sharding_is_refused():
    "FSDP1 flattens weights, which the checkpoint format does not support."
    plugin = SimpleNamespace(fsdp_version=1, activation_checkpointing=False)
    with pytest.raises(UserError, match="fsdp_version: 2"):
        apply_fsdp(torch.nn.Linear(1, 1), plugin)


@pytest.mark.parametrize("stem", ["xlm-roberta", "roberta", "bert", "modernbert", "electra", "deberta-v2", "esm"])
def test_layers_are_found_in_any_family(stem):
    "As many layers as in the configuration."
    config = AutoConfig.for_model(stem, **tiny.SHAPE, vocab_size=50, pad_token_id=1)
    with torch.device("meta"):
        mlm = AutoModelForMaskedLM.from_config(config)
    assert len(encoder_layers(mlm)) == tiny.SHAPE["num_hidden_layers"]


def test_the_benchmark_trains_by_one_process_and_by_several_in_turn(tmp_path, monkeypatch):
    "Two processes by their command; when the time is over, the rounds that are complete stay."
    few = {"size": "1x32/200", "tokens_per_step": 128, "tokens_per_micro_batch": 32, "steps": 4, "rounds": 2}
    p = BenchmarkParams(
        corpus=str(tiny.write_corpus(tmp_path / "texts")), languages=[], max_seq_length=32, processes=few
    )
    train, seen = suites._train, []
    monkeypatch.setattr(suites, "_train", lambda *given: seen.append(given[:4]) or float(len(seen)))
    rows = suites.processes_suite(p, tmp_path, tmp_path)
    plans = [(1, 1), (1, 2), (2, 1)]
    assert [given[2:] for given in seen] == [*plans, *plans[::-1]]
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1]
    table = process_table(pd.DataFrame(rows))
    assert table.ratio.tolist() == [(2 / 1 + 5 / 6) / 2, (3 / 1 + 4 / 6) / 2, (3 / 2 + 4 / 5) / 2]
    assert train(*seen[0][:2], 2, 1, math.inf) > 0
    sessions = json.loads((tmp_path / "benchmark/provenance.json").read_text())["sessions"]
    assert [session["machine"]["processes"] for session in sessions] == [2]
    monkeypatch.setattr(suites, "_train", train)
    assert [row["measure"] for row in suites.processes_suite(p, tmp_path, tmp_path, 0)] == ["cut: 0 of 2 rounds"]
    with pytest.raises(UserError, match="ended with status 2: .*nothing.yaml"):
        train(tmp_path / "nothing.yaml", tmp_path, 1, 1, math.inf)
