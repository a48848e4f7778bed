"What the geometry tests find where the answer is planted, and nothing where there is none."

import numpy as np
import pandas as pd
import pytest
import tiny
from matplotlib.figure import Figure

from langsamp.analysis import plots
from langsamp.analysis.embeddings import centred_cosines, code_facts, read_embeddings
from langsamp.analysis.feature_probes import (
    balanced_accuracy,
    family_folds,
    feature_labels,
    held_out_scores,
    probe_tests,
)
from langsamp.analysis.geometry import (
    STABILITY,
    Representations,
    known_similarity,
    procrustes_similarity,
    quartet_agreement,
    relation_tests,
    representations,
    resolved_quartets,
    seed_stability,
    shared_nodes,
    tree_tests,
)
from langsamp.analysis.typology import mantel_interval
from langsamp.languages.uriel import feature_rows, observed_agreement, uriel_features, uriel_similarity
from langsamp.training.pretrain import pretrain

NAMES = (
    "afr bul ces cym dan deu eng fra hin ita lit nld pol ron rus spa ekk fin hun kpv myv udm azj bak kaz kir tat tur "
)
NAMES += "ban ilo ind jav min tgl arb heb hau som"


@pytest.fixture(scope="module")
def facts() -> pd.DataFrame:
    "38 languages in scripts and with amounts of text that say nothing."
    random, names = np.random.default_rng(0), NAMES.split()
    found = code_facts([f"{name}_Latn" for name in names])
    return found.assign(script=random.choice(["Latn", "Cyrl"], len(names)), tokens=random.integers(9, 999, len(names)))


def invented(facts: pd.DataFrame, known_PX: np.ndarray, seed: int = 0) -> Representations:
    "A run whose sums are noise, script and something known; all other vectors are noise and script."
    random, script_P2 = np.random.default_rng(seed), 2 * pd.get_dummies(facts.script).to_numpy(float)
    kinds = ("sum", "initial", "token frequencies")
    vectors = {kind: np.hstack([random.normal(size=(len(facts), 16)), script_P2]) for kind in kinds}
    vectors["sum"] = np.hstack([vectors["sum"], known_PX])
    return Representations(facts, vectors, {kind: centred_cosines(x_PX) for kind, x_PX in vectors.items()})


def tree_of(facts: pd.DataFrame) -> np.ndarray:
    "The nodes above these languages."
    nodes = feature_rows(facts.index, "genealogy")
    return nodes.loc[:, nodes.any()].to_numpy()


def small(p: pd.Series, level: float = 0.05) -> float:
    return float((p <= level).mean())


# Relations


def test_a_planted_tree_is_found_and_noise_is_not(facts):
    tree_PX = tree_of(facts)
    by = ["embeddings", "question", "given"]
    found = relation_tests(invented(facts, 2 * tree_PX), 19).set_index(by)
    last = "script, size, token frequencies"
    assert found.p["sum", "genealogy", last] == 1 / 20 and found.low["sum", "genealogy", last] > 0.05
    nothing = pd.concat([relation_tests(invented(facts, 0 * tree_PX, seed), 9) for seed in range(2)])
    assert small(nothing.p, 0.1) < 0.2 and small(found.p["initial"]) < 0.2
    assert (found.holm >= found.p).all() and found.holm.max() == 1


def test_holding_genealogy_fixed_takes_most_of_a_planted_tree_and_leaves_planted_syntax(facts):
    "Most, not all: effects are removed as linear functions of ranks."
    syntax_PX = feature_rows(facts.index, "syntax", observed=True).fillna(0.5).to_numpy()
    last, left = "script, size, token frequencies, genealogy, geography", {}
    for name, known_PX in {"tree": 2 * tree_of(facts), "syntax": 2 * syntax_PX}.items():
        found = relation_tests(invented(facts, known_PX), 19)
        found = found[(found.embeddings == "sum") & (found.question == "syntax")].set_index("given")
        assert found.p[""] == 1 / 20
        left[name] = found.value[last] / found.value["script"]
    assert left["tree"] < 0.5 < left["syntax"]


def test_an_interval_covers_the_correlation_of_all_families():
    "Half of the languages are one family, in which the matrices agree; elsewhere they do not."
    random = np.random.default_rng(0)
    families = ["large"] * 15 + [f"small {n}" for n in range(15)]
    one, two = [centred_cosines(random.normal(size=(30, 5))) for _ in range(2)]
    found = mantel_interval(one, two, families, n_resamples=99)
    assert found["low"] < 0 < found["high"] and found["low"] < found["value"] < found["high"]
    agreeing = mantel_interval(one, one + 0.3 * two, families, n_resamples=99)
    assert agreeing["low"] > 0.3 and agreeing["high"] <= 1


