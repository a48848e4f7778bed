"Two processes learn what one does, and a run may change their number when it continues."

import shutil
import sys
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def alone(new_run, outputs) -> Path:
    "The folder of a run by one process, without dropout, whose last checkpoints are at steps 6 and 12."
    params, run = new_run("alone", dropout=0.0, steps=12)
    assert tiny.exit_code(tiny.fork(params, outputs)) == 0
    return run


def assert_close(a: Path, b: Path) -> None:
    "The same steps with losses, and the same weights, to 1e-5; the same tokens and masks exactly."
    ours, theirs = tiny.metrics_of(a), tiny.metrics_of(b)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for x, y in zip(ours, theirs):
        assert [x.get(name) for name in ("masked", "tokens")] == [y.get(name) for name in ("masked", "tokens")]
        assert max(abs(x[k] - y[k]) for k in ("loss", "validation_loss") if k in x) < 1e-5, (x, y)
    ours, theirs = [load_file(run / "model/model.safetensors") for run in (a, b)]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours | theirs) < 1e-5


def test_two_processes_equal_one(new_run, alone):
    "torchrun with two processes over gloo: losses of every step and final weights within 1e-5."
    params, run = new_run("together", dropout=0.0, steps=12)
    assert tiny.finish(params, run.parent, *TWO).count("validation loss") == 3, "one process speaks"
    assert_close(run, alone)


def test_run_continues_with_two_processes(new_run, alone):
    "Begun by one process and continued by two: the same again."
    params, run = new_run("one-then-two", dropout=0.0, steps=12)
    shutil.copytree(alone, run)
    for name in ("params.yaml", "result.json"):
        (run / name).unlink()
    for name in ("model", "backbone", "checkpoints/step-00000012"):
        shutil.rmtree(run / name)
    assert "continuing from step-00000006" in tiny.finish(params, run.parent, *TWO)
    assert_close(run, alone)
