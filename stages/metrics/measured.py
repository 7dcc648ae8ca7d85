"""All that the units measured, and which sets of it are compared, with which weights.

Legend: N pictures (differs from kind to kind), D features, T tokens of a picture, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.class_names import ClassNames
from stages.metrics.listing import Listing
from stages.metrics.picture_set import PictureSet

SMALLEST_CLASS = 3
"""Samples that a class needs to be compared: the error of the distance leaves one out of pairs."""

Features = NDArray[np.float32]
Values = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What was measured, pieces of a kind joined in their order. Pictures of one group resemble one another."""

    train_ND: Features
    train_labels_N: Integers
    train_groups_N: Integers
    held_out_ND: Features
    held_out_labels_N: Integers
    held_out_groups_N: Integers
    reconstructions_ND: Features
    mse_N: Values
    l1_N: Values
    perceptual_N: Values
    ssim_N: Values | None
    """None for pictures that are smaller than its window."""
    samples_ND: Features
    sample_labels_N: Integers
    chance_ND: Features
    train_bits_N: Values
    train_bits_groups_N: Integers
    train_position_bits_T: Values
    held_out_bits_N: Values
    held_out_bits_labels_N: Integers
    held_out_bits_groups_N: Integers
    held_out_position_bits_T: Values
    train_codes_K: Integers
    held_out_codes_K: Integers

    @classmethod
    def join(
        cls, units: Sequence[tuple[str, Mapping[str, NDArray[Any]]]], listing: Listing, classes: ClassNames
    ) -> Measured:
        """Join the arrays of finished units, given with their names, kind by kind; samples get the data's labels."""

        def join(kind: str, name: str) -> NDArray[Any]:
            found = [arrays[name] for unit, arrays in units if unit.startswith(kind)]
            nothing = np.zeros(0, np.int64 if name == "labels" else np.float64)
            return np.concatenate(found) if found else nothing

        def position_means(kind: str) -> Values:
            sums = [arrays["position_bits"] for unit, arrays in units if unit.startswith(kind)] or [np.zeros(0)]
            means_T: Values = np.sum(sums, axis=0) / max(len(join(kind, "bits")), 1)
            return means_T

        has_ssim = all("ssim" in arrays for unit, arrays in units if unit.startswith("reconstruction"))
        return cls(
            train_ND=join("features-train", "features"),
            train_labels_N=join("features-train", "labels"),
            train_groups_N=listing.picture_groups["train"],
            held_out_ND=join("features-val", "features"),
            held_out_labels_N=join("features-val", "labels"),
            held_out_groups_N=listing.picture_groups["val"],
            reconstructions_ND=join("reconstruction", "features"),
            mse_N=join("reconstruction", "mse"),
            l1_N=join("reconstruction", "l1"),
            perceptual_N=join("reconstruction", "perceptual"),
            ssim_N=join("reconstruction", "ssim") if has_ssim else None,
            samples_ND=join("features-sample", "features"),
            sample_labels_N=classes.labels(join("features-sample", "labels")),
            chance_ND=join("chance", "features"),
            train_bits_N=join("likelihood-train", "bits"),
            train_bits_groups_N=listing.token_groups["train"],
            train_position_bits_T=position_means("likelihood-train"),
            held_out_bits_N=join("likelihood-val", "bits"),
            held_out_bits_labels_N=join("likelihood-val", "labels"),
            held_out_bits_groups_N=listing.token_groups["val"],
            held_out_position_bits_T=position_means("likelihood-val"),
            train_codes_K=listing.codes["train"],
            held_out_codes_K=listing.codes["val"],
        )


class Pairing(NamedTuple):
    """Two sets to compare, the classes of one weighted to their shares in the other."""

    pictures: PictureSet
    reference: PictureSet
    weighted: bool
    kept_N: NDArray[np.bool_]
    """Which of the given pictures are in the set."""
    left_out: tuple[int, ...] = ()
    """Labels of the reference that the pictures have too few of."""


def pair_by_class(
    features_ND: Features, labels_N: Integers, measured: Measured, groups_N: Integers | None = None
) -> Pairing:
    """Weigh pictures by class so that they are mixed as the held-out pictures are.

    Samples are drawn evenly over classes, real pictures are not; unweighted, a perfect generator would look wrong.
    Classes with fewer than SMALLEST_CLASS pictures are left out on both sides. Pictures without labels are compared
    as they are.
    """
    labels, counts = np.unique(labels_N, return_counts=True)
    enough = {int(label) for label, count in zip(labels, counts, strict=True) if label >= 0 and count >= SMALLEST_CLASS}
    real_labels, real_counts = np.unique(measured.held_out_labels_N, return_counts=True)
    real = {int(label): int(count) for label, count in zip(real_labels, real_counts, strict=True)}
    shares = {label: float(count) for label, count in real.items() if label in enough}
    if sum(shares.values()) < SMALLEST_CLASS:
        reference = PictureSet.plain(measured.held_out_ND, measured.held_out_groups_N)
        kept_N = np.ones(len(features_ND), bool)
        return Pairing(PictureSet.plain(features_ND, groups_N), reference, weighted=False, kept_N=kept_N)
    pictures = PictureSet.weighted(features_ND, labels_N, shares, groups_N)
    left_out = tuple(sorted(set(real) - set(shares)))
    compared_N = np.isin(measured.held_out_labels_N, list(shares))
    reference = PictureSet.plain(measured.held_out_ND[compared_N], measured.held_out_groups_N[compared_N])
    return Pairing(pictures, reference, True, np.isin(labels_N, list(shares)), left_out)
