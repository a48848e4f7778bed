"The backbone of a run can be another run."

from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from langsamp.cli.main import main
from langsamp.core.errors import UserError
from langsamp.encoding.open_encoder import open_encoder
from langsamp.encoding.sentence_transformers import save_sentence_encoder
from langsamp.model.adapt_checkpoint import adapt_checkpoint
from langsamp.params.pretrain import AdaptParams
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import initial_model, pretrain

TWO = ["eng_Latn", "rus_Cyrl"]


@pytest.fixture(scope="module")
def few(corpus):
    "Two steps."
    return tiny.params_of(corpus, run_name="first", languages=TWO, max_steps=2, save_steps=1, warmup_steps=1)


@pytest.fixture(scope="module")
def first(few, outputs) -> Path:
    "The folder of a finished run in two languages."
    pretrain(few, outputs)
    return outputs / "first"


def test_a_run_has_the_tokenizer_of_another(few, first, outputs):
    "Random weights, and the same tokens, so that losses can be compared."
    p = few.replace(run_name="same", tokenizer="run:first", languages=["rus_Cyrl"])
    tokenizers = [folder / "tokenizer.json" for folder in (prepare(p, outputs).tokenizer, first / "backbone")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


@pytest.mark.parametrize("name", ["run:first", "@first/model", "@adapted"])
def test_a_run_starts_from_the_model_of_another(few, first, outputs, name):
    "With its encoder, its head and the embeddings of known codes; a third language and script are new."
    if name == "@adapted":
        adapt_checkpoint(AdaptParams(name="again", backbone="run:first", corpus=few.corpus, languages=TWO), outputs)
    backbone = {"@first/model": str(first / "model"), "@adapted": "again"}.get(name, name)
    p = few.replace(run_name="second", backbone=backbone, languages=[])
    given = AutoModelForMaskedLM.from_pretrained(first / "model")
    model = initial_model(p, prepare(p, outputs), outputs)
    assert model.config.languages == ["eng", "hin", "rus"] and model.config.scripts == ["Cyrl", "Deva", "Latn"]
    for new, old, rows in [
        (model.language_embeddings, given.language_embeddings, [0, 2]),
        (model.script_embeddings, given.script_embeddings, [0, 2]),
    ]:
        assert new.weight[rows].equal(old.weight) and not (new.weight[1] == old.weight).all(1).any()
    theirs = {name: weight for name, weight in given.mlm.state_dict().items() if "encoder" in name}
    assert theirs and all(weight.equal(theirs[n]) for n, weight in model.mlm.state_dict().items() if n in theirs)
    if name != "@adapted":
        assert tiny.furthest(model.mlm, given.mlm) == 0


def test_the_command_says_what_is_taken_over(few, first, outputs, tmp_path, capsys, monkeypatch):
    "And ends with a run that can be continued in turn, in another variant."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(outputs))
    path = tiny.write_params(tmp_path / "p.yaml", few.replace(run_name="third", languages=[]))
    assert main(["pretrain", str(path), "backbone=run:first"]) == 0
    printed = capsys.readouterr().out
    assert "language embeddings taken over from the backbone: eng, rus (2); new: hin (1)" in printed
    assert "script embeddings taken over from the backbone: Cyrl, Latn (2); new: Deva (1)" in printed
    assert "continued `run:first`" in (outputs / "third/model/README.md").read_text()
    baseline = few.replace(run_name="fourth", backbone="run:third", languages=[], variant="script")
    pretrain(baseline, outputs)
    printed = capsys.readouterr().out
    assert "language embeddings" not in printed and "script embeddings taken over" in printed
    assert open_encoder("init:fourth", outputs).encode(["abc"]).shape == (1, 32)


def test_backbone_of_a_run_is_an_encoder_with_a_new_head(few, first, outputs, capsys):
    p = few.replace(run_name="from-backbone", backbone=str(first / "backbone"))
    model, given = initial_model(p, prepare(p, outputs), outputs), AutoModel.from_pretrained(first / "backbone")
    theirs = {name: weight for name, weight in given.state_dict().items() if "pooler" not in name}
    assert all(weight.equal(theirs[name]) for name, weight in model.mlm.base_model.state_dict().items())
    pretrain(p, outputs)
    assert "is an encoder alone: the head that predicts masked tokens is new" in capsys.readouterr().out


def test_an_unfinished_or_missing_run_is_refused(few, first, outputs):
    (outputs / "begun").mkdir()
    (outputs / "begun/params.yaml").touch()
    for name, message in [("run:begun", "is not finished"), ("run:none", "no run `none`")]:
        with pytest.raises(UserError, match=message):
            pretrain(few.replace(run_name="refused-start", backbone=name), outputs)


def test_the_exported_tokenizer_keeps_the_limit_of_the_backbone(few, first, stock, outputs, tmp_path):
    "64 tokens, of which a run trains 32; random weights have positions for the 32 of the run only."
    assert AutoTokenizer.from_pretrained(first / "backbone").model_max_length == 32
    for limit, expected in [(10**30, 64), (48, 48)]:
        own = tmp_path / str(limit)
        AutoModelForMaskedLM.from_pretrained(stock).save_pretrained(own)
        AutoTokenizer.from_pretrained(stock, model_max_length=limit).save_pretrained(own)
        name = f"limit-{expected}"
        pretrain(few.replace(run_name=name, backbone=str(own), max_steps=1), outputs)
        for part in ("model", "backbone"):
            assert AutoTokenizer.from_pretrained(outputs / name / part).model_max_length == expected
        trained, initial = (open_encoder(of, outputs) for of in (name, f"init:{name}"))
        assert trained.tokenizer.model_max_length == initial.tokenizer.model_max_length == expected
        folder = save_sentence_encoder(trained, tmp_path / name)
        assert f'"max_seq_length": {expected}' in (folder / "sentence_bert_config.json").read_text()
        with torch.no_grad():
            assert len(trained.tokenizer("a b c d e f g h " * 20, truncation=True)["input_ids"]) == expected
