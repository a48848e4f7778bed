"Languages that a run gets after training: measured against the run that was trained with them, and against controls."

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from langsamp.analysis import new_languages
from langsamp.analysis.embeddings import LearnedEmbeddings, code_facts
from langsamp.analysis.new_language_vectors import known_languages, language_row
from langsamp.analysis.new_languages import (
    PairResults,
    donor_regret,
    gap_closed,
    measure_pair,
    neighbour_cosines,
    neighbour_quality,
    new_codes,
)
from langsamp.cli.main import main
from langsamp.core.errors import UserError
from langsamp.encoding.fill_mask import open_model
from langsamp.training.pretrain import pretrain

ALPHABETS = tiny.ALPHABETS | {"ukr_Cyrl": "абвгдежзиклмнопр", "deu_Latn": "abcdefghijklmnop"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "An outputs folder with a joint run, and a run without German and Ukrainian on its tokenizer."
    home = tmp_path_factory.mktemp("outputs")
    for code, letters in ALPHABETS.items():
        random = np.random.default_rng([*code.encode()])
        words = ["".join(random.choice(list(letters), random.integers(2, 6))) for _ in range(60)]
        lines = [" ".join(random.choice(words, 8)) for _ in range(200)]
        tiny.write(home / f"text/train/{code}.txt", "\n".join(lines[:150]))
        tiny.write(home / f"text/validation/{code}.txt", "\n".join(lines[150:]))
    small = {"max_steps": 100, "save_steps": 50, "dropout": 0.0, "learning_rate": 5e-3}
    for seed in (7, 8):
        joint = pretrain(tiny.params_of(home / "text", run_name=f"joint-{seed}", seed=seed, **small), home)["run"]
        fewer = {"languages": sorted(tiny.ALPHABETS), "tokenizer": str(home / joint / "backbone")}
        pretrain(tiny.params_of(home / "text", run_name=f"fewer-{seed}", seed=seed, **small | fewer), home)
    pretrain(tiny.params_of(home / "text", run_name="other", languages=sorted(tiny.ALPHABETS), max_steps=6), home)
    return home


@pytest.fixture(scope="module")
def measured(home):
    "A pair, with donors measured on the same tokens as the rest."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_languages, "DONOR_TOKENS", new_languages.TOKENS)
        return measure_pair(home / "fewer-7", home / "joint-7", counts=(5, 100))


def test_new_languages_are_those_of_the_joint_run_alone(home):
    assert new_codes(home / "fewer-7", home / "joint-7") == ["deu_Latn", "ukr_Cyrl"]
    with pytest.raises(UserError, match="have other tokenizers"):
        new_codes(home / "other", home / "joint-7")
    with pytest.raises(UserError, match="no language that joint-7 was not"):
        new_codes(home / "joint-7", home / "joint-7")


def test_a_fit_to_more_lines_helps_more_than_controls(measured):
    "On held-out lines; the control is the vector of a random language."
    losses, mean = measured.losses, measured.losses.mean()
    assert mean["fit to 100 lines"] < mean["fit to 5 lines"] + 0.01 and mean["fit to 100 lines"] < mean["none"]
    assert mean["fit to 100 lines"] < mean["random"] and set(losses.index) == {"deu_Latn", "ukr_Cyrl"}
    assert mean["unigrams of 100 lines"] < mean["mean"] and not losses.isna().any(axis=None)


def test_a_donor_is_a_vector_of_the_run(measured):
    "The loss with the nearest relative's vector is that of a donor."
    assert [*measured.donors.columns] == sorted(tiny.ALPHABETS) and {*measured.donors.index} == {*measured.losses.index}
    relative = [measured.donors.loc["ukr_Cyrl", "rus_Cyrl"], measured.donors.loc["deu_Latn", "eng_Latn"]]
    found = measured.losses.loc[["ukr_Cyrl", "deu_Latn"], "nearest by genealogy"]
    assert np.allclose(relative, found, atol=1e-5)


