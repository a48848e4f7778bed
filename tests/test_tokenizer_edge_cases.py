"Unusual tokenizers: holes in the ids, plain added tokens, no unknown or padding token, spaces in tokens."

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from langsamp.core.errors import UserError
from langsamp.core.files import read_json, write_json
from langsamp.core.manifests import read_manifest
from langsamp.corpora.evaluation_text import tagged_sentences
from langsamp.corpora.text import find_sources
from langsamp.encoding.encoder import encode
from langsamp.encoding.fill_mask import fill_mask
from langsamp.encoding.open_encoder import open_encoder
from langsamp.encoding.sentence_transformers import save_sentence_encoder
from langsamp.evaluation.datasets import LabelledTexts
from langsamp.evaluation.finetune import FineTuning, fine_tune
from langsamp.evaluation.linear_probe import encode_words, train_probe, word_windows
from langsamp.model.adapt_checkpoint import adapt_checkpoint, adaptation_chart, adaptation_table
from langsamp.model.langsamp import from_backbone
from langsamp.model.resize_embeddings import adapt_vocabulary, restore_vocabulary
from langsamp.params.pretrain import AdaptParams, PlanParams, PretrainParams
from langsamp.params.yaml_reader import read_yaml
from langsamp.tokenization.adapt import fit_vocabulary, measure_coverage, train_new_tokens
from langsamp.tokenization.edit import old_ids, prune_tokens, read_tokenizer_file, save_tokenizer, token_ids, tokens_of
from langsamp.tokenization.train import CorpusTokenizer, load_tokenizer, pretrained_tokenizer, trained_tokenizer
from langsamp.training.plan import plan
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import pretrain

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
LATIN = tiny.sentences("eng_Latn", 150)
ROLES = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


@pytest.fixture(scope="module")
def latin(tmp_path_factory) -> Path:
    "A corpus folder with Latin letters only."
    folder = tmp_path_factory.mktemp("latin")
    tiny.write(folder / "train/eng_Latn.txt", "\n".join(LATIN) + "\n")
    tiny.write(folder / "validation/eng_Latn.txt", "\n".join(tiny.sentences("eng_Latn", 20, seed=3)) + "\n")
    return folder


AB = "".join(f"{n:04b} {n:06b}\n" for n in range(80)).replace("0", "a").replace("1", "b")  # Different lines


def save(fast: Tokenizer, folder: Path, without: tuple[str, ...] = (), model=None) -> Path:
    "A tokenizer folder without some special tokens, optionally with a checkpoint."
    names = {f"{role}_token": token for role, token in ROLES.items() if role not in without}
    PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
    if model is not None:
        model.save_pretrained(folder)
    return folder


def xlm_r(rows: int, positions: int = 66, **more) -> AutoModelForMaskedLM:
    "A tiny model with random weights and biases."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = XLMRobertaConfig(**SIZES, vocab_size=rows, pad_token_id=1, max_position_embeddings=positions, **more)
        mlm = AutoModelForMaskedLM.from_config(config)
        mlm.get_output_embeddings().bias.data.normal_()
    return mlm.eval()


def unigram(characters: str, unk: int | None, more: tuple[str, ...] = ()) -> Tokenizer:
    "A Unigram tokenizer with XLM-R's special tokens that knows some characters, in words and at their beginning."
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [("▁", -2.0), *((c, -3.0 - i / 9) for i, c in enumerate(characters)), *((p, -4.0) for p in more)]
    fast = Tokenizer(models.Unigram(vocabulary, unk_id=unk))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    frame = {"single": "<s> $A </s>", "special_tokens": [("<s>", 0), ("</s>", 2)]}
    fast.post_processor = processors.TemplateProcessing(**frame)
    return fast


