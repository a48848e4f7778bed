"Rankers of source languages: what they find where the answer is known, and nothing where there is nothing."

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny

from langsamp.analysis import fine_tuned_transfer
from langsamp.analysis import transfer as transfer_module
from langsamp.analysis.source_ranking import (
    _text_relations,
    all_rankers,
    compare_rankers,
    known_relations,
    learned_ranker,
    learned_relations,
    mean_rank,
    permuted_gains,
    rank_sources,
    ranking_quality,
    without_size,
)
from langsamp.analysis.transfer import mean_matrix
from langsamp.cli.main import main
from langsamp.core.errors import UserError
from langsamp.encoding.open_encoder import open_encoder
from langsamp.evaluation.datasets import LabelledDataset, LabelledTexts
from langsamp.languages.codes import family_of
from langsamp.languages.uriel import URIEL_KINDS, uriel_features, uriel_similarity
from langsamp.params.evaluate import TransferParams
from langsamp.training.pretrain import pretrain

CODES = (
    "eng_Latn deu_Latn nld_Latn swe_Latn spa_Latn ita_Latn rus_Cyrl ukr_Cyrl hin_Deva ben_Beng fin_Latn ekk_Latn "
    "hun_Latn tur_Latn kaz_Cyrl swh_Latn zul_Latn yor_Latn ind_Latn tgl_Latn"
).split()
FAMILIES = {code: family_of(code) for code in CODES}


@pytest.fixture(scope="module")
def relations() -> dict[str, pd.DataFrame]:
    return known_relations(CODES)


@pytest.fixture(scope="module")
def transfer(relations) -> pd.DataFrame:
    "A matrix in which genealogy and geography decide, with a little noise."
    noise = np.random.default_rng(0).normal(0, 0.02, (len(CODES), len(CODES)))
    return 0.5 * relations["genealogy"] + 0.05 * relations["geography"] + noise


def quality(table: pd.DataFrame, ranker: str, name: str, column: str = "value") -> float:
    return table[(table.ranker == ranker) & (table.quality == name)][column].item()


def test_the_ranker_that_decides_is_found(transfer, relations):
    table = compare_rankers(transfer, {name: [matrix] for name, matrix in relations.items()}, n_resamples=200)
    best = table[table.quality == "ndcg@3"].set_index("ranker").value
    assert best.idxmax() in ("genealogy", "geography") and best.max() > best["random"] + 0.3
    assert quality(table, best.idxmax(), "regret") < quality(table, "random", "regret")


def test_a_permuted_matrix_gives_no_ranker_anything(transfer, relations):
    "The control: with sources in random order, gains over the random ranker are noise around zero; not so in order."
    rankers = {"genealogy": [relations["genealogy"]], "English": [relations["English"]]}
    null = permuted_gains(transfer, rankers, repeats=20)
    assert null.gain.abs().max() < 0.08 and (null.low < 0).all() and (null.high > 0).all()
    table = compare_rankers(transfer, rankers, n_resamples=50)
    assert quality(table, "genealogy", "ndcg@3", "over random") > null.high.genealogy


def test_a_permuted_ranker_finds_nothing(transfer, relations):
    random, gains = np.random.default_rng(0), []
    for _ in range(20):
        order = random.permutation(len(CODES))
        shuffled = pd.DataFrame(relations["genealogy"].to_numpy()[order], CODES, CODES)
        found = ranking_quality(transfer, shuffled, tie_breaks=5)["ndcg@5"]
        gains.append((found - ranking_quality(transfer, 0 * transfer, tie_breaks=5)["ndcg@5"]).mean())
    assert abs(np.mean(gains)) < 2 * np.std(gains) / np.sqrt(len(gains)) + 0.02


def test_the_learned_ranker_learns_nothing_from_a_permuted_matrix(transfer, relations):
    "It is fitted to the permuted scores, and other families do not tell it those of the target."
    features, gains = {name: relations[name] for name in ("genealogy", "geography")}, []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(transfer))
        shuffled = pd.DataFrame(transfer.to_numpy()[order], transfer.index, transfer.columns)
        learned = learned_ranker(features, shuffled, FAMILIES)
        found = [ranking_quality(shuffled, one, tie_breaks=5).spearman.mean() for one in (learned, 0 * shuffled)]
        gains.append(found[0] - found[1])
    true = ranking_quality(transfer, learned_ranker(features, transfer, FAMILIES)).spearman.mean()
    assert abs(np.mean(gains)) < 0.2 and true > max(gains)


