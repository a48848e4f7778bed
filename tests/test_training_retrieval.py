"Retrieval during training: measured when it should be, and without any effect on the run."

import pytest
import tiny

from langsamp.cli.main import main
from langsamp.core.errors import UserError
from langsamp.evaluation import training_retrieval
from langsamp.evaluation.bitext import Bitext
from langsamp.evaluation.training_retrieval import TrainingRetrieval
from langsamp.training.pretrain import pretrain


@pytest.fixture
def measure(monkeypatch) -> TrainingRetrieval:
    "Parallel text in the languages of the tests: sentences with the same numbers."
    texts = {code: tiny.sentences(code, 12) for code in tiny.ALPHABETS}
    english = texts["eng_Latn"]
    bitexts = [
        Bitext("udhr", code, "eng_Latn", code, english, own) for code, own in texts.items() if code != "eng_Latn"
    ]
    monkeypatch.setattr(training_retrieval, "load_bitexts", lambda task: (bitexts, []))
    return TrainingRetrieval("udhr")


def test_a_measured_run_is_the_same_run(corpus, outputs, measure, capsys):
    "Weights, optimiser and losses to the bit, with dropout; the lines of retrieval come in addition."
    p = tiny.params_of(corpus, max_steps=6, save_steps=3)
    pretrain(p.replace(run_name="plain"), outputs)
    pretrain(p.replace(run_name="measured", retrieval="udhr", retrieval_steps=2), outputs, measure)
    plain, found = tiny.fingerprint(outputs / "plain"), tiny.fingerprint(outputs / "measured")
    assert {k: v for k, v in found.items() if k != "metrics"} == {k: v for k, v in plain.items() if k != "metrics"}
    lines = tiny.metrics_of(outputs / "measured")
    assert [line for line in lines if "retrieval" not in line] == tiny.metrics_of(outputs / "plain")
    own = [line for line in lines if "retrieval" in line]
    assert [line["step"] for line in own] == [0, 2, 4, 6] and own[0]["pairs"] == 24
    assert set(own[0]["retrieval_by_language_script"]) == {"hin_Deva", "rus_Cyrl"}
    assert own[0]["chance_top10"] == pytest.approx(10 / 12)
    assert "step      2  retrieval udhr: top-10 0." in capsys.readouterr().out
    assert pretrain(p.replace(run_name="plain", retrieval="udhr"), outputs)["step"] == 6, "it may be turned on later"


def test_retrieval_needs_a_caller_that_measures(corpus, tmp_path):
    with pytest.raises(UserError, match="retrieval udhr needs `langsamp pretrain` or nbs/03_pretrain.ipynb"):
        pretrain(tiny.params_of(corpus, run_name="alone", retrieval="udhr"), tmp_path)


def test_the_command_measures(corpus, outputs, measure, monkeypatch):
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(outputs))
    p = tiny.params_of(corpus, run_name="command", max_steps=4, save_steps=4, retrieval="udhr", retrieval_steps=4)
    assert main(["pretrain", str(tiny.write_params(outputs / "command.yaml", p))]) == 0
    assert [x["step"] for x in tiny.metrics_of(outputs / "command") if "retrieval" in x] == [0, 4]


def test_languages_without_parallel_text_are_an_error(measure):
    with pytest.raises(UserError, match="none of the run's languages; set retrieval to none"):
        measure(None, None, ["wol_Latn"])