def test_a_guess_is_the_vector_of_the_relative(home):
    "Ukrainian is nearest to Russian by genealogy; German to English."
    _, tokenizer = open_model(home / "fewer-7")
    known = known_languages(home / "fewer-7", tokenizer)
    codes, vectors_PH = list(known.embeddings.facts.index), known.embeddings.language_PH
    for code, relative in (("ukr_Cyrl", "rus_Cyrl"), ("deu_Latn", "eng_Latn")):
        guesses = known.guesses(code, ["abc"])
        assert (guesses["nearest by genealogy"] == vectors_PH[codes.index(relative)]).all()
        assert np.allclose(guesses["mean"], vectors_PH.mean(0)) and not guesses["zero"].any()
    unknown = known.guesses("qaa_Latn", [])
    assert np.allclose(unknown["nearest by syntax"], unknown["mean"]) and "ridge on frequencies" not in unknown
    assert np.allclose(unknown["ridge on typology"], unknown["mean"])


LATIN = """afr_Latn ces_Latn cym_Latn dan_Latn deu_Latn ekk_Latn eng_Latn fin_Latn fra_Latn hau_Latn hun_Latn ind_Latn
    isl_Latn ita_Latn kab_Latn nld_Latn pol_Latn por_Latn ron_Latn slv_Latn som_Latn spa_Latn swe_Latn swh_Latn"""
LATIN = LATIN.split()
NEW = [f"{x}_Latn" for x in "bre eus fao jav mlt quz sme tur vep vie wol yor".split()]


def made_up(seed: int) -> PairResults:
    """Languages whose vectors and losses are known, in a held-out run and in a joint run with other axes.

    A donor's loss is its distance from the truth; `near` is the truth with noise, `random` the vector of another run.
    """
    random, axes = np.random.default_rng(seed), np.random.default_rng([seed, 1]).normal(size=(16, 16))
    space = np.random.default_rng(99).normal(size=(len(LATIN + NEW), 16))
    known, new, facts = space[: len(LATIN)], space[len(LATIN) :], code_facts(LATIN)
    ours = LearnedEmbeddings(facts, known, 0 * known, [])
    theirs = LearnedEmbeddings(facts, known @ np.linalg.qr(axes)[0] + 5, 0 * known, [])
    cosines = {}
    for code, true in zip(NEW, new):
        cosines[code, "joint"] = neighbour_cosines(theirs, code, true @ np.linalg.qr(axes)[0] + 5)
        cosines[code, "near"] = neighbour_cosines(ours, code, true + random.normal(size=16) / 4)
        cosines[code, "random"] = neighbour_cosines(ours, code, random.normal(size=16))
    donors = pd.DataFrame([np.linalg.norm(known - true, axis=1) for true in new], NEW, LATIN)
    return PairResults(pd.DataFrame(), pd.DataFrame(cosines).T, donors)


def test_random_vectors_close_no_more_of_the_gap_than_the_script_alone():
    "Control: losses with `zero` and random vectors differ by noise. A fit is better, and `joint` is the whole gap."
    tables = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        none, gap = random.normal(6, 0.5, len(NEW)), random.uniform(0.5, 2.5, len(NEW))
        shares = {"joint": 1.0, "zero": 0.5, "random": 0.5, "fit": 0.7}
        noise = {how: random.normal(0, 0.05, len(NEW)) * (how != "joint") for how in shares}
        losses = {how: none - share * gap + noise[how] for how, share in shares.items()}
        tables.append(pd.DataFrame({"none": none} | losses, NEW))
    found = gap_closed(tables, 1000)
    over = found[["over script low", "over script high"]]
    assert over.loc["random"].iloc[0] < 0 < over.loc["random"].iloc[1] and over.loc["fit"].iloc[0] > 0.1
    assert (found.loc["joint", ["mean", "low", "high"]] == 1).all() and found.low["zero"] < 0.5 < found.high["zero"]
    width = found.high["zero"] - found.low["zero"]
    assert width < 0.1, "gains and gaps vary together, so a share is known better than either"


def test_a_random_vector_has_random_neighbours_and_a_near_one_those_of_the_joint_run():
    quality = neighbour_quality([made_up(seed).cosines for seed in range(3)], 300)
    random, near = [quality.xs(how, level="how") for how in ("random", "near")]
    assert random.low["spearman"] < 0 < random.high["spearman"] and near.low["spearman"] > 0.8
    assert random.low["rank"] < (len(LATIN) - 1) / 2 < random.high["rank"] and near["mean"]["rank"] < 1
    assert quality.loc[("spearman", "joint, next seed"), "mean"] > 0.99


