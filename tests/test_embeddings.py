"The free offset is removed, tests of families have their nominal level, and levels of text have equal size."

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy.stats import spearmanr

from langsamp.analysis.embedding_plots import similarity_heatmap, sum_map
from langsamp.analysis.embeddings import (
    LearnedEmbeddings,
    centred_cosines,
    code_facts,
    components,
    fix_offset,
    initial_embeddings,
    principal_components,
    read_embeddings,
    trained_sequences,
)
from langsamp.analysis.resources import exported_losses, level_differences, resource_levels
from langsamp.analysis.typology import (
    family_tests,
    language_relations,
    mantel,
    neighbour_accuracy,
    one_script_per_language,
    run_agreement,
    similarity_matrices,
)
from langsamp.core.errors import UserError
from langsamp.model.langsamp import from_backbone, language_script_ids
from langsamp.training.pretrain import pretrain

CODES = "aze_Cyrl aze_Latn deu_Latn eng_Latn hin_Deva npi_Deva rus_Cyrl tha_Thai".split()


def made_up(codes: list[str], seed: int = 0, width: int = 6) -> LearnedEmbeddings:
    "Random embedding tables."
    random, facts = np.random.default_rng(seed), code_facts(codes).assign(tokens=1, sequences=1)
    tables = [{name: random.normal(size=width) for name in sorted(set(facts[kind]))} for kind in ("language", "script")]
    rows = [np.stack([table[x] for x in facts[kind]]) for kind, table in zip(("language", "script"), tables)]
    return LearnedEmbeddings(facts, *rows, [])


def random_codes(seed: int) -> list[str]:
    "Random pairs of real languages and scripts."
    random = np.random.default_rng(seed)
    languages, scripts = "aze deu eng hin npi rus tha uzn".split(), "Arab Cyrl Deva Latn Thai".split()
    pairs = {f"{random.choice(languages)}_{random.choice(scripts)}" for _ in range(12)}
    return sorted(pairs)


# The free offset


@pytest.mark.parametrize("seed", range(20))
def test_the_free_offset_of_a_component_is_removed(seed):
    codes = random_codes(seed)
    embeddings, numbers = made_up(codes, seed), components(codes)
    shift_PH = np.random.default_rng(seed).normal(0, 10, (len(codes), 6))[numbers]
    shifted = replace(
        embeddings, language_PH=embeddings.language_PH + shift_PH, script_PH=embeddings.script_PH - shift_PH
    )
    assert not np.allclose(shifted.language_PH, embeddings.language_PH)
    for name in ("language_PH", "script_PH", "sums_PH"):
        there, here = getattr(fix_offset(shifted), name), getattr(fix_offset(embeddings), name)
        assert np.abs(there - here).max() < 1e-6, name
    assert np.abs(fix_offset(embeddings).sums_PH - embeddings.sums_PH).max() < 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_a_component_has_all_connected_codes(seed):
    "Two codes that share a language or script are of one component; walking from code to code finds all of it."
    codes = random_codes(seed)
    numbers, parts = components(codes), [set(code.split("_")) for code in codes]
    reached = [{0}]
    while len(reached[-1]) < len(codes):
        here = {i for i, part in enumerate(parts) if any(part & parts[j] for j in reached[-1])} | reached[-1]
        if here == reached[-1]:
            break
        reached.append(here)
    assert {i for i, number in enumerate(numbers) if number == numbers[0]} == reached[-1]


def test_fix_offset_centres_each_component_with_each_language_once():
    fixed = fix_offset(made_up(CODES))
    assert np.allclose(fixed.language_PH[0], fixed.language_PH[1]), "Azerbaijani has one vector, in Cyrillic and Latin"
    assert components(CODES).tolist() == [0, 0, 0, 0, 1, 1, 0, 2]
    once = fixed.language_PH[[1, 2, 3, 6]]
    assert np.allclose(once.mean(0), 0) and np.allclose(fixed.language_PH[7], 0)
    assert not np.allclose(fixed.language_PH[:4].mean(0), 0), "languages are counted once, not once per script"