def test_the_seeds_of_a_run_are_one_ranker(transfer, relations):
    "Their mean, with the worst and the best."
    each = [relations["genealogy"], relations["syntax"]]
    table = compare_rankers(transfer, {"both": each, "one": each[:1], "two": each[1:]}, n_resamples=50)
    rows = table[table.quality == "ndcg@3"].set_index("ranker")
    values = rows.value[["one", "two"]]
    assert rows.value["both"] == pytest.approx(values.mean()) and rows.seeds["both"] == 2
    assert (rows["min"]["both"], rows["max"]["both"]) == pytest.approx((values.min(), values.max()))
    assert set(table.ranker) == {"random", "both", "one", "two"}


def test_regret_against_english(transfer, relations):
    "Of English itself it is 0; of the true order it is what English loses."
    rankers = {"English": [relations["English"]], "true": [transfer]}
    table = compare_rankers(transfer, rankers, n_resamples=50)
    assert quality(table, "English", "regret", "over English") == 0
    english = quality(table, "English", "regret")
    assert quality(table, "true", "regret", "over English") == pytest.approx(-english) and english > 0


def test_the_effect_of_corpus_size_can_be_regressed_out():
    "Vectors that say only how much text there was say nothing afterwards; others keep what they say."
    random = np.random.default_rng(0)
    tokens, direction, rest = np.exp(random.normal(size=40)), random.normal(size=5), random.normal(size=(40, 5))
    assert np.abs(without_size(np.log(tokens)[:, None] * direction, tokens)).max() < 1e-9
    free = without_size(rest + 10 * np.log(tokens)[:, None] * direction, tokens)
    assert np.abs([np.corrcoef(column, np.log(tokens))[0, 1] for column in free.T]).max() < 1e-9
    assert np.corrcoef(free.ravel(), rest.ravel())[0, 1] > 0.9


def test_the_learned_ranker_sees_nothing_of_the_target_s_family(transfer, relations):
    "Other scores for Uralic targets change no prediction for them."
    changed = transfer.copy()
    uralic = [code for code in CODES if FAMILIES[code] == "Uralic"]
    changed[uralic] = -changed[uralic]
    changed.loc[uralic] = -changed.loc[uralic]
    before, after = [learned_ranker(relations, matrix, FAMILIES) for matrix in (transfer, changed)]
    others = [code for code in CODES if code not in uralic]
    assert before[uralic].equals(after[uralic]) and not before[others].equals(after[others])


def test_a_ranker_that_knows_no_pair_changes_nothing_that_is_learned(transfer, relations):
    "And without any known pair all sources tie."
    features = {"genealogy": relations["genealogy"]}
    unknown = {"nothing": transfer * np.nan}
    assert learned_ranker(features | unknown, transfer, FAMILIES).equals(learned_ranker(features, transfer, FAMILIES))
    assert (learned_ranker(unknown, transfer, FAMILIES) == 0).all(axis=None)


def test_the_target_s_language_is_no_source_in_any_script():
    codes = ["uzn_Latn", "uzn_Cyrl", "tur_Latn", "eng_Latn"]
    transfer = pd.DataFrame(0.1, codes, codes)
    transfer.loc["uzn_Cyrl", "uzn_Latn"], transfer.loc["tur_Latn", "uzn_Latn"] = 0.9, 0.5
    assert ranking_quality(transfer, transfer).regret["uzn_Latn"] == 0


def test_unknown_pairs_come_last(relations):
    known = relations["genealogy"].copy()
    known.loc["deu_Latn"] = np.nan
    assert mean_rank({"genealogy": known}).loc["deu_Latn"].max() == 0
    partly = relations["genealogy"].copy()
    partly.loc[["deu_Latn", "eng_Latn", "fin_Latn"], "nld_Latn"] = np.nan
    both = mean_rank({"genealogy": relations["genealogy"], "partly": partly})["nld_Latn"]
    assert both["deu_Latn"] == mean_rank({"genealogy": relations["genealogy"]}).loc["deu_Latn", "nld_Latn"]
    similarity = uriel_similarity(["eng_Latn", "qaa_Latn"], "syntax")
    assert np.isnan(similarity[0, 1]) and similarity[0, 0] == pytest.approx(1)