def byte_level(texts: list[str], size: int = 400, unk: bool = False, whole: bool = True) -> Tokenizer:
    "A byte-level BPE like RoBERTa's, by default without an unknown token."
    fast = Tokenizer(models.BPE(unk_token="<unk>" if unk else None))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole else []
    specials = ["<s>", "<pad>", "</s>", *(["<unk>"] if unk else []), "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return fast


# Holes in the ids


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Path:
    "A BERT whose vocab.txt has a line twice, so that one id is unused."
    folder, letters = tmp_path_factory.mktemp("bert") / "bert", tiny.ALPHABETS["eng_Latn"]
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "zz", *letters, "zz", *(f"##{c}" for c in letters), "##ab"]
    tiny.write(folder / "vocab.txt", "\n".join(lines) + "\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(**SIZES, vocab_size=len(lines), max_position_embeddings=64)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def test_duplicate_vocabulary_line_leaves_a_hole(holed, tmp_path):
    tokenizer = pretrained_tokenizer(str(holed), tmp_path)
    facts, lines = read_manifest(tokenizer), (holed / "vocab.txt").read_text().splitlines()
    assert facts["vocab_size"] == len(lines), "the number of tokens, not the highest id + 1"
    vocabulary = tokens_of(read_tokenizer_file(tokenizer))
    assert {i: piece for i, (piece, _) in vocabulary.items()} == {i: p for i, p in enumerate(lines) if i != 5}
    assert 5 in facts["specials"], "masking may put a token where none is"


def test_pruning_next_to_a_hole(holed, latin, tmp_path):
    tokenizer, sources = pretrained_tokenizer(str(holed), tmp_path), find_sources(latin)[0]
    fitted = fit_vocabulary(sources, tokenizer, min_count=1)
    save_tokenizer(fitted.content, tokenizer, tmp_path / "pruned")
    mlm = AutoModelForMaskedLM.from_pretrained(holed)
    small = adapt_vocabulary(mlm, tokenizer, tmp_path / "pruned").get_input_embeddings().weight
    old, new = token_ids(read_tokenizer_file(tokenizer)), token_ids(fitted.content)
    assert len(new) == len(small) < len(old) and "zz" not in new
    assert all(torch.equal(small[i], mlm.get_input_embeddings().weight[old[piece]]) for piece, i in new.items())
    before, after = [AutoTokenizer.from_pretrained(folder) for folder in (holed, tmp_path / "pruned")]
    assert all(before.tokenize(line) == after.tokenize(line) for line in LATIN)
    restore_vocabulary(
        adapt_vocabulary(mlm, tokenizer, tmp_path / "pruned"), tmp_path / "pruned", mlm, tokenizer, tmp_path / "whole"
    )
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole").get_input_embeddings().weight
    assert all(torch.equal(whole[i], mlm.get_input_embeddings().weight[i]) for i in old.values())


def test_pipeline_with_a_hole_in_the_ids(holed, latin, tmp_path):
    p = AdaptParams(name="a", backbone=str(holed), corpus=str(latin), languages=[], num_new_tokens=0, min_count=0)
    start = adapt_checkpoint(p, tmp_path)
    rows = [AutoModelForMaskedLM.from_pretrained(f).get_input_embeddings().weight for f in (holed, start)]
    assert torch.equal(*rows), "nothing was changed, and yet rows are others"
    other_values = {"run_name": "run", "backbone": str(holed), "max_steps": 2, "save_steps": 2, "warmup_steps": 0}
    result = pretrain(tiny.params_of(latin, **other_values, vocab_size=100), tmp_path)
    assert np.isfinite(result["validation_loss"] if "validation_loss" in result else 0)
    trained = AutoModel.from_pretrained(tmp_path / "run/backbone").get_input_embeddings().weight
    assert len(trained) == len(rows[0])


def test_last_of_duplicate_tokens_counts():
    "As in the library, where the id of the first is unused."
    content = {"model": {"type": "Unigram", "vocab": [["<unk>", 0], ["a", -1], ["b", -2], ["a", -3]], "unk_id": 0}}
    content |= {"added_tokens": [], "post_processor": None}
    assert Tokenizer(models.Unigram([tuple(e) for e in content["model"]["vocab"]], unk_id=0)).encode("a").ids == [3]
    assert tokens_of(content) == {0: ("<unk>", 0), 2: ("b", -2), 3: ("a", -3)}
    assert old_ids(prune_tokens(content, np.array([0, 2, 3])), content).tolist() == [0, 2, 3]


# Added tokens


@pytest.fixture(scope="module")
def added(latin, tmp_path_factory) -> Path:
    "An untied XLM-R in bf16 with more rows than its tokenizer has ids, and with added tokens that are not special."
    folder, (code, files) = tmp_path_factory.mktemp("added"), *find_sources(latin)[0].items()
    base = trained_tokenizer({code: files}, "latin", folder / "home", 200)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([AddedToken("abc"), AddedToken("ghost words"), AddedToken("ａｂｄ", normalized=False)])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<task>"]})
    tokenizer.save_pretrained(folder / "xlm-r")
    xlm_r(len(tokenizer) + 13, tie_word_embeddings=False).bfloat16().save_pretrained(folder / "xlm-r")
    return folder / "xlm-r"


TEXTS = [*LATIN[:40], "xabcy abc ab cab", "the ghost words abc", "ａｂｄ", "abd ａ ａｂｄ a", "abc<task>abc"]


def same_cuts(one: Path, other: Path, texts: list[str]) -> None:
    "Both tokenizers give the same tokens."
    first, second = [AutoTokenizer.from_pretrained(folder) for folder in (one, other)]
    for text in texts:
        ids = [tokenizer(text)["input_ids"] for tokenizer in (first, second)]
        tokens = [t.convert_ids_to_tokens(i) for t, i in zip((first, second), ids)]
        assert tokens[0] == tokens[1], text


@pytest.mark.parametrize("min_count", [0, 1, 5])
@pytest.mark.parametrize("num_new_tokens", [0, 150])
def test_added_tokens_are_kept(num_new_tokens, min_count, added, corpus, tmp_path):
    p = AdaptParams(
        name="a",
        backbone=str(added),
        corpus=str(corpus),
        languages=[],
        num_new_tokens=num_new_tokens,
        min_count=min_count,
    )
    start = adapt_checkpoint(p, tmp_path)
    tokenizer, full = AutoTokenizer.from_pretrained(start), AutoTokenizer.from_pretrained(added)
    wanted = {"abc", "ghost words", "ａｂｄ", "<task>", "<mask>"}
    assert wanted <= set(tokenizer.get_added_vocab()) and full.all_special_tokens == tokenizer.all_special_tokens
    if min_count < 5:
        same_cuts(added, start, TEXTS if num_new_tokens == 0 else TEXTS[:-1])
    mlm, small = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (added, start)]
    assert small.config.vocab_size == max(tokenizer.get_vocab().values()) + 1
    shared = full.get_vocab().keys() & tokenizer.get_vocab().keys()
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, new = [getattr(m, part)().weight.float() for m in (mlm, small)]
        assert all(torch.equal(old[full.get_vocab()[t]], new[tokenizer.get_vocab()[t]]) for t in shared), part


