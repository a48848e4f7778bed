"Every notebook runs from top to bottom; cells marked slow or notest are left out, as by nbdev_test."

import json
from pathlib import Path

import pytest
import tiny
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

from langsamp.core import read_json

NOTEBOOKS = sorted(p for p in (tiny.ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXAMPLES = [p for p in NOTEBOOKS if p.parent.name == "library" or p.name == "index.ipynb"]


def short(path: Path) -> str:
    return str(path.relative_to(tiny.ROOT / "nbs"))


def test_every_notebook_is_run_by_a_test():
    others = {short(p) for p in NOTEBOOKS} - {short(p) for p in EXAMPLES}
    assert others == {"03_pretrain.ipynb", "figures/pretraining.ipynb"}


@pytest.mark.parametrize("path", EXAMPLES, ids=short)
def test_examples_hold(path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.setenv("IN_TEST", "1")  # nbdev sets it and leaves it set
    passed, _ = run_notebook(path, skip_flags=get_config().tst_flags.split())
    assert passed, "the failing cell stands in the captured stderr"


def test_the_runner_pretrains_the_smoke_run(smoke):
    "Through papermill, with the defaults: what a run leaves behind is there, and the loss has fallen."
    run = smoke / "smoke"
    assert {"params.yaml", "provenance.json", "corpus.json", "metrics.jsonl", "result.json"} <= {
        p.name for p in run.iterdir()
    }
    losses = [line["validation_loss"] for line in tiny.metrics_of(run) if "validation_loss" in line]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.5
    assert read_json(run / "result.json")["step"] == 60


def test_the_same_command_again_finishes_at_once(smoke):
    "A finished run is left as it is."
    before = {p: p.stat().st_mtime_ns for p in (smoke / "smoke").rglob("*.safetensors")}
    printed = tiny.papermill("nbs/03_pretrain.ipynb", smoke / "again.ipynb", smoke)
    assert "loss" not in printed
    assert {p: p.stat().st_mtime_ns for p in (smoke / "smoke").rglob("*.safetensors")} == before


def test_the_figure_notebook_draws_the_smoke_run(smoke):
    "Pictures, tables and the runs behind them, and the two lines that `make run` ends with."
    (smoke / "figures").mkdir()
    tiny.papermill("nbs/figures/pretraining.ipynb", smoke / "figures/pretraining.ipynb", smoke)
    found = {p.name for p in (smoke / "figures").iterdir()}
    names = ["pretraining-loss", "pretraining-loss-by-script", "pretraining-retrieval"]
    assert {f"{name}.{end}" for name in names for end in ("png", "svg", "csv", "json")} <= found
    assert json.loads((smoke / "figures/pretraining-loss.json").read_text())["runs"]["smoke"]["seed"] == 42
    assert "chance 0.048" in (smoke / "figures/pretraining.txt").read_text()


def test_a_figure_without_its_run_says_which_is_missing(tmp_path):
    with pytest.raises(AssertionError, match="no run at .*nothing: make it with papermill"):
        tiny.papermill("nbs/figures/pretraining.ipynb", tmp_path / "f.ipynb", tmp_path, "-y", "{runs: [nothing]}")