def test_all_rankers_have_the_shape_of_the_matrix(transfer):
    pairs = [(source, target) for source in CODES[:6] for target in CODES]
    texts = pd.DataFrame(pairs, columns=["source", "target"]).assign(**{"mean vector": 0.5, "nearest sentences": 0.5})
    found = all_rankers(transfer.iloc[:6], [texts])
    assert {*URIEL_KINDS, "geography", "mean vector", "nearest sentences", "mean of ranks", "learned"} <= found.keys()
    assert {matrix.shape for each in found.values() for matrix in each} == {(6, 20)}


def test_the_treebank_that_is_used_is_named(monkeypatch, capsys):
    "Of several in one language the first one is."
    text = LabelledTexts([["a"]], [["NOUN"]])
    found = [LabelledDataset("ud", f"UD_{x}", "fin_Latn", dict.fromkeys(("train", "dev", "test"), text)) for x in "AB"]
    monkeypatch.setattr(transfer_module, "load_labelled", lambda *_: (found, []))
    assert transfer_module.chosen_datasets(TransferParams(task="ud")) == found[:1]
    assert capsys.readouterr().out == "ud: fin_Latn is UD_A, not UD_B\n"


def test_a_language_is_trained_and_tested_on_two_data_sets(monkeypatch, capsys):
    "English of Universal Dependencies has training text in one treebank and test text in another."
    text = LabelledTexts([[x] for x in "abcd"], [["NOUN"]] * 4)
    trained = LabelledDataset("ud", "EWT", "eng_Latn", {"train": text, "dev": text})
    tested = LabelledDataset("ud", "PUD", "eng_Latn", {"test": text})
    monkeypatch.setattr(transfer_module, "load_labelled", lambda *_: ([tested, trained], []))
    (english,) = transfer_module.chosen_datasets(TransferParams(task="ud", train_sentences=2))
    assert {split: len(part.texts) for split, part in english.splits.items()} == {"train": 2, "dev": 2, "test": 4}
    assert capsys.readouterr().out == "ud: eng_Latn is EWT with the test split of PUD\n"


def test_a_target_with_one_source_is_not_ranked(relations):
    "One source is right by any ranker, which would flatter all of them."
    two = relations["genealogy"].loc[["eng_Latn", "tur_Latn"], ["eng_Latn", "deu_Latn", "kaz_Cyrl"]]
    table = compare_rankers(two, {"genealogy": [two]}, n_resamples=20)
    assert list(ranking_quality(two, two).index) == ["deu_Latn", "kaz_Cyrl"]
    assert quality(table, "genealogy", "top-1") == 1 and 0 < quality(table, "random", "top-1") < 1
    with pytest.raises(UserError, match="no target has two in other languages"):
        ranking_quality(two.loc[["eng_Latn"]], two)


def test_typology_is_that_of_the_database():
    assert uriel_features("phonology").shape == (7970, 28) and uriel_features("genealogy").loc["fin"].sum() > 2
    with pytest.raises(UserError, match="did you mean `genealogy`"):
        uriel_features("geneology")


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> Path:
    "A short run on six languages, three of them in Latin script."
    home = tmp_path_factory.mktemp("six")
    corpus = tiny.write_corpus(home / "texts")
    for seed, code in enumerate(("deu_Latn", "swe_Latn", "mar_Deva"), 1):
        like = next(known for known in tiny.ALPHABETS if known[-4:] == code[-4:])
        for split, count in (("train", 60), ("validation", 8)):
            tiny.write(corpus / f"{split}/{code}.txt", "\n".join(tiny.sentences(like, count, seed)) + "\n")
    p = tiny.params_of(corpus, run_name="six", max_steps=12, save_steps=12)
    pretrain(p, home / "outputs")
    return home / "outputs/six"


def test_a_run_adds_its_embeddings(six, capsys):
    codes = ["eng_Latn", "hin_Deva", "rus_Cyrl"]
    plain, learned = [rank_sources(codes[0], candidates=codes[1:], run=run) for run in (None, six)]
    assert {*learned.columns} - {*plain.columns} >= {"language embedding", "token frequencies", "most text"}
    assert learned["language embedding"].notna().all() and set(learned.index) == set(codes[1:])
    assert "does not count" not in capsys.readouterr().out
    unknown = rank_sources("wol_Latn", candidates=codes, run=six)
    expected = "run six does not count: it does not know wol_Latn and a source; name another run\n"
    assert capsys.readouterr().out == expected
    assert unknown.score.equals(rank_sources("wol_Latn", candidates=codes).score) and unknown.score.between(0, 1).all()


