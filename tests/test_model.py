"""Properties of the model beyond the examples of nbs/library/model/05_langsamp.ipynb."""

import inspect
import json
import logging
import re
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, XLMRobertaConfig

from langsamp.core.errors import UserError
from langsamp.core.files import sha256
from langsamp.model.langsamp import (
    LangSAMPConfig,
    LangSAMPForMaskedLM,
    from_backbone,
    language_script_ids,
    masked_positions,
    save_backbone,
    set_unigrams,
    with_stock_model,
)
from langsamp.model.variants import VARIANTS

LANGUAGES, SCRIPTS = ["eng", "hin", "urd"], ["Arab", "Deva", "Latn"]
TABLES = {"language_embeddings.weight", "script_embeddings.weight"}
TINY = {"vocab_size": 256, "max_position_embeddings": 66, "type_vocab_size": 1, **tiny.SHAPE}


def build(variant: str = "language+script", doses: dict[str, float] | None = None, **overrides) -> LangSAMPForMaskedLM:
    model = from_backbone(XLMRobertaConfig(**TINY | overrides), LANGUAGES, SCRIPTS, variant, seed=1, **doses or {})
    if variant == "unigram":
        p_PV = torch.rand(9, model.config.backbone_config.vocab_size, generator=torch.Generator().manual_seed(2))
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
        set_unigrams(model, pairs, p_PV / p_PV.sum(1, keepdim=True))
    return model


