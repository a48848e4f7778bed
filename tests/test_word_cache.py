"A corpus is tokenized word by word where that gives the tokenizer's own ids; of a large one a part trains it."

import gzip
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langsamp.corpora.text import Source
from langsamp.data import shards
from langsamp.model.e5_small import xlmr_tokenizer
from langsamp.tokenization import train, word_cache
from langsamp.tokenization.train import CorpusTokenizer, pretrained_tokenizer, train_tokenizer
from langsamp.tokenization.word_cache import encodes_by_word

WORDS = "the of ein größer мир мы 東京 ประเทศ می‌خواهم e\u0301t\u00e9 <s> </s> <mask> 😀 👨‍👩‍👧 ㎏ ﬁn Ⅳ".split()
ODD = ["\u0301", "\u200b", "¨", "▁", "a▁b", "\ufeff", "\u00ad", "\u200da", "x" * 60, "\U0010fffe", "…", "⑴", "\ue000"]
ODD += ["{2,}", "a{2,}", "\uff9e\u0301", "\u0e33\u0301", "\u0eb3\u0301", "\uff9f", "\u0301\u0301a"]


def saved(tokenizer: Tokenizer, folder) -> CorpusTokenizer:
    "A tokenizer, as the corpus pass opens it."
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in names.items()})
    fast.save_pretrained(folder / "given")
    return CorpusTokenizer(pretrained_tokenizer(str(folder / "given"), folder / "kept"))


def lines(count: int, odd: float, seed: int = 0) -> list[str]:
    "Clean lines of words, some of them odd, and of random characters."
    draw = random.Random(seed)
    letters = [chr(at) for at in (*range(33, 127), *range(0xA1, 0x250), *range(0x300, 0x33F), *range(0x370, 0x700))]
    made = []
    for _ in range(count):
        words = [draw.choice(ODD) if draw.random() < odd else draw.choice(WORDS) for _ in range(draw.randint(1, 9))]
        words.append("".join(draw.choices(letters, k=draw.randint(1, 6))))
        made.append(" ".join(" ".join(words).split()))
    return made


def whole(encoder: CorpusTokenizer, texts: list[str]) -> list[list[int]]:
    "The ids without the cache."
    kept, encoder.words = encoder.words, None
    ids = [ids_L.tolist() for ids_L in encoder(texts)]
    encoder.words = kept
    return ids


def unigram(**given) -> Tokenizer:
    "A small tokenizer of our kind, with other parts where they are given."
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 400, sorted({*"".join(WORDS)}))
    for name, part in given.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize("odd", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("spaces", ["Metaspace", "WhitespaceSplit"])
def test_ids_are_the_tokenizers_own(odd, spaces, tmp_path):
    "Of 400 lines, also where the cache begins again, and of special tokens and odd characters in the text."
    marked = pre_tokenizers.Metaspace()
    split = marked if spaces == "Metaspace" else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marked])
    encoder = saved(unigram(pre_tokenizer=split), tmp_path)
    assert encoder.words
    encoder.words.size = 50
    texts = lines(400, odd)
    for at in range(0, 400, 40):
        assert [ids_L.tolist() for ids_L in encoder(texts[at : at + 40])] == whole(encoder, texts[at : at + 40])


def test_a_word_is_encoded_once(tmp_path, monkeypatch):
    "The second time, the tokenizer is not asked; a line with a doubtful word is encoded whole each time."
    encoder, asked = saved(unigram(), tmp_path), []
    encode = CorpusTokenizer._encode
    monkeypatch.setattr(CorpusTokenizer, "_encode", lambda self, texts: asked.extend(texts) or encode(self, texts))
    texts = ["the мир größer", "ein мир", "ein ¨ мир"]
    first = encoder(texts)
    assert asked == texts[2:]
    monkeypatch.setattr(word_cache, "_learn", lambda words, new: [1 / 0 for _ in new])
    assert all(map(np.array_equal, encoder(texts), first))


