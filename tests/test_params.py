"A mistake in the parameters is told at once, before anything heavy is loaded."

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from langsamp.core.errors import UserError
from langsamp.params.base import read_yaml
from langsamp.params.pretrain import (
    AdaptParams,
    CorpusBuildParams,
    CorpusParams,
    ModelParams,
    PlanParams,
    PretrainParams,
    TrainingParams,
)

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "tokenizers", "accelerate", "numpy", "pandas", "pyarrow"}


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
        ({"torch_compile": "true"}, ["`torch_compile` must be true or false, not 'true'"]),
        ({"languages": "eng_Latn"}, ["`languages` must be a list of texts"]),
        ({"languages": ["eng_Latn", 3]}, ["`languages` must be a list of texts"]),
        (
            {"variant": "scripts"},
            ["variant must be one of baseline, language, script, language+script", "did you mean `script`?"],
        ),
        ({"precision": "fp16"}, ["precision must be one of fp32, bf16"]),
        (
            {"global_batch_size": 10, "micro_batch_size": 4},
            ["global_batch_size 10 must be a multiple of micro_batch_size 4"],
        ),
        ({"micro_batch_size": 0}, ["micro_batch_size must be at least 1, not 0"]),
        ({"global_batch_size": 0, "micro_batch_size": 4}, ["global_batch_size must be at least"]),
        ({"global_batch_size": -8, "micro_batch_size": 4}, ["global_batch_size must be at least"]),
        ({"warmup_steps": 99, "max_steps": 10}, ["warmup_steps 99 must lie in 0 … max_steps 10"]),
        ({"learning_rate": 0.0}, ["learning_rate must be positive"]),
        ({"learning_rate": float("nan")}, ["learning_rate must be positive"]),
        ({"learning_rate": float("inf")}, ["learning_rate must be positive and finite"]),
        ({"weight_decay": -1.0}, ["weight_decay must be"]),
        ({"dropout": 1.0}, ["dropout must lie in [0, 1)"]),
        ({"num_layers": 2, "hidden_size": 100}, ["hidden_size must be a positive multiple of 32"]),
        ({"num_layers": 0}, ["num_layers must be at least 1"]),
        ({"sampling": "temprature"}, ["did you mean `temperature`?"]),
        ({"alpha": 1.5}, ["alpha must lie in [0, 1]"]),
        ({"run_name": "../other"}, ["run_name must be"]),
        ({"run_name": ".."}, ["run_name must be"]),
        ({"run_name": "data"}, ["run_name"]),
        ({"run_name": "starts"}, ["run_name `starts` is a folder of all runs"]),
        ({"max_steps": 0, "dropout": 2.0, "variant": "x"}, ["max_steps must", "dropout must", "variant must"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_mistake_is_told_with_its_mend(values, words):
    "Unknown names, wrong types and impossible combinations: each is named, all of them at once."
    with pytest.raises(UserError) as error:
        PretrainParams.of(values)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "kind", [CorpusParams, ModelParams, TrainingParams, PretrainParams, CorpusBuildParams, AdaptParams, PlanParams]
)
def test_defaults_are_valid(kind):
    "The smoke run's values pass their own rules."
    assert vars(kind()) == vars(kind.of({}))


@pytest.mark.parametrize("content", ["a: [", "- a\n- b\n", "steps", "a: b: c", "\x00", "? [a]\n: 1\n"])
def test_file_that_is_no_mapping(tmp_path, content):
    "A params file with a slip of the keyboard is a `UserError`, whichever step finds it."
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(UserError):
        PretrainParams.of(read_yaml(tmp_path / "p.yaml"))


def test_file_that_is_not_there_or_not_text(tmp_path):
    "So is a missing file, and one that is not text."
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "p.yaml", tmp_path / "q.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot read the parameters"):
            read_yaml(path)


def test_validation_loads_nothing_heavy():
    "From the interpreter's start to the message in under two seconds, without torch, transformers and the like."
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
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, loaded = json.loads(done.stdout)
    assert "did you mean `learning_rate`?" in message and loaded == []
    assert time.monotonic() - begun < 2


def test_papermill_fails_at_once(tmp_path):
    "papermill itself accepts an unknown `-p`; the notebook stops in its first seconds and says what was meant."
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs/03_pretrain.ipynb"), str(out)]
    command += ["-p", "lerning_rate", "1", "--no-progress-bar", "--cwd", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "did you mean `learning_rate`" in done.stderr + done.stdout
    facts = [cell["metadata"].get("papermill", {}) for cell in json.loads(out.read_text())["cells"]]
    ran = [fact for fact in facts if fact.get("duration")]
    assert [fact["exception"] for fact in ran[-2:]] == [False, True], "the cell that failed is the last that ran"
    assert sum(fact["duration"] for fact in ran) < 2, "before torch, whose import alone takes longer"


def test_notebook_repeats_the_defaults():
    "The parameters cell of the runner sets every parameter, to the default that the library has."
    import papermill

    found = papermill.inspect_notebook(str(ROOT / "nbs/03_pretrain.ipynb"))
    values = {name: eval(facts["default"]) for name, facts in found.items()}
    assert values == vars(PretrainParams()) and list(values) and len(values) == len(fields(PretrainParams))


def test_a_mistake_in_a_command_is_told_before_torch_is_loaded(tmp_path):
    "In less than two seconds; usually in a tenth."
    (tmp_path / "p.yaml").write_text("lerning_rate: 1\n")
    begun = time.monotonic()
    words = [sys.executable, "-X", "importtime", "-m", "langsamp.training.pretrain", str(tmp_path / "p.yaml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean `learning_rate`?" in done.stderr
    assert "langsamp.params.pretrain" in done.stderr and "torch" not in done.stderr
    assert time.monotonic() - begun < 2
