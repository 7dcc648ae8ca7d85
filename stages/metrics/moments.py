"""Mean and covariance of features, gathered in pieces in one pass and merged: what a Frechet distance needs of a set.

Everything is float64. Legend: N pictures, D features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.metrics.weighting import Array


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

    @classmethod
    def of_gaussian(cls, mean_D: Array, covariance_DD: Array) -> Moments:
        """Of a distribution, or of pictures that somebody else counted."""
        return cls(2.0, 2.0, mean_D, covariance_DD)

    def add(self, features_ND: NDArray[np.floating], weight_N: Array | None = None) -> Moments:
        """Take in pictures; without weights each counts 1. Returns self."""
        x_ND = np.asarray(features_ND, np.float64)
        w_N = np.ones(len(x_ND)) if weight_N is None else weight_N
        mean_D = _product(x_ND, w_N[:, None])[:, 0] / w_N.sum()
        centred_ND = x_ND - mean_D
        return self.merge(
            Moments(float(w_N.sum()), float((w_N**2).sum()), mean_D, _product(centred_ND * w_N[:, None], centred_ND))
        )

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

    @property
    def digest(self) -> str:
        """The sha256 of weight, mean and covariance: which statistics a distance was taken to."""
        numbers = (np.array([self.weight]), self.mean_D, self.covariance_DD)
        return hashlib.sha256(b"".join(np.ascontiguousarray(it, "<f8").tobytes() for it in numbers)).hexdigest()


def _product(x_ND: Array, y_ND: Array) -> Array:
    """x'y, by torch: on as many threads as the caller lets it have, so that its last bits need not depend on them."""
    product_DD: Array = (torch.from_numpy(x_ND).T @ torch.from_numpy(y_ND)).numpy()
    return product_DD
