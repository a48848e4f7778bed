"The command `langsamp`: the same parameters and functions as the runner notebooks."

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import papermill
import pytest
import tiny
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from langsamp.cli import main as cli
from langsamp.cli.main import COMMANDS, FIGURES, main
from langsamp.core.cards import card_metadata
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256
from langsamp.params.base import Params
from langsamp.training.pretrain import main as pretrain_main
from langsamp.training.pretrain import parse_arguments, pretrain

OUTPUTS = "LANGSAMP_OUTPUTS"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A folder with a corpus, a params file, and outputs/ with a run of two steps that the command made."
    folder = tmp_path_factory.mktemp("cli")
    p = tiny.params_of(tiny.write_corpus(folder / "texts"), run_name="one", max_steps=48)
    tiny.write_params(folder / "one.yaml", p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGSAMP_OUTPUTS", str(folder / "outputs"))
        changed = ["max_steps=2", "warmup_steps=0", "save_steps=2", "learning_rate=1e-3"]
        assert main(["pretrain", str(folder / "one.yaml"), *changed, "languages=eng_Latn,hin_Deva"]) == 0
    return folder


@pytest.fixture(autouse=True)
def outputs(home, monkeypatch) -> Path:
    "The outputs/ folder of the command."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(home / "outputs"))
    return home / "outputs"


def test_pretrain_is_the_function_with_the_file_and_what_replaces_it(home, outputs, tmp_path):
    file = yaml.safe_load((home / "one.yaml").read_text())
    changed = {"max_steps": 2, "warmup_steps": 0, "save_steps": 2, "learning_rate": 1e-3}
    changed["languages"] = ["eng_Latn", "hin_Deva"]
    assert yaml.safe_load((outputs / "one/params.yaml").read_text()) == file | changed
    p = tiny.params_of(home / "texts", run_name="one", **changed)
    pretrain(p, tmp_path)
    assert sha256(tmp_path / "one/model/model.safetensors") == sha256(outputs / "one/model/model.safetensors")


@pytest.mark.slow
def test_the_stages_in_order(home, outputs, stock, capsys):
    "Each prints where its result is, and the next one uses it."
    texts = f"corpus={home / 'texts'}"
    assert main(["corpus", "name=clean", texts, "languages=", "benchmarks="]) == 0
    assert str(outputs / "corpora/clean") in capsys.readouterr().out
    values = ["name=fitted", f"backbone={stock}", "corpus=clean", "languages=", "num_new_tokens=20", "min_count=0"]
    assert main(["start", *values]) == 0 and read_json(outputs / "adapted/fitted/adapted.json")["tokens"]["new"] > 0
    run = ["max_steps=3", "warmup_steps=0", "backbone=fitted", "corpus=clean", "run_name=two"]
    assert main(["plan", str(home / "one.yaml"), "measured_steps=2", *run]) == 0
    planned = capsys.readouterr().out
    assert "tokens trained on" in planned and "parameters: all" in planned and not (outputs / "two").exists()
    assert main(["pretrain", str(home / "one.yaml"), *run]) == 0
    assert f"{outputs / 'two'}: step 3, validation loss " in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_card_and_push(outputs, capsys):
    assert main(["evaluate", "encoder=one", "languages=hin_Deva,rus_Cyrl"]) == 0
    assert "udhr" in (printed := capsys.readouterr().out) and "acc1" in printed
    assert main(["card", "run=one", "license=cc0-1.0"]) == 0
    assert capsys.readouterr().out.split() == [str(outputs / f"one/{part}/README.md") for part in ("model", "backbone")]
    metadata = card_metadata(outputs / "one/backbone")
    assert metadata["license"] == "cc0-1.0" and "model-index" in metadata
    assert main(["push", "run=one", "part=model", "repo_id=me/one"]) == 0
    assert capsys.readouterr().out == f"{outputs / 'published/me--one'} is prepared; dry_run=false uploads it\n"
    assert main(["push", "run=one", "repo_id=me/one", "dry_run=false"]) == 2
    assert "HF_HUB_OFFLINE forbids it" in capsys.readouterr().err


