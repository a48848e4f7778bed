"Cards of models and corpora, and the way to the Hub: reading from it and pushing to it."

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pandas as pd
import pytest
import tiny
from huggingface_hub import metadata_load
from transformers import AutoModel

from langsamp.core.cards import write_card
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256, write_json
from langsamp.core.manifests import find_damage
from langsamp.corpora.data_card import data_card
from langsamp.corpora.registry import corpus_origins, find_corpus, write_corpus
from langsamp.corpora.udhr import udhr_corpus
from langsamp.evaluation import publish as publish_module
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.publish import push_to_hub, stored_scores, update_cards
from langsamp.evaluation.results import means
from langsamp.model.adapt_checkpoint import adapt_checkpoint
from langsamp.params.evaluate import EvaluationParams
from langsamp.params.pretrain import AdaptParams
from langsamp.params.publish import PublishParams
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


# Results of evaluations


def test_results_enter_a_card_on_request_only(copy):
    before = cards(copy)
    found, _ = evaluate(EvaluationParams(encoder="done", languages=["hin_Deva", "rus_Cyrl"]), copy.parent)
    assert cards(copy) == before, "an evaluation changes no card"
    update_cards("done", copy.parent)
    (wanted,) = means(found).query("mode == 'centred' and metric == 'acc1'").itertuples()
    for part, text in cards(copy).items():
        metadata = metadata_load(copy / part / "README.md")
        values = {m["name"]: m["value"] for r in metadata["model-index"][0]["results"] for m in r["metrics"]}
        assert values["acc1, centred, layer -1"] == pytest.approx(wanted.value)
        numbers = f"{wanted.value:.4f} | {wanted.chance:.4f}"
        assert f"| udhr | centred | -1 | eng_Latn | acc1 | {numbers} | hin_Deva, rus_Cyrl | 1 |" in text
        assert "udhr, mean over languages (hin_Deva, rus_Cyrl)" in str(metadata["model-index"])
    again = cards(copy)
    update_cards("done", copy.parent)
    assert cards(copy) == again != before and find_damage(copy / "model") == ""


@pytest.mark.parametrize("names, shown", [("bac", "a, b, c"), ("bb", "b"), ("abcdefghij", None), ("abcdefghijk", 11)])
def test_a_mean_names_its_languages_if_they_are_at_most_ten(names, shown, monkeypatch):
    "Those of all requests together; a language may have several data sets."
    row = {"run": "one", "task": "ud", "mode": "frozen", "layer": -1, "source": "eng_Latn", "seed": 0}
    row |= {"metric": "f1", "value": 1.0}
    rows = [row | {"target": code, "name": f"{code}-{number}"} for number, code in enumerate(names)]
    monkeypatch.setattr(publish_module, "stored_results", lambda *_: pd.DataFrame(rows))
    (score,) = stored_scores("one", "")
    assert score["languages"] == (shown or ", ".join(names)) and score["value"] == 1


# Publishing


def test_the_chosen_licence_stays(copy):
    "In cards that are made again without one, and in what is published."
    update_cards("done", copy.parent, "apache-2.0")
    update_cards("done", copy.parent)
    assert all("license: apache-2.0\n" in text for text in cards(copy).values())
    assert metadata_load(publish(copy) / "README.md")["license"] == "apache-2.0"


def publish(copy: Path, **values: Any) -> Path:
    "The folder of a dry run."
    p = PublishParams.model_validate({"run": "done", "repo_id": "me/encoder", **values})
    return Path(push_to_hub(p, copy.parent))


def test_a_dry_run_prepares_what_would_be_uploaded(copy):
    before = {path: sha256(path) for path in copy.rglob("*") if path.is_file()}
    place = publish(copy, license="cc0-1.0")
    assert place == copy.parent / "published/me--encoder" and find_damage(place) == ""
    text = (place / "README.md").read_text()
    assert 'AutoModel.from_pretrained("me/encoder")' in text and "license: cc0-1.0\n" in text
    assert {p.name for p in place.iterdir()} == {p.name for p in (copy / "backbone").iterdir()}
    (place / "stale.bin").touch()
    assert not (publish(copy, part="model") / "stale.bin").exists(), "what was prepared before is replaced"
    assert "import langsamp.model.langsamp" in (place / "README.md").read_text()
    assert {path: sha256(path) for path in before} == before, "a dry run changes nothing in the run"


def test_what_is_damaged_or_unfinished_is_not_published(copy):
    with open(copy / "backbone/model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="model.safetensors has .* bytes.*give the command of this run again"):
        publish(copy)
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="not a finished run"):
        publish(copy, part="model")
    with pytest.raises(UserError, match="corpora/none/manifest.json is missing.*01_corpus"):
        publish(copy, run="corpora/none")


