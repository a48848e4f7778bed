"""Each sentence of README.md is prose, or is held by tests, or was measured: tests/claims.yaml says which.

A key of claims.yaml is a piece of a sentence, as it stands in README. Its value is `prose`, or tests as `file::name`,
or `measured` with the committed files that hold the sentence's numbers, or `unheld` with what is missing; several stand
in a list. A test that only some machines run does not hold a claim.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

CLAIMS = yaml.safe_load((tiny.ROOT / "tests/claims.yaml").read_text(encoding="utf-8"))
README = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
END = re.compile(r"(?<=[.!?])[)*\"]*\s+(?=[A-Z`*(\[])")  # Of a sentence; what follows begins another
NUMBER = re.compile(r"(?<![\w.-])\d+(?:[.,]\d+)*(?![\w])")


def sentences(markdown: str) -> list[str]:
    "The sentences, rows of tables and items of lists; neither headings nor code."
    text = re.sub(r"^```.*?^```$", "\n", markdown, flags=re.S | re.M)
    text = re.sub(r"^(\|.*)\n\|[-| :]+\|$", "", text, flags=re.M)  # The head of a table
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"^(\||[-*] )", r"\n\1", text, flags=re.M)
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [one for part in parts if part for one in ([part] if part[0] == "|" else END.split(part))]


def held(claim: Any) -> list[str]:
    "What holds a claim."
    return [claim] if isinstance(claim, str) else list(claim)


def named_in(claim: Any) -> list[str]:
    return [one for one in held(claim) if "::" in one]


def files_of(claim: Any) -> list[Path]:
    "Where its numbers stand."
    return [tiny.ROOT / path for one in held(claim) if one.startswith("measured ") for path in one.split()[1:]]


def numbers_in(text: str) -> list[str]:
    "Numbers as they are written, without commas between thousands; those of links and code are left out."
    plain = re.sub(r"\]\([^)]*\)|`[^`]*`|\d+x\d+(/\d+)?|95 %", " ", text)
    return [number.replace(",", "") for number in NUMBER.findall(plain)]


def stands_in(number: str, text: str) -> bool:
    "Whether a number of the text, rounded as this one is, is this one; shares may be written as per cent."
    digits = len(number.partition(".")[2])
    found = {float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)}
    return any(f"{value:.{digits}f}" == number for value in found)


def test_sentences_are_told_apart():
    text = (
        "# Head\n\nOne `a.b`. Two (see [x](y.md)).\nThree?\n\n```sh\nno. No.\n```\n\n| a |\n|---|\n| row. Row |\n- item"
    )
    assert sentences(text) == ["One `a.b`.", "Two (see [x](y.md)).", "Three?", "| row. Row |", "- item"]


def test_numbers_are_found_where_they_are_rounded():
    assert numbers_in("from 3.2 to 1,024 at `7` in 4x256/16384, [0.103](8.md), step-9") == ["3.2", "1024", "0.103"]
    assert stands_in("3.2", "a,3.1999\n") and not stands_in("3.2", "13.2, 3.26")
    assert stands_in("24", "x: 24.3") and not stands_in("24", "240")


def test_every_sentence_has_one_claim_in_its_order():
    found = [[words for words in CLAIMS if " ".join(words.split()) in one] for one in sentences(README)]
    assert [one for one, words in zip(sentences(README), found) if not words] == [], "say in claims.yaml what holds it"
    assert [words for words in found if len(words) > 1] == [], "one claim a sentence"
    assert [words[0] for words in found] == list(CLAIMS), "each once, in the order of README"


def test_every_claim_is_held():
    "By what there is."
    for words, claim in CLAIMS.items():
        assert held(claim), words
        for one in held(claim):
            kind = "test" if "::" in one else one.partition(" ")[0]
            assert kind in ("test", "prose", "measured", "unheld"), f"{words}: {one}"
        assert [str(path) for path in files_of(claim) if not path.exists()] == [], words


@pytest.mark.parametrize("words", [words for words, claim in CLAIMS.items() if files_of(claim)])
def test_measured_numbers_stand_in_their_files(words):
    "Each, rounded as in README."
    (sentence,) = [one for one in sentences(README) if " ".join(words.split()) in one]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files_of(CLAIMS[words]))
    assert [number for number in numbers_in(sentence) if not stands_in(number, text)] == [], sentence


def test_no_claim_is_unheld():
    "It gets a test or a committed number, or it leaves README."
    assert {words: claim for words, claim in CLAIMS.items() if any(one[:6] == "unheld" for one in held(claim))} == {}


class Collected:
    "The tests that pytest finds, and their marks."

    def pytest_collection_modifyitems(self, items):
        self.marks = {}
        for item in items:
            name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
            for one in (name, name.partition("[")[0]):
                self.marks.setdefault(one, set()).update(mark.name for mark in item.iter_markers())


def test_every_named_test_is_run():
    "It is collected, and no mark leaves it out or lets it fail."
    named = sorted({one for claim in CLAIMS.values() for one in named_in(claim)})
    files = {f"{tiny.ROOT}/tests/{one.partition('::')[0]}" for one in named}
    found = Collected()
    quiet = ["-q", "--collect-only", "--rootdir", str(tiny.ROOT), "-p", "no:cacheprovider"]
    assert pytest.main([*quiet, *sorted(files)], plugins=[found]) == 0
    assert [one for one in named if one not in found.marks] == [], "not collected"
    assert [one for one in named if found.marks[one] & {"skip", "skipif", "xfail"}] == []


def test_what_is_shown_as_printed_is_committed():
    "Numbers in a block of text stand in a text file of the results, line by line."
    shown = [block for block in re.findall(r"^```text\n(.*?)^```$", README, flags=re.S | re.M) if "loss" in block]
    kept = {line for path in tiny.ROOT.glob("outputs/*reference/*.txt") for line in path.read_text().splitlines()}
    assert shown and [line for block in shown for line in block.splitlines() if line not in kept] == []
