"""The Frechet distance between two sets of pictures, from their features, with its error.

Everything is float64. Legend: N pictures of one set, M of the other, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.metrics.picture_set import PictureSet
from stages.metrics.threads import one_thread
from stages.metrics.weighting import Array, Estimate

BLOCK_ROWS = 1024
FOLDS = 20
"""Parts of a set that the jackknife leaves out one at a time."""


@dataclass
class Moments:
    """Weighted mean and covariance of features, gathered in pieces and merged: memory D x D whatever N is."""

    weight: float
    weight_squared: float
    mean_D: Array
    scatter_DD: Array

    @classmethod
    def nothing(cls, num_features: int) -> Moments:
        """Of no pictures yet."""
        return cls(0.0, 0.0, np.zeros(num_features), np.zeros((num_features, num_features)))

    def add(self, features_ND: NDArray[np.floating], weight_N: Array | None = None) -> Moments:
        """Take in pictures; without weights each counts 1. Returns self."""
        x_ND = np.asarray(features_ND, np.float64)
        w_N = np.ones(len(x_ND)) if weight_N is None else weight_N
        mean_D = w_N @ x_ND / w_N.sum()
        centred_ND = x_ND - mean_D
        return self.merge(
            Moments(float(w_N.sum()), float((w_N**2).sum()), mean_D, (centred_ND * w_N[:, None]).T @ centred_ND)
        )

    def merge(self, other: Moments) -> Moments:
        """Take in what another one gathered (Chan et al. 1979: no cancellation). Returns self."""
        weight = self.weight + other.weight
        shift_D = other.mean_D - self.mean_D
        self.scatter_DD += other.scatter_DD + np.outer(shift_D, shift_D) * (self.weight * other.weight / weight)
        self.mean_D = self.mean_D + shift_D * (other.weight / weight)
        self.weight, self.weight_squared = weight, self.weight_squared + other.weight_squared
        return self

    def without(self, part: Moments) -> Moments:
        """What remains when a part that was merged is taken out again: a new one."""
        weight = self.weight - part.weight
        mean_D = self.mean_D + (self.mean_D - part.mean_D) * (part.weight / weight)
        shift_D = part.mean_D - mean_D
        scatter_DD = (
            self.scatter_DD - part.scatter_DD - np.outer(shift_D, shift_D) * (part.weight * weight / self.weight)
        )
        return Moments(weight, self.weight_squared - part.weight_squared, mean_D, scatter_DD)

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
    return _distance_to_root(a, b, _root(b.covariance_DD))


def _root(covariance_DD: Array) -> Array:
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    root_DD: Array = (vectors_DD * np.sqrt(values_D.clip(min=0.0))) @ vectors_DD.T
    return root_DD


def _distance_to_root(a: Moments, b: Moments, root_b_DD: Array) -> float:
    covariance_DD = a.covariance_DD
    middle_D = np.linalg.eigvalsh(root_b_DD @ covariance_DD @ root_b_DD)
    cross = np.sqrt(middle_D.clip(min=0.0)).sum()
    shift = float(((a.mean_D - b.mean_D) ** 2).sum())
    return shift + float(np.trace(covariance_DD) + np.square(root_b_DD).sum() - 2 * cross)


class _LeftOut(NamedTuple):
    """The distance, and what it becomes when each fold of a set is left out."""

    value: float
    without_x: Array
    without_y: Array


def frechet(x: PictureSet, y: PictureSet, *, paired: bool = False) -> Estimate:
    """The Frechet distance of two weighted sets with the error of a jackknife that leaves out whole folds of groups.

    `paired` sets (picture i of one made from picture i of the other) lose a fold in both at once. A bootstrap would
    not do: pictures drawn twice lower the rank of a covariance, and with it raise the distance. The bias of few
    pictures is not in the interval.
    """
    few = max(len(x), len(y)) <= x.features_ND.shape[1]
    value, without_x, without_y = (_from_gram_matrices if few else _from_moments)(x, y)
    changes = [without_x + without_y] if paired else [without_x, without_y]
    variance = sum((len(change) - 1) / len(change) * np.square(change - change.mean()).sum() for change in changes)
    return Estimate.of_jackknife(value, variance)


def _num_folds(x: PictureSet) -> int:
    return min(FOLDS, len(x.weighting.stratum_G))


def _from_gram_matrices(x: PictureSet, y: PictureSet) -> _LeftOut:
    """For fewer pictures than features: no matrix is larger than N x M.

    With A = F'F and B = G'G the trace of (A^1/2 B A^1/2)^1/2 is the sum of the singular values of FG', whose entries
    are inner products of centred features. All of them follow from the inner products of the features as they are.
    """
    origin_D = (x.features_ND.mean(axis=0) + y.features_ND.mean(axis=0)) / 2  # near both means: little cancellation
    x_ND, y_MD = x.features_ND - origin_D, y.features_ND - origin_D
    products = (x_ND @ x_ND.T, y_MD @ y_MD.T, x_ND @ y_MD.T)

    def distance(w_N: Array, v_M: Array) -> float:
        rows, columns = np.flatnonzero(w_N), np.flatnonzero(v_M)
        sides = ((rows, rows), (columns, columns), (rows, columns))
        xx_NN, yy_MM, xy_NM = (product[np.ix_(*side)] for product, side in zip(products, sides, strict=True))
        w_N, v_M = w_N[rows], v_M[columns]
        mean_xx, mean_yy, mean_xy = w_N @ xx_NN @ w_N, v_M @ yy_MM @ v_M, w_N @ xy_NM @ v_M
        unbiased_x, unbiased_y = 1 - (w_N**2).sum(), 1 - (v_M**2).sum()
        traces = (w_N @ xx_NN.diagonal() - mean_xx) / unbiased_x + (v_M @ yy_MM.diagonal() - mean_yy) / unbiased_y
        centred_NM = xy_NM - (xy_NM @ v_M)[:, None] - (w_N @ xy_NM)[None, :] + mean_xy
        scaled_NM = np.sqrt(w_N / unbiased_x)[:, None] * centred_NM * np.sqrt(v_M / unbiased_y)[None, :]
        cross = torch.linalg.svdvals(torch.from_numpy(scaled_NM)).sum()
        return float(mean_xx + mean_yy - 2 * mean_xy + traces - 2 * cross)

    a, b = x.weighting, y.weighting
    folds_x, folds_y = _num_folds(x), _num_folds(y)
    fold_N, fold_M = a.drawn_N % folds_x, b.drawn_N % folds_y  # groups of each stratum, dealt in turn
    # Threads do not speed up matrices so small; where cores are busy with other work they wait a hundred times longer.
    with one_thread():
        return _LeftOut(
            distance(a.weight_N, b.weight_N),
            np.array([distance(a.weights_of(fold_N != fold), b.weight_N) for fold in range(folds_x)]),
            np.array([distance(a.weight_N, b.weights_of(fold_M != fold)) for fold in range(folds_y)]),
        )


def _from_moments(x: PictureSet, y: PictureSet) -> _LeftOut:
    """For many pictures: no matrix is larger than D x D. Strata lose what a fold takes from them."""
    folds_x, folds_y = _fold_moments(x), _fold_moments(y)
    a, b = _merged(folds_x), _merged(folds_y)
    root_a_DD, root_b_DD = _root(a.covariance_DD), _root(b.covariance_DD)
    return _LeftOut(
        _distance_to_root(a, b, root_b_DD),
        np.array([_distance_to_root(a.without(fold), b, root_b_DD) for fold in folds_x]),
        np.array([_distance_to_root(b.without(fold), a, root_a_DD) for fold in folds_y]),
    )


def _fold_moments(x: PictureSet) -> list[Moments]:
    number = _num_folds(x)
    fold_N = x.weighting.drawn_N % number
    moments = []
    for fold in range(number):
        (members,) = np.nonzero(fold_N == fold)
        gathered = Moments.nothing(x.features_ND.shape[1])
        for start in range(0, len(members), BLOCK_ROWS):
            block = members[start : start + BLOCK_ROWS]
            gathered.add(x.features_ND[block], x.weighting.weight_N[block])
        moments.append(gathered)
    return moments


def _merged(parts: list[Moments]) -> Moments:
    whole = Moments.nothing(len(parts[0].mean_D))
    for part in parts:
        whole.merge(part)
    return whole
