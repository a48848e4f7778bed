"One encoder, any tasks: a killed or repeated evaluation ends with the same rows, and unavailable data is reported."

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch

from langsamp.cli.main import _evaluate as _print_evaluation
from langsamp.core.errors import UserError
from langsamp.encoding.open_encoder import Encoder, open_encoder
from langsamp.evaluation import finetune
from langsamp.evaluation.bitext import load_bitexts
from langsamp.evaluation.datasets import LabelledDataset, LabelledTexts, load_labelled
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.results import (
    COLUMNS,
    Results,
    means,
    open_results,
    protocol_version,
    read_results,
    record_request,
    results_folder,
)
from langsamp.evaluation.tasks import _gaps, _select_languages
from langsamp.params.evaluate import EvaluationParams

ALPHABETS = dict(fra="eng_Latn", nld="eng_Latn", spa="eng_Latn", deu="rus_Cyrl", rus="rus_Cyrl", hin="hin_Deva")
TOPICS = {"sports": 0, "travel": 1, "health": 2}


def write_tatoeba(folder: Path) -> None:
    "Six pairs of forty sentences."
    folder.mkdir(parents=True)
    for number, (name, alphabet) in enumerate(ALPHABETS.items()):
        for side, code in (("eng", "eng_Latn"), (name, alphabet)):
            lines = tiny.sentences(code, 40, seed=number)
            (folder / f"tatoeba.{name}-eng.{side}").write_text("\n".join(lines) + "\n")


def write_sib(folder: Path, language: str, words: list[str]) -> None:
    "Sentences that begin with the word of their topic."
    (folder / language).mkdir(parents=True)
    for split, count in {"train": 30, "dev": 8, "test": 10}.items():
        rows = [f"{i}\t{topic}\t{words[n]} {i}" for i in range(count) for topic, n in TOPICS.items()]
        (folder / language / f"{split}.tsv").write_text("index_id\tcategory\ttext\n" + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_tatoeba(folder / "tatoeba")
    words = [sentence.split()[0] for sentence in tiny.sentences("eng_Latn", 3, seed=5)]
    for language in ("eng_Latn", "deu_Latn", "fra_Latn", "nld_Latn"):
        write_sib(folder / "sib200", language, words)
    return folder


@pytest.fixture(scope="module")
def eval_params(data, unbroken) -> EvaluationParams:
    return EvaluationParams(encoder=unbroken.name, tasks=["tatoeba", "sib200"], data_dir=str(data), seeds=2)


@pytest.fixture(scope="module")
def uninterrupted(eval_params, outputs) -> str:
    return rows_of(evaluate(eval_params, outputs)[0])


def rows_of(table) -> str:
    "Rows in an order of their own."
    return table.sort_values([c for c in COLUMNS if c != "value"]).to_csv(index=False)


def files_of(p: EvaluationParams, outputs: Path) -> list[Path]:
    return sorted(results_folder(open_encoder(p.encoder, outputs).identity, outputs).glob("*/rows.jsonl"))


def lines(p: EvaluationParams, outputs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in files_of(p, outputs))


def _evaluate_until(count: int, p: EvaluationParams, outputs: Path) -> None:
    "Evaluate; this process is killed when it has written `count` lines."
    add = Results.add

    def added(self, *arguments) -> None:
        add(self, *arguments)
        if lines(p, outputs) >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    Results.add = added
    evaluate(p, outputs)


def killed_at(count: int, p: EvaluationParams, outputs: Path) -> None:
    "Evaluate in a process that is killed at `count` lines."
    process = tiny.FORK.Process(target=_evaluate_until, args=(count, p, outputs))
    process.start()
    assert tiny.exit_code(process) == -signal.SIGKILL, "it had ended before it was killed"


@pytest.fixture
def fresh(eval_params, unbroken, outputs):
    "The same encoder without any results."
    shutil.rmtree(results_folder(open_encoder(eval_params.encoder, outputs).identity, outputs), ignore_errors=True)
    return eval_params


def test_a_killed_evaluation_ends_with_the_same_rows(uninterrupted, fresh, outputs):
    for count in (1, 3, 7):
        killed_at(count, fresh, outputs)
        with open(files_of(fresh, outputs)[-1], "a", encoding="utf-8") as file:
            file.write('{"name": "half a li')
    before = lines(fresh, outputs)
    assert rows_of(evaluate(fresh, outputs)[0]) == uninterrupted
    assert 7 <= before < lines(fresh, outputs), "nothing was left to do after the kills"


def test_nothing_is_evaluated_twice(uninterrupted, fresh, outputs, monkeypatch):
    evaluate(fresh, outputs)
    real = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, *more: pytest.fail() if texts else real(self, texts))
    monkeypatch.setattr(
        "langsamp.evaluation.tasks.train_probes", lambda *arguments: pytest.fail("something was trained")
    )
    assert rows_of(evaluate(fresh, outputs)[0]) == uninterrupted