def test_added_tokens_survive_the_export(added, corpus, tmp_path):
    "Pruned, extended, trained, exported and restored: text is tokenized alike everywhere."
    p = AdaptParams(name="a", backbone=str(added), corpus=str(corpus), languages=[], num_new_tokens=150, min_count=1)
    start = adapt_checkpoint(p, tmp_path)
    other_values = {"backbone": "a", "max_steps": 2, "save_steps": 2, "warmup_steps": 0, "run_name": "run"}
    pretrain(tiny.params_of(corpus, **other_values, precision="bf16"), tmp_path)
    same_cuts(start, tmp_path / "run/backbone", [*TEXTS, *tiny.sentences("rus_Cyrl", 9)])
    trained = AutoModelForMaskedLM.from_pretrained(start).bfloat16()
    full = AutoModelForMaskedLM.from_pretrained(added)
    restore_vocabulary(trained, start, full, pretrained_tokenizer(str(added), tmp_path / "home"), tmp_path / "whole")
    same_cuts(added, tmp_path / "whole", TEXTS[:-1])
    same_cuts(start, tmp_path / "whole", tiny.sentences("rus_Cyrl", 9))
    tokenizer, whole = [AutoTokenizer.from_pretrained(f) for f in (start, tmp_path / "whole")]
    rows = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole").get_output_embeddings().weight
    ours, back = trained.get_output_embeddings().weight, whole.get_vocab()
    assert all(torch.equal(ours[i].float(), rows[back[token]].float()) for token, i in tokenizer.get_vocab().items())


