"A trained model gets a new language: what it knew stays, and what is fitted helps on other text of that language."

import pytest
import tiny
import torch
from transformers import AutoModelForMaskedLM

from langsamp.core.errors import UserError
from langsamp.encoding.new_language import fit_language, masked_states, shifted_loss
from langsamp.model.add_language import add_language
from langsamp.model.langsamp import from_backbone, language_script_ids
from langsamp.tokenization.train import load_tokenizer
from langsamp.training.pretrain import pretrain

NEW = {"language": ["eng", "hin"], "script": ["Deva", "Latn"]}


@pytest.fixture(scope="module")
def trained(corpus, outputs):
    "The model of a run of 200 steps, and its tokenizer."
    pretrain(tiny.params_of(corpus, run_name="two-hundred", max_steps=200), outputs)
    place = outputs / "two-hundred/model"
    return lambda: (AutoModelForMaskedLM.from_pretrained(place).eval(), load_tokenizer(str(place)))


def logits_of(model, code: str) -> torch.Tensor:
    languages, scripts = language_script_ids([code], model.config)
    return model(torch.arange(5, 15)[None], language_ids=languages, script_ids=scripts).logits


def test_other_languages_are_predicted_as_before_and_the_model_is_saved(trained, tmp_path):
    model, _ = trained()
    codes = [f"{language}_{model.config.scripts[0]}" for language in model.config.languages]
    before = [logits_of(model, code) for code in codes]
    assert add_language(model, "amh_Ethi") == ["language", "script"]
    assert all(logits_of(model, code).equal(old) for code, old in zip(codes, before))
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert logits_of(again, "amh_Ethi").equal(logits_of(model, "amh_Ethi"))


@pytest.mark.parametrize("variant", ["language", "script", "input", "input+output", "logits", "shuffled"])
def test_every_variant_with_tables_gets_rows(variant):
    model = from_backbone(tiny.config(), ["eng"], ["Latn"], variant).eval()
    kinds = [variant] if variant in ("language", "script") else ["language", "script"]
    assert add_language(model, "hin_Deva") == kinds
    rows = {f"{kind}_ids": torch.tensor([1 if kind == "language" else 0]) for kind in kinds}
    assert [getattr(model.config, f"{kind}s") for kind in kinds] == [NEW[kind] for kind in kinds]
    assert model(torch.arange(5, 15)[None], **rows).logits.isfinite().all()


def test_a_fitted_vector_helps_on_other_text_of_its_language_and_not_on_text_of_another(trained):
    "The row of Russian is lost and fitted again; the control is fitted to English."
    model, tokenizer = trained()
    torch.nn.init.normal_(model.language_embeddings.weight, generator=torch.Generator().manual_seed(0))
    model.script_embeddings.weight.data.zero_()
    row, losses = model.config.languages.index("rus"), {}
    unseen = masked_states(tiny.sentences("rus_Cyrl", 80)[40:], model, tokenizer, seed=1)
    for code in ("rus_Cyrl", "eng_Latn"):
        fit_language(model, "rus_Cyrl", masked_states(tiny.sentences(code, 40), model, tokenizer))
        losses[code] = shifted_loss(model, unseen, model.language_embeddings.weight[row].detach())
    nothing = shifted_loss(model, unseen, torch.zeros(32))
    assert losses["rus_Cyrl"] < nothing - 0.02 and losses["rus_Cyrl"] < losses["eng_Latn"] - 0.1, nothing


def test_a_variant_without_embeddings_at_the_output_alone_is_refused():
    model = from_backbone(tiny.config(), ["eng", "hin"], ["Deva", "Latn"], "input+output")
    with pytest.raises(UserError, match="no language embeddings at the output alone"):
        fit_language(model, "eng_Latn", None)
