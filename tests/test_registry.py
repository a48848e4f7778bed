"Corpora by name, alone and merged; text held out by one is not in the training text of another."

import json
from itertools import permutations
from pathlib import Path

import pytest

from langsamp.core.errors import UserError
from langsamp.core.manifests import find_damage
from langsamp.corpora.registry import (
    drop_small_languages,
    find_corpus,
    limit_held_out,
    merge_corpora,
    without_notices,
    write_corpus,
)
from langsamp.corpora.text import FilterReport, clean_lines, find_sources

FOLDERS = {
    "a": {"train/est_Latn": ["üks", "kaks"], "validation/est_Latn": ["kolm"], "train/eng_Latn": ["one", "two"]},
    "b": {"train/ekk_Latn": ["kolm", "neli"], "validation/ekk_Latn": ["üks"], "train/srp_Latn": ["jedan"]},
    "c": {"ekk_Latn": ["kolm", "neli", "viis"], "hbs_Latn": ["dva"], "srp_Latn": ["tri"]},
    "d": {"lvs_Latn": ["viens"], "lav_Latn": ["divi"]},
}


@pytest.fixture
def home(tmp_path) -> Path:
    for folder, files in FOLDERS.items():
        for name, lines in files.items():
            path = tmp_path / folder / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    return tmp_path


def texts(sources) -> dict[str, dict[str, list[str]]]:
    "Code -> split -> clean lines."
    found = {code: {"train": [], "validation": []} for code in sources}
    for code, files in sources.items():
        for split, text in clean_lines(files, FilterReport(code)):
            found[code][split].append(text)
    return found


def named(home: Path, names: str) -> str:
    return "+".join(str(home / name) for name in names)


def test_one_folder_is_what_find_sources_gives(home):
    "Order and codes too, because the identity of prepared text depends on them."
    for name in FOLDERS:
        assert find_corpus(str(home / name), outputs=home) == find_sources(home / name)


@pytest.mark.parametrize("names", [*map("".join, permutations("abc"))])
def test_text_held_out_by_one_corpus_is_not_trained_on(home, names):
    "In any order of the corpora."
    sources, warnings = find_corpus(named(home, names), outputs=home)
    found = texts(sources)["ekk_Latn"]
    assert [line.partition(": ")[2] for line in warnings] == [
        "ekk_Latn and est_Latn are the same language-script, ekk_Latn; their text is merged"
    ]
    assert without_notices(warnings) == [] and list(sources) == sorted(sources)
    assert sorted(found["validation"] + found["train"]) == ["kaks", "kolm", "neli", "viis", "üks"]
    assert {"kolm", "üks"} <= set(found["validation"]) and {"kaks", "neli"} <= set(found["train"])


def test_macrolanguages_merge_only_across_corpora(home):
    "A corpus with Serbo-Croatian and Serbian keeps both; Estonian is merged with its representative."
    sources, _ = find_corpus(named(home, "bc"), outputs=home)
    assert list(sources) == ["ekk_Latn", "hbs_Latn", "srp_Latn"]
    assert list(find_corpus(named(home, "ad"), outputs=home)[0]) == ["eng_Latn", "est_Latn", "lav_Latn", "lvs_Latn"]
    assert all(file.code == code for code, files in sources.items() for file in files)


def test_only_merged_codes_that_are_used_are_reported(home):
    assert find_corpus(named(home, "ab"), ["eng_Latn"], home)[1] == []
    assert len(find_corpus(named(home, "ab"), ["est_Latn"], home)[1]) == 1
    assert find_corpus(named(home, "ad"), outputs=home)[1] == []


def test_wanted_languages(home):
    "A language may be in one corpus only, with either code; a missing one is an error with a suggestion."
    assert list(find_corpus(named(home, "ab"), ["eng_Latn", "est_Latn"], home)[0]) == ["ekk_Latn", "eng_Latn"]
    with pytest.raises(UserError, match="no file in .* for zul_Latn"):
        find_corpus(named(home, "ab"), ["eng_Latn", "zul_Latn"], home)
    with pytest.raises(UserError) as error:
        find_corpus(named(home, "ab"), ["fra_Latn"], home)
    assert "did you mean" not in str(error.value), "another language with similar letters is no suggestion"
    with pytest.raises(UserError, match="for ekk_Latn; did you mean `est_Latn`"):
        find_corpus(str(home / "a"), ["ekk_Latn"], home)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("udrh", "no corpus `udrh`; did you mean `udhr`"),
        ("udhr+mediawki", "no corpus `mediawki`; did you mean `mediawiki`"),
        ("clean-won", "did you mean `clean-one`"),
        ("hub:", "no corpus `hub:`"),
        ("", "no corpus ``"),
        ("mediawiki:nowhere", "no MediaWiki in nowhere"),
        ("udhr+udhr", "contains udhr twice"),
    ],
)
def test_unknown_name_gets_a_suggestion(home, monkeypatch, corpus, message):
    monkeypatch.setattr("langsamp.corpora.registry.udhr_corpus", lambda: home / "nothing")
    (home / "nothing/text/train").mkdir(parents=True)
    (home / "nothing/text/train/eng_Latn.txt").write_text("all human beings\n")
    write_corpus(find_sources(home / "a")[0], home / "corpora/clean-one")
    with pytest.raises(UserError, match=message):
        find_corpus(corpus, outputs=home)


