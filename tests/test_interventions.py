"Interventions on sentence embeddings change what they should, and the controls nothing."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from langsamp.analysis import interventions
from langsamp.analysis.interventions import (
    LanguageVectors,
    conclusion,
    effects,
    encode_languages,
    measure_layer,
    paired_differences,
    verdicts,
)
from langsamp.evaluation.datasets import LabelledDataset, LabelledTexts

CODES = ["arb_Arab", "deu_Latn", "eng_Latn", "fin_Latn", "hin_Deva", "jpn_Jpan", "rus_Cyrl", "tur_Latn"]
TOPICS = ("sports", "travel", "health")


def made_up(spread: float, width: int = 24, seed: int = 0) -> LanguageVectors:
    "Parallel sentences on three topics; the languages are moved away from each other, also across topics."
    random = np.random.default_rng(seed)
    moves_LH = spread * random.standard_normal((len(CODES), width))
    topics_TH = 1.5 * random.standard_normal((3, width))

    def sentences(count: int) -> tuple[np.ndarray, list[str]]:
        topic_K = np.arange(count) % 3
        x_KH = topics_TH[topic_K] + random.standard_normal((count, width))
        noise_LKH = 0.3 * random.standard_normal((len(CODES), count, width))
        return x_KH + moves_LH[:, None] + noise_LKH, [TOPICS[topic] for topic in topic_K]

    (fit, _), (test, labels), (train, names), (dev, others) = (sentences(n) for n in (90, 60, 90, 60))
    english = CODES.index("eng_Latn")
    source = [(train[english], names), (dev[english], others)]
    return LanguageVectors(CODES, fit, test, [labels] * len(CODES), source)


@pytest.fixture(scope="module")
def table():
    found, embeddings_LH = [], np.random.default_rng(1).standard_normal((len(CODES), 24))
    embeddings_LH[0] = np.nan
    for seed in (0, 1):
        rows = pd.DataFrame(measure_layer(made_up(2.0, seed=seed), 7, 3, embeddings_LH))
        found.append(rows.assign(label="A", run=f"a{seed}", seed=seed, layer=1))
    plain = pd.DataFrame(measure_layer(made_up(0.0), 7, 3)).assign(label="B", run="b", seed=0, layer=1)
    return pd.concat([*found, plain])


def test_what_separates_languages_can_be_removed_and_a_random_subspace_cannot(table):
    "By means as by directions; then English labels serve all languages. The control does neither."
    means = table[(table.label == "A") & (table.language != "eng_Latn")].groupby("intervention")
    means = means[["neutrality", "transfer", "retrieval"]].mean()
    for name in ("language means removed", "language subspace removed"):
        assert means.neutrality[name] > 0.9 > 0.5 > means.neutrality["none"]
        assert means.transfer[name] > means.transfer["none"] + 0.03
        assert means.retrieval[name] > means.retrieval["none"]
    assert abs(means.neutrality["random subspace removed"] - means.neutrality["none"]) < 0.1


def test_languages_without_an_embedding_are_left_out_of_the_rows_that_add_one(table):
    added = table[table.intervention.isin(["own embedding added", "other embedding added"])]
    assert {*added.language} == {*CODES[1:]} and {*table[table.label == "B"].intervention} & {
        *added.intervention
    } == set()


def test_changes_are_within_an_encoder_and_between_runs_of_one_seed(table):
    rows = paired_differences(table, "B")
    assert "eng_Latn" not in set(rows.language) and not (rows.intervention == "none").any()
    trained = rows[rows.intervention == "training"]
    assert set(trained.run) == {"a0"} and (trained.neutrality < 0).all()
    key = "run == 'a0' and language == 'fin_Latn' and classifier == 1"
    one, row = table.query(key).set_index("intervention").transfer, rows.query(key).set_index("intervention").transfer
    assert row["language means removed"] == pytest.approx(one["language means removed"] - one["none"])


def test_controls_are_drawn_again_for_each_classifier(table):
    "And nothing else is: a mean or a subspace of languages is the same for all of them."
    neutrality = table[table.run == "a0"].pivot(index=["intervention", "language"], columns="classifier").neutrality
    same = (neutrality.nunique(axis=1) == 1).groupby("intervention").all()
    assert not same[list(interventions.CONTROLS)].any() and same.drop(list(interventions.CONTROLS)).all()


def test_intervals_know_that_languages_share_a_classifier():
    "Three classifiers that gain 0.00, 0.03 and 0.06 in every language are no sure gain of 0.03."
    rows = pd.DataFrame(
        [(code, n, 0.03 * n) for code in CODES for n in range(3)], columns=["language", "classifier", "x"]
    )
    rows = rows.assign(neutrality=rows.x, transfer=rows.x, label="A", intervention="I", layer=1, seed=0)
    found = interventions.mediation(rows, n_resamples=500)
    assert found["transfer"] == pytest.approx(0.03)
    assert found["transfer low"] == pytest.approx(0) and found["transfer high"] == pytest.approx(0.06)


def test_effects_add_up_and_the_controls_do_nothing(table):
    found = effects(paired_differences(table, "B"), n_resamples=200)
    ours = found[found.label == "A"].set_index("intervention")
    assert (ours.loc[list(interventions.CONTROLS), "transfer low"] <= 0).all(), "they never help"
    assert ours.loc["random subspace removed", "transfer high"] >= 0
    assert np.allclose((ours.indirect + ours.direct - ours.transfer).dropna(), 0)
    assert ours.loc["language means removed", "transfer low"] > 0
    verdict = verdicts(found).set_index("intervention").verdict
    assert verdict["language means removed"] == verdict["language subspace removed"] == "agrees"
    assert not {*verdict.index} & {*interventions.CONTROLS} and "not refuted" in conclusion(verdicts(found))


def test_texts_are_read_split_by_split_at_the_asked_layers(monkeypatch):
    "A layer is a share of all; training text fits, test text measures, English trains."
    monkeypatch.setattr(
        interventions, "encode_layers", lambda texts, *_: np.array([[[n, float(t)] for t in texts] for n in range(13)])
    )
    split = {name: LabelledTexts([str(i + k) for k in range(5)], ["a"] * 5) for i, name in ((10, "train"), (20, "dev"))}
    split["test"] = LabelledTexts([str(30 + k) for k in range(4)], ["b"] * 4)
    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=12))
    encoder = SimpleNamespace(model=model, tokenizer=None, shifts={})
    sets = [LabelledDataset("sib200", code, code, split) for code in ("deu_Latn", "eng_Latn")]
    found = encode_languages(encoder, sets, [0.33, 0.67, 1.0])
    assert [*found] == [4, 8, 12]
    assert found[8].fit_LKH[0, 0].tolist() == [8, 10] and found[8].test_LKH[1, 3].tolist() == [8, 33]
    assert [x[0].tolist() for x, _ in found[8].source] == [[8, 10], [8, 20]]
