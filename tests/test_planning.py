"A plan's arithmetic is correct, and it describes the run that follows."

import shutil
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from transformers import XLMRobertaConfig

from langsamp.core.errors import UserError
from langsamp.data.packing import packing_path
from langsamp.model.langsamp import LangSAMPForMaskedLM, from_backbone
from langsamp.params.pretrain import PlanParams, PretrainParams
from langsamp.params.yaml_reader import read_yaml
from langsamp.training.loop import Data
from langsamp.training.plan import computed_costs, flops_per_token, parameter_groups, plan, plan_table
from langsamp.training.prepare import Corpus, prepare, training_data
from langsamp.training.pretrain import initial_model, pretrain

SMOKE = tiny.ROOT / "params/smoke.yaml"


def prepared_run(p: PretrainParams, outputs: Path) -> tuple[LangSAMPForMaskedLM, Data, Corpus]:
    corpus = prepare(p, outputs)
    return initial_model(p, corpus, outputs), training_data(p, corpus), corpus


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Arithmetic


def test_more_predictions_cost_more(outputs):
    "The head and its transform are computed for predicted tokens only."
    p = PretrainParams.model_validate(read_yaml(SMOKE))
    model, data, corpus = prepared_run(p, outputs)
    few, many = [computed_costs(p.replace(mlm_probability=x), model, data, corpus) for x in (0.15, 0.3)]
    head = model.get_output_embeddings().weight.numel() + model.config.backbone_config.hidden_size**2
    assert many["FLOPs a token"] - few["FLOPs a token"] == pytest.approx(6 * 0.15 * head)


def test_the_smoke_run_by_hand(outputs):
    "Two layers of width 64: four square matrices, a feed-forward of four times the width, biases and norms."
    p = PretrainParams.model_validate(read_yaml(SMOKE))
    model, data, corpus = prepared_run(p, outputs)
    cost = computed_costs(p, model, data, corpus)
    width, norm = 64, 2 * 64
    sequence = 4 * (width * width + width) + 2 * 4 * width * width + 4 * width + width + 2 * norm
    assert cost["parameters: encoder"] == 2 * sequence + (64 + 2) * width + width + norm
    assert cost["parameters: embeddings"] == 1000 * width
    assert cost["parameters: head"] == width * width + width + norm + 1000
    assert cost["parameters: langsamp"] == (5 + 4) * width, "five languages in four scripts"
    assert cost["parameters: all"] == sum(
        cost[f"parameters: {n}"] for n in ("encoder", "embeddings", "head", "langsamp")
    )
    filled = corpus.report["sequences"]["train"]["filled"]
    assert cost["tokens per step"] == pytest.approx(16 * 64 * filled, rel=1e-3) and 0.9 < filled < 1
    assert cost["tokens trained on"] == 60 * cost["tokens per step"]
    assert cost["language-scripts"] == 5
    filter_reports = [filter_report["splits"] for filter_report in corpus.report["filter_reports"]]
    assert cost["training tokens"] == sum(splits["train"]["tokens"] for splits in filter_reports)
    assert cost["held-out tokens"] == sum(splits["validation"]["tokens"] for splits in filter_reports)
    assert cost["epochs"] == 60 * 16 / len(data.train)
    assert cost["FLOPs"] == cost["FLOPs a token"] * cost["tokens trained on"]
    packings = [packing_path(shard, 64) for shard in corpus.shards]
    assert cost["disk: shards"] == sum(map(disk, [*corpus.shards, *packings]))


def test_epochs_under_temperature_sampling(outputs, tmp_path):
    "An epoch follows the quotas, here with one language-script of a single sequence that is drawn more than once."
    corpus = tiny.write_corpus(tmp_path)
    (corpus / "train/hin_Deva.txt").write_text("\n".join(tiny.sentences("hin_Deva", 2)) + "\n")
    p = tiny.params_of(corpus, sampling="temperature", alpha=0.0, max_steps=30, global_batch_size=8)
    model, data, prepared = prepared_run(p, outputs)
    drawn = int(data.quotas.sum())
    assert max(data.quotas) - min(data.quotas) <= 1 and drawn == len(data.train), "equal shares of an epoch as long"
    assert computed_costs(p, model, data, prepared)["epochs"] == 30 * 8 / drawn


def test_flops_by_hand():
    "Six per parameter and token, attention 12 per layer, width and token of context, the head for 15 %."
    config = XLMRobertaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256
    )
    with torch.device("meta"):
        model = from_backbone(config, ["eng"], ["Latn"])
    encoder = parameter_groups(model)["encoder"]
    expected = 6 * encoder + 12 * 3 * 64 * 128 + 6 * 0.15 * (1000 * 64 + 64 * 64)
    assert flops_per_token(model, 128) == pytest.approx(expected)


