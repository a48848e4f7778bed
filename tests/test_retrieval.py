"Embeddings equal those of the whole model without its unused layers' work; ranks equal those of a loop."

import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import binom
from transformers import AutoModel, AutoTokenizer

from langsamp.core.errors import UserError
from langsamp.encoding.encoder import encode, encode_layers, truncated_encoder
from langsamp.evaluation import retrieval
from langsamp.evaluation.retrieval import (
    SCALINGS,
    bidirectional_ranks,
    chance_scores,
    encode_bitexts,
    parallel_retrieval,
    retrieval_rows,
    retrieval_scores,
    subtract_mean,
    translation_ranks,
)
from langsamp.model.families import FAMILIES, tiny_config

LAYERS = 4
TEXTS = ["All human beings are born free.", "", "and", "Все люди", "and", "a " * 300, "Everyone has the right to life."]


def build(family: str, dtype: torch.dtype = torch.float32):
    config = tiny_config(family, num_hidden_layers=LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config, dtype=dtype).eval()


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(5, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 16:], input_ids[1, 16:] = 0, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.fixture(scope="module")
def encoder(stock):
    "A stock encoder of two layers and 64 positions, and a tokenizer without a length limit."
    return AutoModel.from_pretrained(stock).eval(), AutoTokenizer.from_pretrained(stock, model_max_length=10**30)


def watched(model, call) -> list[str]:
    "The modules that run during a call."
    seen, parts = [], [(name, part) for name, part in model.named_modules() if name]
    hooks = [part.register_forward_hook(lambda *_, name=name: seen.append(name)) for name, part in parts]
    call()
    [hook.remove() for hook in hooks]
    return seen


# Stopping early


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_changes_no_bit(family, dtype, text):
    model = build(family, dtype)
    whole = model(**text, output_hidden_states=True).hidden_states
    assert len(whole) == LAYERS + 1
    for layer in range(-1, LAYERS + 1):
        assert torch.equal(truncated_encoder(model, layer)(**text), whole[layer]), f"layer {layer}"


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_above_the_requested_one_are_not_run(family, text):
    "Each layer adds as many modules, and none above runs; rotary embeddings are computed per kind."
    model = build(family)
    runs = [truncated_encoder(model, layer) for layer in range(1, LAYERS + 1)]
    ran = [watched(model, lambda run=run: run(**text)) for run in runs]
    work = [len([name for name in names if "rotary" not in name]) for names in ran]
    assert work[0] < work[1] < work[2] < work[3]
    assert work[1] - work[0] == work[2] - work[1] <= work[3] - work[2]


@pytest.mark.parametrize("family", ["XLM-R", "ALBERT", "XLM", "ModernBERT"])
def test_the_model_stays_as_it_was(family, text):
    "Also when a run ends in an error."
    model = build(family)
    model(**text, output_hidden_states=True)  # transformers puts hooks of its own there at the first such call

    def state():
        return [(n, id(m), len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m)) for n, m in parts]

    parts = list(model.named_modules())
    before, logits = state(), model(**text).last_hidden_state
    run = truncated_encoder(model, 1)
    with pytest.raises(IndexError):
        run(input_ids=torch.full((1, 4), 10_000))
    run(**text)
    assert state() == before and torch.equal(model(**text).last_hidden_state, logits)


@pytest.mark.parametrize("family", ["BERT", "ALBERT"])
def test_threads_stop_when_requested(family, text):
    model = build(family)
    with torch.no_grad():
        due = model(**text, output_hidden_states=True).hidden_states
    wrong = []

    def ask(layer: int) -> None:
        with torch.no_grad():
            for _ in range(15):
                if not torch.equal(truncated_encoder(model, layer)(**text), due[layer]):
                    wrong.append(layer)

    threads = [threading.Thread(target=ask, args=(layer,)) for layer in (1, 3, LAYERS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_an_encoder_that_cannot_be_truncated_is_run_completely(text, monkeypatch):
    model = build("BERT")
    due = truncated_encoder(model, 2)(**text)
    monkeypatch.setattr("langsamp.encoding.encoder._truncated", lambda *_: None)
    assert torch.equal(truncated_encoder(model, 2)(**text), due)


def test_a_compiled_model_stops_early_too(text):
    model = build("BERT")
    due = truncated_encoder(model, 2)(**text)
    around = torch.compile(model, backend="eager")
    model.compile(backend="eager")
    model(**text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for compiled in (model, around):
            run = truncated_encoder(compiled, 2)
            assert torch.equal(run(**text), due)
            assert not any("layer.2" in name for name in watched(model, lambda run=run: run(**text)))


# Encoding


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2, -1])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_each_sentence_alone(encoder, layer, pooling):
    model, tokenizer = encoder
    found = encode(TEXTS, model, tokenizer, layer, pooling=pooling)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 64)
    for vector, sentence in zip(found, TEXTS, strict=True):
        one = tokenizer(sentence, truncation=True, max_length=64, return_tensors="pt")
        h_LH = model(**one, output_hidden_states=True).hidden_states[layer][0]
        due = h_LH.mean(0) if pooling == "mean" else h_LH[0]
        assert np.allclose(vector, due, atol=1e-5), sentence


