"""Every parameter does what its description says: one field at a time, through the cells of the runner notebook.

An entry lists everything that changes; everything else must stay the same. The entries are compared with the
fields of the models, so a new parameter without an effect fails, and so does an effect without a parameter.
"""

import importlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import tiny
import torch
import yaml
from huggingface_hub import HfApi
from matplotlib.figure import Figure
from safetensors import safe_open
from transformers import BertConfig, modeling_utils

from langsamp.analysis import neutrality_plots, plots, reproduction, source_ranking
from langsamp.benchmark import corpus as corpus_suite
from langsamp.benchmark import run as benchmark_run
from langsamp.benchmark import suites, workers
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256
from langsamp.corpora.udhr import parallel_paragraphs
from langsamp.data import sampling
from langsamp.evaluation import tasks
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.finetune import FineTuning, fine_tune
from langsamp.params import benchmark as benchmark_params
from langsamp.params import evaluate as analysis_params
from langsamp.params import pretrain as params
from langsamp.params import publish as publish_params
from langsamp.params.base import Params
from langsamp.params.evaluate import EvaluationParams
from langsamp.params.yaml_reader import read_yaml
from langsamp.training import loop
from langsamp.training.pretrain import pretrain

Observed = dict[str, Any]  # Observations of a run, by name


@dataclass(frozen=True)
class Effect:
    "What changes with other values of one field."

    values: list[Any]  # Compared with the base, and with each other
    affected: str = ""  # Names of all observations that change
    given: dict[str, Any] = field(default_factory=dict)  # Other fields, if this one only matters with them
    perhaps: str = ""  # Names of observations that may change
    refused: str = ""  # Instead: part of the `UserError` for these values
    why: str = ""  # Purpose of the field, if it changes no number of the result


@dataclass(frozen=True)
class Stage:
    "A runner notebook, small base parameters for it, and how a run is observed."

    kind: type[Params]  # Model whose fields are changed
    base: dict[str, Any]  # Parameters that differ from the notebook's defaults
    see: Callable[["Bench", dict[str, Any], Path], Observed]  # From the notebook's names after its last cell
    effects: dict[str, Effect | list[Effect]]
    inside: tuple[str, ...] = ()  # Path to the fields in the notebook's parameters, if nested
    outputs: str = "outputs"  # A folder of the fixture `places`; all that a run adds, except `data`, is deleted
    notebook: str = ""  # Its name, if it differs from that of the stage


STAGES: dict[str, Stage] = {}


class Bench:
    "Runs notebooks; the same values only once."

    def __init__(self, places: Mapping[str, Path], patch: pytest.MonkeyPatch) -> None:
        self.places, self.patch = places, patch
        self.known: dict[str, Observed] = {}
        self.noted: dict[str, list[Any]] = {}

    def place(self, value: Any) -> Any:
        "Fill in the folders of the fixture, for example `@corpus`."
        if isinstance(value, str):
            return re.sub(r"@(\w+)", lambda found: str(self.places[found[1]]), value)
        if isinstance(value, dict):
            return {name: self.place(one) for name, one in value.items()}
        return [self.place(one) for one in value] if isinstance(value, list) else value

    def see(self, name: str, values: Mapping[str, Any]) -> Observed:
        "Return the observations of a run with these values instead of those of the base."
        key = f"{name} {json.dumps(values, sort_keys=True)}"
        if key not in self.known:
            stage, outputs = STAGES[name], self.places[STAGES[name].outputs]
            self.patch.setenv("LANGSAMP_OUTPUTS", str(outputs))
            wanted, before = nested(stage.base, stage.inside, values), set(outputs.iterdir())
            self.noted = {}
            try:
                names = tiny.run_notebook(stage.notebook or name, self.place(wanted), self.places["scripts"])
                self.known[key] = stage.see(self, names, outputs)
            finally:
                plt.close("all")
                shutil.rmtree(outputs / "data/benchmarks", ignore_errors=True)
                for made in set(outputs.iterdir()) - before - {outputs / "data"}:
                    shutil.rmtree(made) if made.is_dir() else made.unlink()
        return self.known[key]

    def spy(self, owner: Any, name: str, note: Callable[..., Any], instead: Callable[..., Any] | None = None) -> None:
        "Note what a function is called with, under its name."
        real = instead or getattr(owner, name)

        def noted(*arguments: Any, **more: Any) -> Any:
            self.noted.setdefault(name, []).append(note(*arguments, **more))
            return real(*arguments, **more)

        self.patch.setattr(owner, name, noted)

    def tuned(self, *arguments: Any) -> Any:
        "Fine-tune, and note what was learnt."
        found = fine_tune(*arguments)
        size = sum(weight.abs().sum().item() for weight in found.model.parameters())
        self.noted.setdefault("learnt", []).append([size, json.dumps(found.history)])
        return found


def nested(base: Mapping[str, Any], inside: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    "Return the base with other values, at the top or nested."
    if not inside:
        return {**base, **values}
    return {**base, inside[0]: nested(base[inside[0]], inside[1:], values)}


def names_of(label: str) -> list[str]:
    "Return the fields of a stage: those of the parameters cell, or of the nested mapping."
    stage = STAGES[label]
    return list(stage.kind.model_fields) if stage.inside else list(tiny.defaults_of(stage.notebook or label))


# The test


def alike(one: Any, two: Any) -> bool:
    "Return whether two observations are equal; numbers to 1e-5."
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=0, abs_tol=1e-5) or math.isnan(one) and math.isnan(two)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    return bool(one == two)


def check(bench: Bench, stage: str, name: str, count: int | None = None) -> None:
    "Check that a field has its effect and no other; with the first values of each effect, or with all."
    effects = STAGES[stage].effects[name]
    for effect in effects if isinstance(effects, list) else [effects]:
        base = bench.see(stage, effect.given)
        if effect.refused:
            for value in effect.values[:count]:
                with pytest.raises(UserError, match=effect.refused):
                    bench.see(stage, effect.given | {name: value})
            continue
        seen = [base, *(bench.see(stage, effect.given | {name: value}) for value in effect.values[:count])]
        for one, two in itertools.combinations(seen, 2):
            found = sorted(what for what in one.keys() | two.keys() if not alike(one.get(what), two.get(what)))
            found = [what for what in found if what not in effect.perhaps.split(", ")]
            assert ", ".join(found) == ", ".join(sorted(effect.affected.split(", "))), f"what {name} changes"


def text_of(table: pd.DataFrame) -> str:
    "Return a table as text."
    return table.to_csv(index=False, float_format="%.6g")


def files_in(folder: Path) -> dict[str, str]:
    "Return the tables in a folder as text."
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.csv"))}


# Pretraining