def test_a_folder_with_a_plus_in_its_name(home):
    (home / "a").rename(home / "a+b")
    assert list(find_corpus(str(home / "a+b"), outputs=home)[0]) == ["eng_Latn", "est_Latn"]


def test_mediawiki_from_a_source_tree(home, monkeypatch):
    "Given by its folder; merged with other corpora by code."
    monkeypatch.setenv("LANGSAMP_CACHE", str(home / "cache"))
    messages = {"en": {"a": "Save the page"}, "et": {"a": "Salvesta lehekülg"}}
    for language, content in messages.items():
        path = home / f"tree/languages/i18n/{language}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    sources, warnings = find_corpus(f"{home}/a+mediawiki:{home}/tree", outputs=home)
    assert ["their text is merged" in line for line in warnings] == [True]
    assert without_notices(warnings) == [] and list(sources) == ["ekk_Latn", "eng_Latn"]
    assert set(texts(sources)["eng_Latn"]["train"]) == {"one", "two", "Save the page"}


def test_drop_small_languages(home):
    "Characters of clean training text count; dropped languages are reported with their count."
    sources = merge_corpora([find_sources(home / name)[0] for name in "ab"])
    for least in range(12):
        kept, warnings = drop_small_languages(sources, least)
        learnt = {code: sum(map(len, splits["train"])) for code, splits in texts(sources).items()}
        assert list(kept) == [code for code in sources if learnt[code] >= least]
        assert [line.split()[0] for line in warnings] == [code for code in sources if learnt[code] < least]


def test_write_corpus_writes_clean_lines(home):
    "The copy is complete and clean, and two copies are equal byte for byte."
    sources, _ = find_corpus(named(home, "abc"), outputs=home)
    filter_reports = write_corpus(sources, home / "corpora/one", corpus="a+b+c")
    write_corpus(sources, home / "corpora/two", corpus="a+b+c")
    assert find_damage(home / "corpora/one") == ""
    assert (home / "corpora/one/manifest.json").read_bytes() == (home / "corpora/two/manifest.json").read_bytes()
    copy, warnings = find_corpus("one", outputs=home)
    assert warnings == [] and texts(copy) == texts(sources)
    assert [filter_report.code for filter_report in filter_reports] == list(sources)
    for filter_report in filter_reports:
        assert filter_report.lines == sum(filter_report.kept.values()) + sum(filter_report.dropped.values())


def test_lines_dropped_by_a_rule_are_counted(home):
    "With the reason and the text; the counts still add up."
    sources, _ = find_corpus(named(home, "ab"), outputs=home)
    filter_reports = {
        x.code: x for x in write_corpus(sources, home / "clean", [lambda code, split, text: "four" * (text == "neli")])
    }
    estonian = filter_reports["ekk_Latn"]
    assert estonian.dropped == {"four": 1, "duplicate": 2} and "`neli`" in " ".join(estonian.examples)
    assert estonian.lines == sum(estonian.kept.values()) + sum(estonian.dropped.values())
    assert "neli" not in texts(find_sources(home / "clean/text")[0])["ekk_Latn"]["train"]


def test_interrupted_write_leaves_the_old_corpus(home):
    sources, _ = find_corpus(str(home / "a"), outputs=home)
    write_corpus(sources, home / "clean")
    before = (home / "clean/manifest.json").read_bytes()

    def fails(code, split, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(sources, home / "clean", [fails])
    with pytest.raises(UserError, match="no training lines are left"):
        write_corpus(sources, home / "clean", [lambda code, split, text: "all" * (split == "train")])
    assert (home / "clean/manifest.json").read_bytes() == before and find_damage(home / "clean") == ""


def test_limit_held_out(tmp_path):
    "About the given number of characters per language-script, reproducibly; training text is kept."
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for code, lines in [("eng_Latn", 4000), ("fra_Latn", 40)]:
            text = "".join(f"{split} sentence {i:06}\n" for i in range(lines))
            (tmp_path / split / f"{code}.txt").write_text(text)
    sources, _ = find_sources(tmp_path)
    filter_reports = {x.code: x for x in write_corpus(sources, tmp_path / "few", [limit_held_out(sources, 20_000)])}
    assert [filter_report.kept["train"] for filter_report in filter_reports.values()] == [4000, 40]
    assert (
        600 < filter_reports["eng_Latn"].kept["validation"] < 820
        and filter_reports["fra_Latn"].kept["validation"] == 40
    )
    again = write_corpus(sources, tmp_path / "again", [limit_held_out(sources, 20_000)])
    assert again == list(filter_reports.values())
