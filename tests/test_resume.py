"A run that was killed, stopped or damaged ends with the same result, or reports what is wrong."

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from langsamp.core.files import sha256
from langsamp.core.manifests import find_damage
from langsamp.training.pretrain import main

PARTS = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def test_killed_run_ends_like_the_uninterrupted_one(new_run, unbroken):
    "SIGKILL before the first checkpoint, in a later epoch, and while saving; the same command gives the same bytes."
    first, second = np.random.default_rng().integers([1, 13], [6, 24])
    params, run = new_run("killed")
    for how in [(tiny.at_step, first), (tiny.at_step, second), (tiny.in_save, run, 30)]:
        assert tiny.exit_code(tiny.fork(params, run.parent, *how)) == -signal.SIGKILL
    tiny.finish(params, run.parent)
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken), f"killed at {first} and {second}"


def killed_from_step(step: int, params: Path, run: Path) -> int:
    "Start the command, and kill it from outside soon after a step; its exit code: 0 when it was faster."
    process = tiny.start(params, run.parent)
    tiny.wait_for(lambda: tiny.steps_of(run) >= step or process.poll() is not None)
    process.kill()
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_twenty_random_kills(new_run, monkeypatch):
    "SIGKILL at twenty random steps of one run, with as many threads as there are processors."
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))
    seed = np.random.SeedSequence().entropy
    steps = sorted(np.random.default_rng(seed).choice(np.arange(1, 196), 20, replace=False))
    (params, run), (its_params, whole) = [
        new_run(name, max_steps=200, num_layers=2, hidden_size=32) for name in ("killed-20", "unbroken-20")
    ]
    tiny.finish(its_params, whole.parent)
    codes = [killed_from_step(step, params, run) for step in steps]
    assert set(codes[:15]) == {-signal.SIGKILL} and set(codes) <= {0, -signal.SIGKILL}
    tiny.finish(params, run.parent)
    assert tiny.fingerprint(run) == tiny.fingerprint(whole), f"seed {seed}: killed at {steps}"