def test_runs_are_rankers_with_and_without_the_effect_of_size(six):
    "And by their sub-networks; the mean and the learned ranker use neither a relation twice nor English."
    codes = ["eng_Latn", "deu_Latn", "swe_Latn", "hin_Deva", "mar_Deva", "rus_Cyrl"]
    scores = pd.DataFrame(np.random.default_rng(0).random((6, 6)), codes, codes)
    found = all_rankers(scores, [], [six, six])
    names = ("language embedding", "language embedding, size removed", "script embedding", "token frequencies", "X-SNS")
    assert all(len(found[name]) == 2 and not found[name][0].isna().any(axis=None) for name in names)
    assert not np.allclose(*[found[f"language embedding{more}"][0] for more in ("", ", size removed")])
    assert np.allclose(np.diag(found["X-SNS"][0]), 1) and len([*six.parent.glob("transfer/x-sns-six-*.csv")]) == 1
    kept = {name: sum(each) / len(each) for name, each in found.items() if name not in ("mean of ranks", "learned")}
    kept = {name: matrix for name, matrix in kept.items() if name != "English" and "size" not in name}
    assert found["mean of ranks"][0].equals(mean_rank(kept))


def test_text_relations_read_the_development_text_and_no_label(six):
    "Of a target, that is; a data set without development text is compared by its test text."
    encoder, p = open_encoder("six", six.parent), TransferParams(encoder="six", layer=1)

    def dataset(code: str, label: str = "a", test: str = "", **more) -> LabelledDataset:
        texts = {split: tiny.sentences(code, 6, seed) for seed, split in enumerate(("train", "dev"))}
        splits = texts | {"test": [test or "x"] * 6} | more
        labelled = {split: LabelledTexts(found, [label] * 6) for split, found in splits.items() if found}
        return LabelledDataset("sib200", code, code, labelled)

    codes = ("eng_Latn", "hin_Deva", "rus_Cyrl")
    first = _text_relations(p, encoder, [dataset(code) for code in codes])
    again = _text_relations(p, encoder, [dataset(code, "b", "other") for code in codes])
    other = _text_relations(p, encoder, [dataset(code, dev=[]) for code in codes])
    assert first.equals(again) and list(first) == ["source", "target", "subword overlap", "NN-Rank"]
    assert other.empty or not other["subword overlap"].equals(first["subword overlap"])
    apart = first[first.source != first.target]
    assert np.allclose(apart.groupby("target")["NN-Rank"].sum(), 1)


def test_fine_tuning_asks_for_each_source(monkeypatch):
    "With the hyperparameters and the targets that were given."
    asked = []

    def evaluate(p, outputs):
        asked.append(p)
        seeds = [42 + i for i in range(p.seeds)]
        rows = [(p.source_language, code, x, "f1_macro", len(asked)) for code in p.languages for x in seeds]
        return pd.DataFrame(rows, columns=["source", "target", "seed", "metric", "value"]), []

    monkeypatch.setattr(fine_tuned_transfer, "evaluate", evaluate)
    settings = {"languages": CODES, "overrides": {"num_train_epochs": 2}, "n_resamples": 50}
    p = TransferParams(fine_tuned=CODES[:4], seeds=2, **settings)
    scores = fine_tuned_transfer.fine_tuned_scores(p, "outputs")
    assert len(scores) == 4 * len(CODES) * 2 and [one.source_language for one in asked] == CODES[:4]
    assert {(one.mode, one.overrides["num_train_epochs"], one.seeds) for one in asked} == {("fine-tuned", 2, 2)}
    tuned = mean_matrix(scores, "f1_macro")
    agreement, matrix = fine_tuned_transfer.compare_fine_tuned(p, -tuned, "outputs")
    assert matrix.equals(mean_matrix(scores.assign(value=scores.value + 4), "f1_macro")), "four calls later"
    assert agreement.spearman["agreement"] == -1 and abs(agreement.spearman["permuted"]) < 0.6
    assert agreement.spearman["between seeds"] == 1
    once, _ = fine_tuned_transfer.compare_fine_tuned(p.model_copy(update={"seeds": 1}), -tuned, "outputs")
    assert list(once.index) == ["agreement", "permuted"], "one seed has none to be compared with"
    assert all(one.empty for one in fine_tuned_transfer.compare_fine_tuned(TransferParams(), tuned, "outputs"))
    with pytest.raises(UserError, match="overrides are for fine_tuned"):
        TransferParams(overrides={"num_train_epochs": 2})


