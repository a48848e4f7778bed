"Sentence encoders and fill-mask of nbs/library/encoding/, for every family and for artificial models."

import copy
import socket

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import entropy
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, XLMRobertaConfig

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.core.manifests import find_damage, read_manifest
from langsamp.encoding import sentence_transformers as sentences
from langsamp.encoding.encoder import encode
from langsamp.encoding.fill_mask import fill_mask, kl_divergence, mask_log_probabilities
from langsamp.encoding.open_encoder import Encoder
from langsamp.encoding.sentence_transformers import save_sentence_encoder
from langsamp.model.families import FAMILIES, TINY_OPTIONS
from langsamp.model.langsamp import LangSAMPForMaskedLM, from_backbone

TEXTS = ["Everyone has the right to rest.", "Каждый человек", "x", "No one shall be held in slavery. " * 40]
ENDS_IN_A_NORM = {"ModernBERT", "EuroBERT", "XLM-R XL"}


@pytest.fixture(scope="module")
def tokenizer(stock):
    return AutoTokenizer.from_pretrained(stock, model_max_length=48)


def encoder_of(kind: str, tokenizer, **overrides) -> Encoder:
    "An encoder of four layers with random layer norms."
    config = AutoConfig.for_model(
        kind, **TINY_OPTIONS | {"vocab_size": len(tokenizer), "num_hidden_layers": 4} | overrides
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return Encoder(kind, "other", model, tokenizer, "made-up")


def opened(folder) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


# The folder for sentence-transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_encode(family, tokenizer, tmp_path):
    "Of the second of four layers: only the layers that it needs are kept, with their weights."
    kind, differing, _ = FAMILIES[family]
    encoder = encoder_of(kind, tokenizer, **differing)
    made = save_sentence_encoder(encoder, tmp_path / "made", layer=2)
    expected = encode(TEXTS, encoder.model, tokenizer, layer=2)
    assert np.abs(opened(made).encode(TEXTS) - expected).max() < 1e-5
    kept, report = AutoModel.from_pretrained(made, output_loading_info=True)
    assert kept.config.num_hidden_layers == (3 if family in ENDS_IN_A_NORM else 2)
    assert not any(report.values()), report


@pytest.mark.parametrize("kind", ["xlm-roberta", "modernbert"])
@pytest.mark.parametrize(("layer", "pooling"), [(0, "mean"), (1, "cls"), (3, "mean"), (4, "cls"), (-1, "mean")])
def test_every_layer_and_pooling(kind, layer, pooling, tokenizer, tmp_path):
    encoder = encoder_of(kind, tokenizer)
    made = save_sentence_encoder(encoder, tmp_path / "made", layer, pooling)
    expected = encode(TEXTS, encoder.model, tokenizer, layer, pooling=pooling)
    assert np.abs(opened(made).encode(TEXTS) - expected).max() < 1e-5


def test_layers_that_depend_on_their_number_are_all_kept(tokenizer, tmp_path):
    "In an ALBERT of two groups, layer 3 of 6 has the first group's weights, and layer 3 of 3 or of 4 the second's."
    encoder = encoder_of("albert", tokenizer, embedding_size=16, num_hidden_groups=2, num_hidden_layers=6)
    made = save_sentence_encoder(encoder, tmp_path / "made", layer=3)
    assert AutoModel.from_pretrained(made).config.num_hidden_layers == 6
    assert np.abs(opened(made).encode(TEXTS) - encode(TEXTS, encoder.model, tokenizer, layer=3)).max() < 1e-5


def test_an_encoder_without_a_pooler(tokenizer, tmp_path):
    "As for `init:RUN`: the pooler that AutoModel requires is the identity, not random."
    encoder = encoder_of("xlm-roberta", tokenizer)
    encoder.model.pooler = None
    _, report = AutoModel.from_pretrained(save_sentence_encoder(encoder, tmp_path / "made"), output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize(("limit", "longest"), [(48, 48), (10**30, 64)])
def test_long_texts_are_cut_where_tokenizer_or_model_ends(limit, longest, stock, tmp_path):
    "An XLM-R of 66 positions reads 64 tokens, even if its tokenizer allows more."
    tokenizer = AutoTokenizer.from_pretrained(stock)
    tokenizer.model_max_length = limit
    made = opened(save_sentence_encoder(encoder_of("xlm-roberta", tokenizer), tmp_path / "made"))
    assert made.max_seq_length == longest and made.encode(TEXTS).shape == (4, 32)


def test_the_exported_folder_needs_no_network_and_no_code(tokenizer, tmp_path, monkeypatch):
    "No connection is attempted, and neither code of langsamp nor of the folder is run."
    made = save_sentence_encoder(encoder_of("xlm-roberta", tokenizer), tmp_path / "made", layer=1)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asks the network"))
    model = SentenceTransformer(str(made), device="cpu")
    assert "auto_map" not in read_json(made / "config.json") and not list(made.rglob("*.py"))
    assert {type(part).__module__.split(".")[0] for part in model.modules()} <= {
        "sentence_transformers",
        "transformers",
        "torch",
    }


def test_the_same_encoder_gives_the_same_files(stock, tmp_path):
    "Independent of what its tokenizer did in between."
    encoder = encoder_of("xlm-roberta", AutoTokenizer.from_pretrained(stock, model_max_length=48))
    before = read_manifest(save_sentence_encoder(encoder, tmp_path / "a", layer=2))
    encoder.encode(TEXTS)
    encoder.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=7)
    assert read_manifest(save_sentence_encoder(encoder, tmp_path / "b", layer=2)) == before
    assert (before["layer"], before["pooling"], before["identity"]) == (2, "mean", "made-up")


def test_a_failed_export_keeps_the_previous_one(tokenizer, tmp_path, monkeypatch):
    encoder, folder = encoder_of("xlm-roberta", tokenizer), tmp_path / "made"
    save_sentence_encoder(encoder, folder, layer=2)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(sentences, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_sentence_encoder(encoder, folder, layer=1)
    assert find_damage(folder) == "" and read_manifest(folder)["layer"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_with_other_content_is_not_replaced(tokenizer, tmp_path):
    encoder = encoder_of("xlm-roberta", tokenizer)
    (run := tmp_path / "run").mkdir()
    (run / "result.json").write_text("{}")
    with pytest.raises(UserError, match="holds something else"):
        save_sentence_encoder(encoder, run)
    assert [path.name for path in run.iterdir()] == ["result.json"]
    save_sentence_encoder(encoder, tmp_path / "made", layer=1)
    assert read_manifest(save_sentence_encoder(encoder, tmp_path / "made", layer=2))["layer"] == 2


# Fill-mask


@pytest.fixture(scope="module")
def model(tokenizer) -> LangSAMPForMaskedLM:
    "Random weights, with embeddings as long as hidden states."
    sizes = {"vocab_size": len(tokenizer), "type_vocab_size": 1} | {
        k: v for k, v in TINY_OPTIONS.items() if k != "vocab_size"
    }
    made = from_backbone(XLMRobertaConfig(**sizes), ["eng", "rus"], ["Cyrl", "Latn"])
    for number, table in enumerate((made.language_embeddings, made.script_embeddings)):
        torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(number))
    return made


TWO = "<mask> has the <mask> to life."


@pytest.mark.parametrize("silent", [{"language"}, {"script"}, {"language", "script"}])
def test_a_language_hint_only_adds_its_two_embeddings(silent, model, tokenizer):
    "Each has an effect by itself; with both at zero, a hint has none."
    model = copy.deepcopy(model)
    for name in silent:
        torch.nn.init.zeros_(getattr(model, f"{name}_embeddings").weight)
    plain, message = [mask_log_probabilities(TWO, model, tokenizer, code) for code in ("", "eng_Latn")]
    other = mask_log_probabilities(TWO, model, tokenizer, "rus_Cyrl")
    if len(silent) == 2:
        assert torch.equal(message, plain) and torch.equal(other, plain)
    else:
        assert kl_divergence(message, plain).min() > 1e-3 and kl_divergence(message, other).min() > 1e-3


def test_the_table_is_the_distribution_sorted(model, tokenizer):
    "All requested tokens appear once each, with their own probabilities."
    table = fill_mask(TWO, model, tokenizer, "rus_Cyrl", top_k=len(tokenizer))
    p_MV = mask_log_probabilities(TWO, model, tokenizer, "rus_Cyrl").exp()
    for mask, rows in table.groupby("mask"):
        assert rows["probability"].is_monotonic_decreasing and abs(rows["probability"].sum() - 1) < 1e-4
        ids = tokenizer.convert_tokens_to_ids(rows["token"].tolist())
        assert sorted(ids) == list(range(len(tokenizer)))
        assert np.allclose(p_MV[mask - 1, ids], rows["probability"])


def test_predictions_do_not_depend_on_other_texts_or_top_k(model, tokenizer):
    "Neither on the number of predictions nor on the other texts."
    together = fill_mask(["a <mask>", TWO, "б <mask> в"], model, tokenizer, "eng_Latn", top_k=3)
    alone = fill_mask(TWO, model, tokenizer, "eng_Latn", top_k=1)
    rows = together[together["text"] == TWO].groupby("mask").head(1).reset_index(drop=True)
    assert rows.equals(alone) and together["mask"].tolist() == [1] * 3 + [1] * 3 + [2] * 3 + [1] * 3


def test_the_filled_text_has_the_token_in_place_of_its_mask(model, tokenizer):
    for row in fill_mask(TWO, model, tokenizer, top_k=20).itertuples():
        assert row.filled.count("<mask>") == 1 + (row.token == "<mask>")
        around = row.filled.split("has the", 1)
        assert row.token.replace("▁", " ").strip() in around[row.mask - 1]


@pytest.mark.parametrize("text", ["has the<mask> to", "has the  <mask> to", "has the\t<mask> to"])
def test_the_space_before_a_mask_belongs_to_the_missing_token(text, model, tokenizer):
    message = mask_log_probabilities("has the <mask> to", model, tokenizer)
    assert torch.equal(mask_log_probabilities(text, model, tokenizer), message)


def test_divergence_equals_that_of_scipy():
    log_p_MV, log_q_MV = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert np.allclose(kl_divergence(log_p_MV, log_q_MV), entropy(log_p_MV.exp(), log_q_MV.exp(), axis=1), atol=1e-5)
    assert (kl_divergence(log_p_MV, log_p_MV) == 0).all() and (kl_divergence(log_p_MV, log_q_MV) > 0).all()


@pytest.mark.parametrize(
    ("text", "language", "message"),
    [
        ("no gap", "", "no mask in `no gap`; write <mask>"),
        ("long " * 60 + "<mask>", "", "the model reads 48"),
        (TWO, "english_Latn", "did you mean `eng_Latn`"),
        (TWO, "eng", "the script is missing"),
        (TWO, "enm_Latn", "knows no language `enm`, it has 2; did you mean `eng`"),
        (TWO, "eng_Grek", "knows no script `Grek`"),
    ],
)
def test_mistakes(text, language, message, model, tokenizer):
    with pytest.raises(UserError, match=message):
        fill_mask(text, model, tokenizer, language)


def test_a_model_without_embeddings_refuses_a_language_hint(tokenizer):
    config = XLMRobertaConfig(**TINY_OPTIONS | {"vocab_size": len(tokenizer), "type_vocab_size": 1})
    none = from_backbone(config, ["eng"], ["Latn"], "baseline")
    assert len(fill_mask(TWO, none, tokenizer)) == 10
    with pytest.raises(UserError, match="variant `baseline` has no language or script embeddings"):
        fill_mask(TWO, none, tokenizer, "eng_Latn")


# The guide


def test_the_encoding_tutorial(tmp_path):
    "Through papermill, with the defaults: it trains, searches, saves, and predicts."
    tiny.papermill("nbs/tutorials/encoding.ipynb", tmp_path / "guide.ipynb", tmp_path)
    assert find_damage(tmp_path / "guide-sentences") == ""
    assert read_json(tmp_path / "guide/result.json")["step"] == 300
