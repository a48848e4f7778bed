"A full disk, a killed worker, too little memory, flipped bits: a clear message, and the same final weights."

import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from langsamp.core.errors import UserError
from langsamp.core.files import sha256
from langsamp.core.manifests import find_damage, read_manifest
from langsamp.corpora.text import find_sources
from langsamp.data.shards import write_shards
from langsamp.model.langsamp import from_backbone
from langsamp.params.pretrain import TrainingParams
from langsamp.tokenization.train import trained_tokenizer
from langsamp.training import loop
from langsamp.training import prepare as preparation
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import main

CHILDREN = Path("/proc/self/task")  # Lists the children of a process on Linux


# R3: a disk that is full or read-only


def limited(size: int, pipe: Path) -> None:
    "No file of this process may grow beyond `size` bytes; its messages go to a pipe."
    os.dup2(os.open(pipe, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refused(params: Path, outputs: Path, *words: str, size: int = resource.RLIM_INFINITY) -> str:
    "Return the message of a run that cannot write; check that it is one message without a traceback."
    os.mkfifo(pipe := params.with_suffix(".pipe"))
    handle = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        code = tiny.exit_code(tiny.fork(params, outputs, limited, size, pipe))
        printed = os.read(handle, 1 << 16).decode() if code else ""
    finally:
        os.close(handle)
        pipe.unlink()
    assert code == 2 and "langsamp: cannot write" in printed and "bytes are free in" in printed, (code, printed)
    assert "Traceback" not in printed and [word for word in words if word not in printed] == [], printed
    return printed


@contextmanager
def mounted(folder: Path, options: str):
    "A tmpfs over a folder, where a test may mount one."
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full_in_a_save(new_run, unbroken):
    "With a size limit between its two large files: the error names the bytes needed; the old checkpoint is kept."
    params, run = new_run("disk-full")
    tiny.broken_off(unbroken, run)
    sizes = {path.name: path.stat().st_size for path in (unbroken / "checkpoints/step-00000048").iterdir()}
    limit = (sizes["model.safetensors"] + sizes["optimizer.safetensors"]) // 2
    printed = refused(params, run.parent, str(run / "checkpoints/step-00000048"), "File too large", size=limit)
    needed = int(printed.partition("it needs ")[2].partition(" bytes")[0].replace(",", ""))
    assert 0.9 < needed / sum(sizes.values()) < 1
    assert [(path.name, find_damage(path)) for path in (run / "checkpoints").iterdir()] == [("step-00000042", "")]
    assert tiny.exit_code(tiny.fork(params, run.parent)) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def test_full_disk_after_one_and_a_half_checkpoints(new_run, unbroken, tmp_path):
    "On a separate file system that is full and then enlarged."
    params, run = new_run("tmpfs-full")
    tiny.broken_off(unbroken, run)
    before = run / "checkpoints/step-00000042"
    room = sum(path.stat().st_size for path in before.iterdir()) * 3 // 2
    shutil.move(before, tmp_path)
    with mounted(run / "checkpoints", f"size={room}"):
        shutil.move(tmp_path / before.name, before)
        refused(params, run.parent, "No space left on device", "it needs ", str(run / "checkpoints"))
        assert find_damage(before) == ""
        subprocess.run(["mount", "-o", f"remount,size={3 * room}", str(run / "checkpoints")], check=True)
        assert tiny.exit_code(tiny.fork(params, run.parent)) == 0
        assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def test_disk_full_at_any_stage(corpus, unbroken, tmp_path):
    "For each first file that is too large (tokenizer, shards, metrics, models); then the same final weights."
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, run_name="stages"))
    named = set()
    for size in (1, 1_000, 2_000, 40_000):
        if size == 2_000:
            shutil.copytree(
                unbroken.parent / "data/tokenizers", tmp_path / "outputs/data/tokenizers", dirs_exist_ok=True
            )
        named.add(refused(params, tmp_path / "outputs", size=size).partition("cannot write ")[2].partition(":")[0])
    assert len(named) >= 4, named
    assert tiny.exit_code(tiny.fork(params, tmp_path / "outputs")) == 0
    assert tiny.fingerprint(tmp_path / "outputs/stages") == tiny.fingerprint(unbroken)
    assert list((tmp_path / "outputs").rglob(".*part-*")) == []


