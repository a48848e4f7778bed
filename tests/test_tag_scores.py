"Chunks are counted as by seqeval; its effect on bare tags is shown beside token accuracy."

import itertools
import random

import pytest
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from langsamp.core.errors import UserError
from langsamp.evaluation.datasets import LabelledTexts, load_labelled
from langsamp.evaluation.metrics import (
    accuracy,
    chunks,
    f1_macro,
    f1_seqeval,
    f1_seqeval_bare,
    score_of,
    token_accuracy,
)

UPOS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()


def random_tags(pool: list[str], seed: int, sentences: int = 40) -> list[list[str]]:
    "Random tagged sentences."
    draw = random.Random(seed)
    return [[draw.choice(pool) for _ in range(draw.randint(1, 8))] for _ in range(sentences)]


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("I-PER I-PER O", {("PER", 0, 1)}),  # nothing to go on from
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),  # another type
        ("B-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("I-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),  # IOB1: two that touch
        ("S-PER B-LOC I-LOC E-LOC", {("PER", 0, 0), ("LOC", 1, 3)}),
        ("E-PER E-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER S-PER I-PER", {("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 2)}),
        ("B-a-b I-a-b", {("a-b", 0, 1)}),  # a type with a hyphen
        ("O O", set()),
    ],
)
def test_chunks_by_hand(tags, expected):
    assert chunks([tags.split()]) == expected


def test_chunks_of_well_formed_names_are_the_names():
    "Names written as IOB2 are read back unchanged, also across sentences that end in a name."
    draw, sentences, expected, position = random.Random(0), [], set(), 0
    for _ in range(200):
        tags = []
        for _ in range(draw.randint(1, 4)):
            kind, length = draw.choice(["PER", "LOC", "ORG", "O"]), draw.randint(1, 3)
            if kind != "O":
                expected.add((kind, position + len(tags), position + len(tags) + length - 1))
            tags += ["O"] * length if kind == "O" else [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
        sentences.append(tags)
        position += len(tags) + 1
    assert chunks(sentences) == expected and len(expected) > 200


def test_f1_by_counting():
    "Three right names, two predicted, one of them right."
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG"]]
    assert f1_seqeval(gold, [["B-PER", "I-PER", "O", "O"], ["B-LOC"]]) == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize("pool", [["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], UPOS])
def test_properties(pool):
    "Perfect is 1, sides may be exchanged, and sentences may be in any order."
    gold, guess = random_tags(pool, 0), random_tags(pool, 1)
    guess = [[(b * 8)[i] for i in range(len(a))] for a, b in zip(gold, guess)]
    assert f1_seqeval(gold, gold) == 1.0 and token_accuracy(gold, gold) == 1.0
    assert f1_seqeval(gold, guess) == f1_seqeval(guess, gold)
    assert 0 < token_accuracy(gold, guess) < 0.5
    if "X" not in pool:
        assert f1_seqeval(gold[::-1], guess[::-1]) == f1_seqeval(gold, guess)


def test_seqeval_of_bare_tags_differs_from_token_accuracy():
    "Three of four words are right: token accuracy is 0.75, chunk F1 0.571."
    gold, guess = [["DET", "ADJ", "NOUN", "VERB"]], [["DET", "NOUN", "NOUN", "VERB"]]
    assert token_accuracy(gold, guess) == 0.75
    assert f1_seqeval_bare(gold, guess) == pytest.approx(4 / 7)


def test_seqeval_of_bare_tags_ignores_wrong_conjunctions():
    "Every conjunction is wrong, and F1 of bare tags is still 1."
    gold = [["NOUN", "CCONJ", "NOUN"], ["SCONJ", "VERB"]]
    guess = [["NOUN", "SCONJ", "NOUN"], ["CCONJ", "VERB"]]
    assert f1_seqeval_bare(gold, guess) == 1.0
    assert token_accuracy(gold, guess) == 0.6
    others = [pair for pair in itertools.combinations(UPOS, 2) if f1_seqeval_bare([[pair[0]]], [[pair[1]]]) > 0]
    assert others == [("CCONJ", "SCONJ")]


def test_seqeval_of_bare_tags_ignores_a_final_x():
    "X at a sentence's end counts for nothing, right or wrong; token accuracy counts it."
    assert f1_seqeval_bare([["NOUN", "X"]], [["NOUN", "X"]]) == f1_seqeval_bare([["NOUN", "O"]], [["NOUN", "X"]]) == 1.0
    assert f1_seqeval_bare([["X"]], [["X"]]) == 0.0 and token_accuracy([["X"]], [["X"]]) == 1.0
    assert token_accuracy([["NOUN", "X"]], [["NOUN", "NOUN"]]) == 0.5


def test_seqeval_of_bare_tags_continues_an_x_from_the_sentence_before():
    "Its chunk starts in the sentence before, so the tags there determine whether it counts as right."
    gold, guess = [["DET", "NOUN"], ["X", "VERB"]], [["DET", "DET"], ["X", "VERB"]]
    assert ("_", 1, 3) in chunks(gold) and ("_", 0, 3) in chunks(guess)
    assert token_accuracy(gold[1:], guess[1:]) == 1.0


@pytest.mark.parametrize("score", [f1_seqeval, f1_seqeval_bare, token_accuracy])
def test_lists_that_do_not_match_are_refused(score):
    with pytest.raises(UserError, match="sentence 1 has 2 tags and 1"):
        score([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(UserError, match="1 sentences .* 2"):
        score([["O"]], [["O"], ["O"]])


def test_scores_of_topics():
    "Macro-F1 is the mean over classes: 12/14 for the common one, 0 for the others."
    gold = ["travel"] * 6 + ["sports", "health"]
    assert accuracy(gold, ["travel"] * 8) == 0.75
    assert f1_macro(gold, ["travel"] * 8) == pytest.approx((12 / 14) / 3)
    assert f1_macro(gold, gold) == 1.0


def test_unknown_score_is_named():
    with pytest.raises(UserError, match="did you mean `token_accuracy`"):
        score_of("token_acuracy")


# Parity with seqeval


SCHEMES = {
    "IOB2": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
    "with hyphens": ["O", "B-a-b", "I-a-b", "I-a"],
    "bare": UPOS,
}


def same_lengths(gold: list[list[str]], guess: list[list[str]]) -> list[list[str]]:
    "Predictions with as many tags in each sentence as are gold."
    return [[(tags * 8)[i] for i in range(len(right))] for right, tags in zip(gold, guess)]


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(10))
def test_chunks_and_f1_are_those_of_seqeval(scheme, seed):
    "On random tags, also malformed and bare ones: the same chunks at the same places, and the same F1."
    gold, guess = [random_tags(SCHEMES[scheme], 2 * seed + side) for side in (0, 1)]
    guess = same_lengths(gold, guess)
    assert chunks(gold) == set(get_entities(gold))
    assert f1_seqeval(gold, guess) == pytest.approx(f1_score(gold, guess, zero_division=0), abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
@pytest.mark.parametrize("task, metric", [("ner", f1_seqeval), ("ud", f1_seqeval_bare)])
def test_f1_of_real_tags_is_that_of_seqeval(task, metric, real):
    "Every tenth tag is replaced by another of the same data set."
    sets = load_labelled(task, real)[0]
    gold = [tags for one in sets[:4] for tags in one.splits.get("test", LabelledTexts([], [])).labels][:2000]
    draw, pool = random.Random(0), sorted({tag for tags in gold for tag in tags})
    guess = [[draw.choice(pool) if draw.random() < 0.1 else tag for tag in tags] for tags in gold]
    found = metric(gold, guess)
    assert len(gold) > 500 and 0.3 < found < 1 and found == pytest.approx(f1_score(gold, guess), abs=1e-12)
