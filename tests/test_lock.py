"One writer per run folder, and any number of runs at the same time."

import signal
import time

import tiny

from langsamp.training import pretrain as pretraining
from langsamp.training.pretrain import main


def hang() -> None:
    "Pause a run while it holds its lock."
    pretraining.prepare = lambda *_: time.sleep(300)


def held(run):
    "A process that holds the folder of a run."
    process = tiny.fork(*run, hang)
    tiny.wait_for((run[1] / run[0].stem / "lock.json").exists, process.is_alive)
    return process


def test_second_run_in_a_folder_is_refused(new_run, outputs, capsys):
    "The message names the process that holds the folder; nothing in it changes."
    params, run = new_run("held")
    process = held((params, outputs))
    try:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        assert main([str(params), str(outputs)]) == 2
        assert f"in use by process {process.pid} on " in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    finally:
        process.kill()
        process.join(10)


def test_lock_of_a_killed_run_is_released(new_run, outputs, unbroken):
    "After SIGKILL the same command works without cleaning up."
    params, run = new_run("lock-left")
    process = held((params, outputs))
    process.kill()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL and (run / "lock.json").exists()
    assert main([str(params), str(outputs)]) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def test_runs_beside_each_other_share_the_text(corpus, tmp_path):
    "Two runs that prepare the same text at the same time both finish, over one copy of it."
    for name in ("one", "two"):
        tiny.write_params(tmp_path / f"{name}.yaml", tiny.params_of(corpus, run_name=name, max_steps=6))
    processes = [tiny.fork(tmp_path / f"{name}.yaml", tmp_path) for name in ("one", "two")]
    assert [tiny.exit_code(process) for process in processes] == [0, 0]
    assert len(list((tmp_path / "data/shards").glob("*_*"))) == len(tiny.ALPHABETS)
    assert tiny.fingerprint(tmp_path / "one") == tiny.fingerprint(tmp_path / "two")