def test_read_only_outputs(corpus, tmp_path, capsys):
    "The error comes at once and names the folder; it mentions no traceback."
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, run_name="read-only"))
    if os.geteuid():
        (tmp_path / "outputs").mkdir(mode=0o500)
        assert main([str(params), str(tmp_path / "outputs")]) == 2
    else:
        with mounted(tmp_path / "outputs", "ro,size=1m"):
            assert main([str(params), str(tmp_path / "outputs")]) == 2
    printed = capsys.readouterr().err
    assert f"cannot write {tmp_path}/outputs/read-only" in printed and "choose another outputs folder" in printed


# R1, R5, R7, R13: broken off and continued


def small_run(folder: Path, p: TrainingParams, stop: int = 0, epoch: int = 3) -> dict:
    "Train in this process for an epoch of so many steps; optionally with SIGTERM in the nth step of this session."
    config = tiny.config(max_position_embeddings=18, num_hidden_layers=1)
    model = from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], "language+script", seed=3)
    data = tiny.synthetic_data(folder.parent / "data", {"eng_Latn": 16 * 8 * epoch - 16, "rus_Cyrl": 16})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", told_in(stop))
        try:
            loop.Trainer(model, data, p).train(folder)
        except SystemExit as message:
            assert message.code == 143
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def told_in(nth: int) -> Callable:
    "A training step that receives SIGTERM at its nth call."
    calls, step = itertools.count(1), loop.Trainer.train_step

    def step_with_signal(*arguments) -> dict:
        if next(calls) == nth:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    return step_with_signal


def test_resumed_twice_at_every_step(tmp_path):
    "Two stops each after the first step, at both ends of epochs and one step before the end: the same bytes."
    p = TrainingParams(
        precision="fp32", max_steps=9, global_batch_size=8, micro_batch_size=4, warmup_steps=2, save_steps=4
    )
    whole = small_run(tmp_path / "whole", p)
    for step in range(1, 9):
        run = tmp_path / f"stopped-{step}"
        small_run(run, p, stop=step)
        assert tiny.steps_of(run) == step
        small_run(run, p, stop=1)
        again = small_run(run, p)
        assert [name for name in whole if not whole[name].equal(again[name])] == [], f"stopped after step {step}"
        assert tiny.metrics_of(run)[-1] == tiny.metrics_of(tmp_path / "whole")[-1]


