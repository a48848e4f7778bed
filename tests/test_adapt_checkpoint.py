"An adapted checkpoint computes the same as its backbone on text that both can encode, and is reproducible."

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedModel,
    XLMRobertaConfig,
)

from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256
from langsamp.core.manifests import find_damage
from langsamp.corpora.text import Source, find_sources
from langsamp.model.adapt_checkpoint import adapt_checkpoint, adaptation_table, find_backbone, weight_checksums
from langsamp.model.resize_embeddings import adapt_vocabulary, restore_vocabulary
from langsamp.params.pretrain import AdaptParams
from langsamp.tokenization.adapt import fit_vocabulary
from langsamp.tokenization.edit import old_ids, save_tokenizer, tokens_of
from langsamp.tokenization.train import trained_tokenizer

CONFIGS = {
    "xlm-roberta": XLMRobertaConfig(**tiny.SHAPE, pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "untied": XLMRobertaConfig(**tiny.SHAPE, pad_token_id=1, tie_word_embeddings=False),
    "bert": BertConfig(**tiny.SHAPE, pad_token_id=1),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=1),
    "modernbert": ModernBertConfig(
        **tiny.SHAPE, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2
    ),
}
LATIN = tiny.sentences("eng_Latn", 200)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A tokenizer that has seen Latin letters only."
    home = tmp_path_factory.mktemp("base")
    (home / "eng_Latn.txt").write_text("\n".join(LATIN))
    return trained_tokenizer({"eng_Latn": [Source("eng_Latn", home / "eng_Latn.txt", "train")]}, "latin", home, 300)


@pytest.fixture(scope="module")
def fitted(corpus, base, tmp_path_factory) -> Path:
    "The same tokenizer, extended and pruned for three scripts."
    folder = tmp_path_factory.mktemp("fitted") / "tokenizer"
    save_tokenizer(fit_vocabulary(find_sources(corpus)[0], base, 150, 2).content, base, folder)
    return folder


def model_of(name: str, base: Path, seed: int = 0) -> PreTrainedModel:
    "A tiny model with random weights and biases, so that a lost bias is detected."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = type(CONFIGS[name]).from_dict(
            {**CONFIGS[name].to_dict(), "vocab_size": len(AutoTokenizer.from_pretrained(base))}
        )
        mlm = AutoModelForMaskedLM.from_config(config)
        mlm.get_output_embeddings().bias.data.normal_()
    return mlm.eval()


@pytest.fixture(scope="module")
def backbone(base, tmp_path_factory) -> Path:
    "A checkpoint with its tokenizer."
    folder = tmp_path_factory.mktemp("backbone")
    save_tokenizer(read_json(base / "tokenizer.json"), base, folder)
    model_of("xlm-roberta", base).save_pretrained(folder)
    return folder


def mapping_of(new: Path, old: Path) -> torch.Tensor:
    return torch.from_numpy(old_ids(*(read_json(folder / "tokenizer.json") for folder in (new, old))))


