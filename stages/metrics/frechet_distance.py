"""The Frechet distance between two sets of pictures, from their features, with its error.

Everything is float64. Legend: N pictures of one set, M of the other, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.metrics.moments import Moments
from stages.metrics.picture_set import PictureSet
from stages.metrics.threads import one_thread
from stages.metrics.weighting import Array, Estimate

BLOCK_ROWS = 1024
FOLDS = 20
"""Parts of a set that the jackknife leaves out one at a time."""
SMALLEST_EIGENVALUE = 1e-12
"""Of the largest: directions below it hold nothing but rounding."""


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the squared Frechet (2-Wasserstein) distance of Gaussians.

    Dowson & Landau 1982. Symmetric square roots by eigh; rank-deficient covariances (N <= D) are fine, but the
    distance is then biased upwards: compare only distances from equally many pictures.
    """
    return _Transport.of(a, b).distance


class _Transport(NamedTuple):
    """The distance of one Gaussian to another, and how it changes with the covariance of the first."""

    distance: float
    gradient_DD: Array
    """I - T of the covariance A, where T = B^1/2 (B^1/2 A B^1/2)^-1/2 B^1/2 is the optimal map from A to B."""

    @classmethod
    def of(cls, a: Moments, b: Moments) -> _Transport:
        root_DD, covariance_DD = _root(b.covariance_DD), a.covariance_DD
        values_D, vectors_DD = np.linalg.eigh(root_DD @ covariance_DD @ root_DD)
        values_D = values_D.clip(min=0.0)
        shift = float(((a.mean_D - b.mean_D) ** 2).sum())
        traces = float(np.trace(covariance_DD) + np.square(root_DD).sum() - 2 * np.sqrt(values_D).sum())
        holds_D = values_D > SMALLEST_EIGENVALUE * values_D.max()
        inverse_D = np.divide(1.0, np.sqrt(values_D), out=np.zeros_like(values_D), where=holds_D)
        towards_DD = root_DD @ vectors_DD
        return cls(shift + traces, np.eye(len(values_D)) - (towards_DD * inverse_D) @ towards_DD.T)


def _root(covariance_DD: Array) -> Array:
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    root_DD: Array = (vectors_DD * np.sqrt(values_D.clip(min=0.0))) @ vectors_DD.T
    return root_DD


class _LeftOut(NamedTuple):
    """The distance, and what it becomes when each fold of a set is left out."""

    value: float
    without_x: Array
    without_y: Array


def frechet(x: PictureSet, y: PictureSet, *, paired: bool = False) -> Estimate:
    """The Frechet distance of two weighted sets with the error of a jackknife that leaves out whole folds of groups.

    `paired` sets (picture i of one made from picture i of the other) lose a fold in both at once. A bootstrap would
    not do: pictures drawn twice lower the rank of a covariance, and with it raise the distance. The interval is about
    the distance that so many pictures have on average, which it holds in 95% and 97% of trials (120 pictures against
    100 of 8 and of 64 features, `python -m tests.interval_coverage`). The bias of few pictures is not in it: it held
    the distance of infinitely many in 62% of trials with 8 features, and in none with 64.
    """
    few = max(len(x), len(y)) <= x.features_ND.shape[1]
    value, without_x, without_y = (_from_gram_matrices if few else _from_moments)(x, y)
    changes = [without_x + without_y] if paired else [without_x, without_y]
    return Estimate.of_jackknife(value, sum(map(_jackknife_variance, changes)))


def frechet_to_reference(x: PictureSet, reference: Moments) -> Estimate:
    """The Frechet distance to statistics that are taken as they are: the error is of the pictures of `x` alone."""
    value, without = _leaving_out(x, reference)
    return Estimate.of_jackknife(value, _jackknife_variance(without))


def _jackknife_variance(change_F: Array) -> float:
    return float((len(change_F) - 1) / len(change_F) * np.square(change_F - change_F.mean()).sum())