@pytest.mark.parametrize("when", ["in its first validation", "after its last checkpoint"])
def test_stopping_twice_before_the_first_and_after_the_last_step(tmp_path, monkeypatch, when):
    "The same bytes, and no additional step."
    p = TrainingParams(
        precision="fp32", max_steps=6, global_batch_size=8, micro_batch_size=4, warmup_steps=2, save_steps=3
    )
    whole, run = small_run(tmp_path / "whole", p), tmp_path / "broken"

    def killed(*_) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            if when == "in its first validation":
                patch.setattr(loop.Trainer, "validate", killed)
                with pytest.raises(KeyboardInterrupt):
                    small_run(run, p)
            else:
                small_run(run, p)
                patch.setattr(loop.Trainer, "train_step", killed)
                small_run(run, p)
    again = small_run(run, p)
    assert [name for name in whole if not whole[name].equal(again[name])] == []
    assert tiny.metrics_of(run) == tiny.metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_hundred_kills(new_run):
    "SIGKILL at fifty random steps and within saves after fifty others, of one run; the same bytes."
    seed = np.random.SeedSequence().entropy
    random = np.random.default_rng(seed)
    whole, killed = [new_run(name, max_steps=300, save_steps=4) for name in ("unbroken-100", "killed-100")]
    assert tiny.exit_code(tiny.fork(whole[0], whole[1].parent)) == 0
    params, run = killed
    kills = sorted(zip(random.integers(1, 290, 100).tolist(), [0, 1, 0, 2, 0, 3, 0, 4, 0, 5] * 10))
    for step, file in kills:
        how = (tiny.in_save, run, step, file) if file else (tiny.at_step, step)
        assert tiny.exit_code(tiny.fork(params, run.parent, *how)) == -signal.SIGKILL
    assert tiny.exit_code(tiny.fork(params, run.parent)) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(whole[1]), f"seed {seed}: {kills}"


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
def test_two_processes_then_one_then_two(new_run):
    "Stopped at each change, without dropout: every loss and the last weights within 1e-5 of one process' run."
    (alone, whole), (params, run) = [new_run(n, dropout=0.0, max_steps=18) for n in ("alone-18", "two-one-two")]
    tiny.finish(alone, whole.parent)
    for step, launcher in [(3, TWO), (9, [])]:
        process = tiny.start(params, run.parent, *launcher)
        tiny.wait_for(lambda step=step: tiny.steps_of(run) >= step, lambda process=process: process.poll() is None)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode and step <= tiny.steps_of(run) < 18
    assert "continuing from step-" in tiny.finish(params, run.parent, *TWO)
    losses = [[line["loss"] for line in tiny.metrics_of(r) if "loss" in line] for r in (whole, run)]
    assert np.abs(np.subtract(*losses)).max() <= 1e-5
    ours, theirs = [load_file(r / "model/model.safetensors") for r in (whole, run)]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= 1e-5


def alive(pid: int) -> bool:
    "Whether a process is running; a zombie is not."
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    "The child processes of a process."
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


@pytest.mark.slow
@pytest.mark.skipif(not CHILDREN.exists(), reason="kernels are found in Linux's /proc")
def test_papermill_killed_and_the_same_command_again(smoke, tmp_path):
    "The run continues, the notebook is written again, and no kernel is left running."
    words = [sys.executable, "-m", "papermill", "--no-progress-bar", "nbs/03_pretrain.ipynb", str(tmp_path / "n.ipynb")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=tiny.ROOT, env=os.environ | {"LANGSAMP_OUTPUTS": str(tmp_path)}, **pipes)
    (run,) = [path.parent for path in smoke.glob("*/result.json")]
    tiny.wait_for(lambda: any(tmp_path.glob("*/checkpoints/step-*")), lambda: process.poll() is None)
    kernels = children(process.pid)
    process.kill()
    process.wait()
    tiny.wait_for(lambda: not any(map(alive, kernels)), seconds=20)
    assert kernels and not (tmp_path / run.name / "result.json").exists()
    tiny.papermill_command("nbs/03_pretrain.ipynb", tmp_path / "n.ipynb", tmp_path)
    cells = json.loads((tmp_path / "n.ipynb").read_text())["cells"]
    assert all(cell["metadata"]["papermill"]["status"] == "completed" for cell in cells)
    assert tiny.fingerprint(tmp_path / run.name) == tiny.fingerprint(run)


# R2, R16: the corpus pass


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path, dict[str, str]]:
    "Three language-scripts, a tokenizer, and the sums of the shards that an unbroken pass writes."
    folder = tiny.write_corpus(tmp_path_factory.mktemp("large"), 2_000)
    tokenizer = trained_tokenizer(find_sources(folder)[0], "0", folder.parent, 300)
    write_shards(find_sources(folder)[0], tokenizer, folder.parent / "whole")
    return folder, tokenizer, sums(folder.parent / "whole")


def sums(home: Path) -> dict[str, str]:
    "Every file under a folder, hidden ones too."
    return {str(path.relative_to(home)): sha256(path) for path in sorted(home.rglob("*")) if path.is_file()}