def test_a_run_s_relations_do_not_depend_on_which_languages_are_compared(six):
    "They are centred over all that it was trained on: two vectors centred alone would have cosine -1."
    whole = learned_relations(six, ["eng_Latn", "deu_Latn", "swe_Latn", "hin_Deva", "mar_Deva", "rus_Cyrl"])
    pair = ["deu_Latn", "rus_Cyrl"]
    found = learned_relations(six, pair)
    assert len(found) == 5 and all(np.allclose(found[name], whole[name].loc[pair, pair]) for name in found)
    assert found["token frequencies"].loc[*pair] > -0.99
    assert all(matrix.isna().all(axis=None) for matrix in learned_relations(six, ["wol_Latn"]).values())


def test_a_run_on_few_languages_is_left_out(unbroken, capsys):
    codes = [*tiny.ALPHABETS]
    plain, learned = [rank_sources(codes[0], candidates=codes[1:], run=run) for run in (None, unbroken)]
    message = "run unbroken is left out: it was trained on 3 language-scripts, centring its embeddings needs 5\n"
    assert learned.equals(plain) and capsys.readouterr().out == message


def test_the_command_ranks_candidates(capsys):
    assert main(["sources", "target=afr_Latn", "candidates=nld_Latn,zul_Latn,jpn_Jpan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("nld_Latn") and "genealogy" in lines[0]
    assert main(["sources", "target=afr_Latin", "candidates=nld_Latn"]) == 2
    assert "afr_Latn" in capsys.readouterr().err
    assert main(["sources", "target=afr_Latn", "candidates=nld_Latn", "layer=3"]) == 2
    assert "layer compares text of the target: give corpus, or leave layer out" in capsys.readouterr().err
    assert main(["sources", "target=afr_Latn", "candidates=nld_Latn", "encoder=six"]) == 2
    assert "encoder compares text of the target: give corpus, or leave encoder out" in capsys.readouterr().err


def test_text_of_the_target_orders_the_sources(tmp_path, six, monkeypatch, capsys):
    "The source with sentences of the target's language is first, though by all else another is nearer."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(six.parent))
    for number, (code, like) in enumerate(
        {"bul_Cyrl": "hin_Deva", "eng_Latn": "eng_Latn", "vie_Latn": "rus_Cyrl"}.items()
    ):
        for split in ("train", "dev", "test"):
            rows = [f"{i}\tsports\t{text}" for i, text in enumerate(tiny.sentences(like, 20, number))]
            lines = "\n".join(["index_id\tcategory\ttext", *rows])
            tiny.write(tmp_path / f"sets/sib200/{code}/{split}.tsv", f"{lines}\n")
    text, encoder = tiny.sentences("rus_Cyrl", 20, 9), open_encoder("six", six.parent)
    given = {"task": "sib200", "data": tmp_path / "sets", "text": text, "encoder": encoder}
    found, plain = rank_sources("mkd_Cyrl", **given), rank_sources("mkd_Cyrl", "sib200", (), None, tmp_path / "sets")
    assert found.index[0] == "vie_Latn" and plain.index[0] == "bul_Cyrl" and found.score.max() <= 1 + 1e-6
    assert not np.allclose(found.score, rank_sources("mkd_Cyrl", **given, layer=0).score[found.index])
    with pytest.raises(UserError, match="give lines, and a task with data"):
        rank_sources("mkd_Cyrl", candidates=["bul_Cyrl"], text=text, encoder=encoder)
    for half in ({"text": text}, {"encoder": encoder}):
        with pytest.raises(UserError, match="give both, or none"):
            rank_sources("mkd_Cyrl", "sib200", data=tmp_path / "sets", **half)
    tiny.write(tmp_path / "text/mkd_Cyrl.txt", "\n".join(text) + "\n")
    words = ["task=sib200", f"data_dir={tmp_path / 'sets'}", f"corpus={tmp_path / 'text'}", "encoder=six"]
    assert main(["sources", "target=mkd_Cyrl", *words]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("vie_Latn")
    assert main(["sources", "target=mkd_Cyrl", *words, "layer=9"]) == 2
    assert "layer 9: the encoder has layers 1 to" in capsys.readouterr().err


def write_topics(folder: Path, *codes: str) -> Path:
    "A data set with one training sentence in each language."
    for code in codes:
        for split in ("train", "dev", "test"):
            tiny.write(folder / f"{code}/{split}.tsv", "index_id\tcategory\ttext\n1\tsports\tOne\n")
    return folder.parent


@pytest.mark.parametrize(
    "word,sources",
    [
        ("", {"eng_Latn", "deu_Latn"}),
        ("target=eng_Latn", {"deu_Latn"}),
        ("candidates=deu_Latn", {"deu_Latn"}),
        ("candidates=nld_Latn", set()),
        ("data_dir={other}", {"eng_Latn", "swe_Latn"}),
        ("run={run}", {"eng_Latn", "deu_Latn"}),
        ("task=ud", set()),
    ],
)
def test_each_parameter_of_the_command_has_an_effect(word, sources, tmp_path, six, monkeypatch, capsys):
    places = {"other": write_topics(tmp_path / "other/sib200", "eng_Latn", "swe_Latn"), "run": six.name}
    data = write_topics(tmp_path / "one/sib200", "eng_Latn", "deu_Latn")
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(six.parent))
    base = {"target": "afr_Latn", "task": "sib200", "data_dir": str(data)}
    name, _, value = word.format(**places).partition("=")
    words = [f"{key}={text}" for key, text in (base | ({name: value} if name else {})).items()]
    assert main(["sources", *words]) == (0 if sources else 2)
    lines = capsys.readouterr().out.splitlines()
    head = [line.startswith("code") for line in lines]
    assert {line.split()[0] for line in (lines[head.index(True) + 1 :] if sources else [])} == sources
    assert ("run six does not count" in "".join(lines)) == (name == "run")


@pytest.mark.parametrize("task", ["sib200", "ner"])
def test_a_stopped_matrix_goes_on_where_it_was(tmp_path, monkeypatch, task):
    "No language is encoded twice, the scores are those of one call, and nothing else is left."
    words, datasets = task == "ner", []
    for seed, code in enumerate(["eng_Latn", "deu_Latn", "fin_Latn"]):
        random = np.random.default_rng(seed)
        lengths = random.integers(1, 5, 24)
        labels = [["O", "B-PER", "O", "O"][:x] if words else str(x > 2) for x in lengths]
        part = LabelledTexts([f"{code} {number}" for number in range(24)], labels)
        datasets.append(LabelledDataset(task, "made up", code, dict.fromkeys(("train", "dev", "test"), part)))
    done: list[str] = []

    def encode(encoder, dataset, layer):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(dataset.code)
        random, labels = np.random.default_rng([*dataset.code.encode()]), dataset.splits["train"].labels
        vectors = [random.normal(size=(len(label) if words else 1, 8)).astype(np.float16) for label in labels]
        part = (vectors if words else np.concatenate(vectors), labels)
        return transfer_module.EncodedDataset(dataset.code, dict.fromkeys(dataset.splits, part))

    monkeypatch.setattr(transfer_module, "chosen_datasets", lambda p: datasets)
    monkeypatch.setattr(transfer_module, "open_encoder", lambda *_: SimpleNamespace(identity="made up"))
    monkeypatch.setattr(transfer_module, "encode_dataset", encode)
    stop, p = 2, TransferParams(task=task, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        transfer_module.transfer_matrix(p, tmp_path / "stopped")
    stop = 99
    again = transfer_module.transfer_matrix(p, tmp_path / "stopped")
    assert done == ["eng_Latn", "deu_Latn", "fin_Latn"]
    at_once = transfer_module.transfer_matrix(p, tmp_path / "at-once")
    assert all(a.equals(b) for a, b in zip(again, at_once)) and len(again[0]) >= 9
    names = {path.name for path in (tmp_path / "stopped").rglob("*") if path.is_file()}
    assert names == {"eng_Latn.csv", "deu_Latn.csv", "fin_Latn.csv", "texts.csv", ".lock"}


@pytest.mark.parametrize("lengths", [None, [3, 1, 2], [0, 4, 2]])
def test_kept_vectors_are_those_that_were_encoded(tmp_path, lengths):
    "Of sentences, also in an array of other order, and of tagged sentences, one of which may be empty."
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float16))
    vectors = x if lengths is None else np.split(x, np.cumsum(lengths)[:-1])
    part = LabelledTexts(["a", "b", "c"], ["x", "y", "z"])
    dataset = LabelledDataset("ner", "made up", "eng_Latn", {"test": part})
    encoded = transfer_module.EncodedDataset("eng_Latn", {"test": (vectors, part.labels)})
    transfer_module._write_vectors(tmp_path / "vectors", encoded)
    (read, labels), one = transfer_module._read_vectors(tmp_path / "vectors", dataset).splits["test"], vectors
    assert labels == part.labels and len(read) == len(one) and all(np.array_equal(a, b) for a, b in zip(read, one))
