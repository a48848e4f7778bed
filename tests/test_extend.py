"A finished run goes on when its max_steps is raised."

from pathlib import Path
from typing import NoReturn

import pytest
import tiny

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.training.loop import Trainer, learning_rate_at
from langsamp.training.pretrain import main, pretrain


def run(path: Path, outputs: Path) -> None:
    "Run a params file to its end."
    assert main([str(path), str(outputs)]) == 0


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def test_an_extended_run_is_the_longer_run(new_run, outputs, capsys, monkeypatch):
    "With a constant rate, interrupted on the way: the same bytes as a run that had all its steps from the beginning."
    constant = {"lr_scheduler_type": "constant_with_warmup"}
    path, folder = new_run("extended", **constant, max_steps=12)
    run(path, outputs)
    short, train_step = tiny.fingerprint(folder), Trainer.train_step
    new_run("extended", **constant, max_steps=24)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", lambda *given: interrupt() if given[1] == 16 else train_step(*given))
        main([str(path), str(outputs)])
    assert not (folder / "result.json").exists() and tiny.steps_of(folder) == 16
    run(path, outputs)
    longer, whole = new_run("longer", **constant, max_steps=24)
    run(longer, outputs)
    assert tiny.fingerprint(folder) == tiny.fingerprint(whole) != short
    assert [session["max_steps"] for session in read_json(folder / "provenance.json")["sessions"]] == [12, 24, 24]
    capsys.readouterr()
    run(path, outputs)
    assert "more steps" not in capsys.readouterr().out, "a finished run is left alone"


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_rate_is_planned_again(corpus, outputs, capsys, schedule):
    "The rate rises to that of a run of the new length, which is printed; the loss is that of no uninterrupted run."
    p = tiny.params_of(corpus, run_name=f"again-{schedule}", lr_scheduler_type=schedule, max_steps=6, save_steps=3)
    pretrain(p, outputs)
    capsys.readouterr()
    assert pretrain(p.replace(max_steps=12), outputs)["step"] == 12
    rates = [learning_rate_at(5, p), learning_rate_at(6, p.replace(max_steps=12))]
    printed = capsys.readouterr().out
    assert f"more steps: 6 → 12, from step 6 on; the {schedule} schedule is planned again over 12 steps" in printed
    assert f"the learning rate goes from {rates[0]:.2e} to {rates[1]:.2e}" in printed and rates[0] < rates[1]
    assert "extended" in (outputs / p.run_name / "model/README.md").read_text()


def test_nothing_else_may_differ(corpus, outputs):
    p = tiny.params_of(corpus, run_name="refused", max_steps=6, save_steps=3)
    before = pretrain(p, outputs)
    for overrides in ({"max_steps": 5}, {"max_steps": 12, "seed": 8}):
        with pytest.raises(UserError, match="belongs to a run with other parameters .*max_steps: 6 → "):
            pretrain(p.replace(**overrides), outputs)
    assert pretrain(p, outputs) == before


def test_a_run_that_stopped_early_is_not_extended(corpus, outputs):
    p = tiny.params_of(corpus, run_name="early", max_steps=20, save_steps=2, learning_rate=0.5)
    p = p.replace(early_stopping_patience=1)
    before = pretrain(p, outputs)
    assert before["step"] < 20
    with pytest.raises(UserError, match=r"ended by early stopping .*backbone run:early"):
        pretrain(p.replace(max_steps=40), outputs)
    assert pretrain(p, outputs) == before