def test_another_shift_is_not_removed():
    embeddings = made_up(CODES)
    other = replace(embeddings, language_PH=embeddings.language_PH + np.arange(len(CODES))[:, None])
    assert not np.allclose(fix_offset(other).language_PH, fix_offset(embeddings).language_PH)


def test_the_loss_does_not_depend_on_the_free_offset():
    "Languages shift by c and scripts by -c within a component; without the scripts, the loss changes."
    config = tiny.config(100, 20, num_hidden_layers=1)
    model = from_backbone(config, ["aze", "deu", "rus", "tha"], ["Cyrl", "Latn", "Thai"]).double()
    codes = ["aze_Cyrl", "aze_Latn", "deu_Latn", "rus_Cyrl", "tha_Thai"]
    tokens, ids = (
        torch.randint(5, 100, (5, 12), generator=torch.manual_seed(0)),
        language_script_ids(codes, model.config),
    )

    def loss() -> float:
        with torch.no_grad():
            return model(input_ids=tokens, labels=tokens, language_ids=ids[0], script_ids=ids[1]).loss.item()

    before, c = loss(), torch.randn(32, generator=torch.manual_seed(1)).double()
    with torch.no_grad():
        model.language_embeddings.weight[:3] += c
    shifted = loss()
    with torch.no_grad():
        model.script_embeddings.weight[:2] -= c
    assert abs(loss() - before) < 1e-10 < 1e-3 < abs(shifted - before)


# The tables of a run


@pytest.fixture(scope="module")
def short(corpus, tmp_path_factory) -> Path:
    "Two updates of two sequences: one of three language-scripts is never sampled."
    outputs = tmp_path_factory.mktemp("short")
    overrides = {
        "max_steps": 2,
        "global_batch_size": 2,
        "micro_batch_size": 2,
        "warmup_steps": 0,
        "save_steps": 2,
        "dropout": 0.0,
    }
    for name, variant in [("short", "language+script"), ("language", "language"), ("baseline", "baseline")]:
        pretrain(tiny.params_of(corpus, run_name=name, variant=variant, seed=6, **overrides), outputs)
    return outputs


def test_rows_are_excluded_exactly_if_training_did_not_change_them(short):
    drawn = trained_sequences(short / "short")
    idle = drawn.index[drawn == 0]
    assert drawn.sum() == 4 and len(idle) == 1, "the seed of this fixture leaves one language-script without a sequence"
    trained, start = read_embeddings(short / "short"), initial_embeddings(short / "short")
    assert trained.excluded == idle[0].split("_") == start.excluded
    assert list(trained.facts.index) == list(drawn.index[drawn > 0]) == list(start.facts.index)
    for name in ("language_PH", "script_PH"):
        assert (getattr(trained, name) != getattr(start, name)).any(axis=1).all(), name


def test_a_variant_without_script_embeddings_has_zeros_and_one_without_language_embeddings_is_an_error(short):
    assert (
        not read_embeddings(short / "language").script_PH.any()
        and read_embeddings(short / "language").language_PH.any()
    )
    assert not initial_embeddings(short / "language").script_PH.any()
    with pytest.raises(UserError, match="run baseline has variant `baseline` and no language embeddings"):
        read_embeddings(short / "baseline")
    with pytest.raises(UserError, match="no run at .*nothing"):
        read_embeddings(short / "nothing")


def test_all_matrices_have_the_same_languages_and_training_changes_them(unbroken):
    facts, matrices = similarity_matrices(unbroken)
    assert {len(matrix) for matrix in matrices.values()} == {len(facts)} == {3}
    assert not np.allclose(matrices["trained"], matrices["initial"])
    assert all(np.allclose(np.diag(matrix), 1) for matrix in matrices.values())


# Similarity and maps