def test_rows_have_the_order_of_the_sentences(encoder):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    there, mixed = encode(TEXTS, *encoder), encode([TEXTS[i] for i in order], *encoder)
    assert np.array_equal(there[order], mixed)


def test_all_layers_are_each_layer(encoder):
    every = encode_layers(TEXTS, *encoder)
    assert every.shape == (3, len(TEXTS), 64)
    assert all(np.array_equal(rows, encode(TEXTS, *encoder, layer=i)) for i, rows in enumerate(every))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_are_bounded_and_hold_each_text_once(encoder, batch_size):
    model, tokenizer = encoder
    texts, shapes = [" ".join(["free"] * n) for n in (1, 70, 2, 2, 30, 1, 50, 70)] * 20, []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    encode(texts, model, tokenizer, batch_size=batch_size)
    hook.remove()
    assert sum(rows for rows, _ in shapes) == len(set(texts)) == 5
    assert all(rows == 1 or rows <= batch_size and rows * length <= 64 * batch_size for rows, length in shapes)
    assert shapes[0][1] == max(length for _, length in shapes), "the longest comes first"


@pytest.mark.parametrize("sentences", [[], [""], ["free"], ("free", ""), np.array(["free", "and"])])
def test_any_number_of_sentences(encoder, sentences):
    found = encode(sentences, *encoder)
    assert found.shape == (len(sentences), 64) and np.isfinite(found).all() and found.any(1).all()
    assert encode_layers(sentences, *encoder).shape == (3, len(sentences), 64)


def test_a_half_precision_model_gives_float32(stock, encoder):
    half = AutoModel.from_pretrained(stock, dtype=torch.bfloat16)
    found, due = encode(TEXTS, half, encoder[1]), encode(TEXTS, *encoder)
    assert found.dtype == np.float32 and 0 < np.abs(found - due).max() < 0.1


def test_unsupported_requests_are_refused(encoder):
    for options, message in [
        ({"layer": 3}, "layers 1 to 2"),
        ({"layer": -2}, "layer -2"),
        ({"pooling": "men"}, "`mean`"),
    ]:
        with pytest.raises(UserError, match=message):
            encode(["free"], *encoder, **options)
    with pytest.raises(UserError, match="give a list"):
        encode("free", *encoder)


# Ranks