def test_added_tokens_of_another_tokenizer(added, latin, tmp_path):
    "Another tokenizer with an added token that the backbone lacks; and the mapping back."
    other = AutoTokenizer.from_pretrained(added)
    other.add_tokens(["def ghi"])
    other.save_pretrained(tmp_path / "other")
    p = AdaptParams(
        name="a",
        backbone=str(added),
        tokenizer=str(tmp_path / "other"),
        corpus=str(latin),
        languages=[],
        num_new_tokens=0,
    )
    start = adapt_checkpoint(p, tmp_path)
    same_cuts(tmp_path / "other", start, [*TEXTS, "def ghi abc"])
    models_of = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (start, added)]
    restore_vocabulary(
        models_of[0], start, models_of[1], pretrained_tokenizer(str(added), tmp_path / "h"), tmp_path / "whole"
    )
    same_cuts(tmp_path / "other", tmp_path / "whole", [*TEXTS, "def ghi abc"])


# No unknown token


def test_unencodable_characters_are_dropped_and_reported(tmp_path):
    "In a corpus, for Unigram without `unk_id`, which fails, and for BPE, which drops them silently."
    tiny.write(tmp_path / "text/train/eng_Latn.txt", "ab Ωab\nΩb ☃\n" + AB)
    tiny.write(tmp_path / "text/validation/eng_Latn.txt", AB.replace(" ", " bb "))
    for kind, fast in [("u", unigram("ab", None)), ("b", byte_level(["ab ba"] * 9, whole=False))]:
        save(fast, tmp_path / kind, without=("unk",), model=xlm_r(400))
        p = tiny.params_of(tmp_path / "text", tokenizer=str(tmp_path / kind))
        found = prepare(p, tmp_path / "out")
        (filter_report,), (warning, *more) = found.report["filter_reports"], found.report["warnings"]
        assert filter_report["splits"]["train"]["unknown"] == 3 and filter_report["dropped"] == {} and not more
        assert "eng_Latn: 3 characters" in warning and "`Ω` (U+03A9, 2 times)" in warning and "U+2603" in warning
        with pytest.raises(UserError, match=r"U\+03A9.*choose another tokenizer"):
            prepare(
                tiny.params_of(tmp_path / "text", tokenizer=str(tmp_path / kind), on_bad_line="stop"), tmp_path / "out"
            )
        measured = measure_coverage(find_sources(tmp_path / "text")[0], found.tokenizer)
        assert measured.missing["eng_Latn"] == {"Ω": 2, "☃": 1} and measured.table.loc["eng_Latn", "unknown"] == 3