def see_run(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the folder of a run."
    run = outputs / names["params"].run_name
    report, lines, result = read_json(run / "corpus.json"), tiny.metrics_of(run), read_json(run / "result.json")
    held_out = [line for line in lines if "validation_loss" in line]
    steps = [line for line in lines if "loss" in line]
    with safe_open(run / "model/model.safetensors", "np") as file:
        vectors = sorted(name for name in file.keys() if not name.startswith("mlm."))
    return {
        "folder": run.name,
        "lines": [
            [filter_report["code"], filter_report["splits"]["train"]["lines"]]
            for filter_report in report["filter_reports"]
        ],
        "tokens": [filter_report["splits"]["train"]["tokens"] for filter_report in report["filter_reports"]],
        "parameters": result["parameters"],
        "vectors": vectors,
        "start": held_out[0]["validation_loss"],
        "batches": [[line["tokens"], line["masked"]] for line in steps],
        "micro-batches": [rows for rows, learns in bench.noted["batch_loss"] if learns],
        "losses": [line["loss"] for line in steps],
        "last": float(names["table"].dropna(subset="step").loss.iloc[-1]),
        "steps": len(steps),
        "validations": [line["step"] for line in held_out],
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("step-*")),
        "exported": result["exported_step"],
        "shown": (run / "tensorboard").is_dir(),
        "measured": [line["step"] for line in lines if "retrieval" in line],
        "weights": sha256(run / "model/model.safetensors"),
        "compiled": len(bench.noted.get("compile", [])),
        "recomputed": len(bench.noted.get("checkpoint", [])),
    }


TINY = {"run_name": "one", "corpus": "@corpus", "languages": [], "vocab_size": 300, "max_seq_length": 32}
TINY |= {
    "num_layers": 1,
    "hidden_size": 32,
    "dropout": 0.1,
    "max_steps": 3,
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "warmup_steps": 1,
}
TINY |= {"save_steps": 3, "seed": 7, "precision": "fp32"}
LEARNS = "losses, weights, last"
READS = f"batches, {LEARNS}"
STARTS = f"start, {READS}"
LASTS = f"steps, micro-batches, validations, checkpoints, exported, {READS}"