def test_each_sentence_is_encoded_once_for_all_seeds_by_no_more_layers_than_asked_for(data, tmp_path, monkeypatch):
    "Three seeds: each distinct sentence once through the first layer, and through the second none."
    encoder, rows = open_encoder(str(tiny.stock_checkpoint(tmp_path)), tmp_path), {0: [], 1: []}
    for number, layer in enumerate(encoder.model.encoder.layer):
        layer.register_forward_pre_hook(lambda module, args, kind=number: rows[kind].append(args[0].shape[:2]))
    monkeypatch.setattr("langsamp.evaluation.evaluate.open_encoder", lambda *_: encoder)
    p = EvaluationParams(encoder="any", tasks=["sib200", "tatoeba"], data_dir=str(data), layer=1, seeds=3)
    assert evaluate(p, tmp_path)[0].seed.nunique() == 4  # Retrieval has seed 0
    sets, pairs = load_labelled("sib200", data)[0], load_bitexts("tatoeba", data)[0]
    read = [sets[1].splits["train"], sets[1].splits["dev"], *(one.splits["test"] for one in sets)]
    texts = [part.texts for part in read] + [pair.target_texts for pair in pairs]
    texts.append([text for pair in pairs for text in pair.source_texts])
    tried = (1, 4)  # Shape of the batch that shows where an encoder can be truncated
    assert sum(size for size, length in rows[0] if (size, length) != tried) == sum(len(set(part)) for part in texts)
    assert set(rows[1]) == {tried}


def test_other_text_is_evaluated_again(eval_params, uninterrupted, data, outputs):
    "Only the changed language is evaluated again."
    evaluate(eval_params, outputs)
    before, path = lines(eval_params, outputs), data / "tatoeba/tatoeba.deu-eng.deu"
    kept = path.read_text()
    try:
        path.write_text("\n".join(tiny.sentences("rus_Cyrl", 40, seed=99)) + "\n")
        changed = rows_of(evaluate(eval_params, outputs)[0])
    finally:
        path.write_text(kept)
    assert lines(eval_params, outputs) == before + 1 and changed != uninterrupted


def test_a_line_is_written_completely_or_not_at_all(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    results.add(("a", 0, "d"), [{"metric": "acc1", "value": 1.0}])
    whole = (tmp_path / "rows.jsonl").read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / "rows.jsonl").write_bytes(whole + whole[:cut])
        assert Results(tmp_path / "rows.jsonl").rows.keys() == {("a", 0, "d")}, f"cut at {cut}"
        assert (tmp_path / "rows.jsonl").read_bytes() == whole


def test_results_with_nan_are_refused(tmp_path):
    with pytest.raises(ValueError):
        Results(tmp_path / "rows.jsonl").add(("a", 0, "d"), [{"metric": "acc1", "value": float("nan")}])
    assert not (tmp_path / "rows.jsonl").exists() or not (tmp_path / "rows.jsonl").read_bytes()


def test_reading_does_not_cut_what_is_being_written(eval_params, outputs):
    encoder = open_encoder(eval_params.encoder, outputs)
    home = results_folder(encoder.identity, outputs)
    settings = {"task": "made up", "protocol": "retrieval", "layer": -1, "code": protocol_version("retrieval")}
    with open_results(home, settings) as results:
        results.add(("a", 0, "d"), [{"metric": "acc1", "value": 1.0}])
        record_request(results, [("a", 0, "d")], "d")
        with open(results.path, "a", encoding="utf-8") as file:
            file.write('{"name": "b"')
        table = read_results([eval_params.encoder], outputs)
        assert len(table[table.task == "made up"]) == 1
        assert results.path.read_text().endswith('{"name": "b"')
    shutil.rmtree(results.path.parent)