def test_a_script_that_the_tokenizer_cannot_read_is_a_warning(tmp_path, capsys):
    "In the log, the report, the plan, the result and the card, with its share and how to mend it."
    for code in ("eng_Latn", "rus_Cyrl"):
        text = tiny.sentences(code, 300)
        tiny.write(tmp_path / f"text/train/{code}.txt", "\n".join(text[:280]))
        tiny.write(tmp_path / f"text/validation/{code}.txt", "\n".join(text[280:]))
    save(unigram(tiny.ALPHABETS["eng_Latn"], 3), tmp_path / "t")
    short = {"max_steps": 1, "warmup_steps": 0, "save_steps": 1, "run_name": "run"}
    p = tiny.params_of(tmp_path / "text", tokenizer=str(tmp_path / "t"), **short)
    (warning,) = pretrain(p, tmp_path)["warnings"][:1]
    assert "1 of 2 language-scripts" in warning and "rus_Cyrl " in warning and "langsamp start" in warning
    kept, card = read_json(tmp_path / "run/corpus.json"), (tmp_path / "run/model/README.md").read_text()
    train = next(one for one in kept["filter_reports"] if one["code"] == "rus_Cyrl")["splits"]["train"]
    assert (
        f"rus_Cyrl {train['unknown'] / train['tokens']:.1%})" in warning and train["unknown"] > 0.05 * train["tokens"]
    )
    assert f"corpus: {warning}" in capsys.readouterr().out and kept["warnings"] == [warning] and f"- {warning}" in card
    plan(PlanParams(params="", overrides=p.model_dump(), measured_steps=2), tmp_path)
    assert f"corpus: {warning}" in capsys.readouterr().out


def test_unknown_token_known_only_to_the_model(latin, tmp_path):
    "transformers does not know the unknown token, but the model has one."
    save(unigram("abc", 3), tmp_path / "t", without=("unk",))
    folder = pretrained_tokenizer(str(tmp_path / "t"), tmp_path)
    assert read_manifest(folder)["unk"] == 3 and 3 in read_manifest(folder)["specials"]
    assert measure_coverage(find_sources(latin)[0], folder).table["unknown"].sum() > 100


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pipeline_without_an_unknown_token(kind, latin, tmp_path):
    "Adaptation, run, export and both ways of tagging; all characters have a token."
    letters = "".join(tiny.ALPHABETS["eng_Latn"])
    fast = unigram(letters, None) if kind == "unigram" else byte_level(LATIN)
    save(fast, tmp_path / "b", without=("unk",), model=xlm_r(fast.get_vocab_size() + 5))
    assert read_manifest(pretrained_tokenizer(str(tmp_path / "b"), tmp_path / "h"))["unk"] is None
    p = AdaptParams(
        name="a", backbone=str(tmp_path / "b"), corpus=str(latin), languages=[], num_new_tokens=0, min_count=0
    )
    adaptation_chart(adaptation_table(adapt_checkpoint(p, tmp_path)))
    other_values = {"backbone": "a", "max_steps": 2, "save_steps": 2, "warmup_steps": 0, "run_name": "run"}
    pretrain(tiny.params_of(latin, **other_values), tmp_path)
    encoder = open_encoder("run", tmp_path)
    assert np.isfinite(encoder.encode(LATIN[:3])).all()
    words = LabelledTexts([["ab", "", "cd"], ["a", "b"]] * 4, [["X", "Y", "X"], ["Y", "X"]] * 4)
    how = FineTuning(
        metric_for_best_model="token_accuracy",
        max_seq_length=32,
        num_train_epochs=1,
        micro_batch_size=4,
        learning_rate=1e-3,
    )
    for model in (
        train_probe(encoder.model, encoder.tokenizer, words, words, -1),
        fine_tune(encoder.model, encoder.tokenizer, words, words, how, 1),
    ):
        assert [len(tags) for tags in model.predict([["ab", "", " ", "\u00ad"[:0], "cd"], [""], []])] == [5, 1, 0]


