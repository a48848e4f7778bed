"A mistake in the parameters is reported at once, before anything heavy is imported."

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from pydantic import ValidationError

from langsamp.core.errors import UserError
from langsamp.params import benchmark, evaluate, pretrain, publish
from langsamp.params.base import OLD_NAMES, OLD_VALUES, Params
from langsamp.params.pretrain import (
    AdaptParams,
    CorpusBuildParams,
    CorpusParams,
    ModelParams,
    PlanParams,
    PretrainParams,
    TrainingParams,
)
from langsamp.params.yaml_reader import read_yaml

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "tokenizers", "accelerate", "numpy", "pandas", "pyarrow"}
KINDS = sorted(  # In a fixed order: each test process must collect the same tests
    {
        one
        for module in (pretrain, evaluate, benchmark, publish)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Params)
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lerning_rate": 1}, ["unknown parameter `lerning_rate`; did you mean `learning_rate`?"]),
        (
            {"languges": [], "max_stepps": 1},
            ["`languges`; did you mean `languages`?", "`max_stepps`; did you mean `max_steps`?"],
        ),
        ({"banana": 1}, ["unknown parameter `banana`\n", "valid parameters: ", "global_batch_size"]),
        ({"max_steps": "100"}, ["`max_steps` must be a whole number, not '100'"]),
        ({"max_steps": 10.0}, ["`max_steps` must be a whole number, not 10.0"]),
        ({"max_steps": True}, ["`max_steps` must be a whole number, not True"]),
        ({"max_steps": None}, ["`max_steps` must be a whole number, not None"]),
        ({"learning_rate": "1e-3"}, ["`learning_rate` must be a number", "1.0e-3"]),
        ({"learning_rate": True}, ["`learning_rate` must be a number, not True"]),
        ({"torch_compile": "true"}, ["`torch_compile` must be true or false, not 'true'"]),
        ({"torch_compile": 1}, ["`torch_compile` must be true or false, not 1"]),
        ({"languages": "eng_Latn"}, ["`languages` must be a list of strings"]),
        ({"languages": ["eng_Latn", 3]}, ["`languages` must be a list of strings, not ['eng_Latn', 3]"]),
        ({"languages": ("eng_Latn",)}, ["`languages` must be a list of strings"]),
        (
            {"variant": "scripts"},
            ["variant must be one of baseline, language, script, language+script", "did you mean `script`?"],
        ),
        ({"variant": 3}, ["`variant` must be a string, not 3"]),
        ({"precision": "fp16"}, ["precision must be one of auto, fp32, bf16, not `fp16`"]),
        (
            {"global_batch_size": 10, "micro_batch_size": 4},
            ["global_batch_size 10 must be a multiple of micro_batch_size 4"],
        ),
        ({"micro_batch_size": 0}, ["micro_batch_size must be at least 1, not 0"]),
        ({"global_batch_size": 0, "micro_batch_size": 4}, ["global_batch_size must be at least 1, not 0"]),
        ({"global_batch_size": -8, "micro_batch_size": 4}, ["global_batch_size must be at least 1, not -8"]),
        ({"warmup_steps": 99, "max_steps": 10}, ["warmup_steps 99 must be at most max_steps 10"]),
        ({"decay_steps": 9, "max_steps": 10}, ["warmup_steps + decay_steps 15 must be at most max_steps 10"]),
        ({"decay_steps": 9}, ["decay_steps and lr_scheduler_type warmup_stable_decay need each other"]),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            ["decay_steps and lr_scheduler_type warmup_stable_decay need each other"],
        ),
        ({"lr_scheduler_type": "cosin"}, ["lr_scheduler_type must be one of linear, ", "did you mean `cosine`?"]),
        ({"mlm_probability": 0.0}, ["mlm_probability must be greater than 0, not 0.0"]),
        ({"mlm_probability": 1.0}, ["mlm_probability must be less than 1, not 1.0"]),
        ({"adam_beta2": 1.0}, ["adam_beta2 must be less than 1, not 1.0"]),
        ({"max_grad_norm": -1.0}, ["max_grad_norm must be at least 0, not -1.0"]),
        (
            {"architecture": "modernbart"},
            [
                "architecture must be one of xlm-roberta, bert, modernbert, a config.json, not `modern",
                "did you mean `modernbert`?",
            ],
        ),
        (
            {"global_batch_size": 2 * 10**9, "micro_batch_size": 1},
            ["global_batch_size must be at most 1000000, not 2000000000"],
        ),
        ({"weight_decay": 1e30}, ["weight_decay must be at most 100, not 1e+30"]),
        ({"warmup_steps": -1}, ["warmup_steps must be at least 0, not -1"]),
        ({"learning_rate": 0.0}, ["learning_rate must be greater than 0, not 0.0"]),
        ({"learning_rate": float("nan")}, ["learning_rate must be a finite number, not nan"]),
        ({"learning_rate": float("inf")}, ["learning_rate must be a finite number, not inf"]),
        ({"learning_rate": 10**400}, ["`learning_rate` must be a number"]),
        ({"weight_decay": -1.0}, ["weight_decay must be at least 0, not -1.0"]),
        ({"weight_decay": float("inf")}, ["weight_decay must be a finite number"]),
        ({"dropout": 1.0}, ["dropout must be less than 1, not 1.0"]),
        ({"num_layers": 2, "hidden_size": 100}, ["hidden_size must be a multiple of 32, not 100"]),
        ({"num_layers": 0}, ["num_layers must be at least 1"]),
        ({"num_layers": 3_200_000}, ["num_layers must be at most 1000, not 3200000"]),
        ({"hidden_size": 10**9}, ["hidden_size must be at most 65536, not 1000000000"]),
        ({"num_layers": 1000, "hidden_size": 65_536}, ["make 51,540 billion weights; at most 100 billion"]),
        ({"max_seq_length": 10**8}, ["max_seq_length must be at most 131072, not 100000000"]),
        ({"vocab_size": 10**9}, ["vocab_size must be at most 10000000, not 1000000000"]),
        ({"sampling": "temprature"}, ["did you mean `temperature`?"]),
        ({"alpha": 1.5}, ["alpha must be at most 1, not 1.5"]),
        ({"run_name": "../other"}, ["run_name must be letters, digits"]),
        ({"run_name": ".."}, ["run_name must be letters, digits"]),
        ({"run_name": "data"}, ["run_name `data` is reserved"]),
        ({"run_name": "adapted"}, ["run_name `adapted` is reserved"]),
        ({"max_steps": 0, "dropout": 2.0, "variant": "x"}, ["max_steps must", "dropout must", "variant must"]),
        (
            {"max_steps": 0, "global_batch_size": 9, "banana": 1},
            ["max_steps must", "global_batch_size 9 must be a multiple", "`banana`"],
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_mistake_is_named_with_its_correction(values, words):
    "Unknown names, wrong types, values out of range and impossible combinations, all in one message."
    for make in (PretrainParams, PretrainParams().replace, lambda **values: PretrainParams.model_validate(values)):
        with pytest.raises(UserError) as error:
            make(**values)
        assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("values", [None, [], "max_steps", 3, [("max_steps", 3)]])
def test_parameters_that_are_not_a_mapping(values):
    with pytest.raises(UserError, match="parameters must be names with values"):
        PretrainParams.model_validate(values)


def test_an_integer_is_a_number_and_nothing_else_is_converted():
    assert type(PretrainParams(learning_rate=1).learning_rate) is float
    assert PretrainParams(run_name="10").run_name == "10"


ODD = ["two\nlines", "\udc80", "a\u2028b", "\x1b[31mred"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_control_characters_are_refused_in_one_printable_line(kind):
    "As a value of any parameter, as an item of it and as a name."
    for odd in ODD:
        tries = [{name: value} for name in kind.model_fields for value in (odd, [odd], {odd: odd})] + [{odd: 1}]
        for values in tries:
            with pytest.raises(UserError) as error:
                kind(**values)
            assert str(error.value).partition("\nvalid parameters")[0].isprintable(), values


@pytest.mark.parametrize(
    "kind", [CorpusParams, ModelParams, TrainingParams, PretrainParams, CorpusBuildParams, AdaptParams, PlanParams]
)
def test_defaults_are_valid(kind):
    "pydantic does not check defaults: here they are given as values."
    assert kind(**kind().model_dump()) == kind()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parameters_are_frozen_described_and_not_shared(kind):
    "Every field has a description, cannot be assigned, and a change of one object's list changes no other."
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
    one = kind()
    for name, value in one:
        with pytest.raises(ValidationError):
            setattr(one, name, value)
        if isinstance(value, list):
            value.append("x")
            assert getattr(kind(), name) != value


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_parameter_name_is_refused_with_the_new_one(old):
    "A params file of an earlier version is refused with the new names."
    from langsamp.evaluation.finetune import FineTuning

    new = OLD_NAMES[old].split(", ")
    kinds = [kind for kind in {*KINDS, FineTuning} if new[0] in kind.model_fields and old not in kind.model_fields]
    assert kinds and {*new} <= kinds[0].model_fields.keys()
    for kind in kinds:
        with pytest.raises(UserError) as error:
            kind(**{old: 1})
        named = " and ".join(f"`{name}`" for name in new)
        assert f"unknown parameter `{old}`; it is now called {named}" in str(error.value)


@pytest.mark.parametrize("old", OLD_VALUES)
def test_an_old_variant_is_refused_with_the_new_one(old):
    with pytest.raises(UserError, match=re.escape(f"not `{old}`; it is now called `{OLD_VALUES[old]}`")):
        PretrainParams(**{"variant": old})


def test_saved_parameters_read_back_as_the_same(tmp_path):
    p = PretrainParams(seed=7, languages=[], learning_rate=1e-5, corpus="a: [b", run_name="10")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(p.model_dump()))
    assert PretrainParams(**read_yaml(tmp_path / "p.yaml")) == p != p.replace(seed=8)


@pytest.mark.parametrize("content", ["a: [", "- a\n- b\n", "steps", "a: b: c", "\x00", "? [a]\n: 1\n"])
def test_file_that_is_not_a_mapping(tmp_path, content):
    "A params file with a typing error is a `UserError`, whichever step finds it."
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(UserError):
        PretrainParams.model_validate(read_yaml(tmp_path / "p.yaml"))


def test_file_that_does_not_exist_or_is_not_text(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "p.yaml", tmp_path / "q.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot read the parameters"):
            read_yaml(path)


def test_validation_imports_nothing_heavy():
    "The message comes without torch, transformers and the like, which alone take seconds."
    code = f"""
import json, sys
from langsamp.core.errors import UserError
from langsamp.params.pretrain import PretrainParams
from langsamp.params.base import from_notebook
lerning_rate: float = 1
try:
    from_notebook(PretrainParams, globals())
except UserError as error:
    print(json.dumps([str(error), sorted({HEAVY!r} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, loaded = json.loads(done.stdout)
    assert "did you mean `learning_rate`?" in message and loaded == []


def test_papermill_fails_in_the_second_cell(tmp_path):
    "papermill itself accepts an unknown `-p`; the notebook stops before the cell that imports torch."
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs/03_pretrain.ipynb"), str(out)]
    command += ["-p", "lerning_rate", "1", "--no-progress-bar", "--cwd", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "did you mean `learning_rate`" in done.stderr + done.stdout
    cells = [
        cell for cell in json.loads(out.read_text())["cells"] if cell["metadata"].get("papermill", {}).get("duration")
    ]
    assert [cell["metadata"]["papermill"]["exception"] for cell in cells[-2:]] == [False, True], (
        "the failed cell is last"
    )
    assert [cell["source"] for cell in cells if "torch" in re.findall(r"import (\w+)", "".join(cell["source"]))] == []


def test_notebook_repeats_the_defaults():
    "The parameters cell of the runner sets every parameter, to the default of the library."
    values = tiny.defaults_of("03_pretrain")
    assert values == vars(PretrainParams()) and values.keys() == PretrainParams.model_fields.keys()


def test_a_mistake_in_a_command_is_reported_before_torch_is_imported(tmp_path):
    (tmp_path / "p.yaml").write_text("lerning_rate: 1\n")
    words = [sys.executable, "-X", "importtime", "-m", "langsamp.training.pretrain", str(tmp_path / "p.yaml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean `learning_rate`?" in done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, flags=re.M))
    assert "langsamp.params.pretrain" in imported and not HEAVY & imported


def test_a_run_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    "Neither opened nor continued: its parameters have former names."
    from langsamp.training.prepare import open_run
    from langsamp.training.run_dir import check_same_params

    old = {"run_name": "smoke", "arm": "both", "size": "2x64", "block_size": 64, "steps": 60, "save_every": 20}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(old))
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"earlier version of langsamp: train it again.* `steps`; it is now called `max_st"
    ):
        open_run(tmp_path)
    with pytest.raises(
        UserError, match=r"earlier version of langsamp \(parameters arm, block_size, .*another run_name"
    ):
        check_same_params(tmp_path, PretrainParams().model_dump())
