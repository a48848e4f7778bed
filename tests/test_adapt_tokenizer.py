"Covered text is tokenized as before, other text becomes encodable, and every id maps back."

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.corpora.text import Source, find_sources
from langsamp.tokenization.adapt import (
    Coverage,
    choose_new_tokens,
    coverage_by_script,
    fit_vocabulary,
    measure_coverage,
    missing_characters,
    used_token_ids,
)
from langsamp.tokenization.edit import add_tokens, old_ids, prune_tokens, read_tokenizer_file, save_tokenizer, tokens_of
from langsamp.tokenization.train import CorpusTokenizer, pretrained_tokenizer, trained_tokenizer

LATIN = tiny.sentences("eng_Latn", 200)


@pytest.fixture(scope="module")
def sources(corpus):
    return find_sources(corpus)[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A Unigram tokenizer trained on Latin letters only."
    home = tmp_path_factory.mktemp("base")
    (home / "eng_Latn.txt").write_text("\n".join(LATIN))
    return trained_tokenizer({"eng_Latn": [Source("eng_Latn", home / "eng_Latn.txt", "train")]}, "latin", home, 300)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Path:
    "A BERT-like tokenizer trained on Latin letters only."
    home = tmp_path_factory.mktemp("wordpiece")
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    fast.train_from_iterator(
        LATIN, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **{f"{k}_token": v for k, v in names.items()}).save_pretrained(
        home / "t"
    )
    return pretrained_tokenizer(str(home / "t"), home)


def fast_of(content: dict) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content))


def train_text(sources, code: str) -> list[str]:
    return sources[code][0].path.read_text().splitlines()


# Measuring


def test_coverage_counts_by_hand(base, sources):
    found, encoder = measure_coverage(sources, base), CorpusTokenizer(base)
    for code in sources:
        lines = train_text(sources, code)
        ids = [i for line in lines for i in encoder.fast.encode(line, add_special_tokens=False).ids]
        row = {"lines": len(lines), "characters": sum(map(len, lines)), "tokens": len(ids), "unknown": ids.count(3)}
        assert found.table.loc[code].to_dict() == row, f"{code}: not the training lines, or special tokens counted"
    assert found.counts_V.sum() == found.table["tokens"].sum() + 2 * found.table["lines"].sum(), "tokens were lost"


def test_missing_characters_have_no_token(base, sources):
    found = measure_coverage(sources, base)
    assert not found.missing["eng_Latn"]
    assert set(found.missing["rus_Cyrl"]) == set("".join(train_text(sources, "rus_Cyrl"))) - {" "}


def test_coverage_by_script_adds_up(base, sources):
    found = measure_coverage(sources, base)
    scripts = coverage_by_script(found.table)
    assert scripts["tokens"].sum() == found.table["tokens"].sum() and scripts["language-scripts"].sum() == 3
    assert scripts.loc["Latn", "<unk> %"] == 0 and scripts.loc[["Cyrl", "Deva"], "<unk> %"].min() > 40


def test_rare_characters_are_left_out_by_language(base, sources):
    found = measure_coverage(sources, base)
    found.missing["eng_Latn"].update({"ʬ": 1, "ƕ": 2})
    assert {"ʬ", "ƕ"} <= set(missing_characters(found, share=1.0)), "nothing may be spared"
    count = found.table.loc["eng_Latn", "characters"]
    chosen = set(missing_characters(found, share=1 - 1.5 / count))
    assert "ƕ" in chosen and "ʬ" not in chosen, "the rarest goes first, and only as far as the share allows"


# Extending


def test_covered_text_is_tokenized_as_before(base, sources):
    fitted, before = fit_vocabulary(sources, base, count=150), CorpusTokenizer(base).fast
    after = fast_of(fitted.content)
    assert len(tokens_of(fitted.content)) > before.get_vocab_size(), "nothing was added"
    for line in tiny.sentences("eng_Latn", 300, seed=5) + ["abc, dfg!", "a<mask>b"]:
        old = before.encode(line).ids
        if 3 not in old:
            assert after.encode(line).ids == old, f"{line!r} is cut in another way"


def test_unseen_scripts_can_be_read(base, sources):
    fitted = fit_vocabulary(sources, base, count=150)
    assert fitted.before.table.loc[["hin_Deva", "rus_Cyrl"], "unknown"].min() > 100
    assert fitted.after.table["unknown"].sum() == 0
    longest = max(len(piece) for i, (piece, _) in tokens_of(fitted.content).items() if i >= fitted.before.counts_V.size)
    assert longest > 2, "only characters were added"


def test_each_new_token_has_a_missing_character(base, sources):
    found = measure_coverage(sources, base)
    new, known = (
        choose_new_tokens(sources, base, found, 150),
        dict(tokens_of(read_tokenizer_file(base, "Unigram")).values()),
    )
    missing = set().union(*found.missing.values())
    assert len(new) <= 150 and all(missing & set(piece) for piece, _ in new) and not known.keys() & dict(new).keys()
    assert min(score for _, score in new) >= min(known.values()), "<unk> would cost another sum in covered text"
    assert new == choose_new_tokens(sources, base, found, 150), "another result the second time"