def passing(folder: Path, tokenizer: Path, home: Path, processes: int) -> subprocess.Popen:
    "A corpus pass as a process of its own."
    code = f"""
from pathlib import Path
from langsamp.data.shards import write_shards
from langsamp.corpora.text import find_sources
write_shards(find_sources({str(folder)!r})[0], Path({str(tokenizer)!r}), Path({str(home)!r}), {processes})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def kill_in_a_shard(process: subprocess.Popen, home: Path, delay: float) -> list[int]:
    "SIGKILL so many seconds after the first unfinished shard appeared; the processes that it had started."
    tiny.wait_for(lambda: any(home.glob(".part-*")), lambda: process.poll() is None)
    time.sleep(delay)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    return workers


@pytest.mark.skipif(not CHILDREN.exists(), reason="workers are found in Linux's /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_corpus_pass(large, tmp_path, processes):
    "No worker survives; the next pass writes the bytes of an uninterrupted one and leaves no temporary file."
    folder, tokenizer, whole = large
    workers = kill_in_a_shard(passing(folder, tokenizer, tmp_path, processes), tmp_path, 0.0)
    tiny.wait_for(lambda: not any(map(alive, workers)), seconds=10)
    assert sums(tmp_path) != whole
    write_shards(find_sources(folder)[0], tokenizer, tmp_path)
    assert sums(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_corpus_pass_killed_ten_times(large, tmp_path, processes):
    "At random moments; a pass that had ended before its kill counts too."
    folder, tokenizer, whole = large
    delays = np.random.default_rng().uniform(0, 0.6, 10)
    for number, delay in enumerate(delays):
        if number % 3 == 0:
            shutil.rmtree(tmp_path / "home", ignore_errors=True)
        if sums(tmp_path / "home") != whole:
            workers = kill_in_a_shard(
                passing(folder, tokenizer, tmp_path / "home", processes), tmp_path / "home", delay
            )
            tiny.wait_for(lambda workers=workers: not any(map(alive, workers)), seconds=10)
    write_shards(find_sources(folder)[0], tokenizer, tmp_path / "home", processes)
    assert sums(tmp_path / "home") == whole, delays


def test_killed_worker_is_noticed(large, tmp_path):
    "The pass ends with a message instead of waiting forever; the same call writes what is missing."
    folder, tokenizer, whole = large
    sources, main_process = find_sources(folder)[0], os.getpid()

    def kill_one() -> None:
        tiny.wait_for(lambda: any(tmp_path.glob(".part-*")))
        worker = int(next(tmp_path.glob(".part-*")).name.rpartition("-")[2])
        assert worker != main_process
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(
        UserError, match="was killed, perhaps for lack of memory; run the same command again, which keeps"
    ):
        write_shards(sources, tokenizer, tmp_path, 2)
    killer.join()
    write_shards(sources, tokenizer, tmp_path, 1)
    assert sums(tmp_path) == whole


@pytest.mark.parametrize("how", ["truncated", "deleted"])
@pytest.mark.parametrize("part", ["train.tokens", "train.ends", "filter_report.json", "manifest.json"])
def test_damaged_shard_is_written_again(large, tmp_path, part, how):
    "For each truncated or missing file of a shard: the same bytes are written."
    folder, tokenizer, whole = large
    shutil.copytree(folder.parent / "whole", tmp_path, dirs_exist_ok=True)
    damaged = next(tmp_path.glob("rus_Cyrl-*")) / part
    if how == "deleted":
        damaged.unlink()
    else:
        os.truncate(damaged, damaged.stat().st_size // 2)
    write_shards(find_sources(folder)[0], tokenizer, tmp_path)
    assert sums(tmp_path) == whole


def test_workers_beside_threads_do_not_hang(large, tmp_path):
    "Two passes at once, with two workers each, after the tokenizer's own threads have run: done within a minute."
    folder, tokenizer, whole = large
    code = f"""
