"""A set of pictures to compare with another one: their features, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.metrics.weighting import Array, Weighting


@dataclass(frozen=True)
class PictureSet:
    """Features of N pictures (float64) and their weights."""

    features_ND: Array
    weighting: Weighting

    @classmethod
    def plain(cls, features_ND: NDArray[np.floating], group_N: NDArray[np.integer] | None = None) -> PictureSet:
        """Every picture counts alike; those of one group are drawn together."""
        return cls(np.asarray(features_ND, np.float64), Weighting.plain(len(features_ND), group_N))

    @classmethod
    def weighted(
        cls,
        features_ND: NDArray[np.floating],
        labels_N: NDArray[np.integer],
        shares: Mapping[int, float],
        group_N: NDArray[np.integer] | None = None,
    ) -> PictureSet:
        """Each label counts by its share (normalised to sum 1); pictures of labels without a share are left out."""
        counts_N = np.isin(labels_N, [label for label, share in shares.items() if share > 0])
        groups_N = None if group_N is None else np.asarray(group_N)[counts_N]
        weighting = Weighting.by_label(np.asarray(labels_N)[counts_N], shares, groups_N)
        return cls(np.asarray(features_ND, np.float64)[counts_N], weighting)

    def __len__(self) -> int:
        return len(self.features_ND)
