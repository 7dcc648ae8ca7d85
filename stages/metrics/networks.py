"""Which networks look at pictures, and the standard figures through each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.storage import content_hash
from stages.metrics.frechet_distance import moments_of
from stages.metrics.measured import Measured
from stages.metrics.moments import Moments
from stages.metrics.planned import FEATURES, INCEPTION
from stages.metrics.reference import kept_moments, read_reference
from stages.metrics.standard import Imported, Network, Seen, Standard
from stages.metrics.threads import one_thread
from stages.models.efficientnet_lite0 import load_efficientnet_lite0, weights_path
from stages.models.inception import INCEPTION_FEATURES, class_weights
from stages.models.inception_weights import STANDARD, find_reference

if TYPE_CHECKING:
    from pipeline.artifacts import Source
    from pipeline.manifest import UnitRecord
    from pipeline.output import Output


@dataclass(frozen=True)
class Look:
    """All sets of pictures as one network sees them."""

    network: Network
    sets: Mapping[str, Seen]
    """`train`, `val`, `samples`, `reconstructions`."""
    units: str
    """How names of the units begin that hold it."""
    splits: tuple[str, ...] = ("train", "val")
    """Which real pictures standard figures are taken against."""

    def standard(self, records: Sequence[UnitRecord], output: Output, seed: int) -> Standard:
        """The standard figures; statistics of real pictures are kept for the next run.

        `records` are all finished units: those of real pictures, as the network sees them, decide statistics.
        """

        def statistics(split: str) -> Moments:
            seen = [record.digest for record in records if record.name.startswith(f"{self.units}-{split}-")]
            of = {"network": self.network.digest, "features": seen}
            with one_thread():  # so that the digest of statistics does not depend on the machine's cores
                return kept_moments(output, of, lambda: moments_of(self.sets[split].pictures))

        return Standard(self.network, self.sets, {split: statistics(split) for split in self.splits}, seed)


def packaged_look(feature_size: int, measured: Measured) -> Look:
    """Through EfficientNet-Lite0, which comes with a package; figures against held-out pictures are not repeated."""
    classifier = load_efficientnet_lite0()._fc
    network = Network(
        name=f"pooled features of EfficientNet-Lite0 (ImageNet) at {feature_size} pixels",
        digest=content_hash(weights_path()),
        distance="fd",
        tag="_lite0",
        class_weights_KD=classifier.weight.numpy(),
        class_bias_K=classifier.bias.numpy(),
    )
    sets = {
        "train": Seen(measured.train_ND, measured.train_groups_N),
        "val": Seen(measured.held_out_ND, measured.held_out_groups_N),
        "samples": Seen(measured.samples_ND),
        "reconstructions": Seen(measured.reconstructions_ND, measured.held_out_groups_N),
    }
    return Look(network, sets, FEATURES, splits=("train",))


def inception_look(
    path: Path, digest: str, units: Mapping[str, Mapping[str, NDArray[Any]]], measured: Measured
) -> Look:
    """Through Inception with the weights at `path`: the standard one only with the standard weights."""

    def join(kind: str, groups_N: NDArray[np.int64] | None) -> Seen:
        found = [arrays["features"] for name, arrays in units.items() if name.startswith(f"{INCEPTION}-{kind}-")]
        return Seen(np.concatenate(found), groups_N)

    if digest == STANDARD:
        name, distance, tag = "pooled features of the standard Inception (2015-12-05)", "fid", ""
    else:
        name, distance, tag = f"pooled features of Inception with other weights ({digest[:12]})", "fd", "_inception"
    sets = {
        "train": join("train", measured.train_groups_N),
        "val": join("val", measured.held_out_groups_N),
        "samples": join("sample", None),
        "reconstructions": join("reconstruction", measured.held_out_groups_N),
    }
    return Look(Network(name, digest, distance, tag, class_weights(path)), sets, INCEPTION)


def imported_from(source: Source | None, place: str | None, look: Look) -> Imported | None:
    """The statistics of `evaluate.reference`, where a network looks whose features they are of."""
    path = find_reference(place)
    if source is None or path is None or look.units != INCEPTION:
        return None
    return Imported(read_reference(path, INCEPTION_FEATURES), path.name, source.listing[0].stamp)
