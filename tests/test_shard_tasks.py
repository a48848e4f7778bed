"Array tasks write the same shards as one pass, even if they are killed."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from langsamp.core.errors import UserError
from langsamp.core.files import sha256
from langsamp.core.manifests import read_manifest
from langsamp.corpora.build import build_corpus
from langsamp.corpora.registry import find_corpus
from langsamp.corpora.text import Source
from langsamp.params.pretrain import CorpusBuildParams, PretrainParams
from langsamp.training.prepare import find_tokenizer, prepare
from langsamp.training.shard_tasks import assign_languages, datatrove_step, main, run_shard_task

CODES = {"eng_Latn": 16_000, "rus_Cyrl": 12_000, "hin_Deva": 4000, "deu_Latn": 500}


def sums(outputs: Path) -> dict[str, str]:
    "Every file of every shard; locks hold nothing."
    home = outputs / "data/shards"
    return {
        str(f.relative_to(home)): sha256(f)
        for f in sorted(home.rglob("*"))
        if f.is_file() and f.parent.name != ".locks"
    }


Array = tuple[PretrainParams, Path, dict[str, str]]


def written(folder: Path, share: int = 1) -> Array:
    "A params file of four languages, or of a share of their lines, and the shards of an undisturbed pass."
    (folder / "text").mkdir()
    for code, lines in CODES.items():
        text = tiny.sentences(code if code in tiny.ALPHABETS else "eng_Latn", lines // share, seed=lines)
        (folder / "text" / f"{code}.txt").write_text("\n".join(text) + "\n")
    p = tiny.params_of(folder / "text")
    tiny.write_params(folder / "p.yaml", p)
    prepare(p, folder / "whole")
    return p, folder / "p.yaml", sums(folder / "whole")


@pytest.fixture(scope="module")
def array(tmp_path_factory) -> Array:
    "Enough text for kills at random moments."
    return written(tmp_path_factory.mktemp("array"))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Array:
    "Enough text for tasks at the same time."
    return written(tmp_path_factory.mktemp("few"), 4)


def words_of(params: Path, outputs: Path, number: int, of: int) -> list[str]:
    "The arguments of a task."
    return [str(params), "--task", str(number), "--of", str(of), "--outputs", str(outputs)]


def forked(params: Path, outputs: Path, number: int, of: int, log: Path):
    "A task in a forked process; its errors go to a file."
    process = tiny.FORK.Process(target=in_fork, args=(words_of(params, outputs, number, of), log))
    process.start()
    return process


def in_fork(words: list[str], log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.exit(main(words))


def task(params: Path, outputs: Path, number: int, of: int) -> subprocess.Popen:
    "A task as a separate process, as Slurm starts it."
    command = [sys.executable, "-m", "langsamp.training.shard_tasks", *words_of(params, outputs, number, of)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_language_has_one_task(tmp_path, of):
    "Also where there are more tasks than languages; no task has much more than its share."
    sizes = {f"{a}{b}_Latn": 1 + 37 * n % 91 for n, (a, b) in enumerate((a, b) for a in ("ab", "cd") for b in "efghij")}
    sources = {}
    for code, size in sizes.items():
        (tmp_path / code).write_bytes(b"x" * size)
        sources[code] = [Source(code, tmp_path / code)]
    shares = assign_languages(sources, of)
    assert len(shares) == of and sorted(sum(shares, [])) == sorted(sizes)
    loads = [sum(sizes[code] for code in share) for share in shares]
    assert max(loads) <= sum(sizes.values()) / of + max(sizes.values())


def test_the_command_writes_the_shards_of_a_task(few, tmp_path):
    "As a process of its own: the one task of one has all languages."
    _, params, whole = few
    assert task(params, tmp_path, 0, 1).communicate()[1] == "" and sums(tmp_path) == whole


def test_tasks_at_the_same_time(few, tmp_path):
    "Two tasks of one corpus, each started twice at the same time."
    _, params, whole = few
    running = [forked(params, tmp_path / "outputs", number % 2, 2, tmp_path / "log") for number in range(4)]
    assert [tiny.exit_code(process) for process in running] == [0] * 4 and (tmp_path / "log").read_text() == ""
    assert sums(tmp_path / "outputs") == whole


def test_a_run_and_a_shard_task_at_the_same_time(few, tmp_path):
    "A run that prepares the same corpus at the same time neither deletes what the task writes nor writes it again."
    p, params, whole = few
    outputs, log = tmp_path / "outputs", tmp_path / "log"
    running = forked(params, outputs, 0, 2, log)
    tiny.wait_for(lambda: any(outputs.glob("data/shards/.part-*")), running.is_alive)
    prepare(p, outputs)
    assert tiny.exit_code(running) == 0 and log.read_text() == "" and sums(outputs) == whole


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_tasks_killed_at_random(array, tmp_path, turn):
    "Four tasks, two at a time, each killed and started again until it ends: byte for byte an undisturbed pass."
    p, params, whole = array
    random, waiting, kills = np.random.default_rng(), list(range(4)), 0
    find_tokenizer(p, find_corpus(p.corpus, p.languages, tmp_path)[0], tmp_path)
    while waiting:
        pair = [(number, task(params, tmp_path, number, 4)) for number in waiting[:2]]
        time.sleep(random.uniform(1.5, 6))
        for number, process in pair:
            if kills < 12 and process.poll() is None:
                process.kill()
                kills += 1
            process.communicate()
            if process.returncode == 0:
                waiting.remove(number)
        random.shuffle(waiting)
    assert sums(tmp_path) == whole, kills


ENGINE = """
import sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from langsamp.corpora.build import build_corpus
from langsamp.params.pretrain import CorpusBuildParams, PretrainParams
from langsamp.params.yaml_reader import read_yaml
from langsamp.training.shard_tasks import datatrove_step, run_shard_task
if __name__ == "__main__":
    build, p, outputs = read_yaml(sys.argv[1]), read_yaml(sys.argv[2]), Path(sys.argv[3])
    text = [datatrove_step(build_corpus, CorpusBuildParams.model_validate(build), outputs)]
    shards = [datatrove_step(run_shard_task, PretrainParams.model_validate(p), outputs)]
    text = LocalPipelineExecutor(text, tasks=4, workers=2, logging_dir=str(outputs / "logs/text"))
    LocalPipelineExecutor(shards, tasks=4, workers=2, logging_dir=str(outputs / "logs/shards"), depends=text).run()
"""


def every_byte(outputs: Path) -> dict[str, str]:
    "The shards, and the files of the written corpus."
    corpus = outputs / "corpora/clean"
    return sums(outputs) | {str(f.relative_to(corpus)): sha256(f) for f in corpus.rglob("*") if f.is_file()}


def build_of(corpus: Path | str, tested: Path) -> CorpusBuildParams:
    "Parameters of a corpus from raw text, without the sentences of an evaluation set."
    values = {"name": "clean", "corpus": str(corpus), "languages": [], "benchmarks": [f"folder:{tested}"]}
    return CorpusBuildParams.model_validate(values)


def kill_when_there(command: list[str], folder: Path, pattern: str) -> None:
    "Start a command, and kill it with all its workers as soon as a file is there."
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        tiny.wait_for(lambda: any(folder.glob(pattern)), lambda: running.poll() is None, seconds=600)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@pytest.mark.slow
def test_an_engine_with_two_workers_that_is_killed(array, tmp_path):
    "A datatrove pipeline from raw text, killed at the first part of the text and at the first shard: one pass's bytes."
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e .[dev]")
    p, outputs = array[0].replace(corpus="clean"), tmp_path / "outputs"
    lines = (Path(array[0].corpus) / "eng_Latn.txt").read_text().splitlines()
    tiny.write(tmp_path / "tested/eng_Latn.txt", "\n".join(lines[:9]) + "\n")
    build = build_of(array[0].corpus, tmp_path / "tested")
    build_corpus(build, tmp_path / "whole")
    prepare(p, tmp_path / "whole")
    whole = every_byte(tmp_path / "whole")
    params = [str(tiny.write_params(tmp_path / f"{name}.yaml", q)) for name, q in {"text": build, "p": p}.items()]
    command = [sys.executable, str(tiny.write(tmp_path / "engine.py", ENGINE)), *params, str(outputs)]
    for part in ("corpora/.tasks/clean/*/*-of-4", "data/shards/*_*"):
        kill_when_there(command, outputs, part)
        assert len([*outputs.glob(part)]) < len(CODES)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert every_byte(outputs) == whole and not (outputs / "corpora/.tasks/clean").exists()
    assert [len([*(outputs / f"logs/{step}/completions").iterdir()]) for step in ("text", "shards")] == [4, 4]
    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == 0 and third.stderr.count("all 4 tasks have already been completed") == 2


@pytest.mark.parametrize("changed", ["text", "evaluation"])
def test_a_part_of_other_text_is_not_joined(tmp_path, changed):
    "Of two tasks the first is done; then its text changes, or the evaluation set: the corpus is that of the new ones."
    corpus, tested = tiny.write_corpus(tmp_path / "text"), tiny.write(tmp_path / "tested/eng_Latn.txt", "Not there.\n")
    build, outputs = build_of(corpus, tmp_path / "tested"), tmp_path / "outputs"
    assert not build_corpus(build, outputs, 0, 2).exists()
    if changed == "evaluation":
        tested.write_text(f"{tiny.sentences('eng_Latn', 1)[0]}\n")
        assert not build_corpus(build, outputs, 1, 2).exists(), "parts of two builds were joined"
        build_corpus(build, outputs, 0, 2)
    else:
        for path in corpus.glob("train/*.txt"):
            path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))  # As long as before
        for task in (0, 1):
            build_corpus(build, outputs, task, 2)
    build_corpus(build, tmp_path / "whole")
    found, expected = [read_manifest(home / "corpora/clean") for home in (outputs, tmp_path / "whole")]
    assert found == expected and found is not None and not (outputs / "corpora/.tasks/clean").exists()


def test_a_part_of_another_task_that_is_out_of_date_is_not_joined(tmp_path, capsys):
    "The first task is done, a file of its share changes at equal length, and the second task ends."
    corpus, outputs = tiny.write_corpus(tmp_path / "text"), tmp_path / "outputs"
    build = build_of(corpus, tmp_path / "text/validation")
    build_corpus(build, outputs, 0, 2)
    for path in corpus.glob("train/*.txt"):
        path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))
    assert not build_corpus(build, outputs, 1, 2).exists()
    assert "files have changed since task 0 of 2 ended; run it again to complete clean" in capsys.readouterr().out
    assert build_corpus(build, outputs, 0, 2).exists()


def test_an_invalid_task_number_is_refused(few, tmp_path, capsys):
    "Numbered from 1, as arrays often are: an error before anything is written."
    _, params, _ = few
    assert main([str(params), "--task", "2", "--of", "2", "--outputs", str(tmp_path)]) == 2
    assert "from 0 to 1; change --task or --of" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_scheduler_that_is_not_installed(few, tmp_path, monkeypatch):
    "The message names what to install."
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    with pytest.raises(
        UserError, match="needs `datatrove.pipeline.base`, which is not installed: pip install datatrove"
    ):
        datatrove_step(run_shard_task, few[0], tmp_path)
