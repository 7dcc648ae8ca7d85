"""The Inception score: how sure a classifier is of each picture, and how varied its answers are over all of them.

Everything is float64. Legend: N pictures, K classes.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from stages.metrics.weighting import Array, Estimate

SPLITS = 10
"""Parts whose scores are averaged: as the paper did it, and everybody since."""
SHUFFLE_SEED = 2020
"""torch-fidelity's: the same pictures come into the same parts."""


def inception_score(logits_NK: NDArray[np.floating], *, splits: int = SPLITS, seed: int = SHUFFLE_SEED) -> Estimate:
    """exp of the mean KL divergence of p(class | picture) from p(class), averaged over parts of shuffled pictures.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4; parts and shuffle are torch-fidelity's.
    Parts share no picture, so the error of the mean of their scores follows from their spread, by Student's t for so
    few of them. The score of few pictures is too low, and that bias is not in the interval: compare equal numbers
    alone. Needs `splits` pictures, and two splits.
    """
    logits_NK = np.asarray(logits_NK, np.float64)[np.random.RandomState(seed).permutation(len(logits_NK))]
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    log_p_NK = shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))
    bounds = [part * len(log_p_NK) // splits for part in range(splits + 1)]
    scores = np.array([_score(log_p_NK[low:high]) for low, high in itertools.pairwise(bounds)])
    value, error = float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(splits))
    reach = float(stdtrit(splits - 1, 0.975)) * error
    return Estimate(value, (value - reach, value + reach), "parts")


def _score(log_p_NK: Array) -> float:
    p_NK = np.exp(log_p_NK)
    # A class that has underflowed for every picture adds nothing.
    log_q_K = np.log(p_NK.mean(axis=0).clip(min=np.finfo(np.float64).tiny))
    return float(np.exp((p_NK * (log_p_NK - log_q_K)).sum(axis=1).mean()))