def test_special_tokens_in_the_text_stay_text(tmp_path):
    "`<s>` in a line becomes the unknown token, with the cache as without."
    encoder = saved(unigram(), tmp_path)
    (ids_L,) = encoder(["the <s> </s> мир"])
    assert list(ids_L[[0, -1]]) == [0, 2] and not {0, 1, 2} & set(ids_L[1:-1].tolist())


def other_tokenizers() -> dict[str, Tokenizer]:
    "Tokenizers whose ids of a line are not, or need not be, those of its words."
    prefix = pre_tokenizers.Metaspace(prepend_scheme="never")
    added = unigram()
    added.add_tokens([AddedToken("ein größer", normalized=False)])
    spaces = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("n e", "ne")])
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    split = pre_tokenizers.Metaspace(split=False)
    return {
        "no mark before the first word": unigram(pre_tokenizer=prefix),
        "pieces across spaces": unigram(pre_tokenizer=split),
        "an added token with a space": added,
        "a normalizer that joins words": unigram(normalizer=spaces),
        "bytes": bytes_,
        "no pre-tokenizer": Tokenizer(models.BPE()),
        "a pattern that is text": unigram(normalizer=normalizers.Replace(" {2,}", " ")),
    }


def test_other_tokenizers_encode_whole_lines():
    "Each for its own reason."
    assert encodes_by_word(unigram())
    assert {name for name, tokenizer in other_tokenizers().items() if encodes_by_word(tokenizer)} == set()


def test_text_is_read_while_the_tokenizer_works(tmp_path, monkeypatch):
    "The first batch waits for a line of the second one: without a thread of its own it would wait for ever."
    read_on = threading.Event()
    saved(unigram(), tmp_path)
    (tmp_path / "eng_Latn.txt").write_text("".join(f"the {number}\n" for number in range(3000)), encoding="utf-8")
    clean, flat = shards.clean_lines, CorpusTokenizer.flat

    def watched(*given):
        for number, line in enumerate(clean(*given)):
            if number == 1500:
                read_on.set()
            yield line

    def waiting(self, texts):
        assert read_on.wait(20), "no line is read while a batch is tokenized"
        return flat(self, texts)

    monkeypatch.setattr(shards, "clean_lines", watched)
    monkeypatch.setattr(CorpusTokenizer, "flat", waiting)
    source = Source("eng_Latn", tmp_path / "eng_Latn.txt", "train")
    kept = next((tmp_path / "kept").iterdir())
    shard = shards.write_shard("eng_Latn", [source], kept, tmp_path / "shards")
    ends = np.fromfile(shard / "train.ends", "<u8")
    assert len(ends) == 3000 and (shard / "train.tokens").stat().st_size == 4 * ends[-1]


def test_a_large_corpus_is_read_in_part_to_train_a_tokenizer(tmp_path, monkeypatch):
    "As many lines of each language-script as its smoothed share; a small language whole, also a compressed one."
    text = "".join(f"line {number} of a text\n" for number in range(20_000))
    sources = {}
    for code, lines in {"deu_Latn": 20_000, "eng_Latn": 20_000, "fra_Latn": 300}.items():
        path = tmp_path / f"{code}.txt.gz" if code == "fra_Latn" else tmp_path / f"{code}.txt"
        content = "".join(text.splitlines(keepends=True)[:lines]).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        sources[code] = [Source(code, path, "train")]
    assert len([*train.first_texts(sources)]) == 40_300
    monkeypatch.setattr(train, "READ_BYTES", 200_000)
    read = [code for code, _, _ in train.first_texts(sources)]
    assert read.count("fra_Latn") == 300 and read.count("deu_Latn") == read.count("eng_Latn")
    assert 2_000 < read.count("deu_Latn") < 6_000
    with open(sources["eng_Latn"][0].path, "a", encoding="utf-8") as last:
        last.write("the last line has a Þ\n")
    assert "Þ" not in train.corpus_characters(sources)
    sampled = [*train.smoothed_sample(sources, budget=30_000)]
    assert 20_000 < sum(map(len, sampled)) < 36_000  # Rates count on the text that is not read
    monkeypatch.setattr(train, "READ_BYTES", 10**9)
    assert abs(len([*train.smoothed_sample(sources, budget=30_000)]) - len(sampled)) < 0.2 * len(sampled)


