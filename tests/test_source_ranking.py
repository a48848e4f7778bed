"Rankers of source languages: what they find where the answer is known, and nothing where there is nothing."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from langsamp.analysis import transfer as transfer_module
from langsamp.analysis.source_ranking import (
    all_rankers,
    compare_rankers,
    known_relations,
    learned_ranker,
    learned_relations,
    mean_rank,
    rank_sources,
    ranking_quality,
)
from langsamp.cli.main import main
from langsamp.core.errors import UserError
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
    table = compare_rankers(transfer, relations, n_resamples=200)
    best = table[table.quality == "ndcg@3"].set_index("ranker").value
    assert best.idxmax() in ("genealogy", "geography") and best.max() > best["random"] + 0.3
    assert quality(table, best.idxmax(), "regret") < quality(table, "random", "regret")


def test_a_permuted_matrix_gives_no_ranker_anything(transfer, relations):
    "The control: with sources in random order, gains over the random ranker are noise around zero."
    gains = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(transfer))
        shuffled = pd.DataFrame(transfer.to_numpy()[order], transfer.index, transfer.columns)
        table = compare_rankers(shuffled, {"syntax": relations["syntax"]}, n_resamples=20)
        gains.append(quality(table, "syntax", "ndcg@5", "over random"))
    assert abs(np.mean(gains)) < 2 * np.std(gains) / np.sqrt(len(gains)) + 0.03


def test_the_learned_ranker_sees_nothing_of_the_target_s_family(transfer, relations):
    "Other scores for Uralic targets change no prediction for them."
    changed = transfer.copy()
    uralic = [code for code in CODES if FAMILIES[code] == "Uralic"]
    changed[uralic] = -changed[uralic]
    changed.loc[uralic] = -changed.loc[uralic]
    before, after = [learned_ranker(relations, matrix, FAMILIES) for matrix in (transfer, changed)]
    others = [code for code in CODES if code not in uralic]
    assert before[uralic].equals(after[uralic]) and not before[others].equals(after[others])


def test_the_target_s_language_is_no_source_in_any_script():
    codes = ["uzn_Latn", "uzn_Cyrl", "tur_Latn", "eng_Latn"]
    transfer = pd.DataFrame(0.1, codes, codes)
    transfer.loc["uzn_Cyrl", "uzn_Latn"], transfer.loc["tur_Latn", "uzn_Latn"] = 0.9, 0.5
    assert ranking_quality(transfer, transfer).regret["uzn_Latn"] == 0


def test_unknown_pairs_come_last(relations):
    known = relations["genealogy"].copy()
    known.loc["deu_Latn"] = np.nan
    assert mean_rank({"genealogy": known}).loc["deu_Latn"].max() == 0
    similarity = uriel_similarity(["eng_Latn", "qaa_Latn"], "syntax")
    assert np.isnan(similarity[0, 1]) and similarity[0, 0] == pytest.approx(1)


def test_all_rankers_have_the_shape_of_the_matrix(transfer):
    pairs = [(source, target) for source in CODES[:6] for target in CODES]
    texts = pd.DataFrame(pairs, columns=["source", "target"]).assign(**{"mean vector": 0.5, "nearest sentences": 0.5})
    found = all_rankers(transfer.iloc[:6], texts)
    assert {*URIEL_KINDS, "geography", "mean vector", "nearest sentences", "mean of ranks", "learned"} <= found.keys()
    assert {matrix.shape for matrix in found.values()} == {(6, 20)}


def test_the_treebank_that_is_used_is_named(monkeypatch, capsys):
    "Of several in one language the first one is."
    text = LabelledTexts([["a"]], [["NOUN"]])
    found = [LabelledDataset("ud", f"UD_{x}", "fin_Latn", dict.fromkeys(("train", "dev", "test"), text)) for x in "AB"]
    monkeypatch.setattr(transfer_module, "load_labelled", lambda *_: (found, []))
    assert transfer_module._chosen(TransferParams(task="ud")) == found[:1]
    assert capsys.readouterr().out == "ud: fin_Latn is UD_A, not UD_B\n"


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


def test_a_run_adds_its_embeddings(six):
    codes = ["eng_Latn", "hin_Deva", "rus_Cyrl"]
    plain, learned = [rank_sources(codes[0], candidates=codes[1:], run=run) for run in (None, six)]
    assert {*learned.columns} - {*plain.columns} >= {"language embedding", "token frequencies", "most text"}
    assert learned["language embedding"].notna().all() and set(learned.index) == set(codes[1:])


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
        ("candidates=nld_Latn", {"nld_Latn"}),
        ("data_dir={other}", {"eng_Latn", "swe_Latn"}),
        ("run={run}", {"eng_Latn", "deu_Latn"}),
        ("task=ud", set()),
    ],
)
def test_each_parameter_of_the_command_has_an_effect(word, sources, tmp_path, six, monkeypatch, capsys):
    places = {"other": write_topics(tmp_path / "other/sib200", "eng_Latn", "swe_Latn"), "run": six.name}
    data = write_topics(tmp_path / "one/sib200", "eng_Latn", "deu_Latn")
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(six.parent))
    base = {"target": "afr_Latn", "data_dir": str(data)}
    name, _, value = word.format(**places).partition("=")
    words = [f"{key}={text}" for key, text in (base | ({name: value} if name else {})).items()]
    assert main(["sources", *words]) == (0 if sources else 2)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[2:]} == sources
    assert ("language embedding" in "".join(lines[:1])) == (name == "run")
