"""The order of samples: complete epochs, the same batches for any number of ranks, resuming by one integer."""

from __future__ import annotations

import pickle

import pytest

from stages.data.order import Order

COUNTS = (7, 0, 12, 5, 9, 1, 30)


@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_every_sample_comes_once_an_epoch(window: int) -> None:
    order = Order(COUNTS, seed=3, window=window)
    everything = {(shard, index) for shard, count in enumerate(COUNTS) for index in range(count)}
    for epoch in range(3):
        seen = [order.at(epoch * 64 + n) for n in range(64)]
        assert len(seen) == sum(COUNTS) == 64
        assert set(seen) == everything


def test_epochs_and_seeds_differ_and_equal_seeds_agree() -> None:
    first = [Order(COUNTS, seed=3).at(n) for n in range(128)]
    assert first == [Order(COUNTS, seed=3).at(n) for n in range(128)]
    assert first[:64] != first[64:]
    assert first != [Order(COUNTS, seed=4).at(n) for n in range(128)]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_the_batch_that_one_rank_would_see(world: int) -> None:
    order = Order(COUNTS, seed=0)
    for step in range(12):  # 120 positions: batches straddle the epochs' ends
        slices = [order.batch(step, 10, rank, world) for rank in range(world)]
        assert [sample for part in slices for sample in part] == order.batch(step, 10, 0, 1)
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    walked = Order(COUNTS, seed=5)
    batches = [walked.batch(step, 6, 0, 1) for step in range(40)]
    assert Order(COUNTS, seed=5).batch(33, 6, 0, 1) == batches[33]
    assert pickle.loads(pickle.dumps(walked)).batch(17, 6, 0, 1) == batches[17]
    assert [position for position, _, _ in batches[33]] == list(range(198, 204))


def test_a_window_keeps_reads_within_few_shards() -> None:
    order = Order([10] * 20, seed=1, window=4)
    for window in range(5):
        assert len({order.at(window * 40 + n)[0] for n in range(40)}) == 4
    assert len({order.at(n)[0] for n in range(12)}) > 1, "shards of a window are mixed"


def test_the_order_is_the_same_on_every_machine() -> None:
    order = Order([4, 3, 5], seed=0, window=2)
    seen = [order.at(n) for n in range(12)]
    assert seen[:9] == [(2, 4), (2, 0), (2, 2), (0, 3), (2, 1), (2, 3), (0, 1), (0, 0), (0, 2)]
    assert seen[9:] == [(1, 0), (1, 2), (1, 1)]


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 shards hold no samples"):
        Order([0, 0], seed=0)
