"Sampling: the published rule exactly, temperature shares to the sequence, and a table that adds up."

import ast
import csv
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tiny
from transformers import XLMRobertaConfig

from langsamp.core.errors import UserError
from langsamp.core.files import read_json, repo_root
from langsamp.data.masking import sequences_of_step
from langsamp.data.sampling import (
    glot500_lines,
    glot500_pairs,
    quotas,
    sampling_table,
    seen_by_xlmr,
    temperature_shares,
    weights_of,
)
from langsamp.model.langsamp import from_backbone
from langsamp.params.pretrain import TrainingParams
from langsamp.training.loop import Trainer
from langsamp.training.prepare import prepare, repetition_table
from langsamp.training.pretrain import pretrain
from langsamp.training.run_dir import check_same_params, write_params


def report_of(lines: dict[str, int], tokens: int = 25) -> dict:
    "The corpus report of language-scripts with the given numbers of training lines."
    splits = {code: {"train": {"lines": n, "tokens": tokens * n}} for code, n in lines.items()}
    return {"filter_reports": [{"code": code, "splits": split} for code, split in splits.items()]}


def sequences_of(report: dict, max_seq_length: int = 100) -> np.ndarray:
    "The numbers of sequences in the shards of a report."
    return np.array([-(-part["splits"]["train"]["tokens"] // max_seq_length) for part in report["filter_reports"]])


def random_lines(seed: int) -> dict[str, int]:
    "From zero to a million lines, some of them of unseen language-scripts."
    random = np.random.default_rng(seed)
    codes = [code for code in glot500_pairs().index if code not in seen_by_xlmr()][: random.integers(2, 60)]
    return {code: int(random.integers(0, 2) * 10 ** random.uniform(0, 6)) for code in codes} | {codes[0]: 500}


# The published rule


@pytest.fixture(scope="module")
def published() -> dict[str, int]:
    "Sentences by language-script, from the table that is carried over."
    return glot500_pairs().sentences.to_dict()


def test_published_numbers(published):
    "Pairs, lines, and lines of seen and unseen ones, as the papers give them."
    lines = glot500_lines(published, seen_by_xlmr())
    seen = {n for code, n in lines.items() if code in seen_by_xlmr()}
    unseen = [n for code, n in lines.items() if code not in seen_by_xlmr()]
    assert len(lines) == 570 and sum(lines.values()) == 920_045_730
    assert len({code[:3] for code in lines}) == 515 and len({code[4:] for code in lines}) == 29
    assert seen == {900_450} and len(lines) - len(unseen) == 100
    assert sum(unseen) == 830_000_730 and max(unseen) == lines["hbs_Latn"] == 8_951_746
    assert min(unseen) == lines["chk_Hani"] == 900_450 == 30 * published["chk_Hani"]


def test_no_line_count_depends_on_rounding(published):
    "No line count depends on the last bit of a power: 0.3 is 3/10, so integers determine it."
    rarest = published["chk_Hani"]
    for code, n in glot500_lines(published, seen_by_xlmr()).items():
        if code not in seen_by_xlmr():
            exact = Fraction(published[code], rarest) ** 3
            assert Fraction(n, 30 * rarest) ** 10 <= exact < Fraction(n + 1, 30 * rarest) ** 10, code


def test_table_is_the_published_one(published):
    "Row by row, where the published file is at hand."
    path = repo_root().parent / "shared/data/paper/glot500_languages_stats.csv"
    if not path.exists():
        pytest.skip("Glot500's own file is not beside the checkout; the carried table was tested above")
    with open(path, encoding="utf-8") as file:
        rows = {f"{r['language']}_{ast.literal_eval(r['script'])[0]}": r for r in csv.DictReader(file)}
    assert {code: int(row["new_length"]) for code, row in rows.items()} == published
    assert seen_by_xlmr() == {code for code, row in rows.items() if row["XLM-R"] == "True"}


def test_unknown_codes_count_as_unseen():
    "A corpus may have languages that Glot500 had not; seen ones give as many lines as the rarest unseen one."
    lines = glot500_lines({"ase_Latn": 40_000, "deu_Latn": 10, "tlh_Latn": 29_999, "eng_Latn": 0}, seen_by_xlmr())
    assert lines == {"ase_Latn": 1_200_000, "deu_Latn": 1_200_000}


@pytest.mark.parametrize("lines", [{"deu_Latn": 10**6}, {"wol_Latn": 29_999}, {}], ids=["seen", "small", "empty"])
def test_rule_without_a_matching_language_is_an_error(lines):
    with pytest.raises(UserError, match="at least 30,000 lines.*choose `temperature` or `all`"):
        glot500_lines(lines, seen_by_xlmr())


# Temperature


@pytest.mark.parametrize("alpha", [0, 0.3, 0.7, 1])
def test_shares_follow_the_exponent(alpha):
    "They add up to one, ratios are powers, empty languages get 0, and order is kept."
    for seed in range(20):
        sizes = random_lines(seed)
        shares = temperature_shares(sizes, alpha)
        assert list(shares) == list(sizes) and sum(shares.values()) == pytest.approx(1)
        some = [code for code, n in sizes.items() if n]
        assert all(shares[code] == 0 for code in sizes if not sizes[code])
        for a, b in zip(some, some[1:]):
            assert shares[a] / shares[b] == pytest.approx((sizes[a] / sizes[b]) ** alpha)


# Quotas


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_temperature_quotas(alpha):
    "An epoch is as long as the corpus, within one sequence of the exact shares, and no language with text is left out."
    for seed in range(30):
        report = report_of(lines := random_lines(seed))
        counts = sequences_of(report)
        found = quotas("temperature", alpha, counts, report)
        exact = counts.sum() * np.array(list(temperature_shares(lines, alpha).values()))
        assert found.dtype == np.int64 and ((found > 0) == (counts > 0)).all()
        assert (abs(found - np.maximum(exact, counts > 0)) < 1).all()
        assert 0 <= found.sum() - counts.sum() <= (exact < 1).sum()


def test_an_epoch_of_batches_keeps_the_shares():
    "Draws of one epoch, counted by language-script, are the temperature shares to the sequence."
    report = report_of({"eng_Latn": 40_000, "hbs_Latn": 900, "wol_Latn": 37})
    counts = sequences_of(report)
    wanted = quotas("temperature", 0.3, counts, report)
    last, size = np.cumsum(counts), int(wanted.sum())
    drawn = np.concatenate([sequences_of_step(step, 64, last, 5, wanted)[1] for step in range(-(-size // 64))])[:size]
    found = np.bincount(np.searchsorted(last, drawn, side="right"), minlength=3)
    assert (found == wanted).all()
    shares = np.array([1_000_000, 22_500, 925]) ** 0.3
    assert np.abs(found / size - shares / shares.sum()).max() < 1e-4


def test_sampling_all_draws_every_sequence_once():
    report = report_of(random_lines(3))
    assert (quotas("all", 0.3, sequences_of(report), report) == sequences_of(report)).all()


def test_glot500_quotas():
    "Sequences are drawn as often as the rule requires lines; languages below the threshold get none."
    report = report_of({"deu_Latn": 2_000_000, "hbs_Latn": 640_000, "yua_Latn": 40_000, "chr_Cher": 29_999})
    counts = sequences_of(report)
    found = quotas("glot500", 0.3, counts, report)
    rare = 30 * 40_000
    assert (found == [rare // 4, round(rare * 16**0.3 / 4), rare // 4, 0]).all()


def test_unknown_rule_is_named():
    with pytest.raises(UserError, match="unknown sampling `glot5000`; did you mean `glot500`"):
        quotas("glot5000", 0.3, np.array([1]), report_of({"eng_Latn": 1}))


# Weights of languages


def test_weights_change_the_shares_and_not_the_epoch():
    "Beside any rule, a language of weight 3 is drawn three times as often as before, compared with one of weight 1."
    report = report_of(random_lines(5))
    counts, codes = sequences_of(report), [part["code"] for part in report["filter_reports"]]
    most = codes[int(counts.argmax())]
    for rule in ("all", "temperature"):
        plain, found = quotas(rule, 0.3, counts, report), quotas(rule, 0.3, counts, report, {most: 3.0})
        exact = plain * np.where(np.array(codes) == most, 3.0, 1.0)
        exact *= plain.sum() / exact.sum()
        assert found.dtype == np.int64 and ((found > 0) == (plain > 0)).all()
        assert (abs(found - np.maximum(exact, plain > 0)) < 1).all()


def test_weights_name_languages_of_the_corpus():
    assert list(weights_of(["cmn_Hani", "eng_Latn"], {"zho_Hani": 2})) == [2, 1]  # A macrolanguage
    with pytest.raises(UserError, match="wol_Arab, which is not in the corpus; did you mean `wol_Latn`"):
        weights_of(["eng_Latn", "wol_Latn"], {"wol_Arab": 2})
    with pytest.raises(UserError, match="the script is missing"):
        weights_of(["eng_Latn"], {"eng": 2})


def test_a_run_draws_by_a_table_of_weights(tmp_path):
    "The table decides what is read, is kept as numbers, and belongs to the identity of the run."
    table = tmp_path / "weights.csv"
    table.write_text("language,weight\nhin_Deva,1e6\n")
    p = tiny.params_of(tiny.write_corpus(tmp_path / "corpus"), max_steps=4, save_steps=4, language_weights=str(table))
    corpus = prepare(p, tmp_path / "outputs")
    share = repetition_table(p, corpus)["% of epoch"]
    assert share["hin_Deva"] > 90 and share.min() > 0
    pretrain(p, tmp_path / "outputs")
    run = tmp_path / "outputs" / p.run_name
    assert read_json(run / "provenance.json")["sessions"][0]["language_weights"] == {"hin_Deva": 1e6}
    table.write_text("hin_Deva,2\n")
    with pytest.raises(UserError, match="language_weights: .*1000000.* → .*2.0"):
        pretrain(p.replace(language_weights=str(table)), tmp_path / "outputs")
    assert pretrain(p, tmp_path / "outputs")["step"] == 4


def test_a_run_without_the_parameter_continues(tmp_path):
    "The params.yaml of a run that began before this parameter existed does not name it."
    write_params(tmp_path, {"seed": 1})
    check_same_params(tmp_path, {"seed": 1, "language_weights": {}})
    with pytest.raises(UserError, match="language_weights"):
        check_same_params(tmp_path, {"seed": 1, "language_weights": {"eng_Latn": 2.0}})


# The sampling table


def test_sampling_table_adds_up():
    "Shares sum to 100 %, passes to the sequences drawn; languages repeated too often are marked and on top."
    for seed in range(10):
        report = report_of(lines := random_lines(seed))
        counts = sequences_of(report)
        table = sampling_table(report, counts, wanted := quotas("temperature", 0.3, counts, report), drawn=10**6)
        assert set(table.index) == set(lines) and table.passes.is_monotonic_decreasing
        assert table["% of epoch"].sum() == pytest.approx(100, abs=0.1) == table["% of tokens"].sum()
        passes = table.passes.reindex(lines).to_numpy()
        assert (passes * counts).sum() == pytest.approx(10**6, rel=0.01)
        assert (table.repeated == (table.passes > 4)).all()
        one = sampling_table(report, counts, wanted)
        assert np.allclose(one.passes.reindex(lines) * counts, wanted, atol=0.01 * counts.max())


def test_trained_tokens_are_those_of_the_batches(tmp_path):
    "The table agrees with what the steps read, within a sequence per language-script."
    data = tiny.synthetic_data(tmp_path, {"eng_Latn": 3_210, "rus_Cyrl": 555, "wol_Latn": 70})
    code_tokens = dict(zip(data.train.codes, data.train.tokens.tolist()))
    report = report_of(code_tokens, tokens=1)
    wanted = quotas("temperature", 0.3, counts := np.diff(data.train.shard_ends, prepend=0), report)
    drawn = 3 * int(wanted.sum())
    tokens, shards = data.train[sequences_of_step(0, drawn, data.train.shard_ends, 9, wanted)[1]]
    found = np.bincount(shards, (tokens != data.token_ids.pad).sum(axis=1), minlength=3)
    expected = sampling_table(report, counts, wanted, drawn)["trained tokens"].reindex(data.train.codes)
    assert np.abs(found - expected).max() <= 16 and found.sum() > 10_000


def test_training_draws_by_the_quotas(tmp_path):
    "Quotas equal to the numbers of sequences change no loss, others do."
    data, size = tiny.synthetic_data(tmp_path), {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = XLMRobertaConfig(vocab_size=256, max_position_embeddings=18, intermediate_size=32, **size)
    p, found = TrainingParams(precision="fp32", max_steps=12, global_batch_size=8, micro_batch_size=8), {}
    counts = np.diff(data.train.shard_ends, prepend=0)
    for name, wanted in {"baseline": None, "all": counts, "English": counts * [1, 0]}.items():
        model = from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], seed=3)
        Trainer(model, replace(data, quotas=wanted), p).train(tmp_path / name)
        found[name] = [line["loss"] for line in tiny.metrics_of(tmp_path / name) if "loss" in line]
    assert found["baseline"] == found["all"] != found["English"]
