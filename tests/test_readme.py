"The commands and code blocks of README.md work."

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tiny
import yaml
from click.testing import CliRunner
from papermill import cli

from langsamp.cli.main import COMMANDS, FIGURES
from langsamp.core.files import read_json
from langsamp.params.words import read_words

README = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_there_are_two_python_blocks():
    assert len(BLOCKS) == 2 and "encode(" in BLOCKS[0] and "pretrain(" in BLOCKS[1]


def test_the_encoder_block_gives_vectors(smoke):
    names: dict = {}
    exec(BLOCKS[0].replace('"udhr", "outputs"', f'"smoke", "{smoke}"'), names)
    assert names["vectors"].shape == (2, names["encoder"].model.config.hidden_size)


def test_the_own_text_block_pretrains(tmp_path, monkeypatch, stock, capsys):
    "From a backbone. A tiny one stands for it here; the command of params/template.yaml was run with e5-small."
    tiny.write_corpus(tmp_path / "my-corpus")
    monkeypatch.chdir(tmp_path)
    assert 'backbone="e5-small"' in BLOCKS[1] and "max_steps=1000" in BLOCKS[1]
    few = "max_steps=2, warmup_steps=1, num_layers=7"
    exec(BLOCKS[1].replace("e5-small", str(stock)).replace("max_steps=1000", few), {})
    assert "not used beside backbone" in capsys.readouterr().out
    card = (tmp_path / "outputs/from-python/backbone/README.md").read_text()
    assert "| encoder | xlm-roberta, 2 layers of width 64" in card and "num_layers" not in card
    made, given = [read_json(folder / "config.json") for folder in (tmp_path / "outputs/from-python/backbone", stock)]
    assert made["vocab_size"] == given["vocab_size"] and made["num_hidden_layers"] == given["num_hidden_layers"]
    assert read_json(tmp_path / "outputs/from-python/provenance.json")["start"], "began from random weights"


def test_commands_have_the_parameters_that_readme_gives():
    "Each `langsamp …` of README, with its values."
    found = [shlex.split(line) for line in re.findall(r"^langsamp .*$|(?<=`)langsamp [^`]*=[^`]*(?=`)", README, re.M)]
    for _, command, *words in found:
        kind = FIGURES[words.pop(0)].kind if command == "figure" else COMMANDS[command].kind
        assert read_words(kind, [word.replace("params/mine", "params/template") for word in words])
    assert {"pretrain", "sources", "figure", "add-language", "push"} <= {command for _, command, *_ in found}


def test_the_processes_of_the_torchrun_command_divide_the_batch_of_the_template():
    (processes,) = re.findall(
        r"`torchrun --nproc_per_node (\d+) -m langsamp.training.pretrain params/mine.yaml", README
    )
    template = yaml.safe_load((tiny.ROOT / "params/template.yaml").read_text())
    assert template["global_batch_size"] % (template["micro_batch_size"] * int(processes)) == 0


@pytest.mark.parametrize("line", re.findall(r"^papermill .* -f .*", README, flags=re.M))
def test_the_papermill_command_fits_a_params_file(line, corpus, stock, tmp_path):
    "The template, with a folder, a backbone and a length in place of its own."
    _, logged, notebook, output, flag, params = line.split()
    assert (logged, output, flag, params) == ("--log-output", "outputs/mine.ipynb", "-f", "params/mine.yaml")
    assert f"cp params/template.yaml {params}" in README
    own = (tiny.ROOT / "params/template.yaml").read_text()
    for old, new in {"my-corpus": corpus, "e5-small #": f"{stock} #", "1000": 2, " 100\n": " 1\n", "128": 64}.items():
        assert str(old) in own
        own = own.replace(str(old), str(new))
    (tmp_path / "mine.yaml").write_text(own)
    words = [sys.executable, "-m", "papermill", logged, notebook, str(tmp_path / "mine.ipynb"), flag]
    home = os.environ | {"LANGSAMP_OUTPUTS": str(tmp_path)}
    done = subprocess.run(
        [*words, str(tmp_path / "mine.yaml")], cwd=tiny.ROOT, env=home, capture_output=True, text=True
    )
    assert (tmp_path / "mine/result.json").exists(), done.stderr
    assert "step      2/2" in done.stderr + done.stdout, "the steps are shown while they run"
    cells = json.loads((tmp_path / "mine.ipynb").read_text())
    assert "widgets" not in cells["metadata"] and "Loading weights" not in str(cells), "no dead progress bars"


def test_papermill_needs_the_path_of_the_executed_copy(monkeypatch):
    "Without it, papermill stops in a terminal, and prints the notebook elsewhere."
    monkeypatch.setattr(cli, "INPUT_PIPED", False)
    words = ["--prepare-only", str(tiny.ROOT / "nbs/03_pretrain.ipynb")]
    monkeypatch.setattr(cli, "OUTPUT_PIPED", False)
    stopped = CliRunner().invoke(cli.papermill, words)
    assert stopped.exit_code == 2 and "Missing argument 'OUTPUT_PATH'" in stopped.output
    monkeypatch.setattr(cli, "OUTPUT_PIPED", True)
    assert json.loads(CliRunner().invoke(cli.papermill, words).stdout)["cells"]


def test_the_evaluation_command_fits_the_runner(smoke, tmp_path):
    (line,) = re.findall(r"^papermill .*04_evaluate.*?(?=  |$)", README, flags=re.M)
    _, notebook, _, *options = line.split()
    assert options == ["-p", "encoder", "udhr"]
    few = ["-y", "{languages: [bul_Cyrl, tur_Latn]}"]
    shutil.copytree(smoke / "smoke", tmp_path / "smoke")
    tiny.papermill(notebook, tmp_path / "evaluated.ipynb", tmp_path, *options[:2], "smoke", *few)
    (rows,) = tmp_path.glob("evaluations/*/udhr-*/rows.jsonl")
    assert len(rows.read_text().splitlines()) == 2
