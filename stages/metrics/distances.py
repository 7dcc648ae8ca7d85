"""Distances between two sets of pictures, from their features: the kernel distance (KID) and the Frechet distance.

Everything is float64. Legend: N pictures of one set, M of the other, D features, S strata (classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCK_ROWS = 1024  # of the kernel matrix at once: memory stays at BLOCK_ROWS x M


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval under a normal approximation."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


@dataclass(frozen=True)
class PictureSet:
    """Features of pictures, each in a stratum; strata count by their share, however many pictures they have."""

    features_ND: Array
    stratum_N: NDArray[np.int64]
    share_S: Array

    @classmethod
    def plain(cls, features_ND: NDArray[np.floating]) -> PictureSet:
        """Every picture counts alike."""
        return cls(np.asarray(features_ND, np.float64), np.zeros(len(features_ND), np.int64), np.ones(1))

    @classmethod
    def weighted(
        cls, features_ND: NDArray[np.floating], labels_N: NDArray[np.integer], shares: Mapping[int, float]
    ) -> PictureSet:
        """Each label counts by its share (normalised to sum 1); pictures of labels without a share do not count."""
        wanted = [label for label, share in sorted(shares.items()) if share > 0]
        counts_N = np.isin(labels_N, wanted)
        stratum_N = np.searchsorted(wanted, np.asarray(labels_N)[counts_N]).astype(np.int64)
        share_S = np.array([shares[label] for label in wanted], np.float64)
        return cls(np.asarray(features_ND, np.float64)[counts_N], stratum_N, share_S / share_S.sum())

    @property
    def count_S(self) -> Array:
        """Pictures in each stratum."""
        return np.bincount(self.stratum_N, minlength=len(self.share_S)).astype(np.float64)

    @property
    def weight_N(self) -> Array:
        """Each picture's weight; they sum to 1."""
        weight_N: Array = (self.share_S / self.count_S)[self.stratum_N]
        return weight_N