def pairs(size: int, width: int = 16, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Embeddings of sentences and of noisy translations, with a common offset."
    random = np.random.default_rng(seed)
    meaning = random.normal(size=(size, width)) + 1
    return meaning, meaning + noise * random.normal(size=(size, width))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.sqrt(a @ a * (b @ b))


def naive_scores(source: np.ndarray, target: np.ndarray, scaling: str) -> np.ndarray:
    "As the papers on CSLS and margin define them, pair by pair."
    cosines = np.array([[cosine(x, y) for y in target] for x in source])
    k = min({"cosine": 1, "csls": 10, "margin": 4}[scaling], len(source))
    near_x = [np.mean(sorted(row)[-k:]) for row in cosines]
    near_y = [np.mean(sorted(column)[-k:]) for column in cosines.T]
    score = {
        "cosine": lambda i, j: cosines[i, j],
        "csls": lambda i, j: 2 * cosines[i, j] - near_x[i] - near_y[j],
        "margin": lambda i, j: cosines[i, j] / (near_x[i] / 2 + near_y[j] / 2),
    }[scaling]
    return np.array([[score(i, j) for j in range(len(target))] for i in range(len(source))])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("size", [1, 3, 12, 80])
def test_ranks_are_those_of_a_loop(scaling, size):
    source, target = pairs(size)
    score = naive_scores(source, target, scaling)
    due = [1 + sum(score[i, j] > score[i, i] for j in range(size)) for i in range(size)]
    due_back = [1 + sum(score[i, j] > score[j, j] for i in range(size)) for j in range(size)]
    there, back = bidirectional_ranks(source, target, scaling)
    assert there.tolist() == due and back.tolist() == due_back


@pytest.mark.parametrize("scaling", SCALINGS)
def test_chunking_changes_no_result(scaling, monkeypatch):
    source, target = pairs(50)
    whole = retrieval_rows(source, target, scaling)
    held = []

    def small(size):
        held.append(size)
        return (slice(start, start + 7) for start in range(0, size, 7))

    monkeypatch.setattr(retrieval, "_chunks", small)
    assert retrieval_rows(source, target, scaling) == whole and held


@pytest.mark.parametrize("size", [10, 2047, 2048, 100_000, 10**7])
def test_chunk_size_is_bounded(size):
    chunks = retrieval._chunks(size)
    first, second = next(chunks), next(chunks, None)
    rows = min(first.stop, size)
    assert rows >= 1 and rows * size <= max(2**22, size) and (second is None or second.start == rows)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("size", [2, 9, 64, 65, 333])
def test_ties_count_against_the_encoder(scaling, size):
    "A duplicate of each candidate costs one rank, at any position and with any rounding."
    source, target = [x.astype(np.float32) for x in pairs(size, width=384, noise=0.1)]
    twice = [np.vstack([x, x[::-1]]) for x in (source, target)]
    assert (translation_ranks(*twice, scaling) >= 2).all() and retrieval_scores(translation_ranks(*twice, scaling))[
        "acc1"
    ] == 0
    assert (translation_ranks(np.ones((size, 3)), np.ones((size, 3)), scaling) == size).all()
    assert (translation_ranks(np.zeros((size, 3)), target[:, :3], scaling) == size).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_invariances(scaling):
    "Only angles count, and the order of dimensions has no effect."
    source, target = pairs(60)
    random = np.random.default_rng(1)
    turn = np.linalg.qr(random.normal(size=(16, 16)))[0]
    rows = retrieval_rows(source, target, scaling)
    assert retrieval_rows(source @ turn, target @ turn, scaling) == rows
    assert retrieval_rows(source * 1000, target / 7, scaling) == rows
    length = random.uniform(0.1, 9, (60, 1))
    assert np.array_equal(
        translation_ranks(source * length, target, scaling), translation_ranks(source, target, scaling)
    )
    order = random.permutation(60)
    assert np.array_equal(
        translation_ranks(source[order], target[order], scaling), translation_ranks(source, target, scaling)[order]
    )
    assert any(r["value"] not in (0, 1) for r in rows if "chance" not in r["metric"])


def test_the_second_direction_equals_swapped_arguments():
    source, target = pairs(40)
    for scaling in SCALINGS:
        there = {(r["mode"], r["metric"]): r["value"] for r in retrieval_rows(source, target, scaling)}
        back = {(r["mode"], r["metric"]): r["value"] for r in retrieval_rows(target, source, scaling)}
        assert all(
            back[mode, name.removesuffix("_back")] == value for (mode, name), value in there.items() if "_back" in name
        )


def test_centring_removes_a_language_shift():
    source, target = pairs(40, noise=0.3)
    shifted = retrieval_rows(source, target + 30 * np.eye(16)[0])
    plain = {r["metric"]: r["value"] for r in retrieval_rows(source, target) if r["mode"] == "centred"}
    for row in shifted:
        if row["mode"] == "centred":
            assert row["value"] == plain[row["metric"]]
    assert next(r["value"] for r in shifted if (r["mode"], r["metric"]) == ("raw", "acc1")) < plain["acc1"]
    assert np.allclose(subtract_mean(target).mean(0), 0)


def test_equal_encoders_have_equal_results():
    source, target = [x.astype(np.float32) for x in pairs(200)]
    for scaling in SCALINGS:
        assert retrieval_rows(source, target, scaling) == retrieval_rows(
            source.copy(), np.asfortranarray(target), scaling
        )


@pytest.mark.parametrize("scaling", SCALINGS)
def test_random_vectors_score_at_chance(scaling):
    "Within the 99.99 % bounds of a binomial over the queries, in both directions."
    found = [retrieval_rows(*np.random.default_rng(seed).normal(size=(2, 100, 32)), scaling) for seed in range(20)]
    chance = chance_scores(100)
    assert [chance[f"chance_acc{k}"] for k in (1, 5, 10)] == [0.01, 0.05, 0.1]
    for rows in zip(*found, strict=True):
        metric = rows[0]["metric"]
        if metric.startswith("acc"):
            p = chance["chance_" + metric.removesuffix("_back")]
            low, high = binom.interval(0.9999, 2000, p)
            assert low <= sum(r["value"] for r in rows) * 100 <= high, (rows[0]["mode"], metric)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_chance_is_the_mean_over_all_ranks(size):
    found = chance_scores(size)
    assert found["chance_acc10"] == min(10, size) / size
    assert found["chance_mrr"] == pytest.approx(sum(1 / rank for rank in range(1, size + 1)) / size)


def test_rows_have_the_agreed_names():
    names = ["acc1", "acc5", "acc10", "mrr"]
    names = names + [f"{name}_back" for name in names] + [f"chance_{name}" for name in names]
    for scaling, modes in [("cosine", ["raw", "centred"]), ("csls", ["csls"]), ("margin", ["margin"])]:
        rows = retrieval_rows(*pairs(30), scaling)
        assert [(r["mode"], r["metric"]) for r in rows] == [(mode, name) for mode in modes for name in names]
        assert all(type(r["value"]) is float and 0 <= r["value"] <= 1 for r in rows)


def test_broken_embeddings_are_reported():
    source, target = pairs(5)
    target[3, 2] = np.nan
    for wrong, message in [
        ((source, target), "sentence 4 is not finite"),
        ((source, source[:4]), "5 source and 4 target"),
    ]:
        with pytest.raises(UserError, match=message):
            retrieval_rows(*wrong)
    with pytest.raises(UserError, match="did you mean `margin`"):
        retrieval_rows(source, source, "margins")
    with pytest.raises(UserError, match="no pairs"):
        retrieval_rows(source[:0], source[:0])


# Many pairs


def test_english_is_encoded_once_and_targets_in_turn():
    calls, codes = [], []

    def by_length(texts, code):
        calls.append(list(texts))
        codes.append(code)
        return np.eye(9)[[len(text) for text in texts]]

    english = [["a", "bb", "a"], ["bb", "cccc"], []]
    sides = {"source": "eng_Latn", "target": "wol_Latn"}
    bitexts = [SimpleNamespace(**sides, source_texts=e, target_texts=[t.upper() for t in e]) for e in english]
    stream = encode_bitexts(bitexts, by_length)
    assert next(stream)[0] is bitexts[0] and calls == [["a", "bb", "cccc"], ["A", "BB", "A"]]
    for bitext, source, target in stream:
        assert len(source) == len(bitext.source_texts) and np.array_equal(source, target)
    assert calls[2:] == [["BB", "CCCC"], []] and list(encode_bitexts([], by_length)) == []
    assert codes == ["eng_Latn"] + 3 * ["wol_Latn"]


def test_keys_and_lines_give_the_same_ranks(encoder):
    "Two ways to pair translations."
    english, russian = [tiny.sentences(code, 30) for code in ("eng_Latn", "rus_Cyrl")]
    parallel = {code: dict(enumerate(texts)) for code, texts in (("eng_Latn", english), ("rus_Cyrl", russian))}
    table = parallel_retrieval(lambda texts: encode(texts, *encoder), parallel).set_index("kind")
    bitext = SimpleNamespace(source="eng_Latn", target="rus_Cyrl", source_texts=english, target_texts=russian)
    ((_, source, target),) = encode_bitexts([bitext], lambda texts, _: encode(texts, *encoder))
    for row in retrieval_rows(source, target):
        if row["metric"] in ("acc1", "mrr", "chance_mrr"):
            name = row["metric"].replace("acc1", "top1")
            assert table.loc[row["mode"], name] == pytest.approx(row["value"], abs=0.04)
    with pytest.raises(UserError, match="no key in common"):
        parallel_retrieval(lambda texts: encode(texts, *encoder), {"eng_Latn": {1: "a"}, "rus_Cyrl": {2: "b"}})
