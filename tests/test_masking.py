"Order and masks depend on seed, pass and sequence number only."

import tracemalloc

import numpy as np
import pytest
import tiny
import torch

from langsamp.data.masking import TokenIds, make_batch, mask_sequence, permuted, sequences_of_step

TOKEN_IDS = TokenIds(vocab_size=500, mask=499, pad=1, specials=[0, 1, 2, 3, 499])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Two languages, 44 and 32 sequences of 16."
    return tiny.synthetic_data(tmp_path_factory.mktemp("data"))


def within(count: float, trials: int, share: float) -> bool:
    "Whether a count lies in the binomial's 99.9 % interval."
    return abs(count - trials * share) < 3.29 * np.sqrt(trials * share * (1 - share))


def test_shares_of_masking():
    "Over 100,000 tokens in sequences of 100: 15 % are predicted; of those 80 % masked, 10 % replaced, 10 % kept."
    tokens = np.full(100, 7)
    masked = [mask_sequence(tokens, number, 3, 42, TOKEN_IDS) for number in range(1000)]
    inputs, labels = (np.concatenate(part) for part in zip(*masked))
    predicted = labels == 7
    assert set(labels) == {7, -100} and (inputs[~predicted] == 7).all()
    assert within(predicted.sum(), 100_000, 0.15)
    kinds = [inputs[predicted] == 499, inputs[predicted] == 7, (inputs[predicted] != 499) & (inputs[predicted] != 7)]
    for kind, share in zip(kinds, [0.8, 0.1 + 0.1 / 495, 0.1 - 0.1 / 495]):
        assert within(kind.sum(), predicted.sum(), share)


def test_every_position_is_masked_equally_often():
    "No position is preferred, and no two sequences or passes have the same mask."
    masks = [mask_sequence(np.full(64, 7), b, e, 1, TOKEN_IDS)[1] == 7 for b in range(500) for e in range(4)]
    assert all(within(count, 2000, 0.15) for count in np.sum(masks, axis=0)[:60])
    assert len({mask.tobytes() for mask in masks}) > 1990


def test_special_tokens_are_never_masked_or_inserted():
    "Neither predicted, nor masked, nor used as a random replacement."
    tokens = np.random.default_rng(0).integers(0, 500, 50_000)
    inputs, labels = mask_sequence(tokens, 0, 0, 42, TOKEN_IDS)
    special = TOKEN_IDS.special[tokens]
    assert (labels[special] == -100).all() and (inputs[special] == tokens[special]).all()
    replaced = (labels != -100) & (inputs != tokens) & (inputs != TOKEN_IDS.mask)
    assert replaced.sum() > 500 and not TOKEN_IDS.special[inputs[replaced]].any()


def test_mask_depends_only_on_seed_pass_and_sequence(data):
    "A sequence has the same mask in any batch, on any rank, after any use of the global generators."
    numbers = np.arange(len(data.train))
    whole = make_batch(data.train, numbers, np.full_like(numbers, 2), 7, data.token_ids)
    np.random.seed(1)
    torch.manual_seed(1)
    for rank in range(3):
        mine = np.random.default_rng(rank).permutation(numbers)[rank::3]
        part = make_batch(data.train, mine, np.full_like(mine, 2), 7, data.token_ids)
        assert (part.inputs_BL == whole.inputs_BL[mine]).all() and (part.labels_BL == whole.labels_BL[mine]).all()
    for pass_number, seed in [(3, 7), (2, 8)]:
        other = make_batch(data.train, numbers, np.full_like(numbers, pass_number), seed, data.token_ids)
        assert (other.labels_BL != whole.labels_BL).any(axis=1).mean() > 0.9


def test_order_is_a_permutation():
    "For many sizes and seeds every element occurs once; computing parts gives the same."
    random = np.random.default_rng(0)
    for size in [*range(1, 70), 255, 256, 257, 4095, 4096, 4097, *random.integers(1, 20_000, 30)]:
        seed = int(random.integers(2**31))
        order = permuted(np.arange(size), size, seed)
        assert (np.sort(order) == np.arange(size)).all()
        positions = random.integers(0, size, 5)
        assert (permuted(positions, size, seed) == order[positions]).all()


# Sequences under quotas


def ends(*counts: int) -> np.ndarray:
    "One past the last sequence of each shard."
    return np.cumsum(counts)


def some_corpora(number: int):
    "Shards of random sizes, some of them empty, and what an epoch draws of each: nothing, less, as much, or more."
    for seed in range(number):
        random = np.random.default_rng(seed)
        counts = random.integers(0, 40, random.integers(1, 9))
        counts[0] += 1
        quotas = np.where(counts, random.integers(0, 100, len(counts)), 0)
        quotas[0] += 1
        yield seed, np.cumsum(counts), counts, quotas


