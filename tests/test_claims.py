"""Each sentence of README.md is prose, or is supported by tests or measurements: tests/claims.yaml names them.

A key of claims.yaml is a part of a sentence of README. Its value is `prose`, tests as `file::name`, `measured` with the
committed files that contain the sentence's numbers, or `missing` with what is needed; several values form a list.
A test that only some machines run is no evidence.
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
    "Split into sentences, rows of tables and items of lists, without headings and code."
    text = re.sub(r"^```.*?^```$", "\n", markdown, flags=re.S | re.M)
    text = re.sub(r"^(\|.*)\n\|[-| :]+\|$", "", text, flags=re.M)  # The head of a table
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"^(\||[-*] )", r"\n\1", text, flags=re.M)
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [one for part in parts if part for one in ([part] if part[0] == "|" else END.split(part))]


def evidence(claim: Any) -> list[str]:
    "The evidence for a claim, as a list."
    return [claim] if isinstance(claim, str) else list(claim)


def named_tests(claim: Any) -> list[str]:
    return [one for one in evidence(claim) if "::" in one]


def files_of(claim: Any) -> list[Path]:
    "The committed files with its numbers."
    return [tiny.ROOT / path for one in evidence(claim) if one.startswith("measured ") for path in one.split()[1:]]


def numbers_in(text: str) -> list[str]:
    "Numbers as written, without thousands separators; numbers in links and code are left out."
    plain = re.sub(r"\]\([^)]*\)|`[^`]*`|\d+x\d+(/\d+)?|95 %", " ", text)
    return [number.replace(",", "") for number in NUMBER.findall(plain)]


def is_in(number: str, text: str) -> bool:
    "Whether some number of the text, rounded to the same digits, equals this number."
    digits = len(number.partition(".")[2])
    found = {float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)}
    return any(f"{value:.{digits}f}" == number for value in found)


def test_sentences_are_split():
    text = (
        "# Head\n\nOne `a.b`. Two (see [x](y.md)).\nThree?\n\n```sh\nno. No.\n```\n\n| a |\n|---|\n| row. Row |\n- item"
    )
    assert sentences(text) == ["One `a.b`.", "Two (see [x](y.md)).", "Three?", "| row. Row |", "- item"]


def test_numbers_are_compared_rounded():
    assert numbers_in("from 3.2 to 1,024 at `7` in 4x256/16384, [0.103](8.md), step-9") == ["3.2", "1024", "0.103"]
    assert is_in("3.2", "a,3.1999\n") and not is_in("3.2", "13.2, 3.26")
    assert is_in("24", "x: 24.3") and not is_in("24", "240")


def test_every_sentence_has_one_claim_in_its_order():
    found = [[words for words in CLAIMS if " ".join(words.split()) in one] for one in sentences(README)]
    assert [one for one, words in zip(sentences(README), found) if not words] == [], (
        "name the evidence in tests/claims.yaml"
    )
    assert [words for words in found if len(words) > 1] == [], "one claim per sentence"
    assert [words[0] for words in found] == list(CLAIMS), "each once, in the order of README"


def test_every_claim_has_evidence():
    "And the named files exist."
    for words, claim in CLAIMS.items():
        assert evidence(claim), words
        for one in evidence(claim):
            kind = "test" if "::" in one else one.partition(" ")[0]
            assert kind in ("test", "prose", "measured", "missing"), f"{words}: {one}"
        assert [str(path) for path in files_of(claim) if not path.exists()] == [], words


@pytest.mark.parametrize("words", [words for words, claim in CLAIMS.items() if files_of(claim)])
def test_measured_numbers_are_in_their_files(words):
    "Each number, rounded as in README."
    (sentence,) = [one for one in sentences(README) if " ".join(words.split()) in one]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files_of(CLAIMS[words]))
    assert [number for number in numbers_in(sentence) if not is_in(number, text)] == [], sentence


def test_no_claim_lacks_evidence():
    "A claim gets a test or a committed number, or is removed from README."
    assert {
        words: claim for words, claim in CLAIMS.items() if any(one[:7] == "missing" for one in evidence(claim))
    } == {}


class Collected:
    "A pytest plugin that records collected tests and their marks."

    def pytest_collection_modifyitems(self, items):
        self.marks = {}
        for item in items:
            name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
            for one in (name, name.partition("[")[0]):
                self.marks.setdefault(one, set()).update(mark.name for mark in item.iter_markers())


def test_every_named_test_is_run():
    "It is collected, and no mark skips it or lets it fail."
    named = sorted({one for claim in CLAIMS.values() for one in named_tests(claim)})
    files = {f"{tiny.ROOT}/tests/{one.partition('::')[0]}" for one in named}
    found = Collected()
    quiet = ["-q", "--collect-only", "--rootdir", str(tiny.ROOT), "-p", "no:cacheprovider"]
    assert pytest.main([*quiet, *sorted(files)], plugins=[found]) == 0
    assert [one for one in named if one not in found.marks] == [], "not collected"
    assert [one for one in named if found.marks[one] & {"skip", "skipif", "xfail"}] == []


def test_shown_output_is_committed():
    "Lines of a text block with numbers are in a text file of the committed results."
    shown = [
        text_block
        for text_block in re.findall(r"^```text\n(.*?)^```$", README, flags=re.S | re.M)
        if "loss" in text_block
    ]
    kept = {line for path in tiny.ROOT.glob("outputs/*reference/*.txt") for line in path.read_text().splitlines()}
    assert shown and [line for text_block in shown for line in text_block.splitlines() if line not in kept] == []