def test_settings_keep_results_apart(eval_params, uninterrupted, outputs):
    "Each result has its own layer; a table has both."
    ours = [evaluate(eval_params.replace(tasks=["tatoeba"], layer=layer), outputs)[0] for layer in (-1, 0)]
    assert [set(table.layer) for table in ours] == [{-1}, {0}] and len(ours[0]) == len(ours[1])
    table = read_results([eval_params.encoder], outputs)
    by_layer = table[(table.metric == "acc1") & (table.task == "tatoeba")].groupby("layer").value.sum()
    assert set(by_layer.index) == {-1, 0} and by_layer[-1] != by_layer[0]


def test_the_former_name_of_an_initial_encoder_is_refused_with_the_new_one(tmp_path):
    with pytest.raises(UserError, match="`start:udhr` is now called `init:udhr`"):
        open_encoder("start:udhr", tmp_path)


def test_missing_data_is_reported(eval_params, uninterrupted, outputs, data, tmp_path):
    partial = tmp_path / "sets"
    shutil.copytree(data, partial)
    (partial / "tatoeba/tatoeba.deu-eng.eng").unlink()
    (partial / "sib200/fra_Latn/test.tsv").unlink()
    table, warnings = evaluate(eval_params.replace(data_dir=str(partial), seeds=1), outputs)
    assert any("tatoeba.deu-eng.eng" in text for text in warnings), warnings
    assert any("fra_Latn" in text and "test" in text for text in warnings), warnings


def test_a_language_missing_in_one_task_does_not_stop_other_tasks(eval_params, outputs):
    table, warnings = evaluate(eval_params.replace(languages=["fra_Latn", "spa", "deu_Lath"], seeds=1), outputs)
    assert "sib200 has nothing in `spa`" in " ".join(warnings) and "did you mean `deu_Latn`" in " ".join(warnings)
    assert {"spa", "fra_Latn"} <= set(table.name), "both tasks were evaluated for the languages that they have"


def test_a_source_without_training_text_is_an_error(eval_params, outputs):
    with pytest.raises(UserError, match="set source_language to one of .*eng_Latn"):
        evaluate(eval_params.replace(tasks=["sib200"], source_language="wol_Latn"), outputs)


def test_another_source_language_can_train(eval_params, outputs):
    table = evaluate(eval_params.replace(tasks=["sib200"], source_language="deu_Latn", seeds=1), outputs)[0]
    assert "deu_Latn" in set(table.source) and table[table.source == "deu_Latn"].value.max() > 0.5


def test_means_weight_languages_equally(eval_params, uninterrupted, outputs):
    table = evaluate(eval_params.replace(tasks=["tatoeba"]), outputs)[0]
    one = table[(table["mode"] == "raw") & (table.layer == -1) & (table.metric == "acc10")]
    found = means(table).set_index(["task", "mode", "metric"]).loc[("tatoeba", "raw", "acc10")]
    assert found.sets == len(one) == 6 and found.value == pytest.approx(one.value.mean(), abs=1e-4)


# Exactly what was asked


def test_each_asked_language_has_results_or_is_named(eval_params, outputs, data, tmp_path):
    "One without a test split, the language of the queries, and one that no task has."
    partial = tmp_path / "sets"
    shutil.copytree(data, partial)
    (partial / "sib200/fra_Latn/test.tsv").unlink()
    asked = ["fra_Latn", "eng_Latn", "nld_Latn", "wol_Latn"]
    table, warnings = evaluate(eval_params.replace(data_dir=str(partial), seeds=1, languages=asked), outputs)
    rows = table.groupby("task").target.agg(set).to_dict()
    assert rows == {"tatoeba": {"fra_Latn", "nld_Latn"}, "sib200": {"eng_Latn", "nld_Latn"}}
    ours = [line for line in warnings if line.startswith(("tatoeba", "sib200")) and "paper" not in line]
    assert ours == [
        "tatoeba has nothing in `wol_Latn`",
        "tatoeba: eng_Latn is the language of the queries, so it has no result of its own",
        "sib200: fra_Latn (fra_Latn) has no test split, so it has no result",
        "sib200 has nothing in `wol_Latn`",
    ]


def test_a_request_without_any_result_is_an_error(eval_params, outputs):
    with pytest.raises(UserError, match="nothing to evaluate in tatoeba, sib200\n(.*\n)*.*nothing in `wol_Latn`"):
        evaluate(eval_params.replace(languages=["wol_Latn"]), outputs)