@pytest.fixture
def text() -> dict[str, Tensor]:
    input_ids = torch.randint(5, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 20:], input_ids[1, 20:] = 0, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def test_a_model_of_an_earlier_version_is_refused(tmp_path):
    "Its embeddings have other names, so they would be random numbers without an error."
    build().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"variant": "language+script"', '"arm": "both"'))
    with pytest.raises(UserError, match="earlier version of langsamp; train it under another run_name"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.fixture
def labels(text) -> Tensor:
    masked = torch.rand(4, 24, generator=torch.Generator().manual_seed(1)) < 0.2
    return torch.where(masked & text["attention_mask"].bool(), text["input_ids"], -100)


@pytest.fixture
def ids() -> dict[str, Tensor]:
    return {"language_ids": torch.tensor([0, 2, 0, 2]), "script_ids": torch.tensor([2, 0, 2, 2])}


def differing(a: torch.nn.Module, b: torch.nn.Module) -> list[str]:
    "Names of the weights that are not the same to the bit."
    theirs = b.state_dict()
    assert list(a.state_dict()) == list(theirs)
    return [name for name, value in a.state_dict().items() if not torch.equal(value, theirs[name])]


# Parity with the stock model


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_embeddings_give_the_stock_model(variant, text, labels, ids):
    model = build(variant)
    with torch.no_grad():
        [p.zero_() for name, p in model.named_parameters() if "_embeddings." in name and not name.startswith("mlm")]
        [table.log_PV.zero_() for table in (model.unigrams,) if table is not None]
    assert torch.equal(model(**text, **ids).logits, model.mlm(**text).logits)
    assert torch.allclose(model(**text, **ids, labels=labels).loss, model.mlm(**text, labels=labels).loss)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_uses_only_its_own_ids(variant, text, ids):
    model = build(variant)
    plain = model(**text).logits
    for name in ("language", "script"):
        same = torch.equal(model(**text, **{f"{name}_ids": ids[f"{name}_ids"]}).logits, plain)
        assert same == (name not in VARIANTS[variant].ids or not VARIANTS[variant].places)


def test_dropout_and_gradients_match_the_stock_model(text, labels):
    "In training mode, from one seed: the baseline variant's gradients are those of the stock model."
    model = build("baseline").train()
    model.last_layer_path = ""  # Then it draws the stock model's dropout masks
    torch.manual_seed(3)
    ours = torch.autograd.grad(model(**text, labels=labels).loss, list(model.parameters()))
    torch.manual_seed(3)
    stock = torch.autograd.grad(model.mlm(**text, labels=labels).loss, list(model.parameters()))
    for a, b in zip(ours, stock, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_every_sequence_gets_its_own_embeddings(text, ids):
    "A batch's loss is the mean over its sequences' masked tokens, each computed alone."
    model, labels = build(), text["input_ids"]
    for table in (model.language_embeddings, model.script_embeddings):
        torch.nn.init.normal_(table.weight)
    alone = [
        model(**{k: v[i : i + 1] for k, v in {**text, **ids, "labels": labels}.items()}, num_items_in_batch=1).loss
        for i in range(4)
    ]
    assert torch.allclose(sum(alone) / (labels != -100).sum(), model(**text, **ids, labels=labels).loss)


# Variants


def test_only_input_variants_change_the_encoder(text, ids):
    "And as they should: by the sum of two rows for each sequence, below the encoder."
    for variant, (_, places) in VARIANTS.items():
        model = build(variant)
        plain = model(**text, output_hidden_states=True).hidden_states[-1]
        states = model(**text, **ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(states, plain) == ("input" not in places)
        if "input" in places:
            e_BH = model.input_language_embeddings(ids["language_ids"])
            e_BH = e_BH + model.input_script_embeddings(ids["script_ids"])
            words_BLH = model.get_input_embeddings()(text["input_ids"]) + e_BH[:, None]
            by_hand = model.mlm.base_model(inputs_embeds=words_BLH, attention_mask=text["attention_mask"])
            assert torch.allclose(states[0], by_hand.last_hidden_state[0], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_that_of_the_logits(variant, text, labels, ids):
    model = build(variant)
    logits = model(**text, **ids).logits
    full = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(model(**text, **ids, labels=labels).loss, full, atol=1e-5)


def test_what_is_added_to_the_logits(text, ids):
    "Variant `logits`: the decoder's weights times the sum of two rows; `unigram`: the frequencies that it was given."
    model = build("logits")
    e_BH = model.language_embeddings(ids["language_ids"]) + model.script_embeddings(ids["script_ids"])
    added = model(**text, **ids).logits - model(**text).logits
    bias_BV = e_BH @ model.get_output_embeddings().weight.T
    assert torch.allclose(added, bias_BV[:, None].expand_as(added), atol=1e-5)
    model = build("unigram")
    added = model(**text, **ids).logits - model(**text).logits
    bias_BV = model.unigrams.log_PV[ids["language_ids"] * 3 + ids["script_ids"]]
    assert torch.allclose(added, bias_BV[:, None].expand_as(added), atol=1e-4)


def test_a_compiled_encoder_takes_nothing_at_its_input(text, ids):
    model = build("input")
    model.mlm.base_model.compile(backend="eager")
    with pytest.raises(UserError, match="set torch_compile: false"):
        model(**text, **ids)


# Dose


def gradients(model, text, labels, ids) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model.train()(**text, **ids, labels=labels).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_dose_zero_is_the_baseline_and_dose_one_is_langsamp(text, labels, ids):
    "To the bit: the gradients of the encoder and of the head, with dropout."
    plain = gradients(build("baseline"), text, labels, ids)
    none = gradients(build(doses={"embedding_scale": 0.0}), text, labels, ids)
    assert all(torch.equal(none[name], plain[name]) for name in plain)
    assert not any(none[name].any() for name in TABLES)
    one, usual = (gradients(build(doses=doses), text, labels, ids) for doses in ({"embedding_scale": 1.0}, {}))
    assert all(torch.equal(one[name], usual[name]) for name in usual)
    assert not torch.equal(one["mlm.lm_head.dense.weight"], none["mlm.lm_head.dense.weight"])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_dose_multiplies_rows_and_their_gradient(scale, text, labels, ids, tmp_path):
    model, scaled = build(), build(doses={"embedding_scale": scale})
    with torch.no_grad():
        [p.mul_(scale) for name, p in model.named_parameters() if name in TABLES]
    assert torch.allclose(scaled(**text, **ids).logits, model(**text, **ids).logits, atol=1e-5)
    ours, theirs = (gradients(one, text, labels, ids) for one in (scaled, model))
    assert all(torch.allclose(ours[name], scale * theirs[name], atol=1e-6) for name in TABLES)
    scaled.eval().save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.config.embedding_scale == scale
    assert torch.equal(again(**text, **ids).logits, scaled(**text, **ids).logits)
    assert with_stock_model(scaled, scaled.mlm).config.embedding_scale == scale


def test_a_configuration_without_doses_is_that_of_dose_one(text, ids, tmp_path):
    "As earlier versions wrote it."
    model = build()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("embedding_scale"), config.pop("adversarial_weight")) == (1.0, 1.0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(**text, **ids).logits, model(**text, **ids).logits)


@pytest.mark.parametrize("variant", ["baseline", "adversarial", "unigram", "logits", "input", "input+output"])
def test_a_dose_needs_embeddings_at_the_output_alone(variant):
    with pytest.raises(
        UserError, match=f"embedding_scale 2.0 needs embeddings at the output alone: .*not `{re.escape(variant)}`"
    ):
        build(variant, {"embedding_scale": 2.0})


# Adversary


@pytest.mark.parametrize("fast", [True, False])
def test_an_adversary_and_an_encoder_each_have_their_own_gradient(fast, text, labels, ids):
    "The classifier learns the languages; the encoder learns masked tokens, and to leave the classifier undecided."
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = build("adversarial", {"adversarial_weight": 0.5}, **dry)
    model.fused_loss, model.last_layer_path = model.fused_loss and fast, model.last_layer_path * fast
    masked, plain = masked_positions(labels), gradients(build("baseline", **dry), text, labels, ids)
    states_KH = model.mlm.base_model(**text).last_hidden_state.flatten(0, 1)[masked.at_K]
    logits_KL, classifier = model.language_classifier(states_KH), [*model.language_classifier.parameters()]
    languages_K = ids["language_ids"][masked.sequence_K]
    own = torch.autograd.grad(torch.nn.functional.cross_entropy(logits_KL, languages_K), classifier, retain_graph=True)
    torch.nn.functional.cross_entropy(logits_KL, torch.full_like(logits_KL, 1 / 3)).backward()
    pull = {name: p.grad for name, p in model.mlm.named_parameters(prefix="mlm") if p.grad is not None}
    model.zero_grad()
    found = gradients(model, text, labels, ids)
    assert all(torch.allclose(found[f"language_classifier.{n}"], g, atol=1e-6) for n, g in zip(("weight", "bias"), own))
    for name in plain:
        assert torch.allclose(found[name], plain[name] + 0.5 * pull.get(name, torch.zeros(1)), atol=1e-6), name
    assert sum(name.startswith("mlm.roberta.encoder") and bool(g.any()) for name, g in pull.items()) >= 30


def test_an_adversary_is_saved_and_never_exported(text, labels, ids, tmp_path):
    model = build("adversarial", {"adversarial_weight": 0.7})
    plain = build("baseline")
    assert torch.equal(model(**text, labels=labels).loss, plain(**text, labels=labels).loss)  # In evaluation
    assert model.train()(**text, **ids, labels=labels).loss > plain.train()(**text, labels=labels).loss + 0.1
    model.eval().save_pretrained(tmp_path / "model")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert not differing(model, again) and again.config.adversarial_weight == 0.7
    save_backbone(model, tmp_path / "backbone")
    _, report = AutoModel.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(report.values())


# Loss


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_masked(variant, items, text, ids):
    model = build(variant).train()
    loss = model(**text, **ids, labels=torch.full((4, 24), -100), num_items_in_batch=items).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_micro_batches_weigh_by_tokens(text, labels, ids):
    model, items = build(), (labels != -100).sum()
    whole = {**text, **ids, "labels": labels}
    first, rest = ({k: v[part] for k, v in whole.items()} for part in (slice(1), slice(1, None)))
    parts = sum(model(**part, num_items_in_batch=items).loss for part in (first, rest))
    assert torch.allclose(parts, model(**whole).loss)


def test_loss_is_float32_under_bfloat16(text, labels, ids):
    model = build()
    exact = model(**text, **ids, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**text, **ids).logits.dtype == torch.bfloat16
        loss = model(**text, **ids, labels=labels).loss
    assert loss.dtype == torch.float32 and torch.allclose(loss, exact, rtol=1e-2)
    loss = model.bfloat16()(**text, **ids, labels=labels).loss
    assert loss.dtype == torch.float32 and torch.allclose(loss, exact, rtol=2e-2)


# Gradients


def test_only_used_rows_learn(text, labels, ids):
    model = build()
    model(**text, **ids, labels=labels).loss.backward()
    assert model.language_embeddings.weight.grad.any(1).tolist() == [True, False, True]
    assert model.script_embeddings.weight.grad.any(1).tolist() == [True, False, True]


def test_gradients_repeat_to_the_bit():
    "With two threads and many tokens per row, where plain indexing would add in the order in which threads arrive."
    model = build(hidden_size=128, num_hidden_layers=1)
    input_ids = torch.randint(5, 256, (33, 64))
    ids = {"language_ids": torch.arange(33) % 3, "script_ids": torch.arange(33) % 2}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs = [
            torch.autograd.grad(model(input_ids, labels=input_ids, **ids).loss, list(model.parameters()))
            for _ in range(16)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(runs[0], run, strict=True))


def test_gradient_checkpointing_changes_nothing(text, labels, ids):
    model = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    plain = torch.autograd.grad(model(**text, **ids, labels=labels).loss, list(model.parameters()))
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    again = torch.autograd.grad(model(**text, **ids, labels=labels).loss, list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_compiling_the_encoder_in_place(text, labels, ids):
    model = build()
    names, loss = list(model.state_dict()), model(**text, **ids, labels=labels).loss
    model.mlm.base_model.compile(backend="eager")
    assert torch.allclose(model(**text, **ids, labels=labels).loss, loss)
    assert list(model.state_dict()) == names


def test_outputs(text, labels, ids):
    model = build()
    assert len(model(**text, **ids, labels=labels, return_dict=False)) == 1
    assert len(model(**text, output_hidden_states=True).hidden_states) == 3
    assert torch.equal(model(**text, token_type_ids=torch.zeros(4, 24, dtype=torch.long)).logits, model(**text).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_without_ids(variant, text, labels):
    model = build(variant).train()
    if variant == "baseline":
        assert model(**text, labels=labels).loss > 0
    else:
        with pytest.raises(UserError, match=f"{VARIANTS[variant].ids[0]}_ids was not given"):
            model(**text, labels=labels)
        assert model.eval()(**text, labels=labels).loss > 0


@pytest.mark.parametrize("name", ["language_ids", "script_ids"])
@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), (4, 24), ()])
def test_ids_are_one_for_each_sequence(name, shape, text, labels, ids):
    "Longer ones would be accepted silently, and ids of tokens be added to other sequences."
    with pytest.raises(UserError, match=f"{name} must be one id for each of 4 sequences"):
        build()(**text, **ids | {name: torch.zeros(shape, dtype=torch.long)}, labels=labels)


# Building


def test_one_seed_one_stock_part():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [build(variant) for variant in VARIANTS]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(differing(models[0].mlm, model.mlm) for model in models)
    assert differing(build(), build()) == []
    plain = []
    for variant in VARIANTS:
        torch.manual_seed(9)
        config = LangSAMPConfig(
            backbone_config=XLMRobertaConfig(**TINY), languages=LANGUAGES, scripts=SCRIPTS, variant=variant
        )
        plain.append(LangSAMPForMaskedLM(config))
    assert not any(differing(plain[0].mlm, model.mlm) for model in plain)


def test_embeddings_start_small():
    names = [f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    rows = from_backbone(XLMRobertaConfig(**TINY), names, SCRIPTS).language_embeddings.weight
    assert abs(rows.mean()) < 1e-3 and abs(rows.std() - 0.02) < 1e-3


def test_building_from_a_stock_checkpoint(tmp_path, text):
    stock = AutoModelForMaskedLM.from_config(XLMRobertaConfig(**TINY)).eval()
    stock.save_pretrained(tmp_path / "stock")
    model = from_backbone(tmp_path / "stock", LANGUAGES, SCRIPTS)
    assert differing(model.mlm, stock) == []
    assert not any(module.training for module in model.modules())
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model/config.json").read_text()


def test_one_configuration_for_wrapper_and_stock_part(tmp_path):
    "Also if the two were built separately: resizing one must change the other."
    stock = AutoModelForMaskedLM.from_config(XLMRobertaConfig(**TINY))
    config = LangSAMPConfig(backbone_config=XLMRobertaConfig(**TINY), languages=LANGUAGES, scripts=SCRIPTS)
    model = LangSAMPForMaskedLM(config, stock)
    model.resize_token_embeddings(300, mean_resizing=False)
    assert model.config.backbone_config is stock.config and stock.config.vocab_size == 300


def test_annotations_of_the_configuration_resolve():
    "Those that it inherits too: documentation tools evaluate them in this module."
    parameters = inspect.signature(LangSAMPConfig, eval_str=True).parameters
    assert parameters["languages"].annotation == list[str]
    assert not [p for p in parameters.values() if isinstance(p.annotation, str)]


def test_attention_implementation_is_kept(tmp_path):
    "A configuration made around a finished model must not reset its attention to the slow default."
    model = build()
    model.save_pretrained(tmp_path)
    slow = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.mlm.config._attn_implementation == "sdpa"
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).mlm.config._attn_implementation == "sdpa"
    assert slow.mlm.config._attn_implementation == "eager"


@pytest.mark.parametrize("wrong, hint", [
    ({"variant": "langauge"}, "did you mean `language`"),
    ({"languages": ["eng", "eng"]}, r"pass sorted\(set\(languages\)\)"),
    ({"scripts": ["Latn", "Arab"]}, r"pass sorted\(scripts\)"),
])  # fmt: skip
def test_bad_configuration(wrong, hint):
    with pytest.raises(UserError, match=hint):
        LangSAMPConfig(**{"languages": LANGUAGES, "scripts": SCRIPTS, **wrong})


@pytest.mark.parametrize("code, hint", [
    ("eng_latn", "did you mean `eng_Latn`"),
    ("hnd_Deva", "did you mean `hin`"),
    ("eng_Cyrl", "knows no script `Cyrl`"),
])  # fmt: skip
def test_unknown_codes(code, hint):
    with pytest.raises(UserError, match=hint):
        language_script_ids([code], build().config)


# Files


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vocabulary", [256, 300, 200])
def test_round_trip(variant, vocabulary, tmp_path, text, ids):
    model = build(variant)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LangSAMPForMaskedLM and not any(report.values())
    assert differing(model, loaded) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.languages, config.scripts, config.variant) == (LANGUAGES, SCRIPTS, variant)
    assert config.backbone_config.vocab_size == vocabulary
    for each in (model, loaded):
        head = each.mlm.lm_head
        assert head.decoder.weight is each.get_input_embeddings().weight
        assert head.decoder.bias is head.bias and len(head.bias) == vocabulary
    text["input_ids"] %= 200
    assert torch.equal(model(**text, **ids).logits, loaded(**text, **ids).logits)


def test_saving_is_reproducible(tmp_path):
    "The same bytes twice; the generator and the model's own configuration untouched."
    model = build()
    state, config = torch.get_rng_state(), model.config.to_dict()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name / "model")
        save_backbone(model, tmp_path / name / "backbone")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict()["backbone_config"] == config["backbone_config"]
    for path in (tmp_path / "a").rglob("*.*"):
        assert sha256(path) == sha256(tmp_path / "b" / path.relative_to(tmp_path / "a"))


@pytest.mark.parametrize("vocabulary, dtype", [(256, torch.float32), (300, torch.float32), (256, torch.bfloat16)])
def test_exported_backbone_is_stock(vocabulary, dtype, tmp_path, text, caplog):
    model = build().to(dtype)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    save_backbone(model, tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert type(loaded).__module__.startswith("transformers.") and not any(report.values())
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert loaded.dtype == dtype and loaded.config.vocab_size == vocabulary
    difference = loaded(**text).last_hidden_state - model.mlm.roberta(**text).last_hidden_state
    assert difference.abs().max() == 0
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["config.json", "model.safetensors"]