def test_the_publishing_notebook_prepares_a_folder(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(copy.parent))
    names = tiny.run_notebook("07_publish", {"run": "done", "part": "model", "repo_id": "me/mine"}, tmp_path)
    assert names["address"] == str(copy.parent / "published/me--mine") and (names["folder"] / "config.json").exists()


# A server that speaks the Hub's API

SCRIPT = """
import json, sys
from langsamp.core.errors import UserError
from langsamp.evaluation.publish import push_to_hub
from langsamp.params.pretrain import PretrainParams
from langsamp.params.publish import PublishParams
from langsamp.training.pretrain import pretrain
outputs, *stages = sys.argv[1:]
for kind, values in map(json.loads, stages):
    try:
        if kind == "run":
            pretrain(PretrainParams(**values), outputs)
        else:
            print(json.dumps(push_to_hub(PublishParams(dry_run=False, **values), outputs)))
    except UserError as error:
        print(json.dumps(f"refused: {error}"))
"""


def in_process(url: str, home: Path, script: str, *words: str, **more: str) -> list[Any]:
    "What a process with another Hub and an empty cache prints, line by line; progress aside."
    names = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf"), "HF_TOKEN": hub_server.TOKEN}
    names |= {"HF_HUB_DISABLE_XET": "1", "LANGSAMP_CACHE": str(home / "cache")}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=os.environ | names | more, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in '"{[']


@pytest.fixture(scope="module")
def hub(stock, tmp_path_factory) -> Iterator[tuple[str, hub_server.Store]]:
    "A Hub with an encoder, `somebody/encoder`, and a dataset in three languages, `somebody/texts`."
    home = tmp_path_factory.mktemp("hub")
    encoder = shutil.copytree(stock, home / "encoder")
    tiny.write(encoder / "README.md", "---\nlicense: mit\n---\n\nAn encoder.\n")
    rows = []
    for code in tiny.ALPHABETS:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in tiny.sentences(code, 60))
        tiny.write(home / f"texts/{code}/train.jsonl", lines)
        rows.append(f"- config_name: {code}\n  data_files: [{{split: train, path: '{code}/train.jsonl'}}]")
    tiny.write(home / "texts/README.md", "\n".join(["---", "license: odc-by", "configs:", *rows, "---", ""]))
    with hub_server.hub_server() as (url, store):
        store.add("models/somebody/encoder", encoder)
        store.add("datasets/somebody/texts", home / "texts")
        yield url, store


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory) -> tuple[Path, list[str]]:
    "A run on an encoder and text of the Hub, both its folders pushed, and what was printed."
    url, _ = hub
    home = tmp_path_factory.mktemp("client")
    names = {"run_name": "far", "backbone": "somebody/encoder", **QUICK}
    p = tiny.params_of(Path("hub:somebody/texts"), **names).model_dump()
    stages = [["run", p], ["push", {"run": "far", "repo_id": "me/far"}]]
    stages += [["push", {"run": "far", "part": "model", "repo_id": "me/far-model", "private": False}]]
    stages += [["push", {"run": "far", "repo_id": "me/far-model"}], ["push", {"run": "far", "repo_id": "others/far"}]]
    printed = in_process(url, home, SCRIPT, str(home / "outputs"), *map(json.dumps, stages))
    return home, [line for line in printed if isinstance(line, str)]


@pytest.mark.slow
def test_a_run_reads_model_tokenizer_and_text_from_the_hub_with_their_licences(hub, published):
    (home, _), (_, store) = published, hub
    (origin,) = read_json(home / "outputs/far/corpus.json")["origins"]
    sha = store.repos["datasets/somebody/texts"].sha
    languages = dict.fromkeys(tiny.ALPHABETS, "odc-by")
    assert origin == {"source": "hub:somebody/texts", "revision": sha, "languages": languages}
    metadata = metadata_load(home / "outputs/far/backbone/README.md")
    assert (metadata["base_model"], metadata["license"]) == ("somebody/encoder", "mit")
    assert metadata["datasets"] == ["somebody/texts"] and metadata["language"] == ["en", "hi", "ru"]
    asked = [line for line in store.asked if line.startswith("GET /somebody/encoder/resolve/")]
    assert {line.rpartition("/")[2] for line in asked} >= {"model.safetensors", "tokenizer.json", "README.md"}


@pytest.mark.slow
def test_a_push_uploads_every_byte_and_is_private_by_default(hub, published):
    (home, printed), (url, store) = published, hub
    assert printed[:2] == [f"{url}/me/far", f"{url}/me/far-model"]
    for name, part, private in (("far", "backbone", True), ("far-model", "model", False)):
        repo = store.repos[f"models/me/{name}"]
        wanted = {p.name: p.read_bytes() for p in (home / "outputs/far" / part).iterdir()}
        assert repo.private == private and repo.files.keys() == wanted.keys()
        assert [n for n in wanted if n != "README.md" and repo.files[n] != wanted[n]] == []
        assert f'from_pretrained("me/{name}")' in repo.files["README.md"].decode()
    assert store.blobs, "weights are uploaded as large files"
    assert re.match("refused: me/far-model is there already and public", printed[2])
    assert re.match("refused: others/far was not uploaded .*rights.*hf auth login", printed[3])