def test_the_data_set_that_is_trained_on_is_named_where_there_are_several():
    texts = LabelledTexts([["a"]], [["NOUN"]])
    whole = {"train": texts, "dev": texts, "test": texts}
    sets = [LabelledDataset("ud", name, "eng_Latn", whole) for name in ("en_ewt", "en_gum")]
    assert _gaps("ud", sets, sets[0], []) == ["ud: trained on en_ewt, the first of en_ewt, en_gum in eng_Latn"]
    assert _gaps("ud", sets[:1], sets[0], []) == []


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tasks": ["udhr", "udhr"]}, "tasks has one twice"),
        ({"tasks": ["sib200"], "similarity": "csls"}, "similarity is for retrieval"),
        ({"mode": "fine-tuned"}, "mode is for labelled tasks, not for udhr"),
        ({"tasks": ["sib200"], "mode": "fine-tuned", "layer": 8}, "layer is for retrieval and mode frozen"),
        ({"data_dir": "sets"}, "data_dir is not read by udhr"),
    ],
)
def test_a_setting_that_no_task_reads_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        EvaluationParams.model_validate(values)
    both = {"tasks": ["tatoeba", "sib200"], "similarity": "csls", "mode": "fine-tuned", "layer": 8, "data_dir": "sets"}
    assert EvaluationParams.model_validate(both).layer == 8


