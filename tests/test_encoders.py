"Checks of nbs/reports/encoders.ipynb for each family of encoders, on tiny models."

import json
import logging
import os
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from langsamp.core.errors import UserError
from langsamp.model.backbones import check_backbone, load_backbone, max_sequence_length
from langsamp.model.families import FAMILIES, TINY_OPTIONS, tiny_config
from langsamp.model.langsamp import LangSAMPForMaskedLM, from_backbone, save_backbone

every = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, **options) -> LangSAMPForMaskedLM:
    return from_backbone(tiny_config(family), ["eng", "hin"], ["Deva", "Latn"], seed=1, **options)


def zeroed(model: LangSAMPForMaskedLM) -> LangSAMPForMaskedLM:
    for table in (model.language_embeddings, model.script_embeddings):
        torch.nn.init.zeros_(table.weight)
    return model


@pytest.fixture
def text() -> dict[str, Tensor]:
    input_ids = torch.randint(5, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 16:], input_ids[1, 16:] = 0, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.fixture
def labels(text) -> Tensor:
    masked = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.3
    return torch.where(masked & text["attention_mask"].bool(), text["input_ids"], -100)


@pytest.fixture
def ids() -> dict[str, Tensor]:
    return {"language_ids": torch.tensor([0, 1, 0]), "script_ids": torch.tensor([1, 0, 1])}


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(w, theirs[n]) for n, w in a.state_dict().items())


def is_tied(model) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


# The promises


@every
def test_zero_embedding_tables_give_the_stock_model(family, text, ids):
    model = zeroed(build(family))
    stock = model.mlm(**text).logits
    assert torch.equal(model(**text, **ids).logits, stock)
    torch.nn.init.normal_(model.language_embeddings.weight)
    assert not torch.allclose(model(**text, **ids).logits, stock), "the embeddings have no effect"
    assert torch.equal(model.mlm(**text).logits, stock), "the stock model itself was changed"


@every
def test_masked_tokens_alone_give_the_loss_of_all_logits(family, text, labels, ids):
    model = build(family)
    full = F.cross_entropy(model(**text, **ids).logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(model(**text, **ids, labels=labels).loss, full, atol=1e-6)
    assert model(**text, **ids, labels=torch.full_like(labels, -100)).loss == 0


@every
def test_gradients_are_those_of_the_stock_model(family, text, labels, ids):
    "In encoder and head; the embeddings that were used get a gradient too."
    model = zeroed(build(family))
    model(**text, **ids, labels=labels).loss.backward()
    ours = {name: p.grad for name, p in model.mlm.named_parameters()}
    assert model.language_embeddings.weight.grad.any(1).all() and model.script_embeddings.weight.grad.any(1).all()
    model.zero_grad()
    F.cross_entropy(model.mlm(**text).logits.flatten(0, 1), labels.flatten()).backward()
    for name, p in model.mlm.named_parameters():
        assert (ours[name] is None) == (p.grad is None), name
        assert p.grad is None or torch.allclose(ours[name], p.grad, atol=1e-6), name


@every
def test_a_saved_model_loads_with_equal_outputs(family, tmp_path, text, ids):
    model = build(family)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and same_weights(model, loaded) and is_tied(loaded) == is_tied(model)
    assert torch.equal(model(**text, **ids).logits, loaded(**text, **ids).logits)


@every
def test_the_export_is_a_stock_encoder(family, tmp_path, text, caplog):
    model = build(family)
    save_backbone(model, tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert type(loaded) is type(model.mlm.base_model) and not any(report.values())
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    difference = loaded(**text).last_hidden_state - model.mlm.base_model(**text).last_hidden_state
    assert difference.abs().max() == 0


@every
@pytest.mark.parametrize("vocab_size", [300, 220])
def test_a_resized_vocabulary_stays_tied(family, vocab_size, tmp_path, text, ids):
    model = build(family)
    tied, before = is_tied(model), model(**text, **ids).logits[..., :220]
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and same_weights(model, loaded)
    for each in (model, loaded):
        head = each.get_output_embeddings()
        assert is_tied(each) == tied and len(head.weight) == vocab_size == each.config.backbone_config.vocab_size
        assert head.bias is None or len(head.bias) == vocab_size
        after = each(**text, **ids).logits
        assert after.shape[-1] == vocab_size and torch.allclose(after[..., :220], before, atol=1e-6)


@every
def test_dropout_reaches_every_layer_that_has_one(family, text, ids):
    "Without dropout, training is evaluation; with it, it is not."
    for dropout in (0.0, 0.4):
        model = build(family, dropout=dropout)
        quiet, noisy = model(**text, **ids).logits, model.train()(**text, **ids).logits
        assert torch.equal(quiet, noisy) == (dropout == 0)


@every
def test_the_longest_sequence_can_be_encoded(family):
    model = build(family)
    longest = max_sequence_length(model.mlm)
    assert longest == max_sequence_length(model.mlm.config) in (64, 66)
    assert model(torch.full((1, longest), 7)).logits.shape[1] == longest


LEARNT = ["XLM-R", "RoBERTa", "CamemBERT", "BERT", "DistilBERT", "ELECTRA", "MPNet", "XLM"]


@pytest.mark.parametrize("family", LEARNT)
def test_a_sequence_one_token_longer_is_refused(family):
    model = build(family)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, max_sequence_length(model.mlm) + 1), 7))