def test_the_papers_parameters():
    """610 languages and 30 scripts on XLM-R base with 401,145 tokens. The paper's model has 395,014,905 parameters: it
    leaves out the one row of token types (768) that the stock model keeps, and that is counted here."""
    config = XLMRobertaConfig(vocab_size=401_145, max_position_embeddings=514, type_vocab_size=1)
    codes = [a + b + c for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefg"]
    with torch.device("meta"):
        model = from_backbone(config, sorted(codes[:610]), sorted(f"{a}{b}xx" for a in "ABCDE" for b in "abcdef"))
    groups = parameter_groups(model)
    assert groups["langsamp"] == (610 + 30) * 768 == 491_520
    assert groups["all"] == 395_014_905 + 768
    assert groups["encoder"] + groups["embeddings"] == 393_530_112 + 768 and groups["head"] == 993_273


def test_disk_is_what_a_run_takes(corpus, tmp_path):
    "A run keeps two checkpoints and the best one, and has a fourth while it writes."
    p = tiny.params_of(
        corpus, run_name="two", num_layers=2, hidden_size=64, vocab_size=300, max_steps=2, save_steps=1, warmup_steps=1
    )
    cost = computed_costs(p, *prepared_run(p, tmp_path))
    pretrain(p, tmp_path)
    steps = list((tmp_path / "two/checkpoints").glob("step-*"))
    assert len(steps) == 2
    assert cost["disk: checkpoints"] == pytest.approx(4 * disk(steps[0]), rel=0.05)
    made = [tmp_path / "two" / name / "model.safetensors" for name in ("model", "backbone")]
    assert cost["disk: model and backbone"] == pytest.approx(sum(path.stat().st_size for path in made), rel=0.05)


# Plans


def test_overrides_replace_the_values_of_the_file(outputs):
    plans = [
        plan(PlanParams(params=str(SMOKE), overrides=other_values, measured_steps=2), outputs)
        for other_values in ({}, {"max_steps": 120, "variant": "baseline", "max_seq_length": 32})
    ]
    assert [cost["parameters: langsamp"] for cost in plans] == [9 * 64, 0]
    places = [60 * 16 * 64, 120 * 16 * 32]
    assert all(0.9 < cost["tokens trained on"] / full < 1 for cost, full in zip(plans, places))


def test_a_plan_leaves_nothing_behind(outputs):
    before = {path.name for path in outputs.iterdir()} | {"data"}
    plan(PlanParams(params=str(SMOKE), overrides={"run_name": "planned"}, measured_steps=2), outputs)
    assert {path.name for path in outputs.iterdir()} == before


def test_the_seconds_add_up(outputs):
    cost = plan(PlanParams(params=str(SMOKE), measured_steps=2), outputs)
    parts = 2 * cost["seconds: micro-batch"] + cost["seconds: update"]
    assert cost["seconds: run"] == pytest.approx(60 * parts + 4 * cost["seconds: validation"])


def test_the_table_has_units():
    table = plan_table({"parameters: all": 1234567, "disk: shards": 2.5e9, "seconds: run": 36_000, "epochs": 1.26})
    assert table[""].tolist() == ["1,234,567", "2.50 GB", "10.0 h", "1.3"]


@pytest.mark.parametrize(
    "where, name, says",
    [
        ("file", "learning_rat", "learning_rate"),
        ("overrides", "max_seq_lenght", "max_seq_length"),
        ("overrides", "max_steps", "whole"),
    ],
)
def test_a_wrong_parameter_is_refused(where, name, says, outputs, tmp_path):
    "Misspelt, in the file or in the overrides; or of a wrong type."
    written = {"run_name": "x"} | ({name: 1} if where == "file" else {})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(written))
    p = PlanParams(params=str(tmp_path / "x.yaml"), overrides={name: "many"} if where == "overrides" else {})
    with pytest.raises(UserError, match=f"`{name}`.*{says}"):
        plan(p, outputs)


def test_a_missing_file_is_refused(outputs):
    with pytest.raises(UserError, match="cannot read the parameters in params/nothing.yaml"):
        plan(PlanParams(params="params/nothing.yaml"), outputs)


def test_the_default_plan_from_the_folder_of_its_notebook(outputs, monkeypatch):
    "Where JupyterLab starts it; the path of the file is relative to the repository."
    monkeypatch.chdir(tiny.ROOT / "nbs")
    assert 0.9 < plan(PlanParams(measured_steps=2), outputs)["tokens trained on"] / (60 * 16 * 64) < 1


def test_a_corpus_without_held_out_text_is_refused(outputs, tmp_path):
    "Like a run on it, which needs a validation loss."
    (tmp_path / "train").mkdir()
    (tmp_path / "train/eng_Latn.txt").write_text("\n".join(tiny.sentences("eng_Latn", 40)) + "\n")
    file = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(tmp_path, run_name="no-held-out"))
    with pytest.raises(UserError, match="too little text is held out"):
        pretrain(PretrainParams.model_validate(read_yaml(file)), outputs)
    with pytest.raises(UserError, match="too little text is held out"):
        plan(PlanParams(params=str(file), measured_steps=2), outputs)


@pytest.mark.slow
def test_the_paper_preset_dry(tmp_path, capsys):
    "Size and tokenizer of XLM-R base, sequences of 512, two steps of the four-week run. Needs about 8 GB."
    other_values = {
        "corpus": "udhr",
        "languages": ["eng_Latn", "hin_Deva", "rus_Cyrl"],
        "sampling": "all",
        "backbone": "",
    }
    other_values |= {
        "num_layers": 12,
        "hidden_size": 768,
        "tokenizer": "e5-small",
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "precision": "fp32",
    }
    other_values |= {"max_steps": 2, "save_steps": 2, "run_name": "dry"}
    paper = tiny.ROOT / "params/paper.yaml"
    begun = time.monotonic()
    cost = plan(PlanParams(params=str(paper), overrides=other_values, measured_steps=2), tmp_path)
    planned = time.monotonic()
    p = PretrainParams.model_validate(read_yaml(paper) | other_values)
    assert p.max_seq_length == 512 and cost["parameters: encoder"] + cost["parameters: embeddings"] == 277_453_056
    result = pretrain(p, tmp_path)
    assert result["step"] == 2 and result["parameters"] == cost["parameters: all"]
    assert (tmp_path / "dry/backbone/model.safetensors").stat().st_size > 1e9
    shutil.rmtree(tmp_path)  # 6 GB
    with capsys.disabled():
        print(
            f"plan {planned - begun:.0f} s, run {time.monotonic() - planned:.0f} s, {cost['peak memory'] / 1e9:.1f} GB"
        )