def test_new_tokens_without_an_unknown_token(corpus, tmp_path):
    "On text that it cannot encode at all; the mean of nothing is no error."
    letters = "".join(tiny.ALPHABETS["eng_Latn"])
    save(unigram(letters, None), tmp_path / "b", without=("unk",), model=xlm_r(40))
    p = AdaptParams(
        name="a", backbone=str(tmp_path / "b"), corpus=str(corpus), languages=[], num_new_tokens=150, min_count=1
    )
    table = adaptation_table(adapt_checkpoint(p, tmp_path))
    assert table.loc[["Cyrl", "Deva"], "<unk> % before"].min() > 40 and table["<unk> % after"].max() == 0
    rows = AutoModelForMaskedLM.from_pretrained(tmp_path / "adapted/a").get_input_embeddings().weight
    assert torch.isfinite(rows).all()


def test_special_tokens_in_text_are_dropped_without_an_unknown_token(tmp_path):
    save(unigram("ab<mask>", None, ("<mask>",)), tmp_path / "t", without=("unk",))
    encoder = CorpusTokenizer(pretrained_tokenizer(str(tmp_path / "t"), tmp_path))
    smuggled, plain = encoder(["ab<mask>", "ab"])
    assert encoder.facts["mask"] not in smuggled and smuggled.tolist() == plain.tolist()


def test_evaluation_reports_unencodable_characters(tmp_path):
    save(unigram("ab", None), tmp_path / "b", without=("unk",), model=xlm_r(40))
    encoder = open_encoder(str(tmp_path / "b"), tmp_path)
    tagged = LabelledTexts([["ab", "aΩ"]] * 4, [["X", "Y"]] * 4)
    model = from_backbone(str(tmp_path / "b"), ["eng"], ["Latn"])
    calls: list[Callable] = [
        lambda: fill_mask("aΩ <mask>", model, encoder.tokenizer),
        lambda: encoder.encode(["ab", "aΩ"]),
        lambda: train_probe(encoder.model, encoder.tokenizer, tagged, tagged, -1),
        lambda: fine_tune(
            *[encoder.model, encoder.tokenizer], *[LabelledTexts(["ab", "Ω"], ["x", "y"])] * 2, FineTuning(), 1
        ),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"`Ω` \(U\+03A9"):
            call()


# Words in a sentence


def in_sentences(sentences: list[list[str]], tokenizer) -> list[list[int]]:
    "The tokens of the windows of sentences, without special tokens."
    windows = list(word_windows(sentences, tokenizer, 4096))
    assert [window.sentence for window in windows] == list(range(len(sentences))), "a sentence in two windows"
    return [window.ids[1:-1] for window in windows]


@pytest.mark.parametrize("prefix", [False, True])
def test_words_are_tokenized_as_in_their_sentence(prefix, tmp_path):
    "A space is part of a byte-level BPE token; the first word has none, unless the tokenizer adds one."
    fast = byte_level(["the cat and the hat, 'tis a cat 22 times"] * 9, 330)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer = AutoTokenizer.from_pretrained(save(fast, tmp_path, without=("unk",)))
    sentences = [
        ["the", "cat", "and", "the", "hat", ",", "'", "cat"],
        ["cat"],
        ["Ω", "the", "1 000", "été"],
        [",", "a"],
    ]
    for words, ids in zip(sentences, in_sentences(sentences, tokenizer)):
        assert ids == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"], words
    (window,) = word_windows([["the", "cat"]], tokenizer, 64)
    token = tokenizer.convert_ids_to_tokens(window.ids[window.firsts[1]])
    assert token.startswith("Ġ"), f"{token}: the tag of `cat` is on a token that no sentence has"


def test_words_in_later_windows_keep_their_space(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save(byte_level(LATIN), tmp_path, without=("unk",)))
    words = " ".join(LATIN[:5]).split()
    windows = list(word_windows([words], tokenizer, 16))
    assert len(windows) > 3
    together = [i for window in windows for i in window.ids[1:-1]]
    assert together == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]


def test_english_treebank_words_are_tokenized_as_in_their_sentences(real, tmp_path):
    sentences = [s.words for s in tagged_sentences(real / "ud/UD_English-PUD/en_pud-ud-test.conllu", 3)]
    text = [" ".join(words) for words in sentences]
    tokenizer = AutoTokenizer.from_pretrained(save(byte_level(text, 2000), tmp_path, without=("unk",)))
    assert len({word for words in sentences for word in words}) > 5000
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert in_sentences(sentences, tokenizer) == expected