def test_chance_stands_beside_each_score(eval_params, uninterrupted, outputs, capsys):
    "Of forty candidates, and of three topics that are equally common; also in what the command prints."
    table = means(evaluate(eval_params, outputs)[0])
    chance = table.set_index(["task", "mode", "metric"]).chance
    assert chance.notna().all() and not table.metric.str.startswith("chance").any()
    assert chance["tatoeba", "raw", "acc10"] == chance["tatoeba", "raw", "acc10_back"] == 10 / 40
    assert chance["sib200", "frozen", "accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert chance["sib200", "frozen", "f1_macro"] == pytest.approx(1 / 6, abs=1e-4)
    _print_evaluation(eval_params, outputs)
    printed = capsys.readouterr().out
    assert "0.3333" in printed and "chance: random vectors in retrieval, always the commonest training label" in printed


def test_means_keep_sources_and_settings_apart(eval_params, outputs):
    "Results with another source language are rows of their own, and two sets of hyperparameters are refused."
    for source in ("eng_Latn", "deu_Latn"):
        evaluate(eval_params.replace(tasks=["sib200"], source_language=source, seeds=1), outputs)
    table = read_results([eval_params.encoder], outputs)
    found = means(table[(table.task == "sib200") & (table.metric == "accuracy")])
    assert found.groupby("layer").source.agg(set)[-1] == {"eng_Latn", "deu_Latn"}
    with pytest.raises(UserError, match="sib200, frozen, of .* was evaluated with two settings"):
        means(pd.concat([table[table.task == "sib200"]] * 2))


@pytest.mark.parametrize("task", ["tatoeba", "sib200"])
def test_a_frozen_encoder_computes_in_bf16_where_it_is_native(task, data, tmp_path, monkeypatch):
    "Its products are rounded where bf16 is native or asked for; what was begun in fp32 stays in fp32."
    encoder, kinds = open_encoder(str(tiny.stock_checkpoint(tmp_path)), tmp_path), set()
    products = encoder.model.encoder.layer[0].intermediate.dense
    products.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    monkeypatch.setattr("langsamp.evaluation.evaluate.open_encoder", lambda *_: encoder)
    for library in ("ONEDNN", "DNNL"):
        monkeypatch.setenv(f"{library}_PRIMITIVE_CACHE_CAPACITY", "1024")  # What the test sets is undone afterwards
        monkeypatch.delenv(f"{library}_PRIMITIVE_CACHE_CAPACITY")

    def precision(native: bool, place: str, asked: str = "auto", **more) -> set[torch.dtype]:
        monkeypatch.setattr("langsamp.evaluation.evaluate.native_bf16", lambda device: native)
        kinds.clear()
        p = EvaluationParams(encoder="any", tasks=[task], data_dir=str(data), seeds=1, precision=asked, **more)
        evaluate(p, tmp_path / place)
        return kinds

    assert precision(True, "a") == precision(False, "b", "bf16") == {torch.bfloat16}
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64", "each shape of a batch would keep a kernel"
    assert precision(False, "c") == precision(True, "d", "fp32") == {torch.float32}
    assert precision(True, "c", languages=["deu_Latn"]) == set(), "nothing was left to do"
    assert precision(False, "e", languages=["deu_Latn"]) == precision(True, "e") == {torch.float32}
    assert precision(True, "f", languages=["deu_Latn"]) == {torch.bfloat16} == precision(False, "f", layer=1)


def test_a_failed_evaluation_decides_no_precision(data, unbroken, tmp_path, outputs, monkeypatch):
    "Nor do results of another task; results of another encoder do, so that both can be compared."
    monkeypatch.setattr("langsamp.evaluation.evaluate.native_bf16", lambda device: False)
    p = EvaluationParams(encoder=str(outputs / unbroken.name / "backbone"), tasks=["tatoeba"], data_dir=str(data))
    with pytest.raises(UserError):
        evaluate(p.replace(precision="bf16", data_dir=str(tmp_path / "nothing")), tmp_path)
    assert {*evaluate(p, tmp_path)[0].precision} == {"fp32"}
    monkeypatch.setattr("langsamp.evaluation.evaluate.native_bf16", lambda device: True)
    other = p.replace(encoder=str(tiny.stock_checkpoint(tmp_path)))
    assert {*evaluate(other, tmp_path)[0].precision} == {"fp32"}
    assert {*evaluate(other.replace(tasks=["sib200"], seeds=1), tmp_path)[0].precision} == {"bf16"}


def test_two_precisions_are_not_compared(data, unbroken, tmp_path, outputs):
    names = [str(outputs / unbroken.name / "backbone"), str(tiny.stock_checkpoint(tmp_path))]
    common = {"tasks": ["tatoeba"], "data_dir": str(data)}
    for name, precision, language in zip((*names, names[1]), ("fp32", "bf16", "fp32"), ("fra", "fra", "rus")):
        evaluate(EvaluationParams(encoder=name, precision=precision, languages=[language], **common), tmp_path)
        if precision == "bf16":
            with pytest.raises(UserError, match="in bf16 and of .*backbone` in fp32, of tatoeba, raw, cannot"):
                read_results(names, tmp_path)
    with pytest.raises(UserError, match="in bf16 and of .* in fp32, of tatoeba"):
        read_results(names[1:], tmp_path)


def test_fine_tuning_is_in_no_context_that_keeps_cast_weights(data, tmp_path, monkeypatch):
    "Autocast forgets them when the outermost context ends, which must be that of one forward pass."
    depths, logits = set(), finetune.task_logits

    def noting_depth(*given):
        depths.add(torch.autocast_increment_nesting())
        torch.autocast_decrement_nesting()
        return logits(*given)

    monkeypatch.setattr(finetune, "task_logits", noting_depth)
    few = {"num_train_epochs": 1, "micro_batch_size": 16}
    p = EvaluationParams(encoder=str(tiny.stock_checkpoint(tmp_path)), tasks=["sib200"], data_dir=str(data), seeds=1)
    found, _ = evaluate(p.replace(mode="fine-tuned", overrides=few), tmp_path)
    assert depths == {1} and {*found.precision} == {""}


@pytest.mark.slow
def test_the_real_sets_from_end_to_end(real, unbroken, outputs):
    tasks = ["tatoeba", "sib200", "ud", "ner"]
    table, warnings = evaluate(
        EvaluationParams(encoder=unbroken.name, tasks=tasks, data_dir=str(real), seeds=1), outputs
    )
    assert table.groupby("task").name.nunique().to_dict() == {"tatoeba": 112, "sib200": 205, "ud": 14, "ner": 11}
    assert json.dumps(warnings), warnings


def test_a_missing_language_is_suggested_by_language_not_by_letters():
    found = [SimpleNamespace(name=name) for name in ("fra_Latn", "deu_Latn")]
    _, absent = _select_languages(
        "udhr", found, ["de_Latn", "German", "xx_Latn", "spa_Latn", "fra_Latn"], lambda x: x.name
    )
    assert absent == [
        "udhr has nothing in `de_Latn`; did you mean `deu_Latn`?",
        "udhr has nothing in `German`; did you mean `deu_Latn`?",
        "udhr has nothing in `xx_Latn`",
        "udhr has nothing in `spa_Latn`",
    ]


def test_many_missing_languages_are_one_warning_with_all_names():
    found, wanted = [SimpleNamespace(name="fra_Latn")], ["fra_Latn", *(f"qa{letter}_Latn" for letter in "abcdef")]
    chosen, absent = _select_languages("udhr", found, wanted, lambda x: x.name)
    assert chosen == found and absent == [
        "udhr has nothing in 6 of the 7 languages: qaa_Latn, qab_Latn, qac_Latn, qad_Latn, qae_Latn, qaf_Latn"
    ]