def epochs_of(last, quotas, seed: int, epochs: int, batch_size: int = 7) -> list[tuple[int, int]]:
    "Pass and sequence of all draws of some epochs, in order."
    total = epochs * int(quotas.sum())
    steps = [sequences_of_step(step, batch_size, last, seed, quotas) for step in range(-(-total // batch_size))]
    return [(int(v), int(b)) for passes, sequences in steps for v, b in zip(passes, sequences)][:total]


@pytest.mark.parametrize("counts", [[1], [7], [50, 0, 11], [64], [1, 2, 997]], ids=str)
@pytest.mark.parametrize("batch_size", [4, 8, 96])
def test_no_sequence_is_missing_or_repeated(counts, batch_size):
    "Over whole epochs, for random stops and another number of processes after each, every sequence is used once."
    random, epochs, size = np.random.default_rng([sum(counts), batch_size]), 3, sum(counts)
    steps = -(-epochs * size // batch_size)
    seen: list[tuple[int, int]] = []
    for step in range(steps):
        world = int(random.choice([1, 2, 4]))
        rows = list(zip(*sequences_of_step(step, batch_size, ends(*counts), seed=5)))
        parts = [rows[rank::world] for rank in range(world)]
        assert sorted(row for part in parts for row in part) == sorted(rows)
        seen += rows
    seen = [(int(e), int(b)) for e, b in seen][: epochs * size]
    assert sorted(seen) == [(epoch, number) for epoch in range(epochs) for number in range(size)]


def test_each_epoch_has_its_own_order():
    "Epochs of a run differ in order, and so do runs with different seeds."
    orders = {tuple(sequences_of_step(e, 50, ends(50), seed)[1]) for e in range(20) for seed in range(20)}
    assert len(orders) == 400


def test_order_without_quotas_is_a_permutation():
    "For any shards, with quotas omitted or equal to the numbers of sequences."
    for seed, last, counts, _ in some_corpora(30):
        size = int(last[-1])
        for epoch in range(3):
            order = permuted(np.arange(size), size, seed + 1_000_003 * epoch)
            for quotas in (None, counts):
                passes, sequences = sequences_of_step(epoch, size, last, seed, quotas)
                assert (sequences == order).all() and (passes == epoch).all()


def test_quotas_are_kept_in_every_epoch():
    "Each shard gives its quota, and each of its sequences is drawn quota / sequences times, rounded down or up."
    for seed, last, counts, quotas in some_corpora(40):
        drawn = np.array(epochs_of(last, quotas, seed, 6))[:, 1].reshape(6, -1)
        for sequences in drawn:
            times = np.split(np.bincount(sequences, minlength=last[-1]), last[:-1])
            for n, quota, found in zip(counts, quotas, times):
                assert found.sum() == quota and len(found) == n
                assert n == 0 or set(found) <= {quota // n, -(-quota // n)}, (seed, n, quota)


def test_draws_are_even_over_a_run():
    "After any number of epochs no sequence is more than one draw ahead of another of its shard."
    for seed, last, _, quotas in some_corpora(40):
        drawn = np.array(epochs_of(last, quotas, seed, 9))[:, 1].reshape(9, -1)
        for epochs in range(1, 10):
            times = np.bincount(drawn[:epochs].ravel(), minlength=last[-1])
            assert all(np.ptp(part) <= 1 for part in np.split(times, last[:-1]) if len(part))


def test_part_of_a_shard_changes():
    "Each of ten epochs uses another tenth of a shard, another seed too; none is just its beginning."
    last, quotas = ends(1000), np.array([100])
    drawn = [
        set(sequences_of_step(epoch, 100, last, seed, quotas)[1].tolist()) for seed in (0, 1) for epoch in range(10)
    ]
    assert set.union(*drawn[:10]) == set(range(1000)) and all(len(part) == 100 for part in drawn)
    assert drawn[0] != drawn[10]
    for part in drawn:
        assert max(np.diff(sorted(part | {0, 999}))) < 100, "no long stretch is left out"


def test_no_pass_is_repeated():
    "A sequence is never drawn twice with the same pass number, so never with the same masks."
    for seed, last, _, quotas in some_corpora(40):
        drawn = epochs_of(last, quotas, seed, 5)
        assert len(set(drawn)) == len(drawn)


def test_repeats_within_an_epoch_have_other_masks(data):
    "Nine draws of a sequence in one epoch have nine different masks."
    size = len(data.train)
    passes, sequences = sequences_of_step(
        0, 9 * size, data.train.shard_ends, 3, 9 * np.diff(data.train.shard_ends, prepend=0)
    )
    batch = make_batch(data.train, sequences, passes, 3, data.token_ids)
    long = (batch.segments_BL > 0).sum(axis=1) == 16
    masked = {(int(b), row.tobytes()) for b, row in zip(sequences[long], (batch.labels_BL != -100)[long])}
    assert len(masked) > 0.85 * long.sum() and (np.bincount(sequences) == 9).all()


def test_steps_may_come_in_any_order():
    "A step is the same after any other step and with any batch size."
    for seed, last, _, quotas in some_corpora(20):
        whole = epochs_of(last, quotas, seed, 4)
        for batch_size in (1, 3, 50):
            for step in np.random.default_rng(seed).permutation(len(whole) // batch_size)[:5]:
                rows = zip(*sequences_of_step(int(step), batch_size, last, seed, quotas))
                here = slice(int(step) * batch_size, (int(step) + 1) * batch_size)
                assert [(int(v), int(b)) for v, b in rows] == whole[here]


def test_memory_does_not_grow_with_the_corpus():
    "A step over 550 shards of a hundred billion sequences in all takes no more memory than over a hundred thousand."
    weights, peaks = np.random.default_rng(0).lognormal(0, 3, 550), []
    for total in (10**5, 10**11):
        counts = np.maximum(1, weights / weights.sum() * total).astype(int)
        quotas = np.maximum(1, counts**0.3 / (counts**0.3).sum() * total).astype(int)
        sequences_of_step(0, 1024, np.cumsum(counts), 1, quotas)
        tracemalloc.start()
        passes, sequences = sequences_of_step(10**6, 1024, np.cumsum(counts), 1, quotas)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (0 <= passes).all() and (0 <= sequences).all() and (sequences < counts.sum()).all()
    assert peaks[1] < 1.1 * peaks[0] < 1e6, peaks
