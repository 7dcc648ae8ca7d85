"""Nearest neighbours among features: precision and recall of samples, and how near samples come to training pictures.

Everything is float64. Legend: N pictures of one set, M of the other, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.metrics.weighting import Array, Estimate, Weighting, bootstrap, bootstrap_share

BLOCK_ROWS = 1024  # of a distance matrix at once: memory stays at BLOCK_ROWS x M
NEIGHBOURHOOD = 3
"""Which neighbour's distance is a ball's radius, as Kynkaanniemi et al. recommend."""


def nearest(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> tuple[NDArray[np.int64], Array]:
    """For each x the index of the nearest y (Euclidean) and its distance: index_N, distance_N."""
    x_ND, y_MD = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
    squared_M = (y_MD**2).sum(axis=1)
    indices, distances = [], []
    for start in range(0, len(x_ND), BLOCK_ROWS):
        block_BD = x_ND[start : start + BLOCK_ROWS]
        index_B = (squared_M[None, :] - 2 * block_BD @ y_MD.T).argmin(axis=1)
        indices.append(index_B)
        distances.append(np.linalg.norm(block_BD - y_MD[index_B], axis=1))
    return np.concatenate(indices), np.concatenate(distances)


@dataclass(frozen=True)
class Overlap:
    """How two sets cover one another. Around every picture lies a ball that reaches to its k-th neighbour of its set.

    Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models", equation 1:
    precision is the mean of `inside_N` over generated pictures, recall the mean of `reached_M` over real ones. Naeem et
    al. 2020, "Reliable fidelity and diversity metrics", equations 5 and 6: `density_N`, `covered_M`.

    A bootstrap over these values leaves the balls as they are, so its intervals are too short: on Gaussians of 8
    features, 120 pictures against 100, those of 95% held what the figure is on average in 86% of trials for precision,
    90% for recall, 84% for density and 79% for coverage (`python -m tests.interval_coverage`). What the figure would be
    of infinitely many pictures is no truth to hold: balls shrink with their number.
    """

    inside_N: Array
    """1 where a generated picture lies in some real picture's ball."""
    reached_M: Array
    """1 where a real picture lies in some generated picture's ball."""
    density_N: Array
    """In how many real balls a generated picture lies, over k: 1 on average for real pictures, and not bounded by 1."""
    covered_M: Array
    """1 where some generated picture lies in a real picture's own ball."""


def overlap(
    generated_ND: NDArray[np.floating], real_MD: NDArray[np.floating], *, neighbourhood: int = NEIGHBOURHOOD
) -> Overlap:
    """Compare generated with real features. Each set needs more than `neighbourhood` pictures."""
    origin_D = np.asarray(real_MD, np.float64).mean(axis=0)  # inner products lose digits far from the origin
    x_ND: Array = np.asarray(generated_ND, np.float64) - origin_D
    y_MD: Array = np.asarray(real_MD, np.float64) - origin_D
    radius_N, radius_M = _radii(x_ND, neighbourhood), _radii(y_MD, neighbourhood)
    balls_N, reached_M, covered_M = [], np.zeros(len(y_MD), bool), np.zeros(len(y_MD), bool)
    for start, squared_BM in _squared_distances(x_ND, y_MD):
        inside_real_BM = squared_BM <= radius_M
        inside_generated_BM = squared_BM <= radius_N[start : start + BLOCK_ROWS, None]
        balls_N.append(inside_real_BM.sum(axis=1))
        covered_M |= inside_real_BM.any(axis=0)
        reached_M |= inside_generated_BM.any(axis=0)
    count_N = np.concatenate(balls_N).astype(np.float64)
    return Overlap(
        inside_N=(count_N > 0).astype(np.float64),
        reached_M=reached_M.astype(np.float64),
        density_N=count_N / neighbourhood,
        covered_M=covered_M.astype(np.float64),
    )


def _radii(x_ND: Array, neighbourhood: int) -> Array:
    """The squared distance of each picture to its k-th neighbour among the others: radius_N."""
    assert len(x_ND) > neighbourhood, f"{len(x_ND)} pictures have no {neighbourhood} neighbours each"
    radii = []
    for start, squared_BN in _squared_distances(x_ND, x_ND):
        index = np.arange(len(squared_BN))
        squared_BN[index, start + index] = 0.0  # a picture is its own nearest, exactly
        radii.append(np.partition(squared_BN, neighbourhood, axis=1)[:, neighbourhood])
    return np.concatenate(radii)