# Messages


def test_error_gives_the_minimum_vocab_size(tmp_path):
    "Chinese: more characters than tokens, which is checked before training."
    text = [chr(0x4E00 + n) for n in range(1200)]
    lines = ["".join(text[n : n + 12]) + "。" for n in range(0, 1200, 12)]
    tiny.write(tmp_path / "text/train/zho_Hans.txt", "\n".join(lines) + "\n")
    tiny.write(tmp_path / "text/validation/zho_Hans.txt", "\n".join(lines[:40]) + "\n")
    with pytest.raises(UserError, match="vocab_size 1000 is too small.*1,201 different characters") as error:
        prepare(tiny.params_of(tmp_path / "text", vocab_size=1000), tmp_path / "out")
    needed = int(str(error.value).split("set it to ")[1].split()[0])
    found = prepare(tiny.params_of(tmp_path / "text", vocab_size=needed), tmp_path / "out")
    assert found.facts["vocab_size"] <= needed and found.report["filter_reports"][0]["splits"]["train"]["unknown"] == 0
    with pytest.raises(UserError, match="too small"):
        prepare(tiny.params_of(tmp_path / "text", vocab_size=needed - 1), tmp_path / "out")


def test_new_tokens_of_words_with_many_known_characters():
    "The words contain more known characters than tokens to train."
    words = ["Ω" + "".join(chr(0x4E00 + 7 * n + k) for k in range(7)) for n in range(60)]
    assert "Ω" in dict(train_new_tokens(words, ["Ω"], 101))


@pytest.mark.parametrize("file", ["sentencepiece.bpe.model", "spiece.model"])
def test_only_a_sentencepiece_file_beside_the_weights(file, tmp_path):
    xlm_r(40).save_pretrained(tmp_path / "x")
    (tmp_path / "x" / file).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    p = AdaptParams(name="a", backbone=str(tmp_path / "x"), corpus="", num_new_tokens=0, min_count=0)
    for call in (lambda: adapt_checkpoint(p, tmp_path), lambda: open_encoder(str(tmp_path / "x"), tmp_path)):
        with pytest.raises(UserError, match=rf"only {file}.*sentencepiece.*tokenizer\.json") as error:
            call()
        assert "tiktoken" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"', '{"version": "1.0"}', '{"added_tokens": 3}'])
def test_broken_tokenizer_file(stock, tmp_path, name, text):
    "A damaged tokenizer is a `UserError` that names its folder, for any error of the libraries."
    shutil.copytree(stock, tmp_path / "broken")
    (tmp_path / "broken" / name).write_text(text)
    try:
        assert load_tokenizer(str(tmp_path / "broken")).get_vocab()
    except UserError as error:
        assert str(tmp_path / "broken") in str(error)


def test_unknown_dtype_in_a_config(stock, tmp_path):
    "The tokenizer's loader reads the model's configuration too."
    config = read_json(shutil.copytree(stock, tmp_path / "odd") / "config.json")
    write_json(tmp_path / "odd" / "config.json", {**config, "dtype": "float99"})
    with pytest.raises(UserError, match="odd.*float99"):
        load_tokenizer(str(tmp_path / "odd"))


def test_folder_without_a_model(tmp_path):
    "The message mentions no .model file and no package."
    with pytest.raises(UserError, match="no file with a vocabulary"):
        load_tokenizer(str(tmp_path))


def test_folder_without_a_tokenizer(tmp_path):
    "transformers gives a tokenizer of five special tokens, for which all text is unknown."
    xlm_r(40).save_pretrained(tmp_path / "x")
    for call in (
        lambda: pretrained_tokenizer(str(tmp_path / "x"), tmp_path),
        lambda: open_encoder(str(tmp_path / "x"), tmp_path),
    ):
        with pytest.raises(UserError, match="no file with a vocabulary"):
            call()