# Typology


def test_observed_features_are_those_of_sources(facts):
    for kind in ("syntax", "phonology", "inventory"):
        seen, filled = uriel_features(kind, observed=True), uriel_features(kind)
        assert seen.shape == filled.shape and seen.isna().mean(axis=None) > 0.5 and not filled.isna().any(axis=None)
        assert seen.min(axis=None) == 0
    agreement = observed_agreement(list(facts.index), "syntax")
    known = np.isfinite(np.diag(agreement))
    assert 20 < known.sum() and np.isfinite(agreement[np.ix_(known, known)]).all()
    values = feature_rows(["eng_Latn", "hin_Deva"], "syntax", observed=True).dropna(axis=1).to_numpy()
    expected = 1 - np.mean(values[0] * (1 - values[1]) + values[1] * (1 - values[0]))
    assert observed_agreement(["eng_Latn", "hin_Deva"], "syntax")[0, 1] == pytest.approx(expected)


def test_estonian_has_relatives():
    "URIEL gives its nodes to the macrolanguage."
    assert uriel_similarity(["ekk_Latn", "fin_Latn"], "genealogy")[0, 1] > 0.5
    assert uriel_similarity(["eus_Latn", "fin_Latn"], "genealogy")[0, 1] == 0


# Trees


def test_quartets_are_those_of_the_tree():
    "((0 1) (2 3)) 4 5, with a star at the root."
    depth = np.zeros((6, 6))
    depth[:4, :4], depth[0, 1], depth[1, 0], depth[2, 3], depth[3, 2] = 1, 2, 2, 2, 2
    found = {frozenset((frozenset(four[:2]), frozenset(four[2:]))) for four in resolved_quartets(depth).tolist()}
    pairs = [((0, 1), (2, 3)), ((0, 1), (4, 5)), ((2, 3), (4, 5)), ((0, 2), (4, 5)), ((0, 1), (2, 4))]
    assert {frozenset((frozenset(a), frozenset(b))) for a, b in pairs} <= found
    assert len(found) == 15 and quartet_agreement(resolved_quartets(depth), depth) == 1
    assert len(resolved_quartets(shared_nodes([f"{x}_Latn" for x in NAMES.split()]), most=500)) == 500


def test_a_planted_tree_is_drawn_and_a_tree_of_noise_is_not(facts):
    tree_PX = tree_of(facts)
    found = tree_tests(invented(facts, 3 * tree_PX), 19).set_index(["embeddings", "measure", "given"])
    assert (found.p["sum"] == 1 / 20).all() and found.value["sum", "quartets", ""] > 0.7
    assert found.p["initial", :, "script"].min() > 1 / 20
    assert found.chance["sum", "quartets", ""] == pytest.approx(1 / 3, abs=0.05)


# Probes


def test_probes_find_planted_features_in_unseen_families_and_none_in_noise(facts):
    labels = feature_labels(facts, 28)
    known_PX = labels.fillna(0.5).to_numpy() - 0.5
    tables = [probe_tests(invented(facts, size * known_PX), 28, 9, 100) for size in (2, 0)]
    planted, noise = [table[table.features == "all"].set_index("vectors") for table in tables]
    assert planted.low["sum"] > 0.6 and planted.p["sum"] == 0.1
    assert planted["over token frequencies low"]["sum"] > 0 and planted["over script name low"]["sum"] > 0
    for table in (planted, noise):
        assert abs(table.value["initial"] - 0.5) < 0.1 and abs(table.value["sums of other languages"] - 0.5) < 0.1


def test_probes_of_noise_are_at_chance_on_average(facts):
    labels, folds_P = feature_labels(facts, 28).to_numpy(), family_folds(facts.family)
    found = []
    for seed in range(20):
        kernel = centred_cosines(np.random.default_rng(seed).normal(size=(len(facts), 16)))
        found.append(balanced_accuracy(held_out_scores(kernel, labels, folds_P), labels).mean())
    assert abs(np.mean(found) - 0.5) < 2.5 * np.std(found) / np.sqrt(len(found)) + 0.005


def test_a_family_does_not_help_to_predict_itself():
    "Vectors are the family, and labels too: nothing is left once the family is held out."
    families = np.repeat(np.arange(10), 6)
    labels = (families % 2)[:, None].astype(float)
    kernel = (families[:, None] == families) * 1.0
    out = balanced_accuracy(held_out_scores(kernel, labels, family_folds(families, 10)), labels)
    seen = balanced_accuracy(held_out_scores(kernel, labels, np.arange(60) % 6), labels)
    assert out.item() == 0.5 and seen.item() == 1
    assert all(len({*family_folds(families)[families == name]}) == 1 for name in range(10))