def polynomial_kernel(x_ND: Array, y_MD: Array) -> Array:
    """(x.y / D + 1)^3: the kernel of KID (Binkowski et al. 2018, "Demystifying MMD GANs", section 4)."""
    k_NM: Array = (x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3
    return k_NM


def kid(x: PictureSet, y: PictureSet) -> Estimate:
    """Squared maximum mean discrepancy under the polynomial kernel, unbiased, over all pairs at once.

    A mean over pairs of strata weighted by their shares, each pair of strata by its own unbiased mean (i = j left out
    inside a stratum); with a single stratum that is equation 4 of Binkowski et al. Unbiased, it may come out below 0.
    The error is the jackknife's, leaving out one picture at a time, over both sets: no random subsets, so no seed.
    Needs three pictures in each stratum.
    """
    assert x.count_S.min() >= 3 and y.count_S.min() >= 3, "the jackknife needs three pictures in each stratum"
    xx_NS, yy_MS, xy_NS, yx_MS = _row_sums(x, x), _row_sums(y, y), _row_sums(x, y), _row_sums(y, x)
    within_x, left_out_x = _within(x, xx_NS)
    within_y, left_out_y = _within(y, yy_MS)
    between = float(x.weight_N @ (xy_NS @ (y.share_S / y.count_S)))
    value = within_x + within_y - 2 * between
    # Leaving picture i out changes its stratum's mean against the other set.
    thetas_N = left_out_x - 2 * _between_without(x, xy_NS @ (y.share_S / y.count_S), between)
    thetas_M = left_out_y - 2 * _between_without(y, yx_MS @ (x.share_S / x.count_S), between)
    variance = _jackknife_variance(x, thetas_N) + _jackknife_variance(y, thetas_M)
    return Estimate(value, float(np.sqrt(variance)))


def _row_sums(x: PictureSet, y: PictureSet) -> Array:
    """Sum of k(x_i, y_j) over each stratum of y, for each i; k(x_i, x_i) left out where both sets are one."""
    one_hot_MS = np.eye(len(y.share_S))[y.stratum_N]
    rows = []
    for start in range(0, len(x.features_ND), BLOCK_ROWS):
        k_BM = polynomial_kernel(x.features_ND[start : start + BLOCK_ROWS], y.features_ND)
        if x is y:
            index = np.arange(len(k_BM))
            k_BM[index, start + index] = 0.0
        rows.append(k_BM @ one_hot_MS)
    return np.concatenate(rows)


def _within(x: PictureSet, sums_NS: Array) -> tuple[float, Array]:
    """Mean kernel inside a set, and the same with each picture left out in turn: value, values_N."""
    n_S, p_S = x.count_S, x.share_S
    total_SS = np.zeros((len(n_S), len(n_S)))
    np.add.at(total_SS, x.stratum_N, sums_NS)
    pairs_SS = np.outer(n_S, n_S) - np.diag(n_S)
    mean_SS = total_SS / pairs_SS
    value = float(p_S @ mean_SS @ p_S)
    own = x.stratum_N
    index = np.arange(len(own))
    # Other strata: the row of stratum `own` shrinks by one picture; counted twice for the symmetric block.
    without_NS = (total_SS[own] - sums_NS) / ((n_S[own] - 1)[:, None] * n_S[None, :])
    change_NS = (without_NS - mean_SS[own]) * p_S[None, :]
    change_NS[index, own] = 0.0
    own_total_N = total_SS[own, own] - 2 * sums_NS[index, own]
    own_change_N = own_total_N / ((n_S[own] - 1) * (n_S[own] - 2)) - mean_SS[own, own]
    return value, value + p_S[own] * (2 * change_NS.sum(axis=1) + p_S[own] * own_change_N)


def _between_without(x: PictureSet, mean_N: Array, between: float) -> Array:
    """The mean kernel between the sets with each picture of x left out; mean_N is each picture's own mean over y."""
    n_S, p_S, own = x.count_S, x.share_S, x.stratum_N
    stratum_mean_S = np.bincount(own, mean_N, minlength=len(n_S)) / n_S
    without_N: Array = (stratum_mean_S[own] * n_S[own] - mean_N) / (n_S[own] - 1)
    left_out_N: Array = between + p_S[own] * (without_N - stratum_mean_S[own])
    return left_out_N


def _jackknife_variance(x: PictureSet, thetas_N: Array) -> float:
    """Sum over strata of (n - 1) / n * sum (theta_i - their mean)^2."""
    n_S = x.count_S
    mean_S = np.bincount(x.stratum_N, thetas_N, minlength=len(n_S)) / n_S
    squares_S = np.bincount(x.stratum_N, (thetas_N - mean_S[x.stratum_N]) ** 2, minlength=len(n_S))
    return float(((n_S - 1) / n_S * squares_S).sum())


class Moments:
    """Weighted mean and covariance of features, gathered in pieces and merged: memory D x D whatever N is."""

    def __init__(self, num_features: int) -> None:
        self.weight = 0.0
        self.weight_squared = 0.0
        self.mean_D: Array = np.zeros(num_features)
        self.scatter_DD: Array = np.zeros((num_features, num_features))

    def add(self, features_ND: NDArray[np.floating], weight_N: Array | None = None) -> Moments:
        """Take in pictures; without weights each counts 1. Returns self."""
        x_ND = np.asarray(features_ND, np.float64)
        w_N = np.ones(len(x_ND)) if weight_N is None else weight_N
        piece = Moments(x_ND.shape[1])
        piece.weight, piece.weight_squared = float(w_N.sum()), float((w_N**2).sum())
        piece.mean_D = w_N @ x_ND / piece.weight
        centred_ND = x_ND - piece.mean_D
        piece.scatter_DD = (centred_ND * w_N[:, None]).T @ centred_ND
        return self.merge(piece)

    def merge(self, other: Moments) -> Moments:
        """Take in what another one gathered (Chan et al. 1979: no cancellation). Returns self."""
        weight = self.weight + other.weight
        shift_D = other.mean_D - self.mean_D
        self.scatter_DD += other.scatter_DD + np.outer(shift_D, shift_D) * (self.weight * other.weight / weight)
        self.mean_D = self.mean_D + shift_D * (other.weight / weight)
        self.weight, self.weight_squared = weight, self.weight_squared + other.weight_squared
        return self

    @property
    def covariance_DD(self) -> Array:
        """Unbiased: with equal weights, scatter / (N - 1)."""
        covariance_DD: Array = self.scatter_DD / (self.weight - self.weight_squared / self.weight)
        return covariance_DD


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the squared Frechet (2-Wasserstein) distance of Gaussians.

    Dowson & Landau 1982. Symmetric square roots by eigh; rank-deficient covariances (N <= D) are fine, but the
    distance is then biased upwards: compare only distances from equally many pictures.
    """
    values_D, vectors_DD = np.linalg.eigh(a.covariance_DD)
    root_DD = (vectors_DD * np.sqrt(values_D.clip(min=0.0))) @ vectors_DD.T
    middle_D = np.linalg.eigvalsh(root_DD @ b.covariance_DD @ root_DD)
    cross = np.sqrt(middle_D.clip(min=0.0)).sum()
    shift = float(((a.mean_D - b.mean_D) ** 2).sum())
    return shift + float(np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * cross)


def frechet(x: PictureSet, y: PictureSet) -> float:
    """The Frechet distance of two weighted sets, by the cheaper of two equal ways.

    With A = F'F and B = G'G the trace of (A^1/2 B A^1/2)^1/2 is the sum of the singular values of FG'. For fewer
    pictures than features that is a small matrix (N x M) in place of two decompositions of D x D: 0.1 s, not 10 s.
    """
    moments = [Moments(pictures.features_ND.shape[1]) for pictures in (x, y)]
    factors = []
    for pictures, gathered in zip((x, y), moments, strict=True):
        for start in range(0, len(pictures.features_ND), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            gathered.add(pictures.features_ND[rows], pictures.weight_N[rows])
        unbiased = gathered.weight - gathered.weight_squared / gathered.weight
        root_N1 = np.sqrt(pictures.weight_N / unbiased)[:, None]
        factors.append((pictures.features_ND - gathered.mean_D) * root_N1)
    if max(len(factor) for factor in factors) > x.features_ND.shape[1]:
        return frechet_distance(*moments)
    a, b = moments
    shift = float(((a.mean_D - b.mean_D) ** 2).sum())
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return shift + float(np.square(factors[0]).sum() + np.square(factors[1]).sum() - 2 * cross)


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
