"""Ridge regression with the penalty that generalised cross-validation finds best.

Legend: N pictures, D features, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PENALTIES = np.logspace(-4, 2, 13)
"""Tried ones, in units of the mean squared singular value."""


@dataclass(frozen=True)
class Ridge:
    """A linear map from standardised features to centred targets (Hoerl & Kennard 1970)."""

    centre_D: Array
    scale_D: Array
    weight_DK: Array
    offset_K: Array

    @classmethod
    def fit(cls, features_ND: NDArray[np.floating], targets_NK: NDArray[np.floating]) -> Ridge:
        """Fit the penalty (Golub, Heath & Wahba 1979) and the map."""
        features_ND, targets_NK = features_ND.astype(np.float64), targets_NK.astype(np.float64)
        centre_D, scale_D = features_ND.mean(0), features_ND.std(0) + 1e-6
        left_NR, singular_R, right_RD = np.linalg.svd((features_ND - centre_D) / scale_D, full_matrices=False)
        offset_K = targets_NK.mean(0)
        along_RK = left_NR.T @ (targets_NK - offset_K)
        outside = np.square(targets_NK - offset_K).sum() - np.square(along_RK).sum()

        def score(penalty: float) -> float:
            missed_R = penalty / (np.square(singular_R) + penalty)
            error = outside + np.square(missed_R[:, None] * along_RK).sum()
            return float(error / np.square(1 - (1 - missed_R).sum() / len(targets_NK)))

        penalty = min(PENALTIES * np.square(singular_R).mean(), key=score)
        weight_DK = right_RD.T @ ((singular_R / (np.square(singular_R) + penalty))[:, None] * along_RK)
        return cls(centre_D, scale_D, weight_DK, offset_K)

    def __call__(self, features_ND: NDArray[np.floating]) -> Array:
        """The targets [N, K] that features promise."""
        promised_NK: Array = (features_ND - self.centre_D) / self.scale_D @ self.weight_DK + self.offset_K
        return promised_NK