# No padding token


def test_encoder_without_a_padding_token(tmp_path):
    "Short sequences are padded, and the padding is masked."
    fast = unigram("abcd", 3)
    save(fast, tmp_path / "with", model=xlm_r(40))
    save(fast, tmp_path / "without", without=("pad",))
    opened, pad = open_encoder(str(tmp_path / "with"), tmp_path), AutoTokenizer.from_pretrained(tmp_path / "without")
    assert pad.pad_token_id is None
    texts, words = ["ab", "abcd abcd ab", "d"], [["ab"], ["abcd", "ab", "c"]]
    assert np.array_equal(encode(texts, opened.model, pad), opened.encode(texts))
    for one, other in zip(encode_words(words, opened.model, pad), encode_words(words, opened.model, opened.tokenizer)):
        assert np.array_equal(one, other)


def test_sentence_encoder_without_a_padding_token(tmp_path):
    "It pads short sentences with the model's padding id."
    save(unigram("abcd", 3), tmp_path / "x", without=("pad",), model=xlm_r(40))
    encoder, texts = open_encoder(str(tmp_path / "x"), tmp_path), ["ab", "abcd abcd ab"]
    folder = save_sentence_encoder(encoder, tmp_path / "sentences")
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert np.allclose(vectors, encoder.encode(texts), atol=1e-5)


# Starts without text


def test_adaptation_without_text_has_a_table_and_a_chart(added, tmp_path):
    p = AdaptParams(
        name="paper",
        backbone=str(added),
        tokenizer=str(added),
        corpus="",
        num_new_tokens=0,
        min_count=0,
        new_token_init="random",
    )
    table = adaptation_table(adapt_checkpoint(p, tmp_path))
    assert table.empty and "<unk> % after" in table.columns and isinstance(table, pd.DataFrame)
    assert "no corpus" in adaptation_chart(table).texts[0].get_text()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    "A tiny XLM-R with the maximum length of the real one."
    letters = "".join(tiny.ALPHABETS["eng_Latn"])
    return save(unigram(letters, 3), tmp_path_factory.mktemp("stand-in"), model=xlm_r(40, positions=514))


def test_the_paper_preset_can_be_planned_for_another_corpus(stand_in, latin, tmp_path, capsys):
    "Its sampling is for Glot500's text; the replacement uses temperature sampling, which is reported."
    p = AdaptParams.model_validate(read_yaml(tiny.ROOT / "params/adapted/paper.yaml"))
    adapt_checkpoint(p.replace(backbone=str(stand_in), tokenizer=str(stand_in)), tmp_path)
    other_values = {"corpus": str(latin), "global_batch_size": 2, "micro_batch_size": 1}
    cost = plan(
        PlanParams(params=str(tiny.ROOT / "params/paper.yaml"), overrides=other_values, measured_steps=2), tmp_path
    )
    assert 0 < cost["tokens per step"] <= 1024, "not two sequences of 512"
    assert "planned with sampling `temperature`" in capsys.readouterr().out
    with pytest.raises(UserError, match="sampling `glot500` needs"):
        pretrain(PretrainParams.model_validate(read_yaml(tiny.ROOT / "params/paper.yaml") | other_values), tmp_path)


@pytest.mark.slow
def test_the_papers_first_command_with_a_stand_in(stand_in, tmp_path):
    "As in the header of the preset, with another backbone and tokenizer."
    other_values = [
        "-f",
        "params/adapted/paper.yaml",
        "-p",
        "backbone",
        str(stand_in),
        "-p",
        "tokenizer",
        str(stand_in),
    ]
    tiny.papermill_command("nbs/02_start.ipynb", tmp_path / "start.ipynb", tmp_path, *other_values)
    assert (tmp_path / "adapted/paper/model.safetensors").exists()
