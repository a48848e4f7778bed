"The numbers of fixed runs, which change only on purpose. To renew them: python tests/test_golden.py"

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from langsamp.model.langsamp import LangSAMPForMaskedLM, from_backbone
from langsamp.params.pretrain import TrainingParams
from langsamp.training.loop import Trainer

GOLDEN = Path(__file__).with_name("golden_losses.json")


def tiny_model(dropout: float) -> LangSAMPForMaskedLM:
    "Two layers 32 wide and 256 tokens, for two languages in two scripts."
    config = tiny.config(max_position_embeddings=18)
    return from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], "language+script", seed=3, dropout=dropout)


def losses_of(model: LangSAMPForMaskedLM, steps: int, folder: Path, packing: str) -> list[float]:
    "Train on fixed tokens: two micro-batches, warm-up, decay and clipping."
    schedule = {"learning_rate": 5e-3, "warmup_steps": 3, "weight_decay": 0.1, "save_steps": steps}
    p = TrainingParams(precision="fp32", max_steps=steps, global_batch_size=8, micro_batch_size=4, **schedule)
    Trainer(model, tiny.synthetic_data(folder, packing=packing), p).train(folder / "run")
    return [line["loss"] for line in tiny.metrics_of(folder / "run") if "loss" in line]


def twenty_steps(folder: Path, packing: str = "stream") -> list[float]:
    "In float32 and with dropout, like a run."
    return losses_of(tiny_model(0.1), 20, folder, packing)


def hundred_steps(folder: Path, packing: str = "stream") -> list[float]:
    "In float64, without dropout, with NumPy's numbers: only the last digits depend on the processor."
    model, random = tiny_model(0.0).double(), np.random.default_rng(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.from_numpy(random.normal(0, 0.02, weight.shape)))
    return losses_of(model, 100, folder, packing)


def golden(kind: str, packing: str) -> list[float]:
    "Committed losses."
    return json.loads(GOLDEN.read_text())[f"{kind}, {packing}"]


both = pytest.mark.parametrize("packing", ["sentences", "stream"])


@both
def test_twenty_steps_with_dropout(tmp_path, packing):
    "The committed losses to 1e-4 on any processor, and the same to the last bit twice in one process."
    first, second = (twenty_steps(tmp_path / name, packing) for name in "ab")
    assert first == second
    assert first == pytest.approx(golden("float32, 20 steps", packing), rel=1e-4)
    assert first[-1] < first[0] - 0.3, "it learns"


@both
def test_hundred_steps(tmp_path, packing):
    "The committed losses to 1e-6."
    found = hundred_steps(tmp_path, packing)
    assert found == pytest.approx(golden("float64, 100 steps", packing), rel=1e-6)
    assert found[-1] < found[0] - 1.5, "it learns"


def test_the_two_packings_have_different_losses():
    "No committed loss of one is a loss of the other."
    for kind in ("float32, 20 steps", "float64, 100 steps"):
        assert not {*golden(kind, "sentences")} & {*golden(kind, "stream")}


OTHERS = {  # Settings of other processors and other numbers of threads
    "two threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_hundred_steps_on_another_processor(tmp_path, other):
    "The same losses to 1e-6 with the instructions of older processors."
    code = "import json, sys, pathlib, test_golden; "
    code += "print(json.dumps(test_golden.hundred_steps(pathlib.Path(sys.argv[1]))))"
    words = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | OTHERS[other]
    done = subprocess.run(words, cwd=GOLDEN.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(golden("float64, 100 steps", "stream"), rel=1e-6)


if __name__ == "__main__":
    fresh = {"float32, 20 steps": twenty_steps, "float64, 100 steps": hundred_steps}
    made = {
        f"{name}, {packing}": run(Path(tempfile.mkdtemp()), packing)
        for packing in ("sentences", "stream")
        for name, run in fresh.items()
    }
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    sys.exit(f"{GOLDEN} is new")
