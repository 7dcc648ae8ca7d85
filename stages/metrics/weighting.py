"""How much each picture of a set counts, and how sure a figure over it is: strata, groups, bootstrap intervals.

Legend: N pictures, S strata (classes), G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

FEWEST_GROUPS = 3

ROUNDS = 1000
"""Draws of a bootstrap: the ends of a 95% interval then have 25 draws beyond them."""


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    interval: tuple[float, float]
    by: Literal["jackknife", "bootstrap", "binomial", "parts"]
    """Where the interval comes from: 1.96 standard errors of a jackknife, quantiles of bootstrap draws, for a share
    that no draw moves from 0 or 1 the exact binomial bound, or Student's t of the spread over parts of a set."""

    @classmethod
    def of_jackknife(cls, value: float, variance: float) -> Estimate:
        """The interval of a normal distribution with this variance."""
        error = float(np.sqrt(variance))
        return cls(value, (value - 1.96 * error, value + 1.96 * error), "jackknife")

    @property
    def error(self) -> float:
        """The standard error that a normal distribution with this interval has."""
        return (self.interval[1] - self.interval[0]) / (2 * 1.96)


@dataclass(frozen=True)
class Weighting:
    """The weights of N pictures: strata count by their share, however many pictures they have."""

    stratum_N: Integers
    share_S: Array
    group_N: Integers
    """Pictures of one group resemble one another (variants of a picture), so they are drawn and left out together."""

    @classmethod
    def plain(cls, count: int, group_N: NDArray[np.integer] | None = None) -> Weighting:
        """Every picture counts alike; without groups each is drawn for itself."""
        group_N = np.arange(count) if group_N is None else group_N
        return cls(np.zeros(count, np.int64), np.ones(1), np.asarray(group_N, np.int64))

    @classmethod
    def by_label(
        cls, labels_N: NDArray[np.integer], shares: Mapping[int, float], group_N: NDArray[np.integer] | None = None
    ) -> Weighting:
        """Each label counts by its share (normalised to sum 1), which must be above 0 for every label that occurs."""
        wanted = [label for label, share in sorted(shares.items()) if share > 0]
        assert np.isin(labels_N, wanted).all(), "leave pictures of labels without a share out first"
        share_S = np.array([shares[label] for label in wanted], np.float64)
        group_N = np.arange(len(labels_N)) if group_N is None else group_N
        stratum_N = np.searchsorted(wanted, labels_N).astype(np.int64)
        return cls(stratum_N, share_S / share_S.sum(), np.asarray(group_N, np.int64))

    def __len__(self) -> int:
        return len(self.stratum_N)

    @cached_property
    def count_S(self) -> Array:
        """Pictures in each stratum."""
        return np.bincount(self.stratum_N, minlength=len(self.share_S)).astype(np.float64)

    @cached_property
    def weight_N(self) -> Array:
        """Each picture's weight; they sum to 1."""
        weight_N: Array = (self.share_S / self.count_S)[self.stratum_N]
        return weight_N

    def weights_of(self, times_N: NDArray[np.integer] | NDArray[np.bool_]) -> Array:
        """Weights where each picture is taken so many times: strata keep their shares, those left empty lose them."""
        taken_S = np.bincount(self.stratum_N, times_N, minlength=len(self.share_S))
        each_S: Array = np.divide(self.share_S, taken_S, out=np.zeros(len(taken_S)), where=taken_S > 0)
        weight_N: Array = np.asarray(times_N, np.float64) * each_S[self.stratum_N]
        weight_N /= weight_N.sum()
        return weight_N

    def resampled(self, rng: np.random.Generator) -> Array:
        """The weights of one bootstrap draw: as many groups as there are, with replacement, stratum by stratum."""
        groups_S = np.bincount(self.stratum_G, minlength=len(self.share_S))
        times_G = np.concatenate([rng.multinomial(count, np.full(count, 1 / count)) for count in groups_S])
        return self.weights_of(times_G[self.drawn_N])

    def sums_of_groups(self, values_N: Array) -> Array:
        """The sum of values over each group of each stratum: sum_G."""
        sum_G: Array = np.bincount(self.drawn_N, values_N, minlength=len(self.stratum_G)).astype(np.float64)
        return sum_G

    @property
    def effective_size(self) -> float:
        """As many independent pictures of equal weight give a mean the same variance (Kish 1965); a group is one."""
        return float(1 / np.square(self.sums_of_groups(self.weight_N)).sum())

    @cached_property
    def drawn_N(self) -> Integers:
        """Which of the G groups each picture is in: those of one stratum follow one another.

        A group is taken apart by strata. In a stratum of fewer than three groups, where leaving one out or drawing
        anew would change next to everything, every picture is a group of its own.
        """
        groups_S = np.bincount(_distinct(self.stratum_N, self.group_N)[0][:, 0], minlength=len(self.share_S))
        alone_N = groups_S[self.stratum_N] < FEWEST_GROUPS
        apart_N = self.group_N.max(initial=0) + 1 + np.arange(len(self))
        return _distinct(self.stratum_N, np.where(alone_N, apart_N, self.group_N))[1]

    @cached_property
    def stratum_G(self) -> Integers:
        """The stratum of each group."""
        stratum_G = np.zeros(self.drawn_N.max() + 1, np.int64)
        stratum_G[self.drawn_N] = self.stratum_N
        return stratum_G

    @cached_property
    def size_G(self) -> Integers:
        """Pictures of each group."""
        return np.bincount(self.drawn_N).astype(np.int64)


def _distinct(stratum_N: Integers, group_N: Integers) -> tuple[Integers, Integers]:
    """The sorted distinct (stratum, group) pairs, and the index among them of each picture's."""
    pairs_G2, index_N = np.unique(np.stack([stratum_N, group_N], axis=1), axis=0, return_inverse=True)
    return pairs_G2, index_N.reshape(-1).astype(np.int64)


def bootstrap(statistic: Callable[..., float], *weightings: Weighting, seed: int, rounds: int = ROUNDS) -> Estimate:
    """A statistic of weights (one array for each weighting) and the 2.5% and 97.5% quantiles of its bootstrap draws.

    The percentile interval of Efron & Tibshirani 1993, chapter 13; every weighting is drawn for itself.
    """
    rng = np.random.default_rng(seed)
    value = statistic(*(weighting.weight_N for weighting in weightings))
    draws_R = [statistic(*(weighting.resampled(rng) for weighting in weightings)) for _ in range(rounds)]
    low, high = np.quantile(draws_R, (0.025, 0.975))
    return Estimate(float(value), (float(low), float(high)), "bootstrap")


def bootstrap_mean(values_N: Array, weighting: Weighting, *, seed: int) -> Estimate:
    """The weighted mean of one value a picture."""
    return bootstrap(lambda weight_N: float(weight_N @ values_N), weighting, seed=seed)


def bootstrap_share(statistic: Callable[..., float], *weightings: Weighting, seed: int) -> Estimate:
    """As `bootstrap`, for a share of the first weighting's pictures.

    Where all draws agree on 0 or on 1 the interval reaches as far as the exact binomial one of the effective size
    (Clopper & Pearson 1934): nothing seen among few pictures does not mean that there is nothing.
    """
    estimate = bootstrap(statistic, *weightings, seed=seed)
    reach = 1 - 0.025 ** (1 / weightings[0].effective_size)
    if estimate.interval == (0.0, 0.0):
        return Estimate(estimate.value, (0.0, reach), "binomial")
    if estimate.interval == (1.0, 1.0):
        return Estimate(estimate.value, (1 - reach, 1.0), "binomial")
    return estimate
