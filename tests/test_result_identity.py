"A result belongs to an encoder, a text, settings and a code version, not to a name or a date."

import errno
import json
import resource
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from transformers import AutoModel

import langsamp
from langsamp.analysis import embeddings, neutrality, plots, reproduction, resources, statistics, tables
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, write_json
from langsamp.encoding.open_encoder import Encoder, open_encoder
from langsamp.evaluation import evaluate as evaluation
from langsamp.evaluation import metrics, results, retrieval, tasks
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.results import read_results
from langsamp.params import evaluate as analysis_params
from langsamp.params.evaluate import EvaluationParams
from langsamp.params.pretrain import PretrainParams
from langsamp.training.prepare import open_run
from langsamp.training.pretrain import main, pretrain

NAMES = {"fra": "eng_Latn", "rus": "rus_Cyrl"}


def write_pairs(folder: Path, seed: int) -> Path:
    "Two Tatoeba sets of thirty pairs."
    (folder / "tatoeba").mkdir(parents=True)
    for name, alphabet in NAMES.items():
        for side, code in (("eng", "eng_Latn"), (name, alphabet)):
            lines = tiny.sentences(code, 30, seed=seed)
            (folder / f"tatoeba/tatoeba.{name}-eng.{side}").write_text("\n".join(lines) + "\n")
    return folder


def write_topics(folder: Path, *codes: str) -> Path:
    "A SIB-200 of three topics, hard enough that two samples of training sentences give two heads."
    words = [sentence.split() for sentence in tiny.sentences("eng_Latn", 40, seed=5)]
    random = np.random.default_rng(0)
    for code in codes:
        (folder / "sib200" / code).mkdir(parents=True)
        for split, count in {"train": 12, "dev": 6, "test": 20}.items():
            rows = [
                f"{i}\t{topic}\t{' '.join([*random.choice(words[n], 2), *random.choice(sum(words, []), 5)])}"
                for i in range(count)
                for n, topic in enumerate(("sports", "travel", "health"))
            ]
            (folder / "sib200" / code / f"{split}.tsv").write_text(
                "index_id\tcategory\ttext\n" + "\n".join(rows) + "\n"
            )
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    "Two states of a data set."
    home = tmp_path_factory.mktemp("sets")
    return {
        name: write_topics(write_pairs(home / name, seed), "eng_Latn", "deu_Latn") for seed, name in enumerate("AB")
    }


@pytest.fixture
def home(tmp_path, stock) -> Path:
    "Outputs beside a user's checkpoint."
    shutil.copytree(stock, tmp_path / "mine")
    return tmp_path / "outputs"


def eval_params(home: Path, data: Path, **more) -> EvaluationParams:
    return EvaluationParams(
        **{"encoder": str(home.parent / "mine"), "tasks": ["tatoeba"], "data_dir": str(data), **more}
    )


def other_weights(folder: Path) -> None:
    "The same name, another encoder."
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) / 5)
    model.save_pretrained(folder)


# Keyed by content


def test_the_same_request_gives_the_same_result(home, sets):
    "Tatoeba from A, from B, and from A again; a table shows the last evaluation and never a mixture."
    first = evaluate(eval_params(home, sets["A"]), home)[0]
    second = evaluate(eval_params(home, sets["B"]), home)[0]
    again = evaluate(eval_params(home, sets["A"]), home)[0]
    values = [table.value.tolist() for table in (first, second, again)]
    assert values[0] == values[2] != values[1]
    assert read_results([eval_params(home, sets["A"]).encoder], home).value.tolist() == values[0]


def test_a_result_holds_only_what_was_requested(home, sets):
    "Other languages, layers, tasks and modes that were evaluated before are not part of it; a table finds them all."
    whole = evaluate(eval_params(home, sets["A"], tasks=["tatoeba", "sib200"], seeds=1), home)[0]
    few = evaluate(eval_params(home, sets["A"], languages=["rus"], layer=1), home)[0]
    assert set(whole.task) == {"tatoeba", "sib200"} and set(whole.layer) == {-1}
    assert set(few["name"]) == {"rus-eng"} or set(few["name"]) == {"rus"}
    assert set(few.layer) == {1} and set(few.task) == {"tatoeba"}
    assert len(read_results(list(set(whole.run)), home)) == len(whole) + len(few)


