"Each measure on synthetic embeddings: what changes it, what must not, and how wide its interval is."

import json

import numpy as np
import pandas as pd
import pytest
import tiny
from scipy import stats

from langsamp.analysis.neutrality import (
    FamilyResamples,
    centroid_cosines,
    cka,
    family_resamples,
    isoscore,
    language_share,
    margins,
    mean_and_interval,
    neutrality_measures,
    null_values,
    pair_cosines,
    probe_accuracy,
    retrieval,
    transforms,
)
from langsamp.analysis.neutrality_plots import (
    complete_text,
    neutrality_differences,
    parallel_text,
    with_untrained_baselines,
)
from langsamp.core.errors import UserError
from langsamp.encoding.open_encoder import open_encoder

L, K, H = 24, 16, 20
CODES = [f"{number}_{'Latn' if number < 18 else 'Cyrl'}" for number in range(L)]


@pytest.fixture(params=range(3))
def random(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


def mean(values: np.ndarray) -> float:
    "Over languages, or over pairs of different languages."
    return float(values[~np.eye(len(values), dtype=bool)].mean() if values.ndim == 2 else values.mean())


def means(x: np.ndarray) -> dict[str, float]:
    return {name: mean(values) for name, values in neutrality_measures(x, CODES).items()}


def parts(random) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "A meaning that all languages share, an offset per language, and noise."
    return random.normal(size=(K, H)), random.normal(size=(L, 1, H)), random.normal(size=(L, K, H))


def test_identical_languages(random):
    "Equal embeddings: the probe cannot separate languages, so its accuracy is exactly 1/L."
    meaning, _, _ = parts(random)
    found = means(np.repeat(meaning[None], L, 0))
    assert found["centroid cosine, raw"] == pytest.approx(1)
    assert found["language share"] == pytest.approx(0, abs=1e-12)
    assert found["CKA"] == pytest.approx(1) and found["retrieval, raw"] == 1
    assert found["language probe, raw"] == pytest.approx(1 / L)


def test_an_offset_per_language(random):
    "Raw cosine and margin fall, the probe rises, and language-centring shows the meaning that is still there."
    meaning, offset, noise = parts(random)
    near, far = means(meaning + 0.3 * noise), means(meaning + 0.3 * noise + 3 * offset)
    assert far["centroid cosine, raw"] < near["centroid cosine, raw"] - 0.3
    assert far["margin, raw"] < 0.5 * near["margin, raw"] and far["margin, centred"] < 0.5 * near["margin, centred"]
    assert (
        far["margin, language-centred"] == pytest.approx(near["margin, language-centred"])
        and far["margin, language-centred"] > 0.8
    )
    assert (
        far["retrieval, raw"] < far["retrieval, language-centred"] == pytest.approx(near["retrieval, language-centred"])
    )
    assert far["CKA"] == pytest.approx(near["CKA"])
    assert far["language share"] > 0.8 > 0.1 > near["language share"]
    assert far["language probe, raw"] > 0.9 > 0.3 > near["language probe, raw"]


def test_a_common_offset_is_not_neutrality(random):
    "The raw cosine rises to nearly 1, but nothing that depends on the language changes."
    meaning, offset, noise = parts(random)
    before = means(meaning + noise + offset)
    after = means(meaning + noise + offset + 50 * random.choice([-1, 1], H))
    assert after["centroid cosine, raw"] > 0.98 > 0.6 > before["centroid cosine, raw"]
    assert after["random cosine"] > 0.98 and after["margin, raw"] < 0.05 * before["margin, raw"]
    moved = {"centroid cosine, raw", "random cosine", "margin, raw", "retrieval, raw"}
    for name in before.keys() - moved:
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


def test_noise_has_the_null_values(random):
    found, expected = means(parts(random)[2]), null_values(CODES, K)
    for name in (
        "CKA",
        *(f"margin, {transform}" for transform in ("raw", "centred", "top PCs removed", "language-centred")),
    ):
        assert found[name] == pytest.approx(0, abs=0.02), name
    for name in (
        "retrieval, raw",
        "retrieval, language-centred",
        "language probe, raw",
        "language probe, language-centred",
    ):
        assert found[name] == pytest.approx(expected[name], abs=0.05), name
    assert found["language share"] == pytest.approx(1 / K, abs=0.02)


def test_centred_centroids_have_a_forced_mean_cosine(random):
    "They add up to zero, so their mean cosine is near -1/(L-1) if their lengths are equal."
    _, offset, _ = parts(random)
    for scale in (0.1, 10):
        found = mean(centroid_cosines(transforms(scale * offset + np.zeros((1, K, 1)))["centred"]))
        assert found == pytest.approx(-1 / (L - 1), abs=0.03)


def test_removing_top_components_removes_the_strongest_direction(random):
    meaning, offset, noise = parts(random)
    strong = 30 * random.normal(size=(L, K, 1)) * np.eye(H)[3]
    left = transforms(noise + strong)["top PCs removed"]
    assert np.abs(left[..., 3]).max() < 1 and np.abs(left[..., 4]).max() > 1


@pytest.mark.parametrize("scale", [0.01, 100])
def test_cka_depends_on_arrangement_only(random, scale):
    meaning, _, _ = parts(random)
    turn = np.linalg.qr(random.normal(size=(H, H)))[0]
    other = random.permutation(K)
    found = cka(np.stack([meaning, scale * meaning @ turn + 5, meaning[other]]))
    assert found[0, 1] == pytest.approx(1) and abs(found[0, 2]) < 0.5


def test_pairs_of_sentences_by_hand(random):
    "The closed form equals the loop over pairs of sentences."
    x = parts(random)[2][:4]
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    both, others = pair_cosines(x)
    for one in range(4):
        for two in range(4):
            cosines = unit[one] @ unit[two].T
            assert both[one, two] == pytest.approx(np.diag(cosines).mean())
            assert others[one, two] == pytest.approx(cosines[~np.eye(K, dtype=bool)].mean())
    np.testing.assert_allclose(margins(x), both - others)


def test_retrieval_by_hand(random):
    "Nearest neighbours of one pair of languages; a tie is an error."
    meaning, _, noise = parts(random)
    x = meaning + noise
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    assert retrieval(x)[2, 5] == ((unit[2] @ unit[5].T).argmax(1) == np.arange(K)).mean()
    assert mean(retrieval(np.ones((3, K, H)))) == 0


def test_isotropy_of_known_clouds(random):
    "All directions alike: 1. One: 0. Half: (n/2 - 1) / (n - 1), as in Rudman et al. Offset and scale do not matter."
    cloud = random.normal(size=(100, 100, H))
    assert isoscore(cloud) > 0.98 and isoscore(cloud * np.eye(H)[0]) == pytest.approx(0, abs=1e-9)
    assert isoscore(cloud * np.repeat([1, 0], H // 2)) == pytest.approx((H / 2 - 1) / (H - 1), abs=0.01)
    assert isoscore(7 * cloud + 40) == pytest.approx(float(isoscore(cloud)))


def test_the_probe_is_tested_on_other_sentences(random):
    "Features of single sentences do not help for other sentences."
    x = np.zeros((L, K, L * K))
    x.reshape(L * K, L * K)[:] = 100 * np.eye(L * K)
    assert mean(probe_accuracy(x, CODES, False)) < 3 / L


def test_shuffled_labels_are_at_chance(random):
    "The language labels are shuffled for each sentence."
    _, offset, noise = parts(random)
    x = noise + 3 * offset
    shuffled = np.stack([x[random.permutation(L), sentence] for sentence in range(K)], 1)
    assert mean(probe_accuracy(x, CODES, False)) > 0.9 > 3 / L > mean(probe_accuracy(shuffled, CODES, False))
    assert mean(language_share(shuffled)) < 2 / K < mean(language_share(x))


# Intervals


def test_intervals_over_families_are_wider():
    "An interval over families is wider than one over languages if families are homogeneous."
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    weights = np.random.default_rng(1).multinomial
    apart = FamilyResamples(np.eye(200), weights(200, [1 / 200] * 200, 2000).astype(float))
    resamples = FamilyResamples(np.kron(np.eye(20), np.ones(10)), weights(20, [1 / 20] * 20, 2000).astype(float))
    widths = [float(np.diff(mean_and_interval(f, f.sums(values))[1:])[0]) for f in (apart, resamples)]
    assert widths[1] > 2.5 * widths[0]


def test_both_languages_of_a_pair_are_resampled():
    "Intervals over pairs are twice as wide as those over the means of each language."
    own = np.random.default_rng(0).normal(size=50)
    pairs = np.add.outer(own, own) / 2 * (1 - np.eye(50))
    alone = FamilyResamples(np.eye(50), np.random.default_rng(1).multinomial(50, [1 / 50] * 50, 4000).astype(float))
    of_pairs, of_rows = [mean_and_interval(alone, alone.sums(v)) for v in (pairs, pairs.sum(1) / 49)]
    assert of_pairs[0] == pytest.approx(of_rows[0])
    assert np.diff(of_pairs[1:])[0] == pytest.approx(2 * np.diff(of_rows[1:])[0], rel=0.1)


def test_families_are_glottologs_and_resamples_are_reproducible():
    codes = ["eng_Latn", "deu_Latn", "rus_Cyrl", "tha_Thai", "eus_Latn", "yue_Hani", "cmn_Hani"]
    resamples = family_resamples(codes, n_resamples=100, seed=3)
    assert sorted(resamples.member_FL.sum(1)) == [1, 1, 2, 3] and (resamples.member_FL.sum(0) == 1).all()
    assert (resamples.member_FL[:, 0] == resamples.member_FL[:, 2]).all(), "English and Russian are of one family"
    assert (resamples.weights_DF == family_resamples(codes, n_resamples=100, seed=3).weights_DF).all()
    assert (resamples.weights_DF != family_resamples(codes, n_resamples=100, seed=4).weights_DF).any()
    values = np.arange(49.0).reshape(7, 7)
    assert mean_and_interval(resamples, resamples.sums(values))[0] == pytest.approx(mean(values))


def test_intervals_of_unrelated_languages_are_those_of_scipy():
    "One family and one value per language: the ordinary bootstrap of the mean."
    values = np.random.default_rng(0).normal(size=60)
    weights_DF = np.random.default_rng(1).multinomial(60, [1 / 60] * 60, 10_000).astype(float)
    alone = FamilyResamples(np.eye(60), weights_DF)
    _, low, high = mean_and_interval(alone, alone.sums(values))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.01)


# Encoders and text


def test_languages_that_lack_a_sentence_are_left_out():
    parallel = {code: {str(key): f"{code} {key}" for key in range(8)} for code in ("eng_Latn", "wol_Latn", "rus_Cyrl")}
    parallel["wol_Latn"] |= {"8": "one more"}
    with pytest.raises(UserError, match="1 language-scripts share 9 sentences"):
        complete_text(parallel)
    del parallel["wol_Latn"]["8"], parallel["rus_Cyrl"]["2"]
    found = complete_text(parallel)
    assert (found.codes, found.dropped) == (["eng_Latn", "wol_Latn"], ["rus_Cyrl"])
    assert found.texts[1][2] == "wol_Latn 2"


def test_paragraphs_of_the_declaration():
    text = parallel_text("udhr")
    assert len(text.codes) == 407 and {len(texts) for texts in text.texts} == {21} and "kir_Cyrl" in text.dropped
    few = parallel_text("udhr", {"eng_Latn", "deu_Latn"})
    assert few.codes == ["deu_Latn", "eng_Latn"] and "Recht" in few.texts[0][0]


def test_sib200_is_subsampled_and_stays_parallel(tmp_path, monkeypatch):
    for code in ("eng_Latn", "fra_Latn"):
        for split in ("train", "dev", "test"):
            path = tmp_path / "sib200" / code / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = "".join(f"{split}{n}\tsports\t{code} {split} {n}\n" for n in range(20))
            path.write_text(f"index_id\tcategory\ttext\n{rows}")
    monkeypatch.setenv("LANGSAMP_DATA", str(tmp_path))
    text = parallel_text("sib200", max_sentences=10)
    english, french = text.texts
    assert len(english) == len(set(english)) == 10
    assert [sentence.replace("eng", "fra") for sentence in english] == french


def test_each_initial_encoder_is_shown_once(smoke):
    "The initial encoder of a run is added once, and not again if it was named."
    labels = [label for label, _ in with_untrained_baselines({"a": ["smoke"], "b": ["smoke"]}, smoke)]
    assert labels == ["a", "b", "untrained"]
    assert [label for label, _ in with_untrained_baselines({"a": ["smoke"], "floor": ["init:smoke"]}, smoke)] == [
        "a",
        "floor",
    ]
    assert open_encoder("init:smoke", smoke).variant == "untrained"


def a_table(**values: list[float]) -> pd.DataFrame:
    "Rows of one measure at one layer: the runs of a label, with the same value for three languages."
    rows = [
        (label, "language+script", 0, "CKA", value, np.full((3, 3), value) * (1 - np.eye(3)))
        for label, runs in values.items()
        for value in runs
    ]
    return pd.DataFrame(rows, columns=["label", "variant", "layer", "measure", "value", "sums"])


def test_differences_of_labels_and_seeds():
    resamples = FamilyResamples(np.eye(3), np.random.default_rng(0).multinomial(3, [1 / 3] * 3, 200).astype(float))
    found = neutrality_differences(a_table(ours=[0.5, 0.7], base=[0.1, 0.5], floor=[0.2]), "base", resamples)
    assert found.label.tolist() == ["ours", "floor"]
    assert found.difference.tolist() == pytest.approx([0.3, -0.1]) == found.low.tolist() == found.high.tolist()
    assert found.seeds.tolist() == [(0.4, 0.2), (0.1, -0.3)]


def test_the_page_shows_the_smoke_run(smoke):
    "With papermill and default parameters: figures, tables and provenance."
    tiny.papermill("nbs/figures/neutrality.ipynb", smoke / "neutrality.ipynb", smoke)
    names = [f"neutrality-{part}" for part in "claim spread margin alignment probes closeness gain".split()]
    found = {path.name for path in (smoke / "figures").iterdir()}
    assert {f"{name}.{end}" for name in names for end in ("png", "svg", "csv", "json")} <= found
    assert list(json.loads((smoke / "figures/neutrality-claim.json").read_text())["runs"]) == ["smoke"]
    rows = pd.read_csv(smoke / "figures/neutrality-spread.csv")
    assert set(rows.label) == {"LangSAMP", "untrained"} and set(rows.layer) == {0, 1, 2}
    assert rows[rows.measure == "language share"].value.between(0, 1).all()
