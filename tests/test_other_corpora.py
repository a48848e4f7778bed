"Corpora that others made: what is read, joined, left out, and how that is said; and nothing half written stays."

import os
import signal
from pathlib import Path

import tiny

from langsamp.core import damage, sealed_folder, write_json
from langsamp.preparation import prepare

# Scraps


def killed(function, *arguments) -> None:
    "Let a process of its own run into its death."
    process = tiny.FORK.Process(target=function, args=arguments)
    process.start()
    assert tiny.exit_code(process) == -signal.SIGKILL


def die_while_sealing(path: Path) -> None:
    with sealed_folder(path) as part:
        (part / "half").write_text("a")
        os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing_json(path: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    Path.replace = os.replace
    write_json(path, {"a": 1})


def scraps(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*part*"))


def test_what_a_killed_process_left_goes_with_the_next_folder(tmp_path):
    "Also where the next one has another name, as with a tokenizer of other text."
    killed(die_while_sealing, tmp_path / "one")
    killed(die_while_writing_json, tmp_path / "a.json")
    assert len(scraps(tmp_path)) == 2, "nothing was left to sweep"
    with sealed_folder(tmp_path / "two") as part:
        (part / "whole").write_text("a")
    assert scraps(tmp_path) == [] and damage(tmp_path / "two") == ""


def test_what_somebody_still_writes_stays(tmp_path):
    with sealed_folder(tmp_path / "one") as part:
        (part / "half").write_text("a")
        with sealed_folder(tmp_path / "one") as other:
            assert other != part
            (other / "half").write_text("b")
        assert (part / "half").read_text() == "a"
    assert (tmp_path / "one/half").read_text() == "a" and scraps(tmp_path) == []


def test_a_run_that_needs_nothing_sweeps_too(outputs, corpus):
    "Tokenizers, shards and corpora are swept where all text is prepared already."
    p = tiny.params_of(corpus)
    prepare(p, outputs)
    for place in ("data/tokenizers", "data/shards", "corpora"):
        (outputs / place / ".part-killed-0-1").mkdir(parents=True)
    prepare(p, outputs)
    assert scraps(outputs) == []