@pytest.mark.slow
def test_what_was_pushed_is_read_back_by_its_name(hub, published, tmp_path):
    "By the stock library with a token; without one the private model is refused."
    (home, _), (url, store) = published, hub
    read = "import json, sys; from transformers import AutoModel as A; m = A.from_pretrained('me/far'); "
    read += "print(json.dumps([float(w.double().sum()) for w in m.parameters()][:3] + ['langsamp' in sys.modules]))"
    *sums, imported = in_process(url, tmp_path, read)[-1]
    local = [
        float(w.detach().double().sum()) for w in AutoModel.from_pretrained(home / "outputs/far/backbone").parameters()
    ]
    assert sums == local[:3] and imported is False
    shown = "\n".join(BLOCK.findall(store.repos["models/me/far-model"].files["README.md"].decode()))
    assert "me/far-model" in shown and in_process(url, tmp_path, shown + "\nprint('[1]')") == [[1]]
    stage = json.dumps(["push", {"run": "far", "repo_id": "me/far"}])
    (refused,) = in_process(url, home, SCRIPT, str(home / "outputs"), stage, HF_TOKEN="wrong")
    assert re.match("refused: me/far was not uploaded .*hf auth login", refused)
    (refused,) = in_process("http://127.0.0.1:9", home, SCRIPT, str(home / "outputs"), stage)
    assert re.match("refused: me/far was not uploaded .*check the network", refused)


@pytest.mark.slow
def test_a_corpus_is_pushed_as_a_dataset_that_loads(hub, texts, tmp_path):
    url, store = hub
    sources, _ = find_corpus(str(texts))
    write_corpus(sources, tmp_path / "outputs/corpora/mine", origins=corpus_origins(sources))
    stage = json.dumps(["push", {"run": "corpora/mine", "repo_id": "me/mine"}])
    assert in_process(url, tmp_path, SCRIPT, str(tmp_path / "outputs"), stage) == [f"{url}/datasets/me/mine"]
    assert store.repos["datasets/me/mine"].private and store.repos["datasets/me/mine"].card["license"] == "cc-by-4.0"
    load = "import json; from datasets import load_dataset; d = load_dataset('me/mine', 'hin_Deva'); "
    load += "print(json.dumps({k: list(v['text']) for k, v in d.items()}))"
    found = in_process(url, tmp_path, load)[-1]
    wanted = tiny.sentences("hin_Deva", 68)
    assert found == {"train": wanted[:60], "validation": wanted[60:]}


@pytest.mark.slow
def test_the_tutorial_goes_from_three_files_in_an_empty_folder_to_a_published_model(stock, tmp_path):
    "One language without a code and one in a new script, through papermill; the Hub has every byte, and the card."
    for code, original in {"eng_Latn": "eng_Latn", "qaa_Latn": "swh_Latn", "div_Thaa": "div_Thaa"}.items():
        text = (udhr_corpus() / f"text/train/{original}.txt").read_text(encoding="utf-8")
        tiny.write(tmp_path / f"walk/texts/{code}.txt", text)
    tiny.write(tmp_path / "walk/texts/README.md", "---\nlicense: cc-by-4.0\n---\n")
    values = {"corpus": "texts", "backbone": str(stock), "repo_id": "me/walk", "max_steps": "12", "dry_run": "False"}
    options = [word for name, value in values.items() for word in ("-p", name, value)]
    with hub_server.hub_server() as (url, store):
        names = {
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": hub_server.TOKEN,
        }
        names |= {"HF_HUB_DISABLE_XET": "1", "LANGSAMP_OUTPUTS": ""}
        command = [sys.executable, "-m", "papermill", str(tiny.ROOT / "nbs/tutorials/own_text.ipynb"), "walk.ipynb"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path / "walk", env=os.environ | names, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        repo = store.repos["models/me/walk"]
    made = tmp_path / "walk/outputs/own-text/backbone"
    assert {p.name for p in (tmp_path / "walk").iterdir()} == {"texts", "outputs", "walk.ipynb"}
    assert repo.private and repo.files.keys() == {p.name for p in made.iterdir()}
    assert [n for n in repo.files if n != "README.md" and repo.files[n] != (made / n).read_bytes()] == []
    card = repo.files["README.md"].decode()
    assert [
        word for word in ("qaa_Latn", "div_Thaa", "cc-by-4.0", "tokens added", '"me/walk"') if word not in card
    ] == []