@pytest.mark.parametrize("family", ["XLM-R", "BERT", "DistilBERT", "ModernBERT"])
def test_an_untied_model_keeps_both_matrices(family, tmp_path):
    model = from_backbone(tiny_config(family, tie_word_embeddings=False), ["eng"], ["Latn"])
    model.resize_token_embeddings(300, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert not is_tied(loaded) and same_weights(model, loaded)
    assert len(loaded.get_output_embeddings().weight) == len(loaded.get_input_embeddings().weight) == 300
    assert not torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight)


# The mechanism


@pytest.mark.parametrize("family", ["XLM-R", "ModernBERT"])
def test_a_compiled_encoder_is_used(family, text, labels, ids):
    model, runs = build(family), []

    def backend(graph, _):
        return lambda *inputs: runs.append(1) or graph(*inputs)

    plain = model(**text, **ids, labels=labels).loss
    model.mlm.base_model.compile(backend=backend)
    assert torch.allclose(model(**text, **ids, labels=labels).loss, plain) and runs


def test_hooks_of_the_stock_model_run_once(text):
    model, seen = build("DistilBERT"), []
    for part in (model.mlm, model.mlm.base_model, model.mlm.vocab_projector):
        part.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    model(**text)
    assert seen == ["DistilBertModel", "Linear", "DistilBertForMaskedLM"]


