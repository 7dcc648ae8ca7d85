"""Gumbel noise that belongs to a sample, not to a batch or worker: a function of (seed, id, candidate, place, code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Draw(NamedTuple):
    """Which noise a picture is drawn with: it decides the picture where model, condition and filters are the same."""

    seed: int
    sample_id: int
    candidate: int = 0
    """Of several drawn for one sample, to choose from."""


def draws_of(seed: int, sample_ids: Sequence[int]) -> list[Draw]:
    """The draws of some samples of one seed."""
    return [Draw(seed, sample_id) for sample_id in sample_ids]


class GumbelNoise:
    """Standard Gumbel noise for some samples, from the counter-based Philox4x64 (Salmon et al., 2011).

    The key is (seed, sample id), the counter's highest words are the token's place and the candidate; codes run
    through the lowest word.
    The argmax of logits + noise is a draw from their softmax (Gumbel-max). Philox's raw output is fixed for ever,
    unlike the streams of numpy's distributions.
    """

    def __init__(self, draws: Sequence[Draw]) -> None:
        """All numbers of a draw are below 2**64 and not negative."""
        self._draws = list(draws)
        self._keys = [np.array([draw.seed, draw.sample_id], dtype=np.uint64) for draw in draws]
        self._candidates = [draw.candidate for draw in draws]
        self._philox = np.random.Philox()
        # Assigning a state is four times as fast as building a generator (7 against 32 us).
        self._state: Any = dict(self._philox.state, buffer_pos=4, has_uint32=0, uinteger=0)

    def of(self, pictures: slice) -> GumbelNoise:
        """The noise of some of the samples alone."""
        return GumbelNoise(self._draws[pictures])

    def at(self, place: int, num_codes: int) -> np.ndarray:
        """Return float64 noise [B, V] for the token at `place` of the grid, a row for each sample."""
        raw_BV = np.empty((len(self._keys), num_codes), dtype=np.uint64)
        for row, (key, candidate) in enumerate(zip(self._keys, self._candidates, strict=True)):
            counter = np.array([0, 0, candidate, place], dtype=np.uint64)
            self._state["state"] = {"counter": counter, "key": key}
            self._philox.state = self._state
            raw_BV[row] = self._philox.random_raw(num_codes)
        # 52 bits and a half: strictly between 0 and 1, so that both logarithms are finite.
        uniform_BV = ((raw_BV >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return np.asarray(-np.log(-np.log(uniform_BV)))
