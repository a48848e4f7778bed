"Order and masks are functions of seed, epoch and number, and of nothing else."

import numpy as np
import pytest
import tiny
import torch

from langsamp.batches import Pieces, blocks_of_step, make_batch, mask_block, shuffled

PIECES = Pieces(vocabulary_size=500, mask=499, pad=1, specials=[0, 1, 2, 3, 499])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Two languages, 44 and 32 blocks of 16."
    return tiny.synthetic_data(tmp_path_factory.mktemp("data"))


def within(count: float, trials: int, share: float) -> bool:
    "Whether a count lies in the binomial's 99.9 % interval."
    return abs(count - trials * share) < 3.29 * np.sqrt(trials * share * (1 - share))


def test_shares_of_masking():
    "Over 100,000 tokens in blocks of 100: 15 % are asked for; 80 % of those masked, 10 % replaced, 10 % kept."
    tokens = np.full(100, 7)
    masked = [mask_block(tokens, block, 3, 42, PIECES) for block in range(1000)]
    inputs, labels = (np.concatenate(part) for part in zip(*masked))
    asked = labels == 7
    assert set(labels) == {7, -100} and (inputs[~asked] == 7).all()
    assert within(asked.sum(), 100_000, 0.15)
    kinds = [inputs[asked] == 499, inputs[asked] == 7, (inputs[asked] != 499) & (inputs[asked] != 7)]
    for kind, share in zip(kinds, [0.8, 0.1 + 0.1 / 495, 0.1 - 0.1 / 495]):
        assert within(kind.sum(), asked.sum(), share)


def test_every_place_is_masked_as_often():
    "No place of a block is favoured, and no two blocks or epochs have the same mask."
    masks = [mask_block(np.full(64, 7), b, e, 1, PIECES)[1] == 7 for b in range(500) for e in range(4)]
    assert all(within(count, 2000, 0.15) for count in np.sum(masks, axis=0)[:60])
    assert len({mask.tobytes() for mask in masks}) > 1990


def test_specials_are_never_masked_and_never_put_in():
    "Neither asked for, nor hidden, nor the random piece that replaces another."
    tokens = np.random.default_rng(0).integers(0, 500, 50_000)
    inputs, labels = mask_block(tokens, 0, 0, 42, PIECES)
    special = PIECES.special[tokens]
    assert (labels[special] == -100).all() and (inputs[special] == tokens[special]).all()
    replaced = (labels != -100) & (inputs != tokens) & (inputs != PIECES.mask)
    assert replaced.sum() > 500 and not PIECES.special[inputs[replaced]].any()


def test_mask_depends_on_nothing_else(data):
    "The same block is hidden alike in any batch, on any rank, after any use of the global generators."
    numbers = np.arange(len(data.train))
    whole = make_batch(data.train, numbers, np.full_like(numbers, 2), 7, data.pieces)
    np.random.seed(1)
    torch.manual_seed(1)
    for rank in range(3):
        mine = np.random.default_rng(rank).permutation(numbers)[rank::3]
        part = make_batch(data.train, mine, np.full_like(mine, 2), 7, data.pieces)
        assert (part.inputs_BL == whole.inputs_BL[mine]).all() and (part.labels_BL == whole.labels_BL[mine]).all()
    for epoch, seed in [(3, 7), (2, 8)]:
        other = make_batch(data.train, numbers, np.full_like(numbers, epoch), seed, data.pieces)
        assert (other.labels_BL != whole.labels_BL).any(axis=1).mean() > 0.9


def test_order_is_a_permutation():
    "For many sizes and seeds each thing stands at one place; asking in parts gives the same."
    random = np.random.default_rng(0)
    for size in [*range(1, 70), 255, 256, 257, 4095, 4096, 4097, *random.integers(1, 20_000, 30)]:
        seed = int(random.integers(2**31))
        order = shuffled(np.arange(size), size, seed)
        assert (np.sort(order) == np.arange(size)).all()
        places = random.integers(0, size, 5)
        assert (shuffled(places, size, seed) == order[places]).all()


@pytest.mark.parametrize("size", [1, 7, 61, 64, 1000])
@pytest.mark.parametrize("batch_size", [4, 8, 96])
def test_no_block_is_missing_or_repeated(size, batch_size):
    "Over whole epochs, for random stops and another number of processes after each, every block comes once."
    random, epochs = np.random.default_rng([size, batch_size]), 3
    steps = -(-epochs * size // batch_size)
    seen: list[tuple[int, int]] = []
    for step in range(steps):
        world = int(random.choice([1, 2, 4]))
        rows = list(zip(*blocks_of_step(step, batch_size, size, seed=5)))
        parts = [rows[rank::world] for rank in range(world)]
        assert sorted(row for part in parts for row in part) == sorted(rows)
        seen += rows
    seen = [(int(e), int(b)) for e, b in seen][: epochs * size]
    assert sorted(seen) == [(epoch, block) for epoch in range(epochs) for block in range(size)]


def test_each_epoch_has_its_own_order():
    "Neither the epochs of a run nor the runs of different seeds go through the text alike."
    orders = {tuple(blocks_of_step(e, 50, 50, seed)[1]) for e in range(20) for seed in range(20)}
    assert len(orders) == 400
