"A made-up corpus in three scripts, tiny runs on it, and ways to start and compare them."

import ast
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer, XLMRobertaConfig

from langsamp.core.files import sha256
from langsamp.corpora.registry import find_corpus
from langsamp.data.masking import TokenIds
from langsamp.data.packing import PackedSequences, pack_shard
from langsamp.data.shards import TokenDataset
from langsamp.params.pretrain import PretrainParams
from langsamp.tokenization.train import trained_tokenizer
from langsamp.training.loop import Data
from langsamp.training.pretrain import main
from langsamp.training.run_dir import MetricsFile

ALPHABETS = {"eng_Latn": "abcdefghijklmnop", "hin_Deva": "कखगघचछजझटठडढतथदध", "rus_Cyrl": "абвгдежзиклмнопр"}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
os.fsync = lambda handle: None  # A tiny run would wait for the disk 138 times; a killed process loses nothing
FORK = multiprocessing.get_context("forkserver")  # Processes that start in no time, with everything imported
FORK.set_forkserver_preload(["langsamp.training.pretrain"])


def sentences(code: str, count: int, seed: int = 0) -> list[str]:
    "Different sentences of eight words from a lexicon of sixty."
    random, letters = np.random.default_rng([seed, len(code), ord(code[0])]), list(ALPHABETS[code])
    words = ["".join(random.choice(letters, random.integers(2, 6))) for _ in range(60)]
    return [" ".join(random.choice(words, 8)) for _ in range(count)]


def write_corpus(folder: Path, lines: int = 60) -> Path:
    "A folder with a train/ and a validation/ half."
    for code in ALPHABETS:
        text = sentences(code, lines + 8)
        for split, part in [("train", text[:lines]), ("validation", text[lines:])]:
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / f"{code}.txt").write_text("\n".join(part) + "\n")
    return folder


def params_of(corpus: Path, **overrides) -> PretrainParams:
    "Parameters of a run that takes a second: dropout, accumulation over two micro-batches, more than three epochs."
    text = {"corpus": str(corpus), "languages": [], "vocab_size": 300, "max_seq_length": 32}
    model = {"num_layers": 1, "hidden_size": 32, "dropout": 0.1}
    training = {
        "max_steps": 48,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "warmup_steps": 4,
        "save_steps": 6,
        "seed": 7,
        "precision": "fp32",  # On machines with native bf16 too
    }
    return PretrainParams.model_validate(text | model | training | overrides)


def synthetic_data(
    folder: Path, counts: dict[str, int] | None = None, max_seq_length: int = 16, packing: str = "stream"
) -> Data:
    "Shards of fixed numbers in sentences of 3 to 12, for tests that do not depend on a tokenizer."
    shards = []
    for number, (code, count) in enumerate((counts or {"eng_Latn": 700, "rus_Cyrl": 500}).items()):
        shards.append(folder / "shards" / f"{code}-0")
        shards[-1].mkdir(parents=True, exist_ok=True)
        random, lengths = np.random.default_rng(number), np.random.default_rng([number, 1])
        for split, size in [("train", count), ("validation", count // 5)]:
            (5 + random.zipf(1.5, size) % 120 + 100 * number).astype("<u4").tofile(shards[-1] / f"{split}.tokens")
            ends = np.cumsum(lengths.integers(3, 13, size))
            np.append(ends[ends < size], size).astype("<u8").tofile(shards[-1] / f"{split}.ends")
        pack_shard(shards[-1], max_seq_length)
    kind = {"stream": TokenDataset, "sentences": PackedSequences}[packing]
    splits = [kind(shards, split, max_seq_length, pad=1) for split in ("train", "validation")]
    return Data(*splits, TokenIds(vocab_size=256, mask=255, pad=1, specials=[0, 1, 2, 3, 255]))


def stock_checkpoint(folder: Path, seed: int = 0) -> Path:
    "A checkpoint as the hub has them, 2x64 with 64 positions; its tokenizer was trained on English and Russian."
    sources, _ = find_corpus("udhr", ["eng_Latn", "rus_Cyrl"])
    tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer(sources, "udhr", folder / "tokenizers", 600))
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = XLMRobertaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=66, type_vocab_size=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlm = AutoModelForMaskedLM.from_config(config)
    mlm.save_pretrained(folder / "xlm-r")
    tokenizer.save_pretrained(folder / "xlm-r")
    return folder / "xlm-r"


def config(vocab_size: int = 256, max_position_embeddings: int = 66, **more) -> XLMRobertaConfig:
    "Two layers of XLM-R, 32 wide."
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": max_position_embeddings, "type_vocab_size": 1}
    return XLMRobertaConfig(**SHAPE | sizes | more)


def write_params(path: Path, params: PretrainParams) -> Path:
    "The params file of a run."
    path.write_text(yaml.safe_dump(vars(params)), encoding="utf-8")
    return path


def write(path: Path, text: str) -> Path:
    "Write a file, and the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


# Starting


def command(params: Path, outputs: Path, *launcher: str) -> list[str]:
    "What a user types."
    return [*(launcher or [sys.executable]), "-m", "langsamp.training.pretrain", str(params), str(outputs)]


def start(params: Path, outputs: Path, *launcher: str) -> subprocess.Popen:
    "Start a run as a process of its own."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(params, outputs, *launcher), **pipes)