def test_a_random_vector_chooses_a_random_donor_and_a_near_one_a_good_one():
    regret = donor_regret([made_up(seed) for seed in range(3)], 300)
    assert regret["saved low"]["random"] < 0 < regret["saved high"]["random"]
    assert regret["saved low"]["near"] > 0 and regret["high"]["near"] < regret["low"]["any"]


def test_the_command_adds_a_language(home, monkeypatch, capsys):
    "Each parameter has its effect; without text, the vector is that of the relative."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home))

    def added(name: str, **more) -> torch.Tensor:
        words = {"run": "fewer-7", "language": "ukr_Cyrl", "name": name} | more
        assert main(["add-language", *(f"{key}={value}" for key, value in words.items())]) == 0
        assert f"{home / name}/model: {words['language']}, by " in capsys.readouterr().out
        model, _ = open_model(home / name)
        return language_row(model, words["language"])

    text = {"corpus": home / "text"}
    relative, fitted = added("u1"), added("u2", **text)
    assert relative.equal(language_row(open_model(home / "fewer-7")[0], "rus_Cyrl")) and not fitted.equal(relative)
    assert not added("u3", **text, lines=3).equal(fitted) and not added("u4", how="mean").equal(relative)
    assert not added("u5", language="deu_Latn").equal(relative) and not added("u6", run="fewer-8").equal(relative)
    assert main(["add-language", "run=fewer-7", "language=ukr_Cyrl", "name=u1"]) == 2
    assert main(["add-language", "run=fewer-7", "language=ukr_Cyrl", "name=u7", "how=unigrams"]) == 2
    assert "there is a model at" in (errors := capsys.readouterr().err) and "needs lines of text" in errors


@pytest.mark.parametrize(
    "words",
    [
        "sources run=ADDED target=ukr_Cyrl candidates=eng_Latn",
        "add-language run=ADDED language=deu_Latn name=twice",
        "card run=ADDED",
        "push run=ADDED repo_id=me/it",
        "evaluate encoder=ADDED",
        "evaluate encoder=ADDED@given",
        "evaluate encoder=init:ADDED",
        "pretrain run_name=next backbone=run:ADDED",
        "pretrain run_name=ADDED",
    ],
)
def test_a_command_that_needs_a_run_says_what_add_language_wrote(words, home, monkeypatch, capsys):
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home))
    if not (home / "added").exists():
        assert main(["add-language", "run=fewer-7", "language=ukr_Cyrl", "name=added"]) == 0
    capsys.readouterr()
    assert main(words.replace("ADDED", "added").split()) == 2
    assert f"{home / 'added'} is not a run, but a model to which" in capsys.readouterr().err


def test_the_page_measures_all_seeds(home, monkeypatch):
    "Each parameter has its effect."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home))
    both = {"fewer-7": "joint-7", "fewer-8": "joint-8"}
    base = {"pairs": both, "lines": [5], "n_resamples": 50, "name": "new"}
    found = tiny.run_notebook("figures/new_languages", base, home)
    shares = pd.read_csv(home / "figures/new.csv").set_index("how")
    assert shares["mean"]["joint"] == pytest.approx(1) and "fit to 5 lines" in shares.index
    assert shares["min"]["random"] < shares["max"]["random"] and (home / "figures/new.png").exists()
    results = [measure_pair(home / a, home / b, (5,)) for a, b in both.items()]
    again = gap_closed([one.losses for one in results], 50)
    assert np.allclose(again.loc[shares.index, "mean"], shares["mean"], atol=1e-4)
    regret = pd.read_csv(home / "figures/new-donors.csv").set_index("how")
    assert np.allclose(regret["mean"], donor_regret(results, 50)["mean"].loc[regret.index], atol=1e-4)
    quality = pd.read_csv(home / "figures/new-neighbours.csv").set_index(["measure", "how"])
    assert np.allclose(
        quality["mean"], neighbour_quality([one.cosines for one in results], 50)["mean"], 1e-5, 1e-4, True
    )
    others = base | {"lines": [6], "pairs": {"fewer-7": "joint-7"}, "n_resamples": 60}
    other = tiny.run_notebook("figures/new_languages", others, home)
    assert list(other["shares"].index) != list(found["shares"].index) and len(other["results"]) == 1