def test_one_language_with_other_text_starts_a_new_result(home, sets):
    "After all of A, one language of B: the table holds that one, not the others of A beside it; after A, all again."
    evaluate(eval_params(home, sets["A"]), home)
    evaluate(eval_params(home, sets["B"], languages=["rus"]), home)
    name = eval_params(home, sets["A"]).encoder
    assert read_results([name], home)["name"].nunique() == 1
    evaluate(eval_params(home, sets["A"], languages=["rus"]), home)
    evaluate(eval_params(home, sets["A"], languages=["fra"]), home)
    both = read_results([name], home)
    assert both["name"].nunique() == 2 and both.data.nunique() == 1


def test_two_encoder_names_do_not_share_results(home, sets, monkeypatch):
    "The folders `a/b` and `a--b`, which once shared a folder under outputs/evaluations/."
    monkeypatch.chdir(home.parent)
    shutil.copytree("mine", "a/b")
    shutil.copytree("mine", "a--b")
    other_weights(Path("a--b"))
    found = [evaluate(eval_params(home, sets["A"], encoder=name), home)[0].value.tolist() for name in ("a/b", "a--b")]
    assert found[0] != found[1]
    assert [read_results([name], home).value.tolist() for name in ("a/b", "a--b")] == found


def test_a_retrained_encoder_has_no_results_of_the_old_one(home, sets):
    mine = eval_params(home, sets["A"])
    old = evaluate(mine, home)[0].value.tolist()
    other_weights(home.parent / "mine")
    with pytest.raises(UserError, match="no results of .*mine` with its current weights"):
        read_results([mine.encoder], home)
    new = evaluate(mine, home)[0].value.tolist()
    assert new != old and read_results([mine.encoder], home).value.tolist() == new


def test_results_do_not_depend_on_the_clock(home, sets, monkeypatch):
    "The new encoder is evaluated while the clock is ten years behind."
    mine, real = eval_params(home, sets["A"]), results.provenance
    old = evaluate(mine, home)[0].value.tolist()
    other_weights(home.parent / "mine")
    monkeypatch.setattr(results, "provenance", lambda: real() | {"started": "2016-01-01T00:00:00+00:00"})
    new = evaluate(mine, home)[0].value.tolist()
    assert new != old and read_results([mine.encoder], home).value.tolist() == new


def test_results_of_other_code_are_not_read(home, sets, monkeypatch):
    mine = eval_params(home, sets["A"])
    evaluate(mine, home)
    monkeypatch.setattr(results, "protocol_version", lambda way: "newer")
    with pytest.raises(UserError, match="no results of .* and this code"):
        read_results([mine.encoder], home)


