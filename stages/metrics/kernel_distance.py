"""The kernel distance (KID) between two sets of pictures, from their features, with its error.

Everything is float64. Legend: N pictures of one set, M of the other, D features, S strata (classes), G groups.
"""

from __future__ import annotations

import numpy as np

from stages.metrics.picture_set import PictureSet
from stages.metrics.weighting import Array, Estimate, Weighting

BLOCK_ROWS = 1024  # of the kernel matrix at once: memory stays at BLOCK_ROWS x M


def polynomial_kernel(x_ND: Array, y_MD: Array) -> Array:
    """(x.y / D + 1)^3: the kernel of KID (Binkowski et al. 2018, "Demystifying MMD GANs", section 4)."""
    k_NM: Array = (x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3
    return k_NM


def kid(x: PictureSet, y: PictureSet, *, paired: bool = False) -> Estimate:
    """Squared maximum mean discrepancy under the polynomial kernel, unbiased, over all pairs at once.

    A mean over pairs of strata weighted by their shares, each pair of strata by its own unbiased mean (i = j left out
    inside a stratum); with a single stratum that is equation 4 of Binkowski et al. Unbiased, it may come out below 0.
    The error is the jackknife's, leaving out one picture at a time, over both sets: no random subsets, so no seed.
    What leaving the pictures of a group out changes is added up before it is squared; `paired` sets (picture i of one
    made from picture i of the other) lose a picture in both at once. Needs three pictures in each stratum.
    """
    a, b = x.weighting, y.weighting
    assert a.count_S.min() >= 3 and b.count_S.min() >= 3, "the jackknife needs three pictures in each stratum"
    xx_NS, yy_MS, xy_NS, yx_MS = _row_sums(x, x), _row_sums(y, y), _row_sums(x, y), _row_sums(y, x)
    within_x, left_out_x = _within(a, xx_NS)
    within_y, left_out_y = _within(b, yy_MS)
    between = float(a.weight_N @ (xy_NS @ (b.share_S / b.count_S)))
    # Leaving picture i out changes its stratum's mean against the other set.
    thetas_N = left_out_x - 2 * _between_without(a, xy_NS @ (b.share_S / b.count_S), between)
    thetas_M = left_out_y - 2 * _between_without(b, yx_MS @ (a.share_S / a.count_S), between)
    if paired:
        assert len(x) == len(y) and len(a.share_S) == len(b.share_S) == 1, "pairs are of plain sets of equal size"
        variance = _jackknife_variance(a, thetas_N + thetas_M)
    else:
        variance = _jackknife_variance(a, thetas_N) + _jackknife_variance(b, thetas_M)
    return Estimate.of_jackknife(within_x + within_y - 2 * between, variance)


def _row_sums(x: PictureSet, y: PictureSet) -> Array:
    """Sum of k(x_i, y_j) over each stratum of y, for each i; k(x_i, x_i) left out where both sets are one."""
    one_hot_MS = np.eye(len(y.weighting.share_S))[y.weighting.stratum_N]
    rows = []
    for start in range(0, len(x), BLOCK_ROWS):
        k_BM = polynomial_kernel(x.features_ND[start : start + BLOCK_ROWS], y.features_ND)
        if x is y:
            index = np.arange(len(k_BM))
            k_BM[index, start + index] = 0.0
        rows.append(k_BM @ one_hot_MS)
    return np.concatenate(rows)


def _within(x: Weighting, sums_NS: Array) -> tuple[float, Array]:
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


def _between_without(x: Weighting, mean_N: Array, between: float) -> Array:
    """The mean kernel between the sets with each picture of x left out; mean_N is each picture's own mean over y."""
    n_S, p_S, own = x.count_S, x.share_S, x.stratum_N
    stratum_mean_S = np.bincount(own, mean_N, minlength=len(n_S)) / n_S
    without_N: Array = (stratum_mean_S[own] * n_S[own] - mean_N) / (n_S[own] - 1)
    left_out_N: Array = between + p_S[own] * (without_N - stratum_mean_S[own])
    return left_out_N


def _jackknife_variance(x: Weighting, thetas_N: Array) -> float:
    """Sum over strata of (n - 1) / n * sum over groups of (sum over the group of theta_i - their mean)^2.

    Without groups this is the jackknife's; with them its linearised form for clusters.
    """
    n_S = x.count_S
    mean_S = np.bincount(x.stratum_N, thetas_N, minlength=len(n_S)) / n_S
    changes_G, stratum_G = x.sums_of_groups(thetas_N - mean_S[x.stratum_N])
    squares_S = np.bincount(stratum_G, changes_G**2, minlength=len(n_S))
    return float(((n_S - 1) / n_S * squares_S).sum())