STAGES["03_pretrain"] = Stage(
    params.PretrainParams,
    TINY,
    see_run,
    {
        "run_name": Effect(["another"], "folder", why="only the name of the folder"),
        "corpus": Effect(["@other"], f"tokens, {STARTS}", perhaps="parameters"),
        "languages": Effect([["eng_Latn", "rus_Cyrl"], ["rus_Cyrl"]], f"lines, tokens, parameters, {STARTS}"),
        "on_bad_line": Effect(["stop"], given={"corpus": "@bad"}, refused="eng_Latn.txt"),
        "min_held_out": Effect([0, 500], f"lines, tokens, {STARTS}", given={"corpus": "@unsplit"}),
        "sampling": Effect(["temperature", "glot500"], READS, given={"corpus": "@unseen"}),
        "alpha": [
            Effect([0.0, 1.0], READS, given={"corpus": "@unseen", "sampling": rule})
            for rule in ("temperature", "glot500")
        ],
        "language_weights": Effect([{"eng_Latn": 50.0}, {"rus_Cyrl": 50.0}], READS),
        "tokenizer": Effect(["@stock"], f"tokens, parameters, {STARTS}"),
        "vocab_size": Effect([120], f"tokens, parameters, {STARTS}"),
        "max_seq_length": Effect([16], f"parameters, {STARTS}"),
        "packing": Effect(["stream"], STARTS),
        "backbone": Effect(["@stock"], f"tokens, parameters, {STARTS}"),
        "architecture": Effect(["bert", "modernbert", "@config"], f"parameters, start, {LEARNS}"),
        "num_layers": Effect([2], f"parameters, start, {LEARNS}"),
        "hidden_size": Effect([64], f"parameters, start, {LEARNS}"),
        "dropout": Effect([0.0, 0.5], LEARNS),
        "variant": [
            Effect(["baseline", "language", "script"], f"parameters, vectors, start, {LEARNS}"),
            Effect(["input", "input+output", "unigram"], f"vectors, {LEARNS}", perhaps="parameters, start"),
            Effect(["logits", "shuffled"], LEARNS, perhaps="start"),
            Effect(["adversarial"], f"vectors, parameters, {LEARNS}", perhaps="start"),
        ],
        "embedding_scale": [
            Effect([0.0, 0.5, 2.0], f"start, {LEARNS}"),
            Effect([2.0], given={"variant": "baseline"}, refused="embedding_scale 2.0 needs variant language"),
        ],
        "adversarial_weight": [
            Effect([0.0, 3.0], LEARNS, given={"variant": "adversarial"}),
            Effect([0.5], refused="adversarial_weight 0.5 needs variant adversarial, not language"),
        ],
        "max_steps": Effect([5], LASTS),
        "global_batch_size": Effect([8], f"micro-batches, {READS}"),
        "micro_batch_size": Effect(
            [1],
            "micro-batches, weights",
            given={"dropout": 0.0},
            why="sequences at a time: losses are the same to 1e-5, weights except for rounding",
        ),
        "mlm_probability": Effect([0.3, 0.6], READS),
        "learning_rate": Effect([1e-2], LEARNS),
        "lr_scheduler_type": [
            Effect(["cosine", "constant_with_warmup"], LEARNS, given={"max_steps": 4}),
            Effect(["warmup_stable_decay"], refused="need each other"),
        ],
        "warmup_steps": Effect([0, 3], LEARNS),
        "decay_steps": [
            Effect(
                [3, 4], LEARNS, given={"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 1, "max_steps": 5}
            ),
            Effect([1], refused="need each other"),
        ],
        "weight_decay": Effect([0.5], LEARNS),
        "adam_beta1": Effect([0.5], LEARNS),
        "adam_beta2": Effect([0.9], LEARNS),
        "max_grad_norm": Effect([0.0, 0.01], LEARNS, given={"adam_beta2": 0.5}),
        "seed": Effect([8], STARTS),
        "precision": Effect(
            ["bf16"], LEARNS, given={"learning_rate": 0.05, "load_best_model_at_end": False}, perhaps="start"
        ),
        "gradient_checkpointing": Effect(
            [True],
            "recomputed",
            given={"dropout": 0.0, "num_layers": 2},
            why="states are recomputed; without dropout the weights are the same",
        ),
        "torch_compile": [
            Effect(
                [True],
                "compiled",
                given={"dropout": 0.0},
                why="the encoder is compiled (here only recorded); without dropout the weights are the same",
            ),
            Effect([True], given={"variant": "input"}, refused="torch_compile does not work with variant input"),
        ],
        "save_steps": Effect([1], "validations, checkpoints", why="when the loss is validated and a checkpoint saved"),
        "early_stopping_patience": Effect(
            [1],
            LASTS,
            given={
                "save_steps": 1,
                "max_steps": 6,
                "learning_rate": 0.3,
                "warmup_steps": 0,
                "load_best_model_at_end": False,
            },
        ),
        "load_best_model_at_end": Effect(
            [False],
            "exported, weights",
            given={"save_steps": 1, "max_steps": 6, "learning_rate": 0.3, "warmup_steps": 0},
        ),
        "retrieval": Effect(["udhr"], "measured", why="what is measured beside the loss"),
        "retrieval_steps": Effect([1], "measured", given={"retrieval": "udhr"}, why="when it is measured"),
        "report_to": Effect(["tensorboard"], "shown", why="where the metrics are shown"),
    },
)


# Corpora


def see_corpus(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the folder of a corpus and the matches found in it."
    (folder,) = (outputs / "corpora").glob("[!.]*")
    texts = {path: path.read_text().splitlines() for path in sorted((folder / "text").glob("*/*.txt"))}
    report = read_json(folder / "audit.json")
    return {
        "folder": folder.name,
        "languages": sorted({path.stem for path in texts}),
        "training text": [line for path, lines in texts.items() for line in lines if path.parent.name == "train"],
        "held-out text": [line for path, lines in texts.items() for line in lines if path.parent.name != "train"],
        "sets": [row["benchmark"] for row in report["sets"]],
        "found": [row["found"] for row in report["sets"]],
        "dropped": report["dropped"],
    }


STAGES["01_corpus"] = Stage(
    params.CorpusBuildParams,
    {
        "name": "one",
        "corpus": "@leaky",
        "languages": [],
        "benchmarks": ["folder:@evaluation"],
        "ngram_size": 3,
        "overlap_threshold": 0.5,
    },
    see_corpus,
    {
        "name": Effect(["another"], "folder", why="only the name of the folder"),
        "corpus": Effect(["@leaky+@other"], "training text, held-out text"),
        "languages": Effect([["eng_Latn"]], "languages, training text, held-out text"),
        "on_bad_line": Effect(["stop"], given={"corpus": "@bad"}, refused="eng_Latn.txt"),
        "min_held_out": Effect([0, 500], "training text, held-out text", given={"corpus": "@unsplit"}),
        "min_characters": Effect([500], "languages, training text, held-out text"),
        "benchmarks": Effect([["folder:@evaluation", "folder:@more"]], "sets, found, training text"),
        "ngram_size": Effect([8], "found, training text"),
        "max_held_out": Effect([100], "held-out text"),
        "overlap_threshold": Effect([0.3], "found, training text"),
        "remove_matches": Effect([False], "dropped, training text"),
    },
)


# Starts


def see_start(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the folder of an adapted checkpoint."
    (folder,) = [path for path in (outputs / "adapted").iterdir() if path.is_dir()]
    return {
        "folder": folder.name,
        "tokens": read_json(folder / "adapted.json")["tokens"],
        "coverage": text_of(names["table"].reset_index()),
        "tokenizer": sha256(folder / "tokenizer.json"),
        "weights": sha256(folder / "model.safetensors"),
    }


FITS = "tokens, coverage, tokenizer, weights"

STAGES["02_start"] = Stage(
    params.AdaptParams,
    {"name": "one", "backbone": "@stock", "corpus": "@corpus", "languages": [], "num_new_tokens": 40},
    see_start,
    {
        "name": Effect(["another"], "folder", why="only the name of the folder"),
        "backbone": Effect(["@stock2"], "weights"),
        "tokenizer": Effect(["@stock3"], FITS, given={"num_new_tokens": 0, "min_count": 0}),
        "corpus": Effect(["@other"], FITS),
        "languages": Effect([["eng_Latn"]], FITS),
        "num_new_tokens": Effect([0, 60], FITS),
        "min_count": [Effect([0], "tokens, tokenizer, weights"), Effect([4], FITS)],
        "new_token_init": Effect(["random"], "weights"),
        "seed": Effect([43], "weights"),
    },
)


# Plans


def see_plan(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the numbers of a plan, without times."
    costs = {name: value for name, value in names["costs"].items() if not name.startswith(("seconds", "peak"))}
    return {"costs": costs, "measured steps": len(bench.noted["train_step"])}


STAGES["02a_plan"] = Stage(
    params.PlanParams,
    {"params": "@plans/a.yaml", "measured_steps": 2},
    see_plan,
    {
        "params": Effect(["@plans/b.yaml"], "costs"),
        "overrides": Effect([{"variant": "baseline"}, {"max_steps": 9}], "costs"),
        "measured_steps": Effect([6], "measured steps", why="number of steps that are timed"),
    },
)


# Evaluations


def see_evaluation(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe what was evaluated, and the scores by task."
    table = names["results"]
    scores = {
        task: table[table.task == task].drop(columns=["run", "layer", "mode", "source"]).sort_values(["name", "metric"])
        for task in ("tatoeba", "sib200")
    }
    return {
        "folder": sorted(path.name for path in (outputs / "evaluations").iterdir()),
        "tasks": sorted({*table.task}),
        "languages": sorted({*table.name}),
        "seeds": sorted({*table.seed}),
        "retrieval": text_of(scores["tatoeba"]),
        "topics": text_of(scores["sib200"]),
        "learnt": bench.noted.get("learnt", []),
        "warnings": names["warnings"],
    }


SCORES = "retrieval, topics"
TUNED = {"mode": "fine-tuned", "tasks": ["sib200"], "seeds": 1, "precision": "auto"}

STAGES["04_evaluate"] = Stage(
    analysis_params.EvaluationParams,
    {"encoder": "langsamp-7", "tasks": ["tatoeba", "sib200"], "data_dir": "@sets", "seeds": 1, "precision": "fp32"},
    see_evaluation,
    {
        "encoder": Effect(["baseline-7", "langsamp-8"], f"folder, warnings, {SCORES}"),
        "tasks": Effect([["tatoeba"]], "tasks, languages, seeds, topics", given={"seeds": 2}),
        "languages": Effect([["deu_Latn", "fra"]], f"languages, warnings, {SCORES}"),
        "data_dir": Effect(["@sets2"], SCORES),
        "source_language": Effect(["deu_Latn"], "tasks, languages, seeds, warnings, retrieval, topics"),
        "layer": Effect([0], SCORES),
        "pooling": Effect(["cls", "last"], SCORES),
        "similarity": Effect(["csls", "margin"], "retrieval"),
        "mode": Effect(["fine-tuned"], "learnt, topics", given={k: v for k, v in TUNED.items() if k != "mode"}),
        "seeds": Effect([2, 3], "seeds, topics"),
        "precision": Effect(["bf16"], "retrieval", perhaps="topics"),
        "overrides": Effect(
            [{"num_train_epochs": 1}, {"num_train_epochs": 2}], "learnt", given=TUNED, perhaps="topics"
        ),
    },
    outputs="unevaluated",
)

STAGES["fine-tuning"] = Stage(
    FineTuning,
    {
        "encoder": "langsamp-7",
        "data_dir": "@sets",
        **TUNED,
        "overrides": {"num_train_epochs": 3, "learning_rate": 1e-3},
    },
    see_evaluation,
    {
        "metric_for_best_model": Effect(["accuracy"], "learnt", perhaps="topics"),
        "max_seq_length": Effect([4], "learnt", perhaps="topics"),
        "num_train_epochs": Effect([2], "learnt", perhaps="topics"),
        "micro_batch_size": Effect([4], "learnt", perhaps="topics"),
        "gradient_accumulation_steps": Effect([4], "learnt", perhaps="topics"),
        "learning_rate": Effect([3e-3], "learnt", perhaps="topics"),
        "adam_epsilon": Effect([1e-2], "learnt", perhaps="topics"),
        "weight_decay": Effect([10.0], "learnt", perhaps="topics"),
        "max_grad_norm": Effect([1e-2], "learnt", perhaps="topics"),
        "eval_steps": Effect([1], "learnt", perhaps="topics"),
        "reference_accumulation": Effect([True], "learnt", perhaps="topics"),
    },
    inside=("overrides",),
    outputs="unevaluated",
    notebook="04_evaluate",
)


# Figures


def see_figure(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the files in figures/, without the prefix of the figure."
    place, name = outputs / "figures", names["params"].name
    tables = {path.name.removeprefix(name).strip("-"): path.read_text() for path in sorted(place.glob("*.csv"))}
    pages = {path.name.removeprefix(name): re.sub(rf"\b{name}\b", "", path.read_text()) for path in place.glob("*.txt")}
    runs = [list(read_json(path)["runs"]) for path in sorted(place.glob("*.json"))]
    named = {path.name.startswith(name) for path in place.iterdir()}
    return {"name": name if named == {True} else named, "runs": runs, **tables, **pages}


def figure_effects(**more: Any) -> dict[str, Any]:
    "Return the effects that all figures share, and others."
    return {"name": Effect(["another"], "name", why="only the prefix of the files"), **more}


# Publishing


def see_publication(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe what was prepared, and what was uploaded."
    return {
        "address": names["address"],
        "card": (names["folder"] / "README.md").read_text(),
        "weights": sha256(names["folder"] / "model.safetensors"),
        "visibility": bench.noted.get("create_repo", []),
        "uploads": bench.noted.get("upload_folder", []),
    }


STAGES["07_publish"] = Stage(
    publish_params.PublishParams,
    {"run": "langsamp-7", "repo_id": "me/one"},
    see_publication,
    {
        "run": Effect(["baseline-7", "langsamp-8"], "card, weights"),
        "part": Effect(["model"], "card, weights"),
        "repo_id": Effect(["me/two"], "address, card"),
        "license": Effect(["cc0-1.0", "mit"], "card"),
        "private": Effect([False], "visibility", given={"dry_run": False}),
        "dry_run": Effect([False], "address, uploads, visibility"),
    },
    outputs="unevaluated",
)


STAGES["figures/pretraining"] = Stage(
    params.PretrainingFigureParams,
    {"runs": ["langsamp-7", "baseline-7"], "name": "figure", "n_resamples": 50},
    see_figure,
    figure_effects(
        runs=Effect(
            [["langsamp-8", "baseline-7"], ["langsamp-7"]], "runs, loss.csv, loss-by-script.csv, retrieval.csv, .txt"
        ),
        layer=Effect([0], "retrieval.csv, .txt"),
        n_resamples=Effect([60], ".txt"),
    ),
    outputs="runs",
)

STAGES["figures/packing"] = Stage(
    params.PackingFigureParams,
    {"runs": ["langsamp-7", "stream-7"], "name": "figure"},
    see_figure,
    figure_effects(
        runs=Effect(
            [["langsamp-8", "stream-7"], ["langsamp-7", "baseline-7"]], refused="each seed needs|differ in more"
        ),
        layer=Effect([0], ".csv, differences.csv"),
    ),
    outputs="runs",
)

STAGES["figures/plateau"] = Stage(
    params.PlateauFigureParams,
    {"params": "@plans/a.yaml", "recipes": {"few": {"max_steps": 2}, "more": {"max_steps": 3}}, "name": "figure"},
    see_figure,
    figure_effects(
        params=Effect(["@plans/b.yaml"], ".csv, ends.csv"),
        recipes=Effect([{"few": {"max_steps": 2}}, {"few": {}, "more": {}}], ".csv, ends.csv", perhaps="runs"),
    ),
)

LABELS = {"A": ["langsamp-7", "langsamp-8"], "B": ["baseline-7"]}
FEWER = {"A": ["langsamp-7"], "B": ["baseline-7"]}
TABLES = "differences.csv, seeds.csv"

for page, kind in {
    "main_results": analysis_params.MainResultsParams,
    "ablation": analysis_params.AblationParams,
}.items():
    STAGES[f"figures/{page}"] = Stage(
        kind,
        {"encoders": LABELS, "baseline": "B", "name": "figure", "n_resamples": 50, "scores": ["tatoeba:raw:acc10"]},
        see_figure,
        figure_effects(
            encoders=Effect([FEWER], f"runs, .csv, languages.csv, {TABLES}"),
            baseline=Effect(["A", ""], TABLES),
            scores=Effect([["tatoeba:raw:mrr"], ["sib200:frozen:accuracy"]], f".csv, languages.csv, {TABLES}"),
            layer=Effect([0], f".csv, languages.csv, {TABLES}"),
            n_resamples=Effect([60], "differences.csv"),
        ),
        outputs="runs",
    )

BY_LAYER = "alignment.csv, claim.csv, margin.csv, probes.csv, spread.csv"
BY_BASE = "closeness.csv, differences.csv, gain.csv"

STAGES["figures/neutrality"] = Stage(
    analysis_params.NeutralityParams,
    {"encoders": FEWER, "baseline": "B", "name": "figure", "n_resamples": 50},
    see_figure,
    figure_effects(
        encoders=Effect([{"A": ["langsamp-8"], "B": ["baseline-7"]}], f"runs, {BY_LAYER}, {BY_BASE}"),
        baseline=Effect(["A"], BY_BASE),
        text=Effect(["sib200"], f"{BY_LAYER}, {BY_BASE}"),
        n_resamples=Effect([60], BY_BASE),
        seed=Effect([1], BY_BASE),
    ),
    outputs="runs",
)

STAGES["figures/resource_levels"] = Stage(
    analysis_params.ResourceParams,
    {"encoders": LABELS, "baseline": "B", "name": "figure", "n_resamples": 50},
    see_figure,
    figure_effects(
        encoders=Effect([FEWER], "runs, .csv, differences.csv, languages.csv, costs.csv"),
        baseline=Effect(["A", ""], "differences.csv, costs.csv"),
        num_levels=Effect([2], ".csv, differences.csv"),
        ids=Effect([["none"], ["mean"], ["identified"]], "ids.csv"),
        n_resamples=Effect([60], "differences.csv"),
    ),
    outputs="runs",
)

STAGES["figures/embedding_map"] = Stage(
    analysis_params.EmbeddingMapParams,
    {"runs": ["langsamp-7", "langsamp-8"], "name": "figure", "n_resamples": 20},
    see_figure,
    figure_effects(
        runs=[
            Effect([["langsamp-7"]], "agreement.csv"),
            Effect([["langsamp-8", "langsamp-7"]], "runs, sums.csv, tables.csv, family.csv, agreement.csv"),
        ],
        n_neighbors=Effect([1], "family.csv"),
        n_resamples=Effect([30], "family.csv, agreement.csv"),
        seed=Effect([1], "family.csv, agreement.csv"),
    ),
    outputs="runs",
)

STAGES["figures/embedding_similarity"] = Stage(
    analysis_params.EmbeddingSimilarityParams,
    {"runs": ["langsamp-7", "langsamp-8"], "name": "figure"},
    see_figure,
    figure_effects(
        runs=Effect([["langsamp-8"]], "runs, .csv"),
        languages=Effect([["hin_Deva", "fin_Latn", "rus_Cyrl"]], ".csv"),
    ),
    outputs="runs",
)

STAGES["figures/source_ranking"] = Stage(
    analysis_params.TransferParams,
    {"encoder": "langsamp-7", "data_dir": "@sets", "seeds": 1, "name": "figure", "n_resamples": 50},
    see_figure,
    figure_effects(
        encoder=Effect(["langsamp-8"], ".csv, matrix.csv", perhaps="permuted.csv"),
        task=Effect(["taxi1500"], refused="taxi1500 has no training data"),
        data_dir=Effect(["@sets2"], ".csv, matrix.csv", perhaps="permuted.csv"),
        languages=Effect([["deu_Latn", "eng_Latn", "rus_Cyrl"]], ".csv, matrix.csv", perhaps="permuted.csv"),
        layer=Effect([0], ".csv, matrix.csv", perhaps="permuted.csv"),
        seeds=Effect([2], ".csv, matrix.csv", perhaps="permuted.csv"),
        train_sentences=Effect([12], ".csv, matrix.csv", perhaps="permuted.csv"),
        runs=Effect([["langsamp-7"]], "runs, .csv, permuted.csv", perhaps="matrix.csv"),
        fine_tuned=Effect([["deu_Latn"]], refused="needs three"),
        overrides=Effect([{"num_train_epochs": 1}], refused="overrides are for fine_tuned"),
        n_resamples=Effect([2], ".csv"),
    ),
    outputs="runs",
)

STAGES["figures/neutrality_transfer"] = Stage(
    analysis_params.NeutralityTransferParams,
    {"encoders": LABELS, "baseline": "B", "data_dir": "@sets", "name": "figure", "n_resamples": 50, "rank": 1},
    see_figure,
    figure_effects(
        encoders=Effect([FEWER], "runs, .csv, languages.csv"),
        baseline=Effect(["A", ""], ".csv, languages.csv"),
        data_dir=Effect(["@sets2"], ".csv, languages.csv"),
        languages=Effect([["deu_Latn", "eng_Latn", "rus_Cyrl"]], ".csv, languages.csv"),
        layers=Effect([[0.5, 1.0]], ".csv, languages.csv"),
        rank=Effect([2], ".csv, languages.csv"),
        seeds=Effect([2], ".csv, languages.csv"),
        n_resamples=Effect([1], ".csv"),
    ),
    outputs="runs",
)


# Reproductions


def see_reproduction(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the notebooks that would run; each accepts its parameters."
    jobs = bench.noted["run_job"]
    for job in jobs:
        label = job.notebook.removesuffix(".ipynb")
        assert STAGES[label].kind.model_validate(job.parameters) and job.parameters.keys() <= {*tiny.defaults_of(label)}
    stages = ("adapt", "pretrain", "evaluate", "show")
    found = {stage: [[job.output, job.parameters] for job in jobs if job.stage == stage] for stage in stages}
    return found | {"at once": bench.noted["ThreadPoolExecutor"]}


STAGES["05_reproduce"] = Stage(
    analysis_params.ReproductionParams,
    {"name": "one", "params": "@plans/a.yaml"},
    see_reproduction,
    {
        "name": Effect(["another"], "pretrain, evaluate, show"),
        "params": Effect(["@plans/b.yaml"], "pretrain"),
        "adapted": Effect(["params/adapted/small.yaml"], "adapt"),
        "overrides": Effect([{"max_steps": 9}], "pretrain"),
        "variants": Effect([["language+script", "baseline"]], "pretrain, evaluate, show"),
        "more_runs": Effect([{"slow": {"learning_rate": 1e-4}}], "pretrain, evaluate, show"),
        "seeds": Effect([2, 3], "pretrain, evaluate, show"),
        "tasks": Effect([["udhr", "tatoeba"]], "evaluate"),
        "benchmarks": Effect([["sib200"]], "evaluate"),
        "languages": Effect([["rus_Cyrl"]], "evaluate"),
        "layer": Effect([0], "evaluate, show"),
        "probe_seeds": Effect([2], "evaluate"),
        "scores": Effect([["udhr:raw:acc10"]], "show"),
        "text": Effect(["sib200", "bible"], "show"),
        "num_processes": Effect([2], "at once", why="number of notebooks at a time"),
    },
)


# Benchmarks


class Enough(Exception):
    "Raised when a process of a benchmark has done all that is observed."


class Watched:
    "Replaces `TimedLoop`: one step per worker, or all steps if its loss will be queried."

    seen: dict[str, Any] = {}

    def __init__(self, metadata: Mapping[str, Any], **queries: Callable[[], Any]) -> None:
        self.metadata, self.queries, self.units = dict(metadata), queries, []

    def add(self, units: float) -> None:
        self.units.append(float(units))
        if not Watched.seen["whole"]:
            self.finish()

    def finish(self) -> None:
        loss = float(self.queries["loss"]()) if Watched.seen["whole"] else 0.0
        Watched.seen |= {"metadata": self.metadata, "units": self.units, "loss": loss}
        raise Enough


class InProcess:
    "Replaces `Worker`: the same work in this process, with a clock that always shows one second."

    bench: Bench

    def __init__(self, program: list[str], spec: dict[str, Any], log: Path, threads: int) -> None:
        self.name, self.measured = log.stem, self.bench.noted.setdefault("measurements", [])
        self.found = self.work(dict(spec))
        kind = [self.name, spec["task"], spec.get("recipe", "")]
        self.bench.noted.setdefault("work", []).append([kind, threads, self.found])
        self.metadata = self.found.get("metadata", {})

    def work(self, spec: dict[str, Any]) -> dict[str, Any]:
        "What the process does, for as long as it is watched."
        Watched.seen, kind = {"whole": bool(spec.get("sentences")) and spec["task"] == "training"}, spec.pop("task")
        if kind == "matmul" or spec.get("by") == "sentence_transformers":
            return {"units": [1.0]}
        with pytest.raises(Enough):
            getattr(workers, kind)(**spec)
        texts = read_json(spec["sentences"]) if kind == "encoding" else []
        learnt = [rows for rows, learns in self.bench.noted.pop("batch_loss", []) if learns]
        compiled = len(self.bench.noted.pop("compile", []))
        return {**Watched.seen, "compiled": compiled, "texts": len(texts), "micro-batches": learnt}

    def run_for(self, seconds: float) -> dict[str, Any]:
        self.measured.append([self.name, seconds])
        units = sum(self.found["units"])
        return {"units": units, "steps": 1, "seconds": 1.0, "cpu": 1.0, "memory": 1.0, "device_memory": 0.0}

    def query(self, name: str) -> float:
        return self.found[name]

    def close(self) -> None:
        pass


def measured(variant: str, home: Path | None = None, **values: Any) -> dict[str, float]:
    "Replaces the process that measures corpus preparation."
    if home:
        home.mkdir(parents=True)
    return {"seconds": 1.0, "tokens": 1.0, "CPU seconds": 1.0}


def sizes_in(variant: str, corpus: Path | None = None, folder: Path | None = None, **values: Any) -> list[Any]:
    "Return the arguments of a process that measures corpus preparation."
    texts = sorted(path.name for path in (corpus or folder or Path("nowhere")).glob("*"))
    size = sum(path.stat().st_size for path in (corpus or Path("nowhere")).glob("*"))
    return [variant, texts, size, values.get("processes"), (values.get("params") or {}).get("max_seq_length")]


def trained(params: Path, outputs: Path, processes: int, threads: int, until: float) -> list[Any]:
    "Return what the command for several processes is given."
    values = read_yaml(params)
    names = ("num_layers", "global_batch_size", "micro_batch_size", "max_steps", "precision")
    return [processes, threads, *(values[name] for name in names)]


def see_benchmark(bench: Bench, names: dict[str, Any], outputs: Path) -> Observed:
    "Observe the rows of the benchmark, and the work behind them."
    (folder,) = (outputs / "benchmarks").iterdir()
    rows, work = names["rows"], bench.noted.get("work", [])
    found = [what for kind, _, what in work if kind[1] == "training"]
    return {
        "folder": folder.name,
        "rows": sorted({*zip(rows.stage, rows.variant, rows["size"].astype(str))}),
        "processes": [kind for kind, _, _ in work],
        "threads": sorted({threads for _, threads, _ in work}),
        "measurements": bench.noted.get("measurements", []),
        "tokens": [what["units"] for what in found],
        "parameters": [what["metadata"]["parameters"] for what in found],
        "flops": [what["metadata"].get("flops", 0.0) for what in found],
        "micro-batches": [what["micro-batches"] for what in found],
        "losses": [what["loss"] for what in found],
        "compiled": [what["compiled"] for what in found],
        "texts": [what["texts"] for kind, _, what in work if "texts" in what and kind[1] == "encoding"],
        "trained": bench.noted.get("_train", []),
        "measured": bench.noted.get("measure", []),
        "gigabytes": bench.noted.get("synthetic_run", []),
    }


TRAINING_SPEED = {
    "tokens_per_step": 128,
    "tokens_per_micro_batch": 64,
    "rounds": 1,
    "seconds": 0.5,
    "variants": ["run_mlm_lines", "reference", "langsamp"],
}
LOSS = {
    "tokens_per_step": 128,
    "tokens_per_micro_batch": 64,
    "size": "1x32/200",
    "train_tokens": 512,
    "seeds": 1,
    "sentences": 8,
}
LOSS |= {"variants": ["reference", "langsamp"]}
OVERHEAD = TRAINING_SPEED | {"size": "1x32/200", "languages": [610], "variants": ["langsamp"]}
PASS = {"corpus": "udhr", "files": 4, "rounds": 1, "megabytes": [1], "languages": 9, "gigabytes": 0.001}
PROCESSES = {"size": "1x32/200", "processes": 2, "steps": 4, "rounds": 1, "variants": ["langsamp"]}
PROCESSES |= {"tokens_per_step": 128, "tokens_per_micro_batch": 32}
ENCODE = {"encoders": ["1x32"], "sentences": 8, "rounds": 1, "seconds": 0.5}
MORE = (
    "processes, measurements, tokens, parameters, flops, micro-batches, losses, compiled"  # Where more processes train
)
TRAINS = "tokens, losses"
BENCHMARK = {"name": "one", "corpus": "@corpus", "languages": [], "max_seq_length": 32, "threads": 1}

STAGES["06_benchmark"] = Stage(
    benchmark_params.BenchmarkParams,
    BENCHMARK | {"sizes": {"1x32/200": TRAINING_SPEED}, "equal_loss": LOSS},
    see_benchmark,
    {
        "name": Effect(["another"], "folder", why="only the name of the folder"),
        "sizes": Effect([{"2x32/200": TRAINING_SPEED}], "rows, parameters, flops"),
        "overhead": Effect([OVERHEAD], f"rows, {MORE}"),
        "equal_loss": Effect([{}], f"rows, {MORE}"),
        "encoding": Effect([ENCODE], "rows, processes, measurements, texts"),
        "processes": Effect([PROCESSES], "rows, trained"),
        "corpus_pass": Effect([PASS], "rows, measured, gigabytes"),
        "corpus": Effect(["@other"], f"flops, {TRAINS}"),
        "languages": Effect([["eng_Latn"]], f"parameters, flops, {TRAINS}"),
        "max_seq_length": Effect([16], f"parameters, flops, micro-batches, {TRAINS}"),
        "learning_rate": Effect([5e-3], "losses"),
        "threads": Effect([2], "threads", why="number of threads per process"),
        "torch_compile": Effect([True], "compiled, losses", why="our encoder is compiled, with PyTorch's dropout"),
        "time_limit": Effect([1e-9], f"rows, threads, {MORE}", why="no time is left, so nothing is measured"),
    },
)


def suite_stage(kind: type[Params], base: dict[str, Any], inside: tuple[str, ...], **effects: Any) -> Stage:
    "Return the stage of a mapping inside the parameters of a benchmark."
    whole: dict[str, Any] = base
    for name in reversed(inside):
        whole = {name: whole}
    return Stage(kind, BENCHMARK | {"sizes": {}} | whole, see_benchmark, effects, inside, notebook="06_benchmark")


ROUNDS = {
    "rounds": Effect([2], "measurements", why="number of measurements"),
    "seconds": Effect([0.6], "measurements", why="length of a measurement"),
}

STAGES["training suite"] = suite_stage(
    benchmark_params.TrainingSpeedParams,
    TRAINING_SPEED,
    ("sizes", "1x32/200"),
    **ROUNDS,
    tokens_per_step=Effect([256], "tokens, micro-batches"),
    tokens_per_micro_batch=[
        Effect([32], "micro-batches", perhaps="tokens", why="tokens per forward pass"),
        Effect([16], refused="tokens_per_micro_batch 16 must be a multiple of max_seq_length 32"),
    ],
    max_workers=Effect([2], MORE, why="variants in memory at a time: the first of ours is always one of them"),
    variants=Effect([["langsamp_bf16"]], f"rows, {MORE}"),
)
STAGES["overhead suite"] = suite_stage(
    benchmark_params.OverheadParams,
    OVERHEAD,
    ("overhead",),
    **ROUNDS,
    tokens_per_step=Effect([256], "tokens, micro-batches"),
    tokens_per_micro_batch=[
        Effect([32], "micro-batches", why="tokens per forward pass"),
        Effect([16], refused="tokens_per_micro_batch 16 must be a multiple of max_seq_length 32"),
    ],
    variants=Effect([["langsamp_bf16"]], "processes"),
    size=Effect(["2x32/200"], "rows, parameters, flops"),
    languages=[Effect([[700]], "rows, parameters"), Effect([[610, 700]], f"rows, {MORE}")],
)
STAGES["equal-loss suite"] = suite_stage(
    benchmark_params.EqualLossParams,
    LOSS,
    ("equal_loss",),
    tokens_per_step=Effect([256], f"micro-batches, {TRAINS}"),
    tokens_per_micro_batch=[
        Effect([32], "micro-batches, losses", perhaps="tokens"),
        Effect([16], refused="tokens_per_micro_batch 16 must be a multiple of max_seq_length 32"),
    ],
    variants=Effect([["langsamp_bf16"]], f"rows, {MORE}"),
    size=Effect(["2x32/200"], "rows, parameters, flops, losses"),
    train_tokens=Effect([1024], f"micro-batches, {TRAINS}"),
    seeds=Effect([2], MORE),
    sentences=Effect([12], "losses"),
)
STAGES["encoding suite"] = suite_stage(
    benchmark_params.EncodingSpeedParams,
    ENCODE,
    ("encoding",),
    **ROUNDS,
    encoders=Effect([["2x32"]], "rows", perhaps="processes"),
    sentences=Effect([12], "texts"),
)
STAGES["processes suite"] = suite_stage(
    benchmark_params.ProcessesParams,
    PROCESSES,
    ("processes",),
    tokens_per_step=[
        Effect([256], "trained"),
        Effect([96], refused="tokens_per_step must be a multiple of tokens_per_micro_batch 32 in 2 processes"),
    ],
    tokens_per_micro_batch=[
        Effect([64], "trained"),
        Effect([16], refused="tokens_per_micro_batch 16 must be a multiple of max_seq_length 32"),
    ],
    variants=Effect([["langsamp_bf16"]], "trained"),
    size=Effect(["2x32/200"], "rows, trained"),
    processes=Effect([4], "rows, trained"),
    steps=Effect([8], "trained"),
    rounds=Effect([2], "trained"),
)
STAGES["corpus pass"] = suite_stage(
    benchmark_params.CorpusPassParams,
    PASS,
    ("corpus_pass",),
    corpus=Effect(["mediawiki"], "measured"),
    files=Effect([5], "measured"),
    rounds=Effect([2], "measured"),
    megabytes=Effect([[2]], "measured, rows"),
    languages=Effect([10], "measured"),
    gigabytes=Effect([0.002], "gigabytes, rows"),
)


# What is there before


ENDS = {"deu_Latn": 12, "eng_Latn": 60, "hin_Deva": 30, "rus_Cyrl": 9}  # Lines of training text
LATIN = "deu eng eus fin fra hun ind swh tur vie"  # Of eight families
MANY = [*(f"{language}_Latn" for language in LATIN.split()), "hin_Deva", "npi_Deva", "rus_Cyrl"]


def alphabet_of(code: str) -> str:
    "Return the language-script of `tiny` with the same script."
    return next(known for known in tiny.ALPHABETS if known[-4:] == code[-4:])


def write_text(folder: Path, counts: Mapping[str, int], seed: int = 0, held_out: int = 4) -> Path:
    "Write a corpus folder with given numbers of training lines."
    for number, (code, count) in enumerate(counts.items()):
        lines = tiny.sentences(alphabet_of(code), count + held_out, seed + number)
        tiny.write(folder / f"train/{code}.txt", "\n".join(lines[:count]) + "\n")
        tiny.write(folder / f"validation/{code}.txt", "\n".join(lines[count:]) + "\n")
    return folder


def write_leaky(home: Path) -> None:
    "Write text with evaluation sentences: one complete, one with half and one with two fifths of its trigrams."
    write_text(home / "leaky", ENDS, held_out=20)
    lines = (home / "leaky/train/eng_Latn.txt").read_text().splitlines()
    long = [
        " ".join([*lines[n].split()[:words], *(f"{n}x{i}" for i in range(12 - words))]) for n, words in ((1, 7), (2, 6))
    ]
    tiny.write(home / "evaluation/eng_Latn.txt", "\n".join([lines[0], *long]) + "\n")
    tiny.write(home / "more/eng_Latn.txt", lines[3] + "\n")


def write_sets(folder: Path, seed: int) -> None:
    "Write a Tatoeba in nine languages, and a SIB-200 in five language-scripts."
    for number, name in enumerate("deu eus fin fra hun ind swh tur vie".split()):
        lines = {"eng": tiny.sentences("eng_Latn", 30, seed + number)}
        lines[name] = [f"{ours} {theirs}" for ours, theirs in zip(lines["eng"], tiny.sentences("eng_Latn", 30, seed))]
        for side, texts in lines.items():
            tiny.write(folder / f"tatoeba/tatoeba.{name}-eng.{side}", "\n".join(texts) + "\n")
    for number, code in enumerate(("eng_Latn", "deu_Latn", "rus_Cyrl", "hin_Deva", "fin_Latn")):
        words = [line.split() for line in tiny.sentences(alphabet_of(code), 3, seed + 10 * number)]
        for split, count in {"train": 8, "dev": 6, "test": 10}.items():
            rows = [
                f"{i}\t{topic}\t{' '.join(words[n][(i + k) % 8] for k in range(3))} {words[(n + i) % 3][i % 8]}"
                for i in range(count)
                for n, topic in enumerate(("sports", "travel", "health"))
            ]
            tiny.write(folder / f"sib200/{code}/{split}.tsv", "\n".join(["index_id\tcategory\ttext", *rows]) + "\n")


def make_runs(outputs: Path, again: Path, text: Path, sets: Path) -> None:
    "Train three encoders and one with another packing; evaluate them in one of the folders."
    for name, variant, seed in (
        ("langsamp-7", "language+script", 7),
        ("langsamp-8", "language+script", 8),
        ("baseline-7", "baseline", 7),
        ("stream-7", "language+script", 7),
    ):
        values = TINY | {"run_name": name, "corpus": str(text), "variant": variant, "seed": seed}
        values |= {"packing": "stream"} if name == "stream-7" else {}
        pretrain(
            params.PretrainParams.model_validate(
                values | {"max_steps": 8, "learning_rate": 1e-2, "num_layers": 2, "hidden_size": 32}
            ),
            outputs,
        )
    shutil.copytree(outputs, again)
    for run, layer in itertools.product(("langsamp-7", "langsamp-8", "baseline-7"), (-1, 0)):
        values = {"encoder": run, "tasks": ["tatoeba", "sib200"], "data_dir": str(sets), "seeds": 1, "layer": layer}
        evaluate(EvaluationParams.model_validate(values), outputs)


@pytest.fixture(scope="module")
def places(tmp_path_factory, stock) -> dict[str, Path]:
    "Return small texts, data sets and runs, by name."
    home = tmp_path_factory.mktemp("places")
    for name, seed in {"corpus": 0, "other": 50, "bad": 0}.items():
        write_text(home / name, ENDS, seed)
    with open(home / "bad/train/eng_Latn.txt", "ab") as file:
        file.write(b"not UTF-8: \xff\xfe\n")
    write_text(home / "unseen", {"eng_Latn": 20, "wol_Latn": 40, "mri_Latn": 12})
    write_text(home / "many", {code: 10 + 3 * number for number, code in enumerate(MANY)})
    write_leaky(home)
    tiny.write(home / "unsplit/eng_Latn.txt", "\n".join(tiny.sentences("eng_Latn", 400)))
    write_text(home / "mediawiki/text", dict.fromkeys(MANY, 5))
    for seed in (1, 2):
        write_sets(home / f"sets{seed}", seed)
    for name, overrides in {"a": {}, "b": {"global_batch_size": 8}}.items():
        values = {**TINY, "corpus": str(home / "corpus"), **overrides}
        tiny.write(home / f"plans/{name}.yaml", yaml.safe_dump(values))
    shape = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(**shape, max_position_embeddings=64).to_json_file(home / "config.json")
    for name in ("outputs", "runs", "scripts"):
        (home / name).mkdir()
    tiny.stock_checkpoint(home / "second", seed=1)
    make_runs(home / "runs", home / "unevaluated", home / "many", home / "sets1")
    made = {path.name: path for path in home.iterdir()}
    tokenizers = [path for path in (home / "runs/data/tokenizers").iterdir() if path.is_dir()]
    made |= {"config": home / "config.json", "sets": made["sets1"], "stock": stock}
    return made | {"stock2": home / "second/xlm-r", "stock3": tokenizers[0]}


def no_text(home: Path, *sizes: Any) -> params.PretrainParams:
    "Replaces gigabytes of synthetic text."
    home.mkdir(parents=True)
    return params.PretrainParams()


def few_paragraphs(corpus: Path) -> dict[str, dict[str, str]]:
    "Return the first eight parallel paragraphs."
    return {code: dict(list(texts.items())[:8]) for code, texts in parallel_paragraphs(corpus).items()}


@pytest.fixture(scope="module")
def bench(places):
    "Run everything in this process, from the checkout, without drawing figures."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.ROOT)
        patch.setenv("LANGSAMP_DATA", str(places["sets"]))
        patch.setattr(sampling.glot500_lines, "__defaults__", (0.3, 30, 10))  # Ten lines are enough, not 30,000
        patch.setattr(Figure, "savefig", lambda self, path, **more: Path(path).touch())
        patch.setattr(plots, "write_png", lambda figure, path: path.touch())
        patch.setattr(source_ranking.permuted_gains, "__defaults__", (3, 0, "ndcg@3"))  # Three orders, not 20
        patch.setattr(neutrality_plots, "parallel_paragraphs", few_paragraphs)
        made = Bench(places, patch)
        made.spy(
            loop.Trainer, "batch_loss", lambda t, model, batch, items=None: (len(batch.inputs_BL), items is not None)
        )
        made.spy(
            HfApi, "create_repo", lambda api, name, **more: more["private"], lambda api, name, **more: f"hub/{name}"
        )
        made.spy(HfApi, "upload_folder", lambda api, **more: more["repo_id"], lambda api, **more: None)
        patch.setattr(HfApi, "repo_info", lambda api, name, **more: SimpleNamespace(private=True))
        made.spy(torch.nn.Module, "compile", lambda self: type(self).__name__, instead=lambda self: None)
        made.spy(loop.Trainer, "train_step", lambda t, step: step)
        made.spy(modeling_utils, "checkpoint", lambda function, *more, **options: "")
        patch.setattr(tasks, "fine_tune", made.tuned)
        patch.setattr(workers, "TimedLoop", Watched)
        patch.setattr(InProcess, "bench", made, raising=False)
        patch.setattr(suites, "Worker", InProcess)
        made.spy(corpus_suite, "measure", sizes_in, measured)
        made.spy(suites, "_train", trained, lambda *more: 1.0)
        few = corpus_suite.synthetic_shards
        patch.setattr(
            corpus_suite, "synthetic_shards", lambda home, languages=550, *more: few(home, min(languages, 20), 2)
        )
        made.spy(corpus_suite, "synthetic_run", lambda home, tokenizer, size, languages: size, no_text)
        patch.setattr(benchmark_run, "xlmr_tokenizer", lambda: places["stock"])
        patch.setattr(benchmark_run, "mediawiki_corpus", lambda: places["mediawiki"])
        made.spy(
            reproduction, "run_job", lambda job, *more: job, lambda *more: {"stage": "", "output": "", "seconds": 0}
        )
        made.spy(reproduction, "ThreadPoolExecutor", lambda count: count)
        yield made


CASES = [(label, name) for label in STAGES for name in names_of(label)]


SLOW = {label for label, stage in STAGES.items() if stage.see is see_benchmark}


@pytest.mark.parametrize(
    ("label", "name"),
    [pytest.param(*case, id="-".join(case), marks=[pytest.mark.slow] * (case[0] in SLOW)) for case in CASES],
)
def test_one_field_at_a_time(bench, label, name):
    "With the first other value of each effect."
    assert name in STAGES[label].effects, f"add the effect of {name} to STAGES"
    check(bench, label, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "name"), CASES, ids=map("-".join, CASES))
def test_every_value_of_a_field(bench, label, name):
    check(bench, label, name)


def classes() -> set[type[Params]]:
    "Return all parameter models of the library."
    for path in (tiny.ROOT / "langsamp").rglob("[!_]*.py"):
        if "(Params)" in path.read_text():
            importlib.import_module(".".join(path.relative_to(tiny.ROOT).with_suffix("").parts))
    found, known = [Params], set()
    while found:
        kind = found.pop()
        known.add(kind)
        found += kind.__subclasses__()
    return {kind for kind in known if kind.__module__.startswith("langsamp.")} - {Params}


def test_every_params_model_is_tested():
    "The model itself, or one derived from it."
    elsewhere = {
        analysis_params.SourceParams,
        analysis_params.NewLanguageParams,
        analysis_params.GeometryParams,
        analysis_params.AddLanguageParams,
        analysis_params.EncodersParams,
    }  # In test_source_ranking, test_new_languages, test_geometry, test_other_encoders
    here = {stage.kind for stage in STAGES.values()} | elsewhere
    assert [kind.__name__ for kind in classes() if not any(issubclass(known, kind) for known in here)] == []


@pytest.mark.parametrize("kind", sorted({stage.kind for stage in STAGES.values()}, key=lambda kind: kind.__name__))
def test_every_field_has_an_effect_and_every_effect_a_field(kind):
    "The effects of a stage are those of the fields that its notebook offers; together they cover the model."
    labels = [label for label, stage in STAGES.items() if stage.kind is kind]
    for label in labels:
        assert STAGES[label].effects.keys() == {*names_of(label)}, label
    assert {name for label in labels for name in names_of(label)} == kind.model_fields.keys()


def test_a_field_that_changes_no_number_has_a_purpose():
    for label, stage in STAGES.items():
        for name, effects in stage.effects.items():
            for effect in effects if isinstance(effects, list) else [effects]:
                assert effect.values and (effect.affected or effect.refused), f"{label}: {name}"
                numbers = {*effect.affected.split(", ")} - {
                    "folder",
                    "name",
                    "compiled",
                    "micro-batches",
                    "measured steps",
                    "at once",
                }
                assert numbers or effect.why, f"{label}: {name} needs a reason"


def test_the_start_of_a_run_is_measured_as_often_and_with_as_many_languages_as_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_run, "xlmr_tokenizer", lambda: "tokenizer")
    monkeypatch.setattr(benchmark_run, "pretrained_tokenizer", lambda *_: "tokenizer")
    monkeypatch.setattr(corpus_suite, "startup_time", lambda *given: given)
    asked = benchmark_params.CorpusPassParams(rounds=2, languages=7, gigabytes=0.5)
    assert dict(benchmark_run._corpus_jobs(asked, tmp_path, tmp_path))["start"]()[2:] == (0.5, 2, 7)