def test_the_code_version_covers_every_module_behind_a_score(home, sets, tmp_path, monkeypatch):
    "Every module of langsamp that runs between text and score is hashed; an edit gives another version."
    ran: dict[str, set[str]] = {}

    def watched(way, work):
        def call(*given):
            sys.setprofile(lambda frame, *_: ran.setdefault(way, set()).add(frame.f_globals.get("__name__", "")))
            try:
                return work(*given)
            finally:
                sys.setprofile(None)

        return call

    for way, name in [("retrieval", "retrieval_rows"), ("frozen", "_train_probes"), ("fine-tuned", "_fine_tune")]:
        monkeypatch.setattr(tasks, name, watched(way, getattr(tasks, name)))
    monkeypatch.setattr(Encoder, "encode", watched("retrieval", Encoder.encode))
    evaluate(eval_params(home, sets["A"], tasks=["tatoeba", "sib200"], seeds=1), home)
    quick = {"num_train_epochs": 1, "micro_batch_size": 8, "gradient_accumulation_steps": 1}
    evaluate(eval_params(home, sets["A"], tasks=["sib200"], seeds=1, mode="fine-tuned", overrides=quick), home)
    assert ran.keys() == {"retrieval", "frozen", "fine-tuned"}
    shutil.copytree(langsamp.__path__[0], tmp_path / "edited", ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.setattr(langsamp, "__path__", [str(tmp_path / "edited")])
    for way, names in ran.items():
        ours = {name.removeprefix("langsamp.") for name in names if name.startswith("langsamp.")} - {
            "encoding.open_encoder"
        }
        assert len(ours) > 2
        for name in ours | {"evaluation.tasks"}:
            before, path = results.protocol_version(way), tmp_path / "edited" / f"{name.replace('.', '/')}.py"
            path.write_text(path.read_text() + "\n# Edited\n")
            assert results.protocol_version(way) != before, f"{name} is no part of the code of {way}"


def test_hyperparameters_count_named_or_not(home, sets):
    "The paper's value given explicitly is the same setting; another value is another."
    mine = eval_params(home, sets["A"], tasks=["sib200"], mode="fine-tuned")
    settings = [
        tasks.get_task("sib200").settings(mine.replace(overrides=c))
        for c in ({}, {"num_train_epochs": 40}, {"num_train_epochs": 41})
    ]
    assert settings[0] == settings[1] != settings[2]


# Seeds


def test_exactly_the_requested_seeds(home, sets):
    found = {}
    for count in (1, 2, 1, 3):
        found[count] = evaluate(eval_params(home, sets["A"], tasks=["sib200"], seeds=count), home)[0]
        assert sorted(set(found[count].seed)) == [42 + i for i in range(count)]
    shared = found[3][found[3].seed == 42].reset_index(drop=True)
    assert found[1].equals(shared), "seed 42 is the same number in every request"


def test_an_identical_copy_has_zero_differences(home, sets):
    "One was evaluated with one seed and then with two, the other with three at once."
    shutil.copytree(home.parent / "mine", home.parent / "copy")
    names = {"mine": str(home.parent / "mine"), "copy": str(home.parent / "copy")}
    for name, counts in {"mine": (1, 2), "copy": (3,)}.items():
        for count in counts:
            evaluate(eval_params(home, sets["A"], encoder=names[name], tasks=["sib200"], seeds=count), home)
    rows = read_results(list(names.values()), home)
    spread = rows[rows.metric == "f1_macro"].groupby("seed").value.mean()
    assert spread.nunique() > 1, "the seeds do differ, or this shows nothing"
    table = tables.score_table(rows, {k: [v] for k, v in names.items()}, "sib200:frozen:f1_macro")
    assert (table.values["mine"] == table.values["copy"]).all()


def made_up(run: str, seeds: range, data: str = "d") -> pd.DataFrame:
    "Results whose value is their seed."
    columns = dict(run=run, task="sib200", mode="frozen", layer=-1, source="eng_Latn", metric="f1_macro", items=9)
    rows = [
        columns | dict(target=c, name=c, seed=s, value=s / 100, data=data)
        for c in ("deu_Latn", "rus_Cyrl")
        for s in seeds
    ]
    return pd.DataFrame(rows)


def test_a_table_takes_the_seeds_that_all_runs_have():
    rows = pd.concat([made_up("one", range(42, 44)), made_up("two", range(42, 47))])
    table = tables.score_table(rows, {"a": ["one"], "b": ["two"]}, "sib200:frozen:f1_macro")
    assert (table.values == 42.5).all(axis=None)
    assert "left out, seeds that not every run has: 44, 45, 46 of two" in table.notes
    with pytest.raises(UserError, match="no seed in common"):
        both = pd.concat([made_up("one", range(0, 1)), made_up("two", range(42, 43))])
        tables.score_table(both, {"a": ["one"], "b": ["two"]}, "sib200:frozen:f1_macro")


def test_a_table_mixing_two_texts_is_refused():
    rows = pd.concat([made_up("one", range(42, 43)), made_up("two", range(42, 43), data="e")])
    with pytest.raises(UserError, match="different text .one on d, two on e.* same `data`"):
        tables.score_table(rows, {"a": ["one"], "b": ["two"]}, "sib200:frozen:f1_macro")


# Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> Path:
    "Outputs with runs of two steps: of one text, of a smaller vocabulary, of fewer languages; and one of a step."
    outputs = tmp_path_factory.mktemp("outputs")
    few = {"max_steps": 2, "warmup_steps": 0, "save_steps": 1}
    other_values = {"one": {}, "two": {"seed": 8}, "small": {"vocab_size": 200}, "fewer": {"languages": ["eng_Latn"]}}
    for name, change in (other_values | {"longer": {"max_seq_length": 24}, "shorter": {"max_steps": 1}}).items():
        pretrain(tiny.params_of(corpus, run_name=name, **few | change), outputs)
    return outputs


@pytest.mark.parametrize(
    "other,named", [("small", "tokenizer"), ("fewer", "language-scripts"), ("longer", "max_seq_length")]
)
def test_incomparable_runs_have_no_common_figure(runs, other, named):
    for draw in (
        lambda: plots.validation_losses(runs / "one", runs / other),
        lambda: plots.run_retrieval([runs / "one", runs / other]),
        lambda: resources.exported_losses({"a": [runs / "one"], "b": [runs / other]}),
    ):
        with pytest.raises(UserError, match=f"different text.*one: .*{named}.*{other}: .*{named}"):
            draw()
    losses = plots.validation_losses(runs / "one", runs / "two")
    assert losses.groupby("run").code.nunique().tolist() == [3, 3]


def test_the_page_refuses_incomparable_runs(runs):
    with pytest.raises(AssertionError, match="the runs have different text"):
        tiny.papermill("nbs/figures/pretraining.ipynb", runs / "page.ipynb", runs, "-y", "{runs: [one, small]}")


def test_runs_of_different_lengths_are_distinguished(runs):
    losses = plots.validation_losses(runs / "one", runs / "shorter")
    figure, _ = plots.script_losses(losses, plots.unigram_table(runs / "one"))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("step 2" in label for label in labels) and any("step 1" in label for label in labels)


def reproduced(corpus: Path, **other_values) -> analysis_params.ReproductionParams:
    given = {k: v for k, v in tiny.params_of(corpus).model_dump().items() if k not in ("run_name", "variant", "seed")}
    short = {"max_steps": 2, "warmup_steps": 0, "save_steps": 2}
    return analysis_params.ReproductionParams(
        name="tiny", variants=["language+script", "baseline"], overrides=given | short | other_values
    )


@pytest.fixture
def finished(corpus, tmp_path, monkeypatch) -> Path:
    "A reproduction whose runs are there, and whose other jobs are not run."
    for job in reproduction.pretraining_jobs(reproduced(corpus)):
        pretrain(PretrainParams.model_validate(job.parameters), tmp_path)
        (tmp_path / job.output).write_text("{}")
    monkeypatch.setattr(reproduction, "_command", lambda *_: pytest.fail("something was run"))
    monkeypatch.setattr(reproduction, "evaluation_jobs", lambda p: [])
    monkeypatch.setattr(reproduction, "figure_jobs", lambda p: [])
    return tmp_path


def test_a_reproduction_does_not_reuse_runs_of_other_parameters(corpus, finished):
    assert len(reproduction.reproduce(reproduced(corpus), finished)) == 2
    with pytest.raises(
        UserError, match="tiny-language-script-42 belongs to a run with other parameters .*learning_rate: .* → 0.01"
    ):
        reproduction.reproduce(reproduced(corpus, learning_rate=0.01), finished)


def test_a_reproduction_does_not_reuse_runs_on_other_text(corpus, finished, tmp_path):
    other = tiny.write_corpus(tmp_path / "text")
    for job in reproduction.pretraining_jobs(reproduced(other)):
        shutil.rmtree(finished / job.parameters["run_name"])
        pretrain(PretrainParams.model_validate(job.parameters), tmp_path)
        (tmp_path / job.output).write_text("{}")
    with open(other / "train/eng_Latn.txt", "a", encoding="utf-8") as file:
        file.write("one more line of text\n")
    with pytest.raises(UserError, match="tiny-language-script-42 started from other text"):
        reproduction.reproduce(reproduced(other), finished)


# Not a number, and ties

NAN = np.array([0.5, float("nan"), 1.0])
FAMILIES = ["a", "b", "c"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: statistics.sign_flip_test(x, FAMILIES),
        lambda x: statistics.family_bootstrap(x, FAMILIES),
        lambda x: statistics.sign_test(x),
        lambda x: statistics.effect_size(x),
        lambda x: statistics.detectable_difference(x[1], 1.0),
        lambda x: statistics.holm(x),
        lambda x: statistics.across_seeds(x, x),
        lambda x: statistics.paired_comparison(*[pd.Series(y, FAMILIES) for y in (x, [0.0] * 3, FAMILIES)]),
        lambda x: statistics.paired_comparison(*[pd.Series(y, FAMILIES) for y in ([0.0] * 3, x, FAMILIES)]),
        lambda x: retrieval.bootstrap_mean(x),
        lambda x: retrieval.retrieval_scores(x),
        lambda x: retrieval.bidirectional_ranks(x[:, None], np.ones((3, 1))),
        lambda x: retrieval.translation_ranks(np.ones((3, 1)), x[:, None], "csls"),
        lambda x: retrieval.retrieval_rows(np.ones((3, 1)), x[:, None]),
        lambda x: metrics.f1_macro(["a"] * 3, x.tolist()),
        lambda x: metrics.accuracy(["a"] * 3, x.tolist()),
        lambda x: metrics.f1_seqeval([["O"] * 3], [x.tolist()]),
        lambda x: metrics.f1_seqeval_bare([x.tolist()], [["X"] * 3]),
        lambda x: metrics.token_accuracy([["O"] * 3], [x.tolist()]),
        lambda x: neutrality.mean_and_interval(neutrality.family_resamples(["eng_Latn", "fin_Latn", "tha_Thai"], 9), x),
    ],
)
def test_nonfinite_scores_are_an_error(ask):
    for x in (NAN, np.where(np.isnan(NAN), np.inf, NAN)):
        if ask.__code__.co_names[-1] != "detectable" or np.isnan(x).any():  # An interval may be endless
            with pytest.raises(UserError):
                ask(x)