def finish(params: Path, outputs: Path, *launcher: str) -> str:
    "Run to the end, and give back what was printed."
    process = start(params, outputs, *launcher)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def fork(params: Path, outputs: Path, before: Callable[..., None] | None = None, *arguments):
    "Start a run in a forked process that first calls `before`."
    process = FORK.Process(target=_forked, args=(params, outputs, before, arguments))
    process.start()
    return process


def _forked(params: Path, outputs: Path, before: Callable[..., None] | None, arguments: tuple) -> None:
    if before:
        before(*arguments)
    sys.exit(main([str(params), str(outputs)]))


def at_step(step: int, number: int = signal.SIGKILL) -> None:
    "For `fork`: the run gets a signal when it has written the metrics of a step, however slow the machine is."
    written, due = MetricsFile.write, [number]

    def write(self, **values) -> None:
        written(self, **values)
        if values["step"] >= step and due:
            os.kill(os.getpid(), due.pop())

    MetricsFile.write = write


def in_save(run: Path, step: int, files: int = 1) -> None:
    "For `fork`: the run is killed when it opens the nth file of checkpoints that it saves after a step."
    opened = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and ".part-step-" in str(arguments[0]) and steps_of(run) >= step:
            opened.append(event)
            if len(opened) == files:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def exit_code(process) -> int:
    "Wait for a forked run; its exit code, negative for a signal."
    process.join(120)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def wait_for(happened: Callable[[], bool], alive: Callable[[], bool] = lambda: True, seconds: float = 120) -> None:
    "Watch closely until something happens; fail when the process ends first, or when it takes too long."
    deadline = time.monotonic() + seconds
    while not happened():
        assert alive() or happened(), "the process ended before it happened"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def spoil(path: Path, how: str) -> None:
    "Delete a file, flip a bit in its middle (`flipped`), or cut it to half."
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if how != "deleted":
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


def broken_off(unbroken: Path, run: Path) -> Path:
    "A copy of the unbroken run that was killed after step 47, before its last save."
    shutil.copytree(unbroken, run)
    for name in ("params.yaml", "result.json"):
        (run / name).unlink()
    for name in ("model", "backbone", "checkpoints/step-00000048"):
        shutil.rmtree(run / name)
    return run


# Comparing


def metrics_of(run: Path) -> list[dict]:
    "The complete lines of metrics.jsonl, without times."
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def steps_of(run: Path) -> int:
    "The last step in metrics.jsonl."
    return max((line["step"] for line in metrics_of(run)), default=0)


def fingerprint(run: Path) -> dict[str, str]:
    "What must be the same after any number of interruptions: weights, optimiser, state and metrics."
    newest = max((run / "checkpoints").glob("step-*"))
    files = [newest / name for name in ("model.safetensors", "optimizer.safetensors", "state.json")]
    files += [run / "model/model.safetensors", run / "backbone/model.safetensors"]
    sums = {str(path.relative_to(run)): sha256(path) for path in files}
    return {**sums, "metrics": json.dumps(metrics_of(run))}


def furthest(a: torch.nn.Module, b: torch.nn.Module) -> float:
    "The largest difference between two models' weights."
    theirs = b.state_dict()
    return max((value - theirs[name]).abs().max().item() for name, value in a.state_dict().items())


# Notebooks

ROOT = Path(__file__).parents[1]
PAPERMILL = ["--no-progress-bar", "--log-level", "WARNING"]


def defaults_of(notebook: str) -> dict[str, Any]:
    "The parameters of a runner such as `03_pretrain`, and their defaults."
    from papermill import inspect_notebook  # Here and below: forked processes import this file, and not papermill

    found = inspect_notebook(str(ROOT / f"nbs/{notebook}.ipynb"))
    return {name: ast.literal_eval(facts["default"]) for name, facts in found.items()}


@cache
def exported(notebook: str) -> tuple[Any, Any]:
    "A runner as papermill loads it, and what makes a script of it."
    from nbconvert.exporters import PythonExporter
    from papermill.iorw import load_notebook_node

    return load_notebook_node(str(ROOT / f"nbs/{notebook}.ipynb")), PythonExporter()


def run_notebook(notebook: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a runner in this process, as the script that nbconvert exports; return its names.

    A new kernel for each of hundreds of runs would take minutes, and would not see what a test replaces.
    """
    from papermill.parameterize import parameterize_notebook

    node, exporter = exported(notebook)
    script = folder / f"{Path(notebook).name}.py"
    script.write_text(exporter.from_notebook_node(parameterize_notebook(node, values))[0], encoding="utf-8")
    return runpy.run_path(str(script))


def papermill(notebook: str, output: Path, outputs: Path, *options: str) -> str:
    "Run a runner notebook in a fork of this process, from the checkout; return what its cells printed."
    import nbformat
    import papermill_in_process

    log, environment = output.with_suffix(".log"), {"LANGSAMP_OUTPUTS": str(outputs)}
    words = [*PAPERMILL, notebook, str(output), *options]
    forked = multiprocessing.get_context("fork").Process(
        target=papermill_in_process.run, args=[words, environment, ROOT, log]
    )
    forked.start()
    forked.join()
    assert forked.exitcode == 0, log.read_text()[-3000:]
    return "".join(papermill_in_process.printed(nbformat.read(output, 4)))


def papermill_command(notebook: str, output: Path, outputs: Path, *options: str) -> str:
    "Run a runner notebook like a user: papermill and its kernel are processes of their own."
    words = [sys.executable, "-m", "papermill", *PAPERMILL, "--stdout-file", "-"]
    environment = os.environ | {"LANGSAMP_OUTPUTS": str(outputs)}
    done = subprocess.run(
        [*words, notebook, str(output), *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
