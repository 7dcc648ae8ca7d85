"""Who sees which sample when: a pure function of the seed and of how many samples were seen so far."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class Order:
    """An endless, reproducible order over the samples of some shards.

    Positions count samples since the start of training and run over epochs for ever. Each epoch permutes the shards,
    cuts them into windows of `window` shards and permutes the samples within a window: reads stay local, and every
    sample comes once an epoch. Nothing depends on ranks, so resuming is one integer.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, window: int = 16) -> None:
        """Take the number of samples of each shard. Raises ValueError where there are none at all."""
        if sum(counts) < 1:
            raise ValueError(f"{len(counts)} shards hold no samples: there is nothing to order")
        assert window > 0
        self.counts = tuple(counts)
        self._sizes = np.asarray(self.counts)
        self.seed = seed
        self.window = window
        self.num_samples = sum(counts)
        # Two epochs at most are alive at once (a batch may straddle them), each with one or two open windows.
        self._epoch = lru_cache(maxsize=2)(self._epoch_layout)
        self._open_window = lru_cache(maxsize=4)(self._window_samples)

    def at(self, position: int) -> tuple[int, int]:
        """Return (shard, index within the shard) of the sample seen at `position`."""
        epoch, within = divmod(position, self.num_samples)
        starts, _ = self._epoch(epoch)
        number = int(np.searchsorted(starts, within, side="right")) - 1
        shards, indices = self._open_window(epoch, number)
        offset = within - int(starts[number])
        return int(shards[offset]), int(indices[offset])

    def batch(self, step: int, global_batch: int, rank: int, world: int) -> list[tuple[int, int, int]]:
        """Return (position, shard, index) of this rank's slice of the global batch at `step`, counted from 0.

        Slices differ by at most one sample; in rank order they make up the same global batch for any world size.
        """
        first = step * global_batch
        start, end = first + global_batch * rank // world, first + global_batch * (rank + 1) // world
        return [(position, *self.at(position)) for position in range(start, end)]

    def __getstate__(self) -> dict[str, object]:
        return {"counts": self.counts, "seed": self.seed, "window": self.window}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["counts"], seed=state["seed"], window=state["window"])  # type: ignore[misc]

    def _epoch_layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (first position of each window within the epoch, permuted shards)."""
        shards = _permutation(len(self.counts), f"shards/{self.seed}/{epoch}")
        sizes = self._sizes[shards]
        starts = np.concatenate([[0], np.cumsum(sizes)[self.window - 1 :: self.window]])
        # An empty window has the start of its successor, which searchsorted from the right then finds.
        return starts[: -(-len(shards) // self.window)], shards

    def _window_samples(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards, indices) of one window's samples in the order in which they are seen."""
        _, shards = self._epoch(epoch)
        chosen = shards[number * self.window : (number + 1) * self.window]
        sizes = self._sizes[chosen]
        owners = np.repeat(chosen, sizes)
        indices = np.concatenate([np.arange(size) for size in sizes])
        mixed = _permutation(len(owners), f"samples/{self.seed}/{epoch}/{number}")
        return owners[mixed], indices[mixed]


def _permutation(count: int, name: str) -> np.ndarray:
    """Return a permutation of range(count) that is the same on every machine and numpy.

    It sorts raw bits of a counter-based generator: numpy promises those stay the same, not its `permutation`.
    """
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8").astype(np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