@pytest.mark.parametrize(
    "ask",
    [
        neutrality.transforms,
        neutrality.centroid_cosines,
        neutrality.language_share,
        neutrality.isoscore,
        neutrality.pair_cosines,
        neutrality.margins,
        neutrality.cka,
        neutrality.retrieval,
        lambda x: neutrality.probe_accuracy(x, ["a", "b", "c"], True),
        lambda x: neutrality.neutrality_measures(x, ["eng_Latn", "rus_Cyrl", "deu_Latn"]),
    ],
)
def test_nonfinite_vectors_are_an_error(ask):
    x_LKH = np.random.default_rng(0).normal(size=(3, 8, 4))
    ask(x_LKH)
    for value in (np.nan, np.inf):
        x_LKH[1, 2, 3] = value
        with pytest.raises(UserError, match="number 2, 3, 4 is"):
            ask(x_LKH)


@pytest.mark.parametrize(
    "ask", [statistics.sign_test, statistics.effect_size, retrieval.bootstrap_mean, statistics.holm]
)
def test_no_results_are_refused(ask):
    with pytest.raises(UserError):
        ask([])


def test_neutrality_of_too_little_is_an_error():
    few = np.random.default_rng(0).normal(size=(2, 2, 4))
    for ask in (
        lambda: neutrality.cka(few),
        lambda: neutrality.pair_cosines(few[:, :1]),
        lambda: neutrality.probe_accuracy(few, ["a", "b"], False),
        lambda: neutrality.probe_accuracy(np.ones((2, 8, 4)), ["a", "a"], False),
        lambda: neutrality.isoscore(few[:, :, :1]),
        lambda: neutrality.null_values(["eng_Latn"], 9),
        lambda: neutrality.family_resamples([]),
    ):
        with pytest.raises(UserError):
            ask()
    assert neutrality.isoscore(np.ones((3, 8, 4))) == 0, "what does not vary does not vary evenly"