def test_centred_cosines_do_not_depend_on_offset_rotation_or_scale():
    random = np.random.default_rng(0)
    points, turn = random.normal(size=(12, 5)), np.linalg.qr(random.normal(size=(5, 5)))[0]
    assert np.allclose(centred_cosines(points), centred_cosines(3 * points @ turn + 9))
    assert not np.allclose(centred_cosines(points), centred_cosines(points * [9, 1, 1, 1, 1]))


def test_a_map_does_not_depend_on_order_or_rotation():
    random = np.random.default_rng(1)
    points = random.normal(size=(30, 5)) * [9, 5, 1, 1, 1]
    order, turn = random.permutation(30), np.linalg.qr(random.normal(size=(5, 5)))[0]
    places, share = principal_components(points)
    assert np.allclose(principal_components(points[order] @ turn)[0], places[order])
    assert np.allclose(principal_components(-points)[0], places)
    assert np.isclose(share.sum(), (places**2).sum() / ((points - points.mean(0)) ** 2).sum())


def test_figures_have_the_numbers_of_their_tables():
    embeddings = made_up(CODES)
    _, table = sum_map(embeddings)
    assert np.allclose(table[["component_1", "component_2"]], principal_components(embeddings.sums_PH)[0])
    _, table = similarity_heatmap(embeddings, ["eng_Latn", "tha_Thai"])
    expected = centred_cosines(embeddings.sums_PH)[3, 7]
    assert table.set_index("code").loc["eng_Latn", "tha_Thai"] == expected, "all languages are centred, not the two"
    with pytest.raises(
        UserError, match=r"no trained embeddings of eng_Latin; did you mean `eng_Latn`\?; the run has 8"
    ):
        similarity_heatmap(embeddings, ["eng_Latin"])


# Neighbours


def test_a_language_in_two_scripts_is_used_once_in_the_script_with_more_text():
    facts = code_facts(CODES).assign(tokens=[1, 2, 3, 3, 3, 3, 3, 3])
    assert one_script_per_language(facts) == CODES[1:]
    assert one_script_per_language(facts.assign(tokens=[2, 1, 3, 3, 3, 3, 3, 3])) == CODES[:1] + CODES[2:]


def test_a_language_alone_in_its_family_is_not_counted():
    points = np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1], [-5, -5]])
    found = neighbour_accuracy(centred_cosines(points), list("aabbc"), n_neighbors=1, n_resamples=20)
    assert found["value"] == 1 and found["items"] == 4
    assert neighbour_accuracy(centred_cosines(points), list("abcde"), n_resamples=5)["items"] == 0


def share_of_small_p(test, trials: int = 60) -> float:
    "How often p is at most 0.1 without an effect."
    return float(np.mean([test(np.random.default_rng(seed)) <= 0.1 for seed in range(trials)]))


def test_neighbour_test_has_its_nominal_level():
    def p(random: np.random.Generator) -> float:
        similarity = centred_cosines(random.normal(size=(40, 6)))
        return neighbour_accuracy(similarity, random.choice(list("abcd"), 40), n_neighbors=3, n_resamples=49, seed=1)[
            "p"
        ]

    assert share_of_small_p(p) < 0.22


def test_families_that_follow_scripts_are_not_found_with_script_held_fixed():
    "Embeddings follow scripts, as untrained ones do; families follow scripts for four of five languages."

    def p(random: np.random.Generator, strict: bool) -> float:
        scripts = random.integers(4, size=80)
        families = np.where(random.random(80) < 0.8, scripts, random.integers(4, size=80))
        embeddings = random.normal(size=(80, 16)) + random.normal(size=(4, 16))[scripts]
        strata = scripts if strict else None
        return neighbour_accuracy(centred_cosines(embeddings), families, strata=strata, n_resamples=49, seed=1)["p"]

    assert share_of_small_p(lambda random: p(random, strict=False), 20) == 1
    assert share_of_small_p(lambda random: p(random, strict=True)) < 0.22