def test_old_ids_stay(base, sources):
    content = read_tokenizer_file(base, "Unigram")
    longer = fast_of(add_tokens(content, choose_new_tokens(sources, base, measure_coverage(sources, base), 150)))
    before = CorpusTokenizer(base).fast.get_vocab()
    assert {piece: longer.token_to_id(piece) for piece in before} == before


def test_too_few_new_tokens_is_an_error(base, sources):
    with pytest.raises(UserError, match="raise num_new_tokens"):
        fit_vocabulary(sources, base, count=5)


def test_full_coverage_adds_no_tokens(base, sources):
    fitted = fit_vocabulary({"eng_Latn": sources["eng_Latn"]}, base, count=5)
    assert fitted.content == read_json(base / "tokenizer.json")


# Pruning


@pytest.mark.parametrize("kind", ["base", "wordpiece"])
def test_pruned_tokens_map_back_exactly(kind, request, sources):
    base = request.getfixturevalue(kind)
    latin, encoder = {"eng_Latn": sources["eng_Latn"]}, CorpusTokenizer(base)
    fitted = fit_vocabulary(latin, base, min_count=1)
    mapping, after = old_ids(fitted.content, read_json(base / "tokenizer.json")), fast_of(fitted.content)
    assert len(mapping) < encoder.fast.get_vocab_size() and (mapping >= 0).all() and (np.diff(mapping) > 0).all()
    for line in train_text(sources, "eng_Latn"):
        assert mapping[after.encode(line).ids].tolist() == encoder.fast.encode(line).ids, line


@pytest.mark.parametrize("kind", ["base", "wordpiece"])
@pytest.mark.parametrize("least", [2, 8, 10**9])
def test_dropping_rare_tokens_makes_nothing_unknown(kind, least, request, sources):
    base = request.getfixturevalue(kind)
    latin = {"eng_Latn": sources["eng_Latn"]}
    fitted = fit_vocabulary(latin, base, min_count=least)
    assert fitted.after.table["unknown"].sum() == fitted.before.table["unknown"].sum() == 0
    assert fitted.after.table["tokens"].sum() >= fitted.before.table["tokens"].sum()


def test_pruning_does_not_change_text_of_kept_tokens(base):
    "For any set of tokens, not only for those that a corpus uses."
    content, encoder, random = (
        read_tokenizer_file(base, "Unigram"),
        CorpusTokenizer(base).fast,
        np.random.default_rng(0),
    )
    specials, lowest = (
        [0, 1, 2, 3, encoder.token_to_id("<mask>")],
        int(np.argmin([s for _, s in tokens_of(content).values()])),
    )
    lines = tiny.sentences("eng_Latn", 30, seed=9)
    for _ in range(20):
        ids = {line: encoder.encode(line).ids for line in random.choice(lines, 3)}
        others = np.flatnonzero(random.random(encoder.get_vocab_size()) < random.random())
        kept = np.unique(np.concatenate([*ids.values(), others, specials, [lowest]])).astype(int)
        shorter = fast_of(prune_tokens(content, kept))
        for line, old in ids.items():
            assert kept[shorter.encode(line).ids].tolist() == old, line


def test_special_token_ids_are_updated_everywhere(base, sources, tmp_path):
    fitted = fit_vocabulary(sources, base, count=150, min_count=3)
    save_tokenizer(fitted.content, base, tmp_path)
    before, after = [AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path)]
    assert tokens_of(fitted.content)[after.mask_token_id] == ("<mask>", 0.0)
    assert after.mask_token_id < before.mask_token_id, "nothing was dropped"
    assert after.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    ids = after("ab <mask>")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2 and after.mask_token_id in ids
    assert json.loads(after.backend_tokenizer.to_str())["model"] == fitted.content["model"], "reading it changed it"


def test_characters_of_longer_tokens_are_kept():
    content = {
        "model": {"type": "Unigram", "vocab": [["<unk>", 0], ["a", -1], ["qu", -2], ["ab", -3]]},
        "added_tokens": [],
    }
    kept = used_token_ids(np.array([0, 0, 1, 1]), content, [0], min_count=5)
    assert kept.tolist() == [0, 1, 2, 3] and tokens_of(content)[2] == ("qu", -2)
    assert used_token_ids(np.array([0, 9, 0, 0]), content, [0], min_count=5).tolist() == [0, 1, 3], (
        "the lowest score stays"
    )


# Kinds


def test_unsupported_tokenizer_types_are_named(tmp_path, sources, base):
    bpe = Tokenizer(models.BPE())
    specials = ["<unk>", "<pad>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=specials, show_progress=False)
    bpe.train_from_iterator(LATIN, trainer)
    names = {f"{name.strip('<>')}_token": name for name in specials}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **names).save_pretrained(tmp_path / "bpe")
    folder = pretrained_tokenizer(str(tmp_path / "bpe"), tmp_path)
    with pytest.raises(UserError, match="BPE tokenizer"):
        fit_vocabulary(sources, folder, min_count=1)
    with pytest.raises(UserError, match="cannot map a BPE tokenizer to a Unigram one"):
        old_ids(read_json(base / "tokenizer.json"), read_json(folder / "tokenizer.json"))


def test_coverage_of_no_text_is_empty(base):
    found = measure_coverage({}, base)
    assert isinstance(found, Coverage) and coverage_by_script(found.table).empty and not found.counts_V.any()