@pytest.mark.parametrize("scaling", retrieval.SCALINGS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_anti_correlated_vectors_have_ranks(scaling, size):
    "Also with noise, so that rounding differs: for any divisor, a translation does not compete with itself."
    random = np.random.default_rng(size)
    for noise in (0, 1e-3, 0.3):
        source = np.ones((size, 8)) + noise * random.normal(size=(size, 8))
        target = -source + noise * random.normal(size=(size, 8))
        for ranks_N in retrieval.bidirectional_ranks(source, target, scaling):
            assert ranks_N.min() >= 1 and ranks_N.max() <= size
        rows = pd.DataFrame(retrieval.retrieval_rows(source, target, scaling))
        assert np.isfinite(rows.value).all() and rows.value.between(0, 1).all()


def test_ties_are_ties_under_any_divisor():
    "A duplicate of each candidate costs one rank where the margin divides by a number near zero."
    random = np.random.default_rng(0)
    source = np.ones((6, 64)) + 0.1 * random.normal(size=(6, 64))
    target = -source + 0.1 * random.normal(size=(6, 64))
    twice = [np.vstack([x, x[::-1]]) for x in (source, target)]
    assert (retrieval.translation_ranks(*twice, "margin") >= 2).all()


@pytest.mark.parametrize("languages,sentences,width", [(7, 3, 33), (3, 7, 33), (3, 3, 384), (7, 3, 769), (3, 50, 96)])
def test_ties_are_not_hits(languages, sentences, width):
    "Every sentence occurs twice, so no nearest neighbour is unique, independent of rounding."
    random = np.random.default_rng(sentences)
    meaning = random.normal(size=(1, sentences, width)) + 2
    x_LKH = meaning + 0.3 * random.normal(size=(languages, sentences, width))
    hits_LL = neutrality.retrieval(np.concatenate([x_LKH, x_LKH[:, ::-1]], 1))
    assert hits_LL[~np.eye(languages, dtype=bool)].max() == 0


def test_rounding_counts_as_no_difference():
    "Two encoders whose means were summed in different orders."
    index = [f"l{i}" for i in range(60)]
    base = pd.Series(np.random.default_rng(0).uniform(10, 90, 60), index)
    dust = base * (1 + 1e-15) + 1e-14
    assert (dust != base).any()
    found = statistics.paired_comparison(dust, base, pd.Series(index, index), n_resamples=500)
    assert (found["difference"], found["p"], found["won"], found["lost"], found["effect"]) == (0, 1, 0, 0, 0)


def test_a_table_of_nonfinite_values_is_refused():
    rows = pd.concat([made_up("one", range(42, 43)), made_up("two", range(42, 43))])
    table = tables.score_table(rows, {"a": ["one"], "b": ["two"]}, "sib200:frozen:f1_macro")
    table.runs.iloc[0, 0] = np.nan
    with pytest.raises(UserError, match="number 1 is nan"):
        tables.group_differences([table], "b")


# Files that are gone, broken or cannot be written


@pytest.fixture
def damaged(runs, tmp_path) -> Path:
    "Outputs to damage."
    for name in ("one", "data"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def half(path: Path) -> None:
    "A truncated file."
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name,how,ask",
    [
        ("corpus.json", "half", lambda run: plots.validation_losses(run)),
        ("corpus.json", "half", lambda run: tables.training_tokens({"a": [run.name]}, run.parent)),
        ("corpus.json", "half", lambda run: open_encoder(run.name, run.parent)),
        ("provenance.json", "half", lambda run: open_encoder(f"init:{run.name}", run.parent)),
        ("provenance.json", "half", lambda run: save(run)),
        ("provenance.json", "gone", lambda run: save(run)),
        ("result.json", "half", lambda run: embeddings.trained_sequences(run)),
        ("result.json", "half", lambda run: pretrain(open_run(run)[0], run.parent)),
        ("model/config.json", "half", lambda run: embeddings.read_embeddings(run)),
        ("model/config.json", "gone", lambda run: embeddings.read_embeddings(run)),
    ],
)
def test_broken_files_of_a_run_are_named(damaged, name, how, ask):
    path = damaged / "one" / name
    half(path) if how == "half" else path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}.*(restore|delete|give the command of this run again)"):
        ask(damaged / "one")


