"The numbers of a fixed run: they change only when somebody means them to. To renew them: python tests/test_golden.py"

import json
import sys
import tempfile
from pathlib import Path

import pytest
import tiny
from transformers import XLMRobertaConfig

from langsamp.model import from_backbone
from langsamp.params import TrainingParams
from langsamp.training import train

GOLDEN = Path(__file__).with_name("golden_losses.json")


def twenty_steps(folder: Path) -> list[float]:
    "Losses of twenty steps on fixed tokens: dropout, two micro-batches, warm-up, decay and clipping."
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = XLMRobertaConfig(vocab_size=256, max_position_embeddings=18, type_vocab_size=1, **size)
    model = from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], "both", seed=3)
    p = TrainingParams(steps=20, batch_size=8, micro_batch_size=4, learning_rate=5e-3, warmup_steps=3, weight_decay=0.1)
    train(model, tiny.synthetic_data(folder), p, folder / "run")
    return [line["loss"] for line in tiny.metrics_of(folder / "run") if "loss" in line]


def test_losses_are_the_golden_ones(tmp_path):
    "The committed losses to 1e-4 on any processor, and the same to the last bit twice in one process."
    first, second = twenty_steps(tmp_path / "a"), twenty_steps(tmp_path / "b")
    assert first == second
    assert first == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)
    assert first[-1] < first[0] - 0.3, "it learns"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(twenty_steps(Path(tempfile.mkdtemp())), indent=1) + "\n")
    sys.exit(f"{GOLDEN} is new")
