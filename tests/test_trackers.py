"Trackers: every step is logged once, however a run is broken off and continued, and a tracker changes nothing."

import collections
from pathlib import Path

import pytest
import tiny
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from langsamp.core.errors import UserError
from langsamp.params.pretrain import PretrainParams
from langsamp.training import trackers
from langsamp.training.loop import Trainer
from langsamp.training.pretrain import pretrain


def break_off(p: PretrainParams, outputs: Path, step: int) -> None:
    "Run until a step fails, so that the steps after the last checkpoint have to be made again."
    train_step = Trainer.train_step

    def failing(self: Trainer, number: int) -> dict[str, float]:
        if number == step:
            raise KeyboardInterrupt
        return train_step(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", failing)
        pretrain(p, outputs)


def logged(run: Path) -> dict[str, list[int]]:
    "The steps of each value in all event files, without TensorBoard's own removal of repeated steps."
    found = collections.defaultdict(list)
    for file in sorted((run / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found[value.tag].append(event.step)
    return found


def expected(run: Path) -> dict[str, list[int]]:
    "The steps of each value in metrics.jsonl."
    found = collections.defaultdict(list)
    for line in tiny.metrics_of(run):
        for name in trackers.tracked_values(line):
            found[name].append(line["step"])
    return found


def small(corpus: Path, name: str, **overrides) -> PretrainParams:
    return tiny.params_of(corpus, run_name=name, max_steps=12, save_steps=4, **overrides)


def test_each_step_is_logged_once(corpus, outputs):
    "The second session is broken off earlier than the first, so its last step is not the last one logged."
    p = small(corpus, "logged", report_to="tensorboard")
    for step in (7, 5, 11):
        break_off(p, outputs, step)
    pretrain(p, outputs)
    assert (
        logged(outputs / "logged") == expected(outputs / "logged")
        and max(logged(outputs / "logged")["train/loss"]) == 12
    )


def test_a_tracker_that_comes_later_gets_what_it_missed(corpus, outputs):
    "Also what was trained while it was turned off, and all of a finished run; the weights are those without it."
    p = small(corpus, "turned-on")
    live = p.replace(report_to="tensorboard")
    for session, step in ((p, 3), (live, 6), (p, 9)):
        break_off(session, outputs, step)
    pretrain(live, outputs)
    assert logged(outputs / "turned-on") == expected(outputs / "turned-on")
    pretrain(small(corpus, "without"), outputs)
    assert not (outputs / "without/tensorboard").exists()
    assert tiny.fingerprint(outputs / "turned-on") == tiny.fingerprint(outputs / "without")
    pretrain(small(corpus, "without", report_to="tensorboard"), outputs)
    assert logged(outputs / "without") == expected(outputs / "turned-on")


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_stops_before_the_text_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"report_to {name} needs the package {name}: pip install {name}"):
        pretrain(PretrainParams(corpus="no such corpus", report_to=name), tmp_path)


def test_a_tracker_that_does_not_start_is_named(corpus, outputs, monkeypatch):
    def fails(self: object) -> None:
        raise RuntimeError("no key,\n log in")

    monkeypatch.setattr(trackers.LOGGER_TYPE_TO_CLASS["tensorboard"], "start", fails)
    with pytest.raises(UserError, match=r"report_to tensorboard: it did not start \(no key, log in\)"):
        pretrain(small(corpus, "no-start", report_to="tensorboard"), outputs)