def _each_fold_left_out(x: PictureSet) -> list[NDArray[np.bool_]]:
    """Which pictures remain without each fold: groups of each stratum, dealt in turn."""
    number = min(FOLDS, len(x.weighting.stratum_G))
    return [x.weighting.drawn_N % number != fold for fold in range(number)]


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
    # Threads do not speed up matrices so small; where cores are busy with other work they wait a hundred times longer.
    with one_thread():
        return _LeftOut(
            distance(a.weight_N, b.weight_N),
            np.array([distance(a.weights_of(rest_N), b.weight_N) for rest_N in _each_fold_left_out(x)]),
            np.array([distance(a.weight_N, b.weights_of(rest_M)) for rest_M in _each_fold_left_out(y)]),
        )


def _from_moments(x: PictureSet, y: PictureSet) -> _LeftOut:
    """For many pictures: no matrix is larger than D x D."""
    value, without_x = _leaving_out(x, moments_of(y))
    _, without_y = _leaving_out(y, moments_of(x))
    return _LeftOut(value, without_x, without_y)


def _leaving_out(x: PictureSet, reference: Moments) -> tuple[float, Array]:
    """The distance to a reference, and what it becomes without each fold of x: without_F.

    Of more pictures than features a fold is a small part of the covariance, and the distance follows its gradient: the
    errors agree with those of distances from scratch within their own noise (5% on average), for a tenth of the time.
    Without one of fewer pictures a direction is lost, so those are taken from scratch, in matrices of N x N.
    """
    if len(x) <= x.features_ND.shape[1]:
        return _leaving_out_of_few(x, reference)
    whole = moments_of(x)
    at = _Transport.of(whole, reference)
    w_N, centred_ND = x.weighting.weight_N, x.features_ND - whole.mean_D
    through_ND = centred_ND @ at.gradient_DD
    along_N = w_N * (through_ND * centred_ND).sum(axis=1)  # each picture's part of <gradient, scatter>
    gap_D = whole.mean_D - reference.mean_D

    def distance(rest_N: NDArray[np.bool_]) -> float:
        left_N = w_N[rest_N]
        total = left_N.sum()
        shift_D = left_N @ centred_ND[rest_N] / total
        scatter = along_N[rest_N].sum() - total * (left_N @ through_ND[rest_N] / total) @ shift_D
        change = scatter / (total - (left_N**2).sum() / total) - along_N.sum() / (1 - (w_N**2).sum())
        return float(at.distance + change + np.square(gap_D + shift_D).sum() - np.square(gap_D).sum())

    return at.distance, np.array([distance(rest_N) for rest_N in _each_fold_left_out(x)])


def _leaving_out_of_few(x: PictureSet, reference: Moments) -> tuple[float, Array]:
    """With A = F'F the trace of (B^1/2 A B^1/2)^1/2 is the sum of the roots of the eigenvalues of FBF'."""
    covariance_DD = reference.covariance_DD
    x_ND = x.features_ND - reference.mean_D
    products_NN, through_NN = x_ND @ x_ND.T, x_ND @ covariance_DD @ x_ND.T
    trace = float(np.trace(covariance_DD))

    def distance(w_N: Array) -> float:
        rows = np.flatnonzero(w_N)
        w_N, xx_NN, centred_NN = w_N[rows], products_NN[np.ix_(rows, rows)], through_NN[np.ix_(rows, rows)]
        unbiased, shift = 1 - (w_N**2).sum(), w_N @ xx_NN @ w_N
        mean_N = centred_NN @ w_N
        centred_NN = centred_NN - mean_N[:, None] - mean_N[None, :] + w_N @ mean_N
        root_N = np.sqrt(w_N / unbiased)
        values_N = torch.linalg.eigvalsh(torch.from_numpy(root_N[:, None] * centred_NN * root_N[None, :])).numpy()
        traces = (w_N @ xx_NN.diagonal() - shift) / unbiased + trace
        return float(shift + traces - 2 * np.sqrt(values_N.clip(min=0.0)).sum())

    with one_thread():
        without = [distance(x.weighting.weights_of(rest_N)) for rest_N in _each_fold_left_out(x)]
        return distance(x.weighting.weight_N), np.array(without)


def moments_of(x: PictureSet) -> Moments:
    """The weighted moments of a set, in one pass."""
    gathered = Moments.nothing(x.features_ND.shape[1])
    for start in range(0, len(x), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        gathered.add(x.features_ND[block], x.weighting.weight_N[block])
    return gathered
