"An encoder with embeddings at its input is told the right language, wherever texts of a known language are encoded."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from langsamp.analysis import losses_by_id
from langsamp.analysis.interventions import encode_languages
from langsamp.analysis.losses_by_id import IDS, _OtherIds, losses_with_ids, other_id_differences
from langsamp.analysis.neutrality import family_resamples
from langsamp.analysis.neutrality_plots import ParallelText, neutrality_table
from langsamp.analysis.plots import validation_losses
from langsamp.analysis.source_ranking import unlabelled_relations
from langsamp.analysis.transfer import transfer_matrix
from langsamp.core.errors import UserError
from langsamp.encoding.fill_mask import open_model
from langsamp.encoding.open_encoder import open_encoder
from langsamp.evaluation.datasets import load_labelled
from langsamp.evaluation.evaluate import evaluate
from langsamp.model.langsamp import language_script_ids
from langsamp.params.evaluate import EvaluationParams, TransferParams
from langsamp.training.loop import Trainer
from langsamp.training.prepare import open_run, training_data
from langsamp.training.pretrain import pretrain

CODES = ("eng_Latn", "hin_Deva", "rus_Cyrl")
TOPICS = ("sports", "travel", "health")


@pytest.fixture(scope="module")
def home(corpus, tmp_path_factory) -> Path:
    "Outputs with a run whose embeddings are at the input, and small data sets beside it."
    home = tmp_path_factory.mktemp("given")
    pretrain(tiny.params_of(corpus, run_name="below", variant="input", max_steps=2, save_steps=2, warmup_steps=1), home)
    for number, code in enumerate(CODES):
        for split, count in (("train", 30), ("dev", 9), ("test", 12)):
            texts = tiny.sentences(code, count, seed=7 * number + count)
            rows = [f"{i}\t{TOPICS[i % 3]}\t{text}" for i, text in enumerate(texts)]
            tiny.write(home / f"sets/sib200/{code}/{split}.tsv", "\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
    return home


@pytest.fixture
def large(monkeypatch) -> None:
    "Embeddings of two steps are small: those of the run are multiplied where they are read."
    from langsamp.encoding import open_encoder as module

    small = module._input_embeddings
    monkeypatch.setattr(module, "_input_embeddings", lambda *given: 300 * small(*given))


def values(home: Path, encoder: str, task: str, **more) -> list[float]:
    p = EvaluationParams(encoder=encoder, tasks=[task], data_dir=str(home / "sets"), seeds=1, **more)
    rows = evaluate(p, home)[0]
    return rows[~rows.metric.str.startswith("chance")].sort_values(["target", "metric", "mode"]).value.tolist()


@pytest.mark.parametrize("task", ["sib200-parallel", "sib200"])
def test_an_evaluation_names_the_language_of_its_texts(home, large, task):
    "A classifier over token frequencies finds the same languages, so both have the same scores; without, others."
    given, identified, alone = (values(home, f"below{how}", task) for how in ("@given", "@identified", ""))
    assert np.allclose(given, identified, atol=1e-6) and not np.allclose(given, alone, atol=1e-3)


def test_neutrality_and_transfer_name_it_too(home, large, monkeypatch):
    monkeypatch.setenv("LANGSAMP_DATA", str(home / "sets"))
    datasets = load_labelled("sib200")[0]
    text = ParallelText(list(CODES), [one.splits["test"].texts for one in datasets], [])
    found = {}
    for how in ("@given", "@identified", ""):
        p = TransferParams(encoder=f"below{how}", seeds=1)
        vectors = encode_languages(open_encoder(p.encoder, home), datasets, [1.0])
        measured = neutrality_table({"one": [p.encoder]}, text, family_resamples(list(CODES), 5, 0), home)
        scores, similar = transfer_matrix(p, home)
        tables = [scores.value, similar["mean vector"], unlabelled_relations(p, home)["NN-Rank"].dropna()]
        tables += [*(x.test_LKH.ravel() for x in vectors.values()), measured[measured.run == p.encoder].value]
        found[how] = [np.asarray(x, float) for x in tables]
    for given, identified, alone in zip(*found.values(), strict=True):
        assert np.allclose(given, identified, atol=1e-4) and not np.allclose(given, alone, atol=1e-3)


def test_a_model_returns_each_hidden_state_once(home):
    "Every call with ids makes a copy of the encoder, which shares the layers and their hooks."
    model, tokenizer = open_model(home / "below")
    (language,), (script,) = language_script_ids(["rus_Cyrl"], model.config)
    ids = {"language_ids": language[None], "script_ids": script[None]}
    text = tokenizer("Москва", return_tensors="pt")["input_ids"]
    counts = [len(model(text, **ids, output_hidden_states=True).hidden_states) for _ in range(3)]
    assert counts == 3 * [model.config.backbone_config.num_hidden_layers + 1]


def test_fine_tuning_does_not_name_it(home):
    with pytest.raises(UserError, match="which fine-tuning does not give; use frozen"):
        values(home, "below@given", "sib200", mode="fine-tuned")


@pytest.mark.parametrize("variant", ["language", "language+script", "input", "input+output", "logits"])
def test_losses_with_other_ids(corpus, tmp_path, variant):
    "Texts in different scripts are identified whatever ids are given; with the mean embedding, ids make no difference."
    short = {"max_steps": 40, "save_steps": 40, "learning_rate": 2e-2, "dropout": 0.0}
    p = tiny.params_of(corpus, run_name="run", variant=variant, **short)
    pretrain(p, tmp_path)
    found = {ids: losses_with_ids(tmp_path / "run", ids).set_index("code").loss for ids in IDS}
    right = validation_losses(tmp_path / "run").query("exported").set_index("code").loss
    assert np.allclose(found["identified"], right, atol=1e-4)
    assert not np.allclose(found["none"], right, atol=1e-3) and not np.allclose(found["mean"], right, atol=1e-3)
    assert not np.allclose(found["mean"], found["none"], atol=1e-4)
    model, data = open_model(tmp_path / "run")[0], training_data(*open_run(tmp_path / "run"))
    for ids, same in {"identified": right, "mean": found["mean"]}.items():
        change = IDS[ids](model, data)  # `mean` changes the model, so it is last
        trainer = _OtherIds(model, data, p, change=lambda inputs, change=change: change(swapped(inputs)))
        wrong = {code: loss for code, (loss, _) in trainer.validate()["by_language_script"].items()}
        assert np.allclose([wrong[code] for code in same.index], same, atol=1e-4), ids


def swapped(inputs: dict) -> dict:
    "Inputs with the ids of other languages and scripts."
    names = ("language_ids", "script_ids")
    return inputs | {name: (inputs[name] + 1) % len(CODES) for name in names}


@pytest.mark.parametrize("variant", ["language+script", "input"])
def test_embeddings_that_say_nothing_make_no_id_worse(corpus, tmp_path, variant, monkeypatch):
    "With tables of zeros, the difference of every other id is null in every language."
    pretrain(tiny.params_of(corpus, run_name="run", variant=variant, max_steps=4, warmup_steps=1), tmp_path)

    def emptied(run):
        model, tokenizer = open_model(run)
        tables = [
            part for name, part in model.named_modules() if name.endswith(("language_embeddings", "script_embeddings"))
        ]
        assert tables and all(table.weight.data.abs().max() > 0 for table in tables)
        [table.weight.data.zero_() for table in tables]
        return model, tokenizer

    monkeypatch.setattr(losses_by_id, "open_model", emptied)
    (model, _), (p, kept) = emptied(tmp_path / "run"), open_run(tmp_path / "run")
    right = {
        code: loss
        for code, (loss, _) in Trainer(model, training_data(p, kept), p).validate()["by_language_script"].items()
    }
    recorded = pd.DataFrame({"run": "run", "code": right.keys(), "loss": right.values(), "exported": True})
    monkeypatch.setattr(losses_by_id, "validation_losses", lambda run: recorded)
    found = other_id_differences({"one": [tmp_path / "run"]}, ["none", "mean", "identified"], 50)
    assert len(found) == 3 and found.difference.abs().max() < 1e-6
    assert (found.low <= 0).all() and (found.high >= 0).all()


@pytest.mark.parametrize("variant", ["baseline", "shuffled"])
def test_a_run_that_reads_no_ids_is_refused(corpus, tmp_path, variant):
    pretrain(tiny.params_of(corpus, run_name="run", variant=variant, max_steps=2, warmup_steps=1), tmp_path)
    with pytest.raises(UserError, match="ids make no difference"):
        losses_with_ids(tmp_path / "run", "mean")
    assert other_id_differences({"one": [tmp_path / "run"]}, ["mean"], 50).empty