def test_the_message_for_a_broken_corpus_file_helps(damaged):
    "After deleting it, the command of the run restores the file."
    path = damaged / "one/corpus.json"
    kept, p = path.read_bytes(), open_run(damaged / "one")[0]
    path.unlink()
    pretrain(p, damaged)
    assert path.read_bytes() == kept


def save(run: Path) -> None:
    figure, _ = plots.new_figure()
    plots.save_figure(figure, pd.DataFrame({"x": [1]}), run.parent / "figures/x", [run])


def test_truncated_metrics_are_an_error(damaged):
    "Half of the file is lost, within a line or between lines: the last loss would be that of an earlier step."
    path = damaged / "one/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] < 2))
    with pytest.raises(UserError, match=r"metrics.jsonl ends at step 1, but the run ended at step 2"):
        plots.validation_losses(damaged / "one")
    path.write_text('{"step": 1, "lo\n' + "".join(lines))
    with pytest.raises(UserError, match=r"metrics.jsonl:1 is damaged"):
        plots.validation_losses(damaged / "one")


@pytest.mark.parametrize("name", ["settings.json", "request.json", "rows.jsonl"])
def test_broken_results_are_named(home, sets, name):
    mine = eval_params(home, sets["A"])
    evaluate(mine, home)
    (path,) = home.glob(f"evaluations/*/*/{name}")
    path.write_text(
        path.read_text()[:20] + "\n" + path.read_text()[20:] if name == "rows.jsonl" else path.read_text()[:20]
    )
    for ask in (lambda: evaluate(mine, home), lambda: read_results([mine.encoder], home)):
        with pytest.raises(UserError, match=rf"{path.name}.*delete"):
            ask()
    path.unlink()
    assert len(evaluate(mine, home)[0]) and len(read_results([mine.encoder], home))