def _squared_distances(x_ND: Array, y_MD: Array) -> Iterator[tuple[int, Array]]:
    """Blocks of rows of the matrix of squared distances, each with its first row's index."""
    squared_M = np.square(y_MD).sum(axis=1)
    for start in range(0, len(x_ND), BLOCK_ROWS):
        block_BD = x_ND[start : start + BLOCK_ROWS]
        squared_BM = np.square(block_BD).sum(axis=1)[:, None] + squared_M[None, :] - 2 * block_BD @ y_MD.T
        yield start, squared_BM.clip(min=0.0)


@dataclass(frozen=True)
class Nearness:
    """How near samples come to training pictures, beside how near held-out pictures come that nobody has copied.

    `distance_N` and `held_out_M` are the distances of samples and of held-out pictures to their nearest training
    picture. Intervals are bootstrap intervals over both sets; the training pictures stay the same.
    """

    distance_N: Array
    weighting_N: Weighting
    held_out_M: Array
    weighting_M: Weighting
    seed: int

    def ratio(self) -> Estimate:
        """The samples' median distance over that of the held-out pictures: much less than 1 means copies."""

        def medians(w_N: Array, v_M: Array) -> float:
            return weighted_quantile(self.distance_N, w_N, 0.5) / max(
                weighted_quantile(self.held_out_M, v_M, 0.5), 1e-12
            )

        return bootstrap(medians, self.weighting_N, self.weighting_M, seed=self.seed)

    def suspicious(self, share: float = 0.05) -> Estimate:
        """The share of samples that are nearer than all but `share` of the held-out pictures are."""

        def nearer(w_N: Array, v_M: Array) -> float:
            return float(w_N @ (self.distance_N < weighted_quantile(self.held_out_M, v_M, share)))

        return bootstrap_share(nearer, self.weighting_N, self.weighting_M, seed=self.seed)

    def nearer_than_held_out(self) -> Estimate:
        """The chance that a sample is nearer to its neighbour than a held-out picture to its own; ties count half.

        The Mann-Whitney statistic of the test for data-copying of Meehan et al. 2020 (section 4), as a share: 0.5 for
        samples like unseen pictures, more for copies.
        """
        order = np.argsort(self.held_out_M, kind="stable")
        sorted_M = self.held_out_M[order]
        below_N, up_to_N = (np.searchsorted(sorted_M, self.distance_N, side) for side in ("left", "right"))

        def chance(w_N: Array, v_M: Array) -> float:
            cumulated = np.concatenate([[0.0], v_M[order].cumsum()])
            return float(w_N @ (1 - (cumulated[below_N] + cumulated[up_to_N]) / 2))

        return bootstrap_share(chance, self.weighting_N, self.weighting_M, seed=self.seed)

    def held_out_copies(self) -> Estimate:
        """The share of held-out pictures that are a training picture too, by their features: a leak of the split."""
        is_copy_M = self.held_out_M <= 1e-3 * np.median(self.held_out_M)
        return bootstrap_share(lambda v_M: float(v_M @ is_copy_M), self.weighting_M, seed=self.seed)

    def quantiles(self, number: int = 101) -> tuple[Array, Array]:
        """Evenly spaced quantiles of both sets' distances, from 0% to 100%."""
        shares = np.linspace(0, 1, number)
        sides = ((self.distance_N, self.weighting_N), (self.held_out_M, self.weighting_M))
        samples_Q, held_out_Q = (
            np.array([weighted_quantile(distances, weighting.weight_N, share) for share in shares])
            for distances, weighting in sides
        )
        return samples_Q, held_out_Q


def weighted_quantile(values_N: Array, weight_N: Array, share: float) -> float:
    """The smallest value up to which at least this share of the weight lies."""
    order = np.argsort(values_N, kind="stable")
    cumulated_N = weight_N[order].cumsum()
    return float(values_N[order[min(np.searchsorted(cumulated_N, share * cumulated_N[-1] - 1e-12), len(order) - 1)]])