def test_words_share_a_line(tmp_path, monkeypatch):
    "Sixteen to a line, except words with a joiner, which may become two words, and where a word loses its `▁`."
    encoder, asked = saved(unigram(), tmp_path), []
    texts = [" ".join(f"{first}{second}" for second in "theofmir") for first in "theofmir"]

    def ask(lines, **given):
        asked.extend(lines)
        return encode(lines, **given)

    encode, words = encoder.words.fast.encode_batch_fast, encoder.words
    monkeypatch.setattr(words, "fast", SimpleNamespace(encode_batch_fast=ask))
    expected = [np.array(ids, "<u4").tobytes() for ids in whole(encoder, texts)]
    assert words.lines(texts) == expected and len(asked) == 4
    asked.clear()
    words.lines(["می‌خواهم größer мир"])
    assert len(asked) == 2 and "می‌خواهم" in asked
    words.ids.clear()
    words.starts = np.zeros_like(words.starts)
    assert words.lines(texts) == expected and len(asked) > 50


def test_a_model_without_marks_encodes_each_word(tmp_path):
    "Nothing tells where a word begins if `▁` is no token, or a whole word may be unknown."
    assert unigram().token_to_id("▁") is not None
    unmarked = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁a", -1.0)], unk_id=0))
    whole_words = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁": 2}, unk_token="<unk>"))
    for tokenizer in (unmarked, whole_words):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        words = word_cache.WordCache(tokenizer, np.zeros(9, bool))
        assert words.starts is None
        lines = ["a b a", "ab bb", "b"]
        expected = [np.array(tokenizer.encode(line).ids, "<u4").tobytes() for line in lines]
        assert words.lines(lines) == expected


@pytest.mark.slow
def test_any_character_of_a_word_in_the_tokenizer_of_xlm_r(tmp_path):
    "Its normalizer makes spaces of some characters."
    encoder = CorpusTokenizer(pretrained_tokenizer(str(xlmr_tokenizer()), tmp_path))
    letters = [chr(at) for at in range(33, 0x11000) if not chr(at).isspace() and not 0xD800 <= at < 0xE000]
    words = [f"a{letter}b {letter} {letter}{mark}" for letter in letters for mark in "\u0301\u093f"]
    texts = [" ".join(words[at : at + 40]) for at in range(0, len(words), 40)]
    texts += [f"{word} a" for text in texts for word in text.split(" ")]
    assert [ids_L.tolist() for ids_L in encoder(texts)] == whole(encoder, texts)


@pytest.mark.parametrize("spaces", ["", "Replace"])
def test_accents_that_are_stripped_leave_nothing_behind(spaces, tmp_path):
    "A line that normalizes to nothing has no `▁` either, and what is joined in a line is not split by the cache."
    parts = [normalizers.NFKD(), normalizers.StripAccents()]
    parts += [normalizers.Replace(Regex(" {2,}"), " ")] * bool(spaces)
    encoder = saved(unigram(normalizer=normalizers.Sequence(parts)), tmp_path)
    assert encoder.words
    for seed in range(3):
        texts = [*ODD, *lines(200, 0.5, seed)]
        assert [ids_L.tolist() for ids_L in encoder(texts)] == whole(encoder, texts)


def test_a_trained_tokenizer_joins_spaces_and_keeps_a_pattern_in_the_text():
    fast = train_tokenizer([" ".join(WORDS), "a {2,} b"] * 3, 400, sorted({*"".join(WORDS), *"{2,}"}))
    assert fast.encode("the  of").ids == fast.encode("the of").ids
    assert "{" in "".join(fast.encode("a {2,} b").tokens)