def test_threads_do_not_disturb_each_other(text):
    "Two calls at the same time with different ids: the model keeps no state of a call."
    model = build("BERT")
    torch.nn.init.normal_(model.language_embeddings.weight)
    alone = [model(**text, language_ids=torch.full((3,), i)).logits for i in range(2)]
    wrong = []

    def ask(i: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                if not torch.equal(model(**text, language_ids=torch.full((3,), i)).logits, alone[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_checking_a_model_changes_nothing():
    mlm = build("BERT").mlm
    mlm.train()
    mlm.bert.encoder.eval()
    state, modes = torch.get_rng_state(), [module.training for module in mlm.modules()]
    check_backbone(mlm)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in mlm.modules()] == modes


# What cannot be trained


def start(kind: str, **options) -> LangSAMPForMaskedLM:
    return from_backbone(AutoConfig.for_model(kind, **options), ["eng"], ["Latn"])


SEQ2SEQ = {"vocab_size": 256, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}


@pytest.mark.parametrize("kind, options, lacking", [
    ("t5", {}, "no masked-language-model head for `t5`"),
    ("gpt2", {}, "no masked-language-model head for `gpt2`"),
    ("clip", {}, "no masked-language-model head for `clip`"),
    ("bart", SEQ2SEQ, "BartForConditionalGeneration is an encoder-decoder"),
    ("mbart", SEQ2SEQ, "MBartForConditionalGeneration is an encoder-decoder"),
    ("deberta-v2", {**TINY_OPTIONS, "legacy": False}, "no prediction head with a row for each token"),
    ("xmod", {**TINY_OPTIONS, "languages": ["en", "hi"]}, "does not run on input_ids and attention_mask alone: .*lan"),
])  # fmt: skip
def test_missing_weights_are_named(kind, options, lacking):
    with pytest.raises(UserError, match=lacking):
        start(kind, **options)


def test_an_unreachable_head_is_detected():
    mlm = build("BERT").mlm
    mlm.forward = lambda **inputs: type(mlm).forward(mlm, **inputs)  # Ignores a replaced encoder
    with pytest.raises(UserError, match="does not read each position's last hidden state alone"):
        check_backbone(mlm)
    del mlm.forward
    assert check_backbone(mlm) is None


def test_a_langsamp_model_is_continued_with_its_stock_part(tmp_path):
    (given := build("BERT")).save_pretrained(tmp_path)
    model = from_backbone(tmp_path, ["eng"], ["Latn"])
    assert same_weights(model.mlm, given.mlm) and model.taken_over == {"language": ["eng"], "script": ["Latn"]}


def test_an_encoder_alone_needs_a_new_head(tmp_path):
    stock = build("XLM-R").mlm
    stock.roberta.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no masked-language-model head \(no lm_head.bias, .*new_head=True"):
        from_backbone(tmp_path, ["eng"], ["Latn"])
    first, second = (from_backbone(tmp_path, ["eng"], ["Latn"], new_head=True) for _ in range(2))
    assert same_weights(first, second) and same_weights(first.mlm.roberta, stock.roberta) and is_tied(first)


def test_a_broken_encoder_cannot_be_adapted(tmp_path):
    stock = build("XLM-R").mlm
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["roberta.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for new_head in (False, True):
        with pytest.raises(
            UserError, match="lacks weights of the encoder: roberta.encoder.layer.1.output.dense.weight"
        ):
            load_backbone(tmp_path, new_head=new_head)


def test_names_of_old_checkpoints(tmp_path):
    "As in mBERT on the hub: gamma and beta, and heads that are not used."
    stock = build("BERT").mlm
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        weights = {key.replace(new, name): weight for key, weight in weights.items()}
    weights |= {"cls.seq_relationship.bias": torch.zeros(2), "bert.pooler.dense.bias": torch.zeros(32)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert same_weights(load_backbone(tmp_path), stock)


def test_a_backbone_is_loaded_in_float32_and_keeps_its_dropout(tmp_path):
    stock = build("BERT", dropout=0.3).mlm
    stock.bfloat16().save_pretrained(tmp_path)
    kept, changed = load_backbone(tmp_path), load_backbone(tmp_path, dropout=0.0)
    assert kept.dtype == torch.float32 and not kept.training
    assert kept.config.hidden_dropout_prob == kept.config.attention_probs_dropout_prob == 0.3
    differing = {k for k, v in kept.config.to_dict().items() if changed.config.to_dict()[k] != v}
    assert differing == {"hidden_dropout_prob", "attention_probs_dropout_prob"}


class Trap:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_a_pickle_is_not_run(tmp_path):
    tiny_config("BERT").save_pretrained(tmp_path / "start")
    torch.save({"bert.weight": Trap(tmp_path / "sprung")}, tmp_path / "start/pytorch_model.bin")
    with pytest.raises(UserError, match="no model.safetensors in"):
        load_backbone(tmp_path / "start")
    assert not (tmp_path / "sprung").exists()
    with (tmp_path / "start/pytorch_model.bin").open("rb") as file:
        torch.load(file, weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_code_of_a_checkpoint_is_not_run(tmp_path):
    (tmp_path / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    with pytest.raises(UserError, match="contains custom code"):
        load_backbone(tmp_path)
    assert not (tmp_path / "sprung").exists() and "mine" not in sys.modules


def test_without_a_hub_a_name_is_an_error_that_says_so():
    with pytest.raises(UserError, match="no masked language model at `nobody/nothing`: give a name or a folder"):
        load_backbone("nobody/nothing")
