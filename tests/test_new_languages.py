"Languages that a run gets after training: measured against the run that was trained with them, and against controls."

import numpy as np
import pandas as pd
import pytest
import tiny

from langsamp.analysis.new_languages import gap_closed, known_languages, new_codes, new_language_losses
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
def losses(home):
    return new_language_losses(home / "fewer-7", home / "joint-7", counts=(5, 100))


def test_new_languages_are_those_of_the_joint_run_alone(home):
    assert new_codes(home / "fewer-7", home / "joint-7") == ["deu_Latn", "ukr_Cyrl"]
    with pytest.raises(UserError, match="have other tokenizers"):
        new_codes(home / "other", home / "joint-7")
    with pytest.raises(UserError, match="no language that joint-7 was not"):
        new_codes(home / "joint-7", home / "joint-7")


def test_a_fit_to_more_lines_helps_more_than_controls(losses):
    "On held-out lines; the control is the vector of a random language."
    mean = losses.mean()
    assert mean["fitted: 100 lines"] < mean["fitted: 5 lines"] + 0.01 and mean["fitted: 100 lines"] < mean["none"]
    assert mean["fitted: 100 lines"] < mean["random"] and set(losses.index) == {"deu_Latn", "ukr_Cyrl"}
    assert not losses.isna().any(axis=None)


def test_a_guess_is_the_vector_of_the_relative(home):
    "Ukrainian is nearest to Russian by genealogy; German to English."
    _, tokenizer = open_model(home / "fewer-7")
    known = known_languages(home / "fewer-7", tokenizer)
    codes, vectors_PH = list(known.embeddings.facts.index), known.embeddings.language_PH
    for code, relative in (("ukr_Cyrl", "rus_Cyrl"), ("deu_Latn", "eng_Latn")):
        guesses = known.guesses(code, known.frequencies_PV[codes.index(relative)])
        assert (guesses["nearest: genealogy"] == vectors_PH[codes.index(relative)]).all()
        assert np.allclose(guesses["mean"], vectors_PH.mean(0)) and not guesses["zero"].any()
    unknown = known.guesses("qaa_Latn", known.frequencies_PV[0])
    assert np.allclose(unknown["nearest: syntax"], unknown["mean"]) and np.allclose(
        unknown["ridge: typology"], unknown["mean"]
    )


def test_the_page_measures_all_seeds(home, monkeypatch):
    "Each parameter has its effect."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home))
    both = {"fewer-7": "joint-7", "fewer-8": "joint-8"}
    base = {"pairs": both, "lines": [5], "n_resamples": 50, "name": "new"}
    found = tiny.run_notebook("figures/new_languages", base, home)
    shares = pd.read_csv(home / "figures/new.csv").set_index("how")
    assert shares.share["joint"] == pytest.approx(1) and "fitted: 5 lines" in shares.index
    assert shares["min"]["random"] < shares["max"]["random"] and (home / "figures/new.png").exists()
    again = gap_closed([new_language_losses(home / a, home / b, (5,)) for a, b in both.items()], 50)
    assert np.allclose(again.loc[shares.index].share, shares.share, atol=1e-4)
    others = base | {"lines": [6], "pairs": {"fewer-7": "joint-7"}, "n_resamples": 60}
    other = tiny.run_notebook("figures/new_languages", others, home)
    assert list(other["shares"].index) != list(found["shares"].index) and len(other["losses"]) == 1