def test_help_lists_every_parameter_with_its_description(capsys):
    for name, command in COMMANDS.items():
        for words in ([name, "--help"], [name, "x.yaml", "-h"]):
            assert main(words) == 0
            printed = " ".join(capsys.readouterr().out.split())
            assert printed.startswith(f"usage: langsamp {name} [PARAMS.yaml]")
            for field, facts in command.kind.model_fields.items():
                assert f" {field}=" in printed and " ".join(facts.description.split()) in printed
    for words in ([], ["--help"], ["figure", "--help"]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        names = [*FIGURES] if words[:1] == ["figure"] else [*COMMANDS, "figure"]
        assert [name for name in names if not re.search(rf"^  {name} +\w", printed, re.M)] == []
    assert main(["figure", "ablation", "--help"]) == 0 and "scores=" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["pretain"], "unknown command `pretain`; did you mean `pretrain`?"),
        (["--version"], "unknown command `--version`; there are corpus, "),
        (["figure", "abalation"], "unknown figure `abalation`; did you mean `ablation`?"),
        (["pretrain", "steps=5"], "unknown parameter `steps`; it is now called `max_steps`"),
        (["pretrain", "max_stepps=5"], "unknown parameter `max_stepps`; did you mean `max_steps`?"),
        (["pretrain", "--max_steps", "5"], "cannot use `--max_steps`; write one params file, then NAME=VALUE"),
        (["pretrain", "a.yaml", "b.yaml"], "cannot use `b.yaml`"),
        (["pretrain", "none.yaml"], "none.yaml"),
        (["pretrain", "max_steps=5.5"], "`max_steps` must be a whole number, not 5.5"),
        (["plan", "max_stepps=5"], "did you mean `max_steps`?"),
        (["push", "repo_id=mine"], "repo_id must be OWNER/NAME"),
        (["card", "run=none"], "no run at"),
    ],
)
def test_a_mistake_is_named_and_ends_with_2(words, message, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("langsamp: ") and message in printed.err and not printed.out


def test_a_mistake_is_found_before_anything_heavy_is_imported():
    script = "import sys; from langsamp.cli.main import main; main(['pretrain', 'steps=5']); main(['push', '--help']); "
    script += "sys.exit(bool({'torch', 'transformers', 'numpy', 'pandas', 'huggingface_hub'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_the_package_installs_the_command():
    config = ConfigParser(delimiters=["="])
    config.read(tiny.ROOT / "settings.ini")
    name, _, place = config["DEFAULT"]["console_scripts"].partition("=")
    module, _, function = place.partition(":")
    assert name == "langsamp" and getattr(importlib.import_module(module), function) is main
    assert 'META["console_scripts"].split()' in (tiny.ROOT / "setup.py").read_text()


def test_the_module_is_the_command():
    "`python -m langsamp.cli.main` works where the command is not installed."
    words = [sys.executable, "-m", "langsamp.cli.main", "pretain"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 2 and "did you mean `pretrain`?" in done.stderr


def test_output_that_nobody_reads_is_no_error():
    "As that of `langsamp --help | head -1`."
    words = [sys.executable, "-m", "langsamp.cli.main", "--help"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    running.stdout.close()
    assert running.stderr.read() == "" and running.wait() == 141


def test_help_of_the_module_for_several_processes_is_no_error(capsys):
    "`python -m langsamp.training.pretrain --help`, which torchrun starts."
    with pytest.raises(SystemExit) as ended:
        pretrain_main(["--help"])
    printed = capsys.readouterr()
    assert not ended.value.code and not printed.err
    assert printed.out.startswith("usage: python -m langsamp.training.pretrain params/NAME.yaml")
    assert "  max_steps=60\n      Optimizer steps\n" in printed.out


def test_the_module_for_several_processes_takes_parameters(tmp_path):
    "As in `torchrun -m langsamp.training.pretrain params/mine.yaml max_steps=2000`."
    file = tmp_path / "a.yaml"
    file.write_text("max_steps: 5\nrun_name: five\n")
    for words, folder in [([], ""), (["elsewhere"], "elsewhere")]:
        p, outputs = parse_arguments([str(file), *words, "max_steps=9"])
        assert (p.max_steps, p.run_name, outputs) == (9, "five", folder)
    with pytest.raises(UserError, match="did you mean `max_steps`"):
        parse_arguments([str(file), "max_step=9"])


def test_every_command_has_parameters_of_a_runner():
    assert all(issubclass(command.kind, Params) for command in COMMANDS.values())
    assert {*COMMANDS} == {"corpus", "start", "plan", "pretrain", "evaluate", "sources", "add-language", "card", "push"}


@pytest.mark.slow
def test_corpus_writes_what_the_notebook_writes(tmp_path, outputs):
    assert main(["corpus", "name=same"]) == 0
    tiny.papermill_command("nbs/01_corpus.ipynb", tmp_path / "c.ipynb", tmp_path / "outputs", "-p", "name", "same")
    found = [read_json(folder / "corpora/same/manifest.json") for folder in (outputs, tmp_path / "outputs")]
    assert found[0] == found[1]


def test_a_figure_needs_a_checkout_and_leaves_its_outputs_alone(tmp_path, monkeypatch, capsys):
    "Outside one, the message says what to do; LANGSAMP_ROOT says where the notebook is, not where the runs are."
    drawn = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *paths, **_: drawn.append((paths, os.environ[OUTPUTS])))
    monkeypatch.setenv(OUTPUTS, "")
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "pretraining"]) == 2 and not drawn
    printed = capsys.readouterr().err
    assert "git clone https://github.com/langsamp/langsamp" in printed and "set LANGSAMP_ROOT to it" in printed
    monkeypatch.setenv("LANGSAMP_ROOT", str(tiny.ROOT))
    assert main(["figure", "pretraining"]) == 0
    ((source, target, values), outputs) = drawn[0]
    assert source == tiny.ROOT / "nbs/figures/pretraining.ipynb" and values["runs"] == ["smoke"]
    assert Path(outputs) == tmp_path / "outputs" and target == tmp_path / "outputs/figures/pretraining.ipynb"


