"""Our figures beside torch-fidelity's and pytorch-fid's own functions, on equal features.

    python -m tests.metrics_parity [--pictures 40]

Synthetic features are positive and skewed like a network's, of more and of fewer pictures than features; then features
of Inception with random weights for as many drawn pictures. A dash: that package has no such figure, or is not
installed (pytorch-fid is optional: `uv pip install --no-deps pytorch-fid`). Exits with 1 where a difference exceeds
the tolerance of its row, relative to the larger value: what the others lose in float32 (torch-fidelity's means) or in
roots of eigenvalues that are zero but for rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from stages.metrics.frechet_distance import frechet
from stages.metrics.inception_score import inception_score
from stages.metrics.kernel_distance import kid, kid_of_subsets
from stages.metrics.neighbours import overlap
from stages.metrics.picture_set import PictureSet
from stages.models.inception import Inception, class_weights
from tests.random_inception import save_random_inception

CLASSES = 1008


@dataclass(frozen=True)
class Row:
    """One figure as three programs compute it."""

    features: str
    figure: str
    ours: float
    torch_fidelity: float
    pytorch_fid: float | None
    tolerance: float

    @property
    def difference(self) -> float:
        """The larger one, relative to the larger value."""
        others = [it for it in (self.torch_fidelity, self.pytorch_fid) if it is not None]
        return max(abs(self.ours - it) / max(abs(self.ours), abs(it), 1e-12) for it in others)


def main() -> None:
    """Print the table; exit with 1 where a tolerance is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40, help="0 leaves Inception out")
    rows = list(measure(parser.parse_args().pictures))
    heads = ("features", "figure", "ours", "torch-fidelity", "pytorch-fid", "difference", "tolerance")
    print("{:34}{:14}{:>16}{:>16}{:>16}{:>12}{:>11}".format(*heads))
    for row in rows:
        other = "-" if row.pytorch_fid is None else f"{row.pytorch_fid:.9g}"
        numbers = f"{row.ours:>16.9g}{row.torch_fidelity:>16.9g}{other:>16}"
        print(f"{row.features:34}{row.figure:14}{numbers}{row.difference:>12.1e}{row.tolerance:>11.0e}")
    sys.exit(0 if all(row.difference <= row.tolerance for row in rows) else 1)


def measure(pictures: int) -> Iterator[Row]:
    """All rows."""
    for name, n, m, size, tolerance in (
        ("synthetic, 900 and 700 of 256", 900, 700, 256, 1e-8),
        ("synthetic, 150 and 130 of 256", 150, 130, 256, 1e-5),
    ):
        x_ND, y_MD = synthetic(0, n, size, 0.0), synthetic(1, m, size, 0.2)
        logits_NK = x_ND @ np.random.default_rng(2).normal(0, 0.3, (size, CLASSES)) / np.sqrt(size)
        yield from compare(name, x_ND, y_MD, logits_NK, tolerance)
    if not pictures:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = save_random_inception(Path(folder) / "random.pth")
        x_ND, y_MD = (Inception(path).features(drawn(seed, pictures)) for seed in (0, 1))
        logits_NK = x_ND @ class_weights(path).T
    yield from compare(f"random Inception, {pictures} and {pictures}", x_ND, y_MD, logits_NK, 1e-3)


def compare(name: str, x_ND: np.ndarray, y_MD: np.ndarray, logits_NK: np.ndarray, tolerance: float) -> Iterator[Row]:
    """Every figure of two sets of features; `tolerance` is that of the Frechet distance."""
    x, y = PictureSet.plain(x_ND), PictureSet.plain(y_MD)
    their_x, their_y = torch.from_numpy(x_ND), torch.from_numpy(y_MD)
    statistics = [fid_features_to_statistics(features) for features in (their_x, their_y)]
    distance = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    yield Row(name, "FID", frechet(x, y).value, distance, pytorch_fid_distance(statistics), tolerance)
    theirs = isc_features_to_metric(torch.from_numpy(logits_NK))
    yield Row(name, "IS", inception_score(logits_NK).value, theirs["inception_score_mean"], None, 1e-9)
    size = min(len(x), len(y)) // 2
    subsets = {"kid_subsets": 20, "kid_subset_size": size, "verbose": False}
    theirs = kid_features_to_metric(their_x.double(), their_y.double(), **subsets)
    ours = kid_of_subsets(x.features_ND, y.features_ND, subsets=20, size=size)
    yield Row(name, "KID, mean", ours.mean, theirs["kernel_inception_distance_mean"], None, 1e-7)
    yield Row(name, "KID, std", ours.std, theirs["kernel_inception_distance_std"], None, 1e-7)
    few = min(len(x), len(y))
    whole = {"kid_subsets": 1, "kid_subset_size": few, "verbose": False}
    theirs = kid_features_to_metric(their_x[:few].double(), their_y[:few].double(), **whole)
    ours_whole = kid(PictureSet.plain(x_ND[:few]), PictureSet.plain(y_MD[:few])).value
    yield Row(name, "KID, all pairs", ours_whole, theirs["kernel_inception_distance_mean"], None, 1e-7)
    found = overlap(x_ND, y_MD)
    theirs = prc_features_to_metric(their_x.double(), their_y.double(), verbose=False)
    yield Row(name, "precision", float(found.inside_N.mean()), theirs["precision"], None, 1e-6)
    yield Row(name, "recall", float(found.reached_M.mean()), theirs["recall"], None, 1e-6)


def pytorch_fid_distance(statistics: list[dict[str, np.ndarray]]) -> float | None:
    """The distance by pytorch-fid's own function; None where it is not installed."""
    try:
        from pytorch_fid.fid_score import calculate_frechet_distance
    except ImportError:
        return None
    a, b = statistics
    return float(calculate_frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"]))


def synthetic(seed: int, count: int, size: int, shift: float) -> np.ndarray:
    """Positive, skewed, correlated features [N, D] in float64."""
    mixing_DD = np.random.default_rng(99).normal(0, 1 / np.sqrt(size), (size, size))
    return np.abs(np.random.default_rng(seed).normal(shift, 1, (count, size)) @ mixing_DD) ** 1.5


def drawn(seed: int, count: int) -> np.ndarray:
    """Coloured blocks, uint8 [N, H, W, C]: those of seed 1 are darker."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256 - 60 * seed, (count, 8, 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


if __name__ == "__main__":
    main()