# Matrices


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def test_mantel_is_the_rank_correlation_and_its_partial_form_the_textbook_one():
    random = np.random.default_rng(0)
    one, two, three = (centred_cosines(random.normal(size=(25, 4))) for _ in range(3))
    one, two = one + three, two + three
    xy, xz, yz = (spearmanr(upper(a), upper(b))[0] for a, b in [(one, two), (one, three), (two, three)])
    assert np.isclose(mantel(one, two, n_resamples=1)["value"], xy)
    partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert np.isclose(mantel(one, two, given=[three], n_resamples=1)["value"], partial)
    assert np.isclose(mantel(one, two, n_resamples=1)["value"], mantel(two, one, n_resamples=1)["value"])


def test_mantel_test_has_its_nominal_level():
    def p(random: np.random.Generator) -> float:
        return mantel(*(centred_cosines(random.normal(size=(20, 4))) for _ in range(2)), n_resamples=49, seed=1)["p"]

    assert share_of_small_p(p) < 0.22


def test_mantel_test_holds_pairs_of_scripts_fixed():
    "Untrained embeddings correlate with location, because scripts have locations; within scripts they do not."

    def found(random: np.random.Generator, strict: bool) -> float:
        scripts = random.integers(4, size=60)
        ours = centred_cosines(0.5 * random.normal(size=(60, 16)) + random.normal(size=(4, 16))[scripts])
        places = 0.3 * random.normal(size=(60, 2)) + random.normal(size=(4, 2))[scripts]
        proximity = -np.linalg.norm(places[:, None] - places, axis=2)
        return mantel(ours, proximity, scripts if strict else None, n_resamples=49, seed=1)["p"]

    assert share_of_small_p(lambda random: found(random, strict=False), 20) > 0.9
    assert share_of_small_p(lambda random: found(random, strict=True)) < 0.22


def test_mantel_test_holds_unigrams_fixed():
    random = np.random.default_rng(3)
    facts = code_facts(CODES[1:]).loc[list(np.repeat(CODES[1:], 6))]
    facts = facts.assign(family=np.tile(list("abc"), 14), longitude=facts.longitude + random.normal(size=42))
    related = (facts.family.to_numpy()[:, None] == facts.family.to_numpy()) * 1.0
    noise = [upper_noise(random, 42) for _ in range(2)]
    copied = {"trained": related / 4 + noise[0] + noise[1], "unigrams": related / 4 + noise[0]}
    table = family_tests(facts, copied, n_resamples=99).set_index(["embeddings", "question", "given"])
    assert (
        table.p["trained", "same family", "script"] == 0.01
        and table.p["trained", "same family", "script, unigrams"] > 0.05
    )
    own = {"trained": related + noise[0], "unigrams": noise[1]}
    table = family_tests(facts, own, n_resamples=99).set_index(["embeddings", "question", "given"])
    assert table.p["trained", "same family", "script, unigrams"] == 0.01


def upper_noise(random: np.random.Generator, size: int) -> np.ndarray:
    "A symmetric matrix of noise."
    noise = 0.3 * random.normal(size=(size, size))
    return noise + noise.T


def test_proximity_is_the_great_circle_distance():
    facts = pd.DataFrame({"family": "x", "latitude": [51.5, 48.86, -33.87], "longitude": [-0.13, 2.35, 151.21]})
    kilometres = np.expm1(-language_relations(facts)["proximity"])
    assert np.allclose(kilometres[0], [0, 344, 16990], atol=30), "London to Paris and Sydney"


def test_runs_with_the_same_embeddings_agree():
    embeddings = made_up(random_codes(1), 1)
    few = replace(
        embeddings,
        facts=embeddings.facts[:-1],
        language_PH=embeddings.language_PH[:-1],
        script_PH=embeddings.script_PH[:-1],
    )
    table = run_agreement({"a": embeddings, "b": embeddings, "c": few}, n_resamples=9).set_index(
        ["first", "second", "given"]
    )
    assert np.isclose(table.value["a", "b", ""], 1)
    assert table["items"]["a", "c", ""] in (
        len(one_script_per_language(embeddings.facts)),
        len(one_script_per_language(embeddings.facts)) - 1,
    )