def test_a_figure_without_prepared_text_says_how_to_make_it(damaged, corpus):
    "The encoder of the run does not need the text; other functions give a fix, and the fix works."
    shutil.rmtree(damaged / "data")
    assert open_encoder("one", damaged).variant == "language+script"
    for ask in (
        lambda: plots.unigram_table(damaged / "one"),
        lambda: embeddings.trained_sequences(damaged / "one"),
        lambda: open_encoder("init:one", damaged),
        lambda: plots.run_retrieval([damaged / "one"]),
    ):
        fix = "(the run's own command .*03_pretrain|give the command of this run again)"
        with pytest.raises(UserError, match=f"data/.* is missing.*; {fix}"):
            ask()
    params = tiny.write_params(damaged / "p.yaml", open_run(damaged / "one")[0])
    assert main([str(params), str(damaged)]) == 0
    assert len(plots.unigram_table(damaged / "one"))


@contextmanager
def largest_file(size: int):
    "No file may grow beyond so many bytes, as on a full disk."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_an_evaluation(home, sets, monkeypatch):
    "For each first file that does not fit; afterwards the same rows as without the limit."
    mine, named = eval_params(home, sets["A"], tasks=["tatoeba", "sib200"], seeds=1), set()
    encoder = open_encoder(mine.encoder, home)
    monkeypatch.setattr(evaluation, "open_encoder", lambda *_: encoder)  # Its progress bar is a file of pytest's
    for size in (1, 1500, 4000):
        with (
            largest_file(size),
            pytest.raises(UserError, match="cannot write .*File too large.*Free some space") as message,
        ):
            evaluate(mine, home)
        named.add(str(message.value).partition(":")[0].rpartition("/")[2])
    assert named >= {"settings.json", "rows.jsonl"}, named
    found = evaluate(mine, home)[0]
    assert found.equals(evaluate(mine, home.parent / "fresh")[0])


def test_a_full_disk_under_a_figure(damaged):
    with largest_file(500), pytest.raises(UserError, match="cannot write .*figures/x.*Free some space"):
        save(damaged / "one")
    with largest_file(5), pytest.raises(UserError, match="cannot write .*tables/x"):
        from langsamp.analysis.table_plots import save_tables

        save_tables(damaged / "tables/x", a=pd.DataFrame({"x": range(9)}))


def test_an_evaluation_needs_no_temporary_folder(home, sets, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory"):
        monkeypatch.setattr(tempfile, name, full)
    quick = {"num_train_epochs": 1, "micro_batch_size": 8, "gradient_accumulation_steps": 1}
    assert len(evaluate(eval_params(home, sets["A"], tasks=["tatoeba", "sib200"], seeds=1), home)[0])
    tuned = eval_params(home, sets["A"], tasks=["sib200"], seeds=1, mode="fine-tuned", overrides=quick)
    assert len(evaluate(tuned, home)[0])


def test_json_is_read_or_named(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1]})
    assert read_json(tmp_path / "a.json") == {"ü": [1]}
    for content in (b"", b'{"a": ', b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*a.json: .*delete it"):
            read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"cannot read .*b.json"):
        read_json(tmp_path / "b.json")