def outputs_of(mlm: PreTrainedModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        out = mlm(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[-1], out.logits


# Rows


@pytest.mark.parametrize("new_token_init", ["mean", "random"])
@pytest.mark.parametrize("name", CONFIGS)
def test_kept_tokens_give_bit_identical_outputs(name, new_token_init, base, fitted):
    mlm = model_of(name, base)
    small, mapping = adapt_vocabulary(mlm, base, fitted, new_token_init), mapping_of(fitted, base)
    old, new = [AutoTokenizer.from_pretrained(folder) for folder in (base, fitted)]
    checked = 0
    for line in LATIN[:50]:
        ids = [tokenizer(line)["input_ids"] for tokenizer in (old, new)]
        if (mapping[ids[1]] >= 0).all() and mapping[ids[1]].tolist() == ids[0]:
            (h_old, logits_old), (h_new, logits_new) = outputs_of(mlm, ids[0]), outputs_of(small, ids[1])
            assert torch.equal(h_old, h_new), f"{name}: other hidden states"
            there = mapping >= 0
            assert torch.allclose(logits_old[..., mapping[there]], logits_new[..., there], atol=1e-6, rtol=0), name
            checked += 1
    assert checked > 5, "no line has kept tokens only: nothing was tested"


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_and_ties_are_kept_when_saved(name, base, fitted, tmp_path):
    mlm = model_of(name, base)
    small, mapping = adapt_vocabulary(mlm, base, fitted), mapping_of(fitted, base)
    small.save_pretrained(tmp_path)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and loaded.config.vocab_size == len(mapping)
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (mlm, small, loaded)]
    assert len(set(tied)) == 1 and tied[0] == (name != "untied"), f"tied before, after, loaded: {tied}"
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, new = [getattr(m, part)().weight for m in (mlm, loaded)]
        assert torch.equal(new[mapping >= 0], old[mapping[mapping >= 0]]), f"{part}: a kept row changed"
    old, new = [m.get_output_embeddings().bias for m in (mlm, loaded)]
    assert torch.equal(new[mapping >= 0], old[mapping[mapping >= 0]]), "a kept bias changed"
    assert loaded.config.pad_token_id == 1


def test_mean_rows_by_hand(base, tmp_path):
    "A new token made of known tokens gets their mean in embedding, output matrix and bias."
    content = read_json(base / "tokenizer.json")
    token_ids = dict(tokens_of(content).values())
    new = next(
        p + q for p in token_ids for q in token_ids if len(p) == len(q) == 2 and p[0] == "▁" and p + q not in token_ids
    )
    content["model"]["vocab"] = [*content["model"]["vocab"], ["<mask>", 0.0], [new, -5.0]]
    save_tokenizer(content, base, tmp_path)
    old = AutoTokenizer.from_pretrained(base)
    parts = [token.id for token in old.backend_tokenizer.model.tokenize(new)]
    assert len(parts) >= 2 and old.unk_token_id not in parts
    for name in CONFIGS:
        mlm = model_of(name, base)
        bigger = adapt_vocabulary(mlm, base, tmp_path)
        for part in ("get_input_embeddings", "get_output_embeddings"):
            before, after = [getattr(m, part)() for m in (mlm, bigger)]
            assert torch.allclose(after.weight[-1], before.weight[parts].mean(0)), f"{name}: {part}"
        bias = [m.get_output_embeddings().bias for m in (mlm, bigger)]
        assert torch.allclose(bias[1][-1], bias[0][parts].mean()), f"{name}: bias"


def test_all_new_embedding_rows_differ(base, fitted):
    "Cyrillic is `<unk>` for the old tokenizer; equal rows would make all its tokens the same."
    small, new = adapt_vocabulary(model_of("xlm-roberta", base), base, fitted), mapping_of(fitted, base) < 0
    rows = small.get_input_embeddings().weight[new]
    assert len(rows) > 50 and torch.pdist(rows).min() > 1e-4


def test_tokens_that_share_letters_are_nearer(base, fitted):
    small, token_ids = (
        adapt_vocabulary(model_of("xlm-roberta", base), base, fitted),
        tokens_of(read_json(fitted / "tokenizer.json")),
    )
    rows = small.get_input_embeddings().weight.detach()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    letters = set(tiny.ALPHABETS["rus_Cyrl"])
    words = [(i, set(piece)) for i, (piece, _) in token_ids.items() if len(piece) == 2 and set(piece) <= letters]
    pairs = [(len(a & b), float(rows[i] @ rows[j])) for i, a in words for j, b in words if i < j]
    shared, apart = [[c for n, c in pairs if (n > 0) == yes] for yes in (True, False)]
    assert sum(shared) / len(shared) > sum(apart) / len(apart) + 0.2


@pytest.mark.parametrize("new_token_init", ["mean", "random"])
def test_new_rows_depend_on_the_seed(new_token_init, base, fitted):
    mlm = model_of("xlm-roberta", base)
    before = torch.random.get_rng_state()
    a, b, c = [adapt_vocabulary(mlm, base, fitted, new_token_init, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"
    assert tiny.furthest(a, b) == 0 < tiny.furthest(a, c)
    assert tiny.furthest(mlm, model_of("xlm-roberta", base)) == 0, "the given model was changed"


def test_random_rows_equal_those_of_the_reference_code(base, fitted):
    small, new = adapt_vocabulary(model_of("xlm-roberta", base), base, fitted, "random"), mapping_of(fitted, base) < 0
    assert 0.018 < small.get_input_embeddings().weight[new].std() < 0.022
    assert not small.get_output_embeddings().bias[new].any()


def test_a_model_with_too_few_rows_is_refused(base, fitted):
    config = XLMRobertaConfig(**tiny.SHAPE, vocab_size=50)
    with pytest.raises(UserError, match="has 50 rows"):
        adapt_vocabulary(AutoModelForMaskedLM.from_config(config), base, fitted)


# Starts


@pytest.fixture(scope="module")
def params(corpus, backbone) -> AdaptParams:
    return AdaptParams(
        name="a", backbone=str(backbone), corpus=str(corpus), languages=[], num_new_tokens=150, min_count=2, seed=3
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def start(params, outputs) -> Path:
    return adapt_checkpoint(params, outputs)


def test_an_adapted_checkpoint_is_stock_and_matches_its_tokenizer(start):
    tokenizer, mlm = AutoTokenizer.from_pretrained(start), AutoModelForMaskedLM.from_pretrained(start)
    assert mlm.config.vocab_size == len(tokenizer) and type(mlm).__module__.startswith("transformers.")
    table = adaptation_table(start)
    assert table.loc[["Cyrl", "Deva"], "<unk> % before"].min() > 40 and table["<unk> % after"].max() == 0
    assert read_json(start / "adapted.json")["tokens"]["now"] == len(tokenizer)


def test_two_builds_are_the_same_bytes(start, params, tmp_path):
    again = adapt_checkpoint(params, tmp_path)
    for path in start.iterdir():
        assert sha256(path) == sha256(again / path.name), f"{path.name} differs"


def test_an_existing_adapted_checkpoint_is_reused(start, params, outputs):
    before = {path.name: path.stat().st_mtime_ns for path in start.iterdir()}
    assert adapt_checkpoint(params, outputs) == start
    assert {path.name: path.stat().st_mtime_ns for path in start.iterdir()} == before


def test_another_adapted_checkpoint_of_that_name_is_refused(start, params, outputs):
    with pytest.raises(UserError, match="seed: 3 → 4.*choose another name"):
        adapt_checkpoint(params.replace(seed=4), outputs)


def test_changed_text_is_refused(params, tmp_path, corpus):
    text = shutil.copytree(corpus, tmp_path / "text")
    adapt_checkpoint(p := params.replace(corpus=str(text)), tmp_path)
    with open(text / "train" / "eng_Latn.txt", "a", encoding="utf-8") as file:
        file.write("abc abd abe\n")
    with pytest.raises(UserError, match="text: "):
        adapt_checkpoint(p, tmp_path)


def test_a_changed_backbone_is_refused(params, tmp_path, backbone, base):
    own = shutil.copytree(backbone, tmp_path / "own")
    adapt_checkpoint(p := params.replace(backbone=str(own)), tmp_path)
    model_of("xlm-roberta", base, seed=1).save_pretrained(own)
    with pytest.raises(UserError, match="model.safetensors"):
        adapt_checkpoint(p, tmp_path)


def test_a_damaged_adapted_checkpoint_is_made_again(params, tmp_path):
    start = adapt_checkpoint(params, tmp_path)
    (start / "tokenizer.json").write_text("{}")
    assert find_damage(adapt_checkpoint(params, tmp_path)) == ""


def test_another_tokenizer_keeps_rows_of_common_tokens(params, tmp_path, backbone, fitted, base):
    "Like XLM-R with Glot500's tokenizer: common tokens keep their rows."
    p = params.replace(tokenizer=str(fitted), num_new_tokens=0, min_count=0, corpus="")
    mlm, mapping = AutoModelForMaskedLM.from_pretrained(adapt_checkpoint(p, tmp_path)), mapping_of(fitted, base)
    old = AutoModelForMaskedLM.from_pretrained(backbone).get_input_embeddings().weight
    assert torch.equal(mlm.get_input_embeddings().weight[mapping >= 0], old[mapping[mapping >= 0]])
    assert len(mlm.get_input_embeddings().weight) == len(mapping)


@pytest.mark.parametrize("name", ["", "nothing/there"])
def test_missing_backbone_is_an_error(name, tmp_path):
    with pytest.raises(UserError, match="give run:NAME, e5-small"):
        weight_checksums(str(tmp_path / "empty") if not name else name)


def test_an_encoder_alone_is_refused(tmp_path, base):
    "Its head would be random without any sign of it."
    model_of("xlm-roberta", base).base_model.save_pretrained(tmp_path / "encoder")
    save_tokenizer(read_json(base / "tokenizer.json"), base, tmp_path / "encoder")
    p = AdaptParams(backbone=str(tmp_path / "encoder"), corpus="", num_new_tokens=0, min_count=0)
    with pytest.raises(UserError, match="head"):
        adapt_checkpoint(p, tmp_path)


def test_an_adapted_checkpoint_can_be_adapted_again(start, outputs, params):
    assert find_backbone("a", outputs) == str(start)
    again = adapt_checkpoint(params.replace(name="b", backbone="a"), outputs)
    assert read_json(again / "adapted.json")["tokens"]["new"] == 0, "the same text needs nothing more"


# The way back


def test_restored_rows_are_exact(start, params, backbone, base, tmp_path):
    trained = AutoModelForMaskedLM.from_pretrained(start)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    full = AutoModelForMaskedLM.from_pretrained(backbone)
    restore_vocabulary(trained, start, full, base, tmp_path)
    whole, mapping = AutoModelForMaskedLM.from_pretrained(tmp_path), mapping_of(start, base)
    rows, ours, theirs = [m.get_input_embeddings().weight for m in (whole, trained, full)]
    dropped = sorted(set(range(len(theirs))) - set(mapping.tolist()))
    assert torch.equal(rows[mapping[mapping >= 0]], ours[mapping >= 0]) and torch.equal(rows[dropped], theirs[dropped])
    assert torch.equal(rows[len(theirs) :], ours[mapping < 0])
    small, big = [AutoTokenizer.from_pretrained(folder) for folder in (start, tmp_path)]
    for line in tiny.sentences("rus_Cyrl", 3):
        ids = [tokenizer(line)["input_ids"] for tokenizer in (small, big)]
        assert small.convert_ids_to_tokens(ids[0]) == big.convert_ids_to_tokens(ids[1])
        assert torch.equal(outputs_of(trained.eval(), ids[0])[0], outputs_of(whole.eval(), ids[1])[0])
