"Two ways to change how neutral an encoder is: the dose of the embeddings, and an adversary."

from functools import partial
from itertools import product

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from langsamp.analysis.resources import exported_losses, level_differences
from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.model.langsamp import LangSAMPConfig
from langsamp.model.variants import VARIANTS
from langsamp.params.pretrain import PretrainParams
from langsamp.training.pretrain import pretrain
from langsamp.training.run_dir import check_same_params


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("doses"))


@pytest.fixture
def run(corpus, tmp_path):
    def trained(name: str, **overrides):
        short = {"max_steps": 8, "save_steps": 4, "lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 0.0}
        result = pretrain(tiny.params_of(corpus, **short | overrides, run_name=name), tmp_path)
        return tmp_path / name, result

    return trained


def test_the_encoder_of_dose_zero_is_that_of_the_baseline(run):
    "To the bit, after eight updates with dropout, packing and accumulation; that of dose two is another."
    plain, zero, double = [
        load_file(run(name, load_best_model_at_end=False, **more)[0] / "backbone/model.safetensors")
        for name, more in [
            ("plain", {"variant": "baseline"}),
            ("zero", {"embedding_scale": 0.0}),
            ("double", {"embedding_scale": 2.0}),
        ]
    ]
    assert plain.keys() == zero.keys() and all(torch.equal(plain[name], zero[name]) for name in plain)
    assert not all(torch.equal(plain[name], double[name]) for name in plain)


def test_labels_that_say_nothing_change_nothing(corpus, tmp_path):
    "Control of the comparison of variants: embeddings lower the loss, embeddings of shuffled labels do not."
    short = {"max_steps": 60, "save_steps": 60, "learning_rate": 1.5e-2, "dropout": 0.0}
    runs = {variant: [] for variant in ("baseline", "language+script", "shuffled")}
    for variant, seed in product(runs, (7, 8)):
        runs[variant].append(tmp_path / f"{variant.partition('+')[0]}-{seed}")
        name = runs[variant][-1].name
        pretrain(tiny.params_of(corpus, run_name=name, variant=variant, seed=seed, **short), tmp_path)
    losses = exported_losses(runs)
    found = level_differences(losses, "baseline", n_resamples=50).query("level == 0").set_index("label").difference
    assert found["language+script"] < -0.05 and abs(found["shuffled"]) < abs(found["language+script"]) / 4


@pytest.mark.parametrize("more", [{"embedding_scale": 2.0}, {"variant": "adversarial", "adversarial_weight": 2.0}])
def test_a_continued_run_keeps_its_dose(run, more):
    "Two sessions end like one; the exported model has the dose, and the classifier of an adversary."
    (whole, _), _ = run("whole", **more), run("parts", max_steps=4, **more)
    parts, _ = run("parts", **more)
    one, two = [load_file(folder / "model/model.safetensors") for folder in (whole, parts)]
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert ("language_classifier.weight" in one) == ("variant" in more)
    config = AutoModelForMaskedLM.from_pretrained(parts / "model").config
    kept = yaml.safe_load((parts / "params.yaml").read_text())
    assert all(getattr(config, name) == kept[name] == value for name, value in more.items())


def test_the_validation_loss_of_an_adversary_is_that_of_masked_tokens(run):
    "At step 0 it is the baseline's; the first training loss has two more terms, the logarithm of three languages each."
    (plain, _), (adverse, _) = run("plain", variant="baseline"), run("adverse", variant="adversarial")
    (first, *_), (second, *_) = [
        [line for line in tiny.metrics_of(folder) if "validation_loss" in line] for folder in (plain, adverse)
    ]
    assert first["validation_loss"] == second["validation_loss"]
    (first, *_), (second, *_) = [
        [line for line in tiny.metrics_of(folder) if "loss" in line] for folder in (plain, adverse)
    ]
    assert second["loss"] - first["loss"] == pytest.approx(2 * torch.tensor(3.0).log().item(), abs=0.2)


def test_a_run_that_began_without_doses_continues(run, corpus, tmp_path):
    folder, _ = run("old")
    values = yaml.safe_load((folder / "params.yaml").read_text())
    assert (values.pop("embedding_scale"), values.pop("adversarial_weight")) == (1.0, 1.0)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    check_same_params(folder, values | {"embedding_scale": 1.0, "adversarial_weight": 1.0})
    before = read_json(folder / "result.json")
    assert run("old")[1] == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_model_refuse_a_scale_for_the_same_variants(variant):
    "Before anything is read, and when a model is made."
    refused = []
    for make in (PretrainParams, partial(LangSAMPConfig, languages=["eng"], scripts=["Latn"])):
        try:
            make(variant=variant, embedding_scale=2.0)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) in (0, 2)
