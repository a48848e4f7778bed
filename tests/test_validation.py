"Validation reads held-out text in batches of any languages, and still knows the loss of each language-script."

from pathlib import Path

import numpy as np
import pytest
import tiny
from transformers import DistilBertConfig, EsmConfig, XLMRobertaConfig

from langsamp.data.masking import validation_batch
from langsamp.model.langsamp import from_backbone
from langsamp.params.pretrain import TrainingParams
from langsamp.training.loop import Trainer

COUNTS = {"eng_Latn": 160, "rus_Cyrl": 240}  # Two and three sequences of 16 held-out tokens
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "fused": XLMRobertaConfig(vocab_size=257, **tiny.SHAPE, **DROPOUT),
    "plain": EsmConfig(vocab_size=257, **tiny.SHAPE, **DROPOUT, pad_token_id=1, mask_token_id=255),
    "distilbert": DistilBertConfig(vocab_size=257, dim=32, n_layers=1, n_heads=2, hidden_dim=64, dropout=0.0),
}


def trainer(folder: Path, size: int, packing: str, config: str = "fused") -> Trainer:
    data = tiny.synthetic_data(folder, COUNTS, packing=packing)
    p = TrainingParams(global_batch_size=60, micro_batch_size=size, precision="fp32", warmup_steps=0)
    return Trainer(from_backbone(CONFIGS[config], ["eng", "rus"], ["Cyrl", "Latn"], seed=1).train(), data, p)


@pytest.mark.parametrize("config, packing", [(one, "stream") for one in CONFIGS] + [("fused", "sentences")])
def test_the_size_of_batches_changes_no_loss(tmp_path, config, packing):
    "The heads whose loss is fused and the others: one sequence at a time, and all languages at once."
    one, all_ = [trainer(tmp_path / str(size), size, packing, config).validate() for size in (1, 60)]
    assert one["by_language_script"].keys() == COUNTS.keys()
    for code, (loss, masked) in one["by_language_script"].items():
        assert all_["by_language_script"][code] == [pytest.approx(loss, abs=1e-5), masked]
    assert all_["validation_interval"] == pytest.approx(one["validation_interval"], abs=1e-5)


def test_batches_do_not_end_with_a_language(tmp_path):
    "So that thousands of languages with one held-out sequence each cost as much as one with thousands."
    t, calls = trainer(tmp_path, 3, "stream"), []
    t.plain.register_forward_hook(lambda *_: calls.append(1))
    assert len(t.validate()["by_language_script"]) == 2
    assert len(calls) == 2 == -(-len(t.data.validation) // 3)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_of_a_sequence_is_the_mean_loss_of_it_alone(tmp_path, config):
    t = trainer(tmp_path, 60, "stream", config)
    sums_N2 = t.sequence_sums()
    t.plain.eval()
    for number, (total, masked) in enumerate(sums_N2):
        batch = validation_batch(t.data.validation, np.array([number]), t.data.token_ids)
        assert (batch.labels_BL != -100).sum() == masked
        assert not masked or t.batch_loss(t.plain, batch).item() == pytest.approx(total / masked, abs=1e-5)