import sys
from pathlib import Path
from langsamp.data.shards import write_shards
from langsamp.corpora.text import find_sources
from langsamp.tokenization.train import CorpusTokenizer
CorpusTokenizer(Path({str(tokenizer)!r}))(["one line"] * 5000)
write_shards(find_sources({str(folder)!r})[0], Path({str(tokenizer)!r}), Path(sys.argv[1]), 2)
"""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"}
    words, folders = [sys.executable, "-c", code], [tmp_path / "one", tmp_path / "two"]
    passes = [subprocess.Popen([*words, str(home)], env=environment) for home in folders]
    assert [one.wait(timeout=60) for one in passes] == [0, 0]
    assert [sums(home) for home in folders] == [whole, whole]


# R4: what has lain on the disk since


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
@pytest.mark.parametrize("part", ["tokenizer.json", "manifest.json", "train.tokens"])
def test_damaged_text_is_prepared_again(corpus, unbroken, tmp_path, capsys, part, how):
    "Tokenizer and shards are verified before use; damaged ones are made again with the same bytes."
    shutil.copytree(unbroken.parent / "data", tmp_path / "data")
    before, p = sums(tmp_path / "data"), tiny.params_of(corpus)
    prepared = prepare(p, tmp_path)
    damaged = (prepared.shards[0] if part == "train.tokens" else prepared.tokenizer) / part
    tiny.spoil(damaged, how)
    capsys.readouterr()
    assert prepare(p, tmp_path).identity == prepared.identity
    counts_as_absent = part == "manifest.json" or (part == "train.tokens" and how != "flipped")
    assert counts_as_absent or str(damaged) in capsys.readouterr().out
    assert sums(tmp_path / "data") == before


def test_every_byte_of_a_manifest_counts(unbroken, tmp_path):
    "It holds the ids of special tokens: a flipped bit makes it invalid, or leaves every value as it was."
    (tokenizer,) = [path for path in (unbroken.parent / "data/tokenizers").iterdir() if path.name.startswith("uni")][:1]
    facts, whole = read_manifest(tokenizer), (tokenizer / "manifest.json").read_bytes()
    assert facts and facts["mask"]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (tmp_path / "manifest.json").write_bytes(flipped)
        left = read_manifest(tmp_path) or facts
        assert facts.items() <= left.items(), flipped[place - 20 : place + 20]


def test_checking_large_text_reads_only_a_part(corpus, unbroken, tmp_path, monkeypatch):
    "Below the limit every byte is read; of more text only a part, and never the largest shards."
    shutil.copytree(unbroken.parent / "data", tmp_path / "data")
    read, p = [], tiny.params_of(corpus)
    real = preparation.find_damage
    monkeypatch.setattr(
        preparation, "find_damage", lambda folder, checksums: read.append(checksums) or real(folder, checksums)
    )
    shards = prepare(p, tmp_path).shards
    assert read == [True] * 7, "a tokenizer, three shards and their packings"
    sizes = [sum(facts["bytes"] for facts in read_manifest(shard)["files"].values()) for shard in shards]
    read.clear()
    assert not preparation._delete_damaged(shards, most=max(sizes)) and 1 <= sum(read) < 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    read.clear()
    assert not preparation._delete_damaged(shards) and read == [False] * 3, "one process of a machine reads"


# R10: what a corpus folder may hold beside files


def test_broken_links_and_special_files_are_reported(tmp_path):
    "Each is named in a warning, so no language is lost silently, and a pipe does not block."
    (tmp_path / "eng_Latn.txt").write_text("one\n")
    (tmp_path / "deu_Latn.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fra_Latn.txt")
    (tmp_path / "rus_Cyrl.txt").mkdir()
    sources, warnings = find_sources(tmp_path)
    assert list(sources) == ["eng_Latn"]
    assert len(warnings) == 3
    for name in ("deu_Latn", "fra_Latn", "rus_Cyrl"):
        assert [name in line for line in warnings].count(True) == 1, name


def test_two_scripts_and_no_tokens(corpus, tmp_path, capsys):
    "A line has the script of most of its letters; a language without lines left is reported, others train."
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus/train/deu_Latn.txt").write_text("слово и das\nслово\n \n")
    (tmp_path / "corpus/train/fra_Latn.txt").write_text("le mot слово\nun слово\n" + "des mots sans fin\n")
    p = tiny.params_of(
        tmp_path / "corpus", run_name="mixed", max_steps=2, warmup_steps=0, save_steps=2, on_bad_line="skip"
    )
    assert main([str(tiny.write_params(tmp_path / "p.yaml", p)), str(tmp_path)]) == 0
    kept = {of["code"]: of for of in json.loads((tmp_path / "mixed/corpus.json").read_text())["filter_reports"]}
    assert kept["deu_Latn"]["dropped"] == {"another script": 2, "blank": 1}
    assert kept["deu_Latn"]["splits"]["train"]["tokens"] == 0 and kept["deu_Latn"]["examples"]
    assert kept["fra_Latn"]["kept"]["train"] == 2 and kept["fra_Latn"]["dropped"] == {"another script": 1}


# R8, R14: numbers that are none, and too little memory


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_loss_stops_the_run(new_run, unbroken, monkeypatch, capsys, value):
    "The run stops before the update, names step and sequences; the last checkpoint is finite; the next try succeeds."
    params, run = new_run(f"loss-{value}")
    real = loop.Trainer.batch_loss

    def poisoned(t, model, batch, items=None):
        return real(t, model, batch, items) * (value if items and t.state["step"] == 20 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "batch_loss", poisoned)
        assert main([str(params), str(run.parent)]) == 2
    printed = capsys.readouterr().err
    assert (
        f"step 21: loss {value}" in printed
        and "_Latn sequence " in printed
        and "continues from its last checkpoint" in printed
    )
    assert tiny.steps_of(run) == 20
    newest = max((run / "checkpoints").iterdir())
    files = [load_file(newest / f"{name}.safetensors") for name in ("model", "optimizer")]
    assert all(tensor.isfinite().all() for file in files for tensor in file.values()) and newest.name.endswith("18")
    assert main([str(params), str(run.parent)]) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


def test_nonfinite_gradient_stops_the_run(new_run, unbroken, monkeypatch, capsys):
    "The update is skipped although the loss is finite."
    params, run = new_run("gradient-nan")
    real = loop.Trainer.batch_loss

    def poisoned(t, model, batch, items=None):
        loss = real(t, model, batch, items)
        if items and t.state["step"] == 20:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "batch_loss", poisoned)
        assert main([str(params), str(run.parent)]) == 2
    printed = capsys.readouterr().err
    assert "step 21: loss " in printed and "not finite, so no update was made" in printed and "loss nan" not in printed
    assert main([str(params), str(run.parent)]) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


OUT_OF_MEMORY = {
    "processor": lambda: torch.empty(10**15),
    "accelerator": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")),
    "array": lambda: np.empty(10**15),
}


@pytest.mark.parametrize("where", OUT_OF_MEMORY)
def test_out_of_memory_names_the_parameter_to_lower(new_run, monkeypatch, capsys, where):
    "At a later step; with the lower value the run continues and ends with the same result."
    overrides = {"dropout": 0.0, "max_steps": 12}
    (alone, whole), (params, run) = [new_run(f"{name}-{where}", **overrides) for name in ("roomy", "tight")]
    assert main([str(alone), str(whole.parent)]) == 0
    real = loop.Trainer.batch_loss

    def greedy(t, model, batch, items=None):
        if t.state["step"] >= 8 and len(batch.inputs_BL) > 2:
            OUT_OF_MEMORY[where]()
        return real(t, model, batch, items)

    monkeypatch.setattr(loop.Trainer, "batch_loss", greedy)
    capsys.readouterr()
    assert main([str(params), str(run.parent)]) == 2
    printed = capsys.readouterr().err
    assert "step 9: micro_batch_size 4 × max_seq_length 32 does not fit in memory; set micro_batch_size to 2" in printed
    new_run(f"tight-{where}", micro_batch_size=2, **overrides)
    assert main([str(params), str(run.parent)]) == 0
    assert "continuing from step-00000006" in capsys.readouterr().out
    losses = [[line["loss"] for line in tiny.metrics_of(r) if "loss" in line] for r in (whole, run)]
    assert np.abs(np.subtract(*losses)).max() <= 1e-5