def test_features_without_enough_languages_or_families_are_left_out(facts):
    labels = feature_labels(facts, 28)
    assert labels.notna().sum().min() >= 28 and len(feature_labels(facts, 20).columns) > len(labels.columns)
    families = facts.family.to_numpy()
    for _, column in labels.items():
        assert min(len({*families[column == value]}) for value in (0, 1)) >= 3
    assert probe_tests(invented(facts, np.zeros((len(facts), 0))), 99).empty


# Seeds


def test_turned_vectors_agree_and_others_do_not(facts):
    known_PX = np.random.default_rng(5).normal(size=(len(facts), 8))
    one, two, other = [invented(facts, known_PX * x, seed) for x, seed in ((1, 1), (1, 2), (0, 3))]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(26, 26)))[0]
    assert procrustes_similarity(one.vectors["sum"], 3 * one.vectors["sum"] @ turn + 1) == pytest.approx(1)
    assert STABILITY["cka"](one.vectors["sum"], 3 * one.vectors["sum"] @ turn + 1) == pytest.approx(1)
    table = seed_stability({"one": one, "two": two, "other": other}, 19).set_index(["first", "second", "embeddings"])
    within = table[table.given == "script"].sort_index()
    assert (within.p["one", "two", "sum"] == 0.05).all() and small(within.p["one", "other"]) <= 0.25
    assert within.p["one", "two", "initial"].min() > 0.05


# Runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Two seeds on eight languages, one of which has no coordinates; a third run is so short that one has no sequence."
    home = tmp_path_factory.mktemp("outputs")
    alphabets = {"Latn": "abcdefghijklmnop", "Cyrl": "абвгдежзиклмнопр"}
    codes = "eng_Latn deu_Latn fin_Latn tur_Latn ind_Latn arb_Latn rus_Cyrl kaz_Cyrl ido_Latn".split()
    for code in codes:
        random = np.random.default_rng([*code.encode()])
        words = ["".join(random.choice(list(alphabets[code[4:]]), random.integers(2, 6))) for _ in range(60)]
        lines = [" ".join(random.choice(words, 8)) for _ in range(80)]
        tiny.write(home / f"text/train/{code}.txt", "\n".join(lines[:60]))
        tiny.write(home / f"text/validation/{code}.txt", "\n".join(lines[60:]))
    for name, seed, steps in (("one", 7, 20), ("two", 8, 20), ("short", 7, 1)):
        size = {"max_steps": steps, "save_steps": steps, "warmup_steps": 0}
        pretrain(tiny.params_of(home / "text", run_name=name, seed=seed, **size), home)
    return home


def test_languages_without_training_text_or_place_are_left_out(home):
    short, whole = representations(home / "short"), representations(home / "one")
    trained = read_embeddings(home / "short")
    assert trained.excluded and {*short.facts.index} <= {*trained.facts.index} and len(short.facts) < len(whole.facts)
    assert "ido_Latn" not in whole.facts.index and len(whole.facts) == 8
    assert {len(x) for x in whole.vectors.values()} == {len(x) for x in whole.similarity.values()} == {8}
    assert np.isfinite(whole.similarity["language"]).any(1).sum() == 6, "Latin is the largest component"
    assert np.isnan(known_similarity(whole.facts)["genealogy"]).sum() == 0


def test_the_page_shows_each_table(home, monkeypatch):
    "Each parameter has its effect."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home))
    base = {"runs": ["one", "two"], "min_languages": 6, "n_permutations": 2, "n_resamples": 9, "name": "page"}
    found = tiny.run_notebook("figures/geometry", base, home)
    for name in ("relations", "probes", "tree"):
        assert (home / f"figures/page-{name}.png").exists()
    tables = {
        name: pd.read_csv(home / f"figures/page-{name}.csv")
        for name in ("relations", "probes", "features", "trees", "stability")
    }
    assert {*tables["stability"]["first"]} == {"one"} and not any(table.empty for table in tables.values())
    others = {"runs": ["one"], "min_languages": 30, "n_permutations": 3, "n_resamples": 12, "seed": 1}
    monkeypatch.setattr(plots, "write_png", lambda figure, path: path.write_bytes(b""))
    monkeypatch.setattr(Figure, "savefig", lambda *_, **more: None)
    changed = tiny.run_notebook("figures/geometry", base | others | {"name": "other"}, home)
    assert (
        changed["stability"].empty
        and not found["stability"].empty
        and len(changed["features"]) < len(found["features"])
    )
    assert not changed["relations"].p.equals(found["relations"].p)