# Levels of text


@pytest.mark.parametrize("size,levels", [(456, 5), (7, 3), (3, 5), (1, 2), (40, 40)])
def test_levels_have_equal_size_and_are_ordered_by_text(size, levels):
    tokens = pd.Series(np.random.default_rng(size).integers(1, 30, size), [f"l{n}" for n in range(size)])
    found = resource_levels(tokens, levels)
    counts = found.value_counts()
    assert len(counts) == min(levels, size) and counts.max() - counts.min() <= 1 and found.min() == 1
    spans = tokens.groupby(found).agg(["min", "max"])
    assert (spans["max"].to_numpy()[:-1] <= spans["min"].to_numpy()[1:]).all()


def test_identical_encoders_have_zero_differences():
    codes = CODES
    losses = pd.DataFrame({"code": codes, "tokens": range(8), "loss": np.random.default_rng(0).random(8)})
    both = pd.concat([losses.assign(label=label, run=label) for label in ("a", "b")])
    table = level_differences(both, "b", levels=2)
    assert table.level.to_list() == [0, 1, 2] and (table.difference == 0).all() and (table.p == 1).all()
    assert level_differences(both, "").empty


def test_seeds_are_averaged_before_languages_are_compared():
    codes = CODES
    runs = {("a", "a1"): 1.0, ("a", "a2"): 3.0, ("b", "b1"): 5.0, ("b", "b2"): 5.0}
    rows = [(label, run, code, i, loss) for (label, run), loss in runs.items() for i, code in enumerate(codes)]
    table = level_differences(pd.DataFrame(rows, columns=["label", "run", "code", "tokens", "loss"]), "b", levels=2)
    assert (table.difference == -3).all() and table.languages.to_list() == [8, 4, 4]


def test_runs_that_cannot_be_compared_are_an_error(short, corpus, unbroken):
    both = exported_losses({"LangSAMP": [short / "short"], "baseline": [short / "baseline"]})
    assert both.groupby("label").code.nunique().to_list() == [3, 3] and (both.step == 2).all()
    longer = {"max_steps": 3, "global_batch_size": 2, "micro_batch_size": 2, "warmup_steps": 0, "save_steps": 3}
    pretrain(tiny.params_of(corpus, run_name="longer", **longer), short)
    with pytest.raises(UserError, match="ended at different steps: .*'short': 2.*'longer': 3"):
        exported_losses({"a": [short / "short"], "b": [short / "longer"]})
    with pytest.raises(UserError, match="no run at .*nothing"):
        exported_losses({"a": [short / "nothing"]})
    other = tiny.write_corpus(short / "other-text", lines=30)
    pretrain(tiny.params_of(other, run_name="other", max_steps=2, warmup_steps=0, save_steps=2), short)
    with pytest.raises(UserError, match="the runs have different text"):
        exported_losses({"a": [short / "short"], "b": [short / "other"]})


# Pages


@pytest.mark.parametrize(
    "page,figures",
    [
        ("embedding_map", ["embedding-map-sums", "embedding-map-tables", "embedding-map-family"]),
        ("embedding_similarity", ["similarity"]),
        ("resource_levels", ["resources"]),
    ],
)
def test_a_page_saves_its_figures_with_tables_and_provenance(smoke, tmp_path, page, figures):
    tiny.papermill(f"nbs/figures/{page}.ipynb", tmp_path / "page.ipynb", smoke)
    for name in figures:
        assert {path.suffix for path in (smoke / "figures").glob(f"{name}.*")} == {".png", ".svg", ".csv", ".json"}
        assert re.search(r'"smoke"', (smoke / f"figures/{name}.json").read_text())