def die_at(number: int, log: Path) -> None:
    "Kill this process when it touches files of its checkpoints for the nth time; what it prints goes to a file."
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    seen = [0]

    def watch(event: str, arguments: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and "checkpoints" in str(arguments[0]):
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.parametrize("stride", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_every_file_operation_of_a_checkpoint(new_run, unbroken, stride):
    "SIGKILL before the 1st, 5th, 9th … file operation in `checkpoints/`; the newest complete one is used."
    params, run = new_run(f"killed-in-save-{stride}")
    left, codes, log = set(), [], run.with_suffix(".log")
    while 0 not in codes:
        whole = max((path.name for path in run.glob("checkpoints/step-*") if not find_damage(path)), default="")
        codes.append(tiny.exit_code(tiny.fork(params, run.parent, die_at, stride * len(codes) + 1, log)))
        assert codes[-1] in (0, -signal.SIGKILL)
        printed = log.read_text()
        first, _, rest = printed.partition("\n")
        printed = rest if first.startswith("precision ") else printed
        assert printed.startswith(f"continuing from {whole}\n") if whole and printed else "continuing" not in printed
        left |= {tuple(sorted(p.name for p in part.iterdir())) for part in run.glob("checkpoints/.part-*")}
    assert len(codes) > 20 // stride and len(left) >= 4, "saves broke off at different files"
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)
    assert [path.name for path in run.rglob(".*part-*")] == []


@pytest.mark.parametrize("step", [2, 18, "random"])
def test_a_stop_signal_ends_the_run_at_the_next_step(new_run, unbroken, step):
    "SIGTERM saves the step and exits with 143 within ten seconds; the same command continues from there."
    params, run = new_run(f"stopped-{step}")
    step = int(np.random.default_rng().integers(1, 40)) if step == "random" else step
    process = tiny.fork(params, run.parent, tiny.at_step, step, signal.SIGTERM)
    tiny.wait_for(lambda: tiny.steps_of(run) >= step, process.is_alive)
    process.join(10)
    assert process.exitcode == 143, f"stopped at step {step}"
    newest = max((run / "checkpoints").iterdir())
    assert find_damage(newest) == "" and int(newest.name[5:]) == tiny.steps_of(run)
    assert tiny.exit_code(tiny.fork(params, run.parent)) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def everything(folder: Path) -> dict[str, tuple]:
    "Bytes and time of each file."
    return {str(p): (sha256(p), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_finished_run_is_left_alone(new_run, unbroken, capsys):
    "The command of a finished run returns its result and touches neither model, checkpoints nor metrics."
    kept = [unbroken / name for name in ("model", "backbone", "checkpoints")]
    before, metrics = [everything(folder) for folder in kept], (unbroken / "metrics.jsonl").read_bytes()
    assert main([str(new_run("unbroken")[0]), str(unbroken.parent)]) == 0
    assert "'step': 48" in capsys.readouterr().out
    assert [everything(folder) for folder in kept] == before
    assert (unbroken / "metrics.jsonl").read_bytes() == metrics


# Damage


@pytest.fixture
def unfinished(new_run, unbroken, request) -> tuple[Path, Path]:
    "A run that was killed after its last checkpoint and before its result: its params file and its folder."
    params, run = new_run("".join(c if c.isalnum() else "-" for c in request.node.name))
    shutil.copytree(unbroken, run)
    for name in ("params.yaml", "result.json"):
        (run / name).unlink()
    for name in ("model", "backbone"):
        shutil.rmtree(run / name)
    return params, run


def test_killed_before_the_result(unfinished, unbroken):
    "A run that has done its last step only exports."
    params, run = unfinished
    assert main([str(params), str(run.parent)]) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def harm(path: Path, how: str) -> None:
    "Truncate a file, flip one bit in its middle, or delete it."
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


QUICK = list(zip(PARTS, ["flipped", "truncated", "deleted", "flipped"]))
DAMAGES = [(part, how) for part in PARTS for how in ("truncated", "flipped", "deleted")]


@pytest.mark.parametrize(
    ("part", "how"), [pytest.param(*one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in DAMAGES]
)
def test_damaged_checkpoint_is_passed_over(unfinished, unbroken, capsys, part, how):
    "Any damage to any file of the newest checkpoint is detected and named; the previous one leads to the same result."
    params, run = unfinished
    newest = max((run / "checkpoints").iterdir())
    harm(newest / part, how)
    assert main([str(params), str(run.parent)]) == 0
    printed = capsys.readouterr().out
    assert "skipped a damaged checkpoint" in printed and "continuing from step-00000042" in printed
    assert str(newest) in printed and (part in printed or part == "manifest.json")
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def test_no_bit_of_a_manifest_can_raise(unbroken, tmp_path):
    "A flipped bit anywhere in a manifest never causes a traceback, and no checksum can change undetected."
    shutil.copytree(max((unbroken / "checkpoints").iterdir()), tmp_path / "step")
    whole = (tmp_path / "step/manifest.json").read_bytes()
    unseen = set()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (tmp_path / "step/manifest.json").write_bytes(flipped)
        if not find_damage(tmp_path / "step"):
            unseen.add(whole[:place].count(b"\n"))
    assert all(b"sha256" not in whole.split(b"\n")[line] for line in unseen)


def test_all_checkpoints_damaged(unfinished, capsys):
    "Without an undamaged checkpoint the run stops and names each damage; it never starts over silently."
    params, run = unfinished
    for path in (run / "checkpoints").iterdir():
        harm(path / "optimizer.safetensors", "deleted")
    metrics = (run / "metrics.jsonl").read_bytes()
    assert main([str(params), str(run.parent)]) == 2
    printed = capsys.readouterr().err
    assert "no sound checkpoint" in printed and printed.count("optimizer.safetensors is missing") == 2
    assert (run / "metrics.jsonl").read_bytes() == metrics and not (run / "result.json").exists()


# Another run in the same folder


def test_changed_parameters_are_refused(new_run, unbroken, capsys):
    "A folder belongs to its parameters; the message names those that changed, with both values."
    params, _ = new_run("unbroken", learning_rate=0.5, seed=8)
    try:
        assert main([str(params), str(unbroken.parent)]) == 2
    finally:
        new_run("unbroken")
    printed = capsys.readouterr().err
    assert "learning_rate: 0.002 → 0.5" in printed and "seed: 7 → 8" in printed and "max_steps" not in printed


@pytest.mark.parametrize("finished", [True, False])
def test_changed_text_is_refused(outputs, tmp_path, capsys, finished):
    "Other text under the same parameters is another run, whether the first one is finished or not."
    params = tiny.params_of(tiny.write_corpus(tmp_path / "corpus"), run_name=f"text-{finished}", max_steps=4)
    path, run = tiny.write_params(tmp_path / "params.yaml", params), outputs / params.run_name
    assert main([str(path), str(outputs)]) == 0
    if not finished:
        (run / "result.json").unlink()
    with open(tmp_path / "corpus/train/rus_Cyrl.txt", "a", encoding="utf-8") as file:
        file.write("одна строка больше\n")
    assert main([str(path), str(outputs)]) == 2
    assert "other text" in capsys.readouterr().err