SLOW_LAST_ANSWER = """
import time
kernel = get_ipython().kernel
answer = kernel.shell_handlers["kernel_info_request"]
async def answer_slowly(*message):
    await answer(*message)
    time.sleep(0.5)
kernel.shell_handlers["kernel_info_request"] = answer_slowly
"""


def test_the_kernel_of_a_figure_is_not_interrupted_in_its_last_answer(tmp_path, monkeypatch, capfd):
    "It printed that, after a figure without any error; an error in the notebook is still one."
    cells = [new_code_cell("runs = []", metadata={"tags": ["parameters"]}), new_code_cell(SLOW_LAST_ANSWER)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "figure.ipynb")
    monkeypatch.setattr(cli, "_figure_notebook", lambda name: tmp_path / "figure.ipynb")
    assert main(["figure", "pretraining"]) == 0
    assert "KeyboardInterrupt" not in (printed := capfd.readouterr()).err + printed.out
    notebook.cells.append(new_code_cell("1 / 0"))
    nbformat.write(notebook, tmp_path / "figure.ipynb")
    assert main(["figure", "pretraining"]) == 2 and "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.slow
def test_figure_runs_its_notebook(home, outputs):
    command = [sys.executable, "-c", "import sys; from langsamp.cli.main import main; sys.exit(main())"]
    words = ["figure", "pretraining", "runs=one", "name=drawn", "n_resamples=100"]
    done = subprocess.run([*command, *words], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (outputs / "figures/drawn-loss.png").exists()
    assert json.loads((outputs / "figures/drawn.ipynb").read_text())["cells"]
    done = subprocess.run([*command, *words[:2], "runs=none"], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no run at" in done.stderr
    shutil.rmtree(outputs / "figures")
    assert not os.path.exists(outputs / "none")
