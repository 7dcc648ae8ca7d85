"""From measured units to the report's figures: merges the pieces and states what each number was computed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.codebook import perplexity, used_share
from stages.metrics.distances import Estimate, PictureSet, frechet, kid, nearest

FEATURES = "pooled features of EfficientNet-Lite0 (ImageNet)"
SMALLEST_CLASS = 3
"""Samples that a class needs to be compared: the error of the distance leaves one out of pairs."""

Figure = dict[str, Any]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """All that the units measured, pieces of a kind joined in their order. N differs from kind to kind."""

    train_ND: Features
    train_labels_N: Labels
    held_out_ND: Features
    held_out_labels_N: Labels
    reconstructions_ND: Features
    psnr_N: NDArray[np.float64]
    l1_N: NDArray[np.float64]
    samples_ND: Features
    sample_labels_N: Labels
    chance_ND: Features
    train_bits_N: NDArray[np.float64]
    held_out_bits_N: NDArray[np.float64]
    held_out_bits_labels_N: Labels
    train_codes_K: NDArray[np.int64]
    held_out_codes_K: NDArray[np.int64]


class Pairing(NamedTuple):
    """Two sets to compare, the classes of one weighted to their shares in the other."""

    pictures: PictureSet
    reference: PictureSet
    weighted: bool
    left_out: tuple[int, ...] = ()
    """Labels of the reference that the pictures have too few of."""


def pair_by_class(features_ND: Features, labels_N: Labels, measured: Measured) -> Pairing:
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
        return Pairing(PictureSet.plain(features_ND), PictureSet.plain(measured.held_out_ND), weighted=False)
    pictures = PictureSet.weighted(features_ND, labels_N, shares)
    left_out = tuple(sorted(set(real) - set(shares)))
    kept_N = np.isin(measured.held_out_labels_N, list(shares))
    return Pairing(pictures, PictureSet.plain(measured.held_out_ND[kept_N]), weighted=True, left_out=left_out)


@dataclass(frozen=True)
class Judgement:
    """All figures by name, and what the report shows beside them."""

    figures: dict[str, Figure]
    left_out: tuple[int, ...]
    """Labels whose held-out pictures had too few samples to be compared with."""
    neighbour_N: Labels
    """For each sample the index of its nearest training picture."""
    neighbour_distance_N: NDArray[np.float64]


def judge(measured: Measured, *, num_codes: int, seed: int) -> Judgement:
    """Turn what was measured into figures. `seed` chooses the training pictures of the real-against-real floor."""
    samples = pair_by_class(measured.samples_ND, measured.sample_labels_N, measured)
    neighbour_N, distance_N = nearest(measured.samples_ND, measured.train_ND)
    figures = {
        **_distances(measured, samples, seed),
        **_reconstruction(measured),
        **_codebook(measured),
        **_likelihood(measured, num_codes),
        **_novelty(measured, distance_N),
    }
    return Judgement(figures, samples.left_out, neighbour_N, distance_N)


def class_table(
    classes: Sequence[str], class_counts: Mapping[str, int], measured: Measured
) -> list[dict[str, str | int | float | None]]:
    """A row for each class: how many pictures there are, and what they scored."""
    rows: list[dict[str, str | int | float | None]] = []
    for label, name in enumerate(classes):
        held_out_N = measured.held_out_labels_N == label
        bits_N = measured.held_out_bits_N[measured.held_out_bits_labels_N == label]
        rows.append(
            {
                "class": name,
                "train": class_counts[name] - int(held_out_N.sum()),
                "held_out": int(held_out_N.sum()),
                "samples": int((measured.sample_labels_N == label).sum()),
                "psnr": float(measured.psnr_N[held_out_N].mean()) if held_out_N.any() else None,
                "bits_per_token": float(bits_N.mean()) if len(bits_N) else None,
            }
        )
    return rows


def _distances(measured: Measured, samples: Pairing, seed: int) -> dict[str, Figure]:
    """KID and the Frechet distance of samples, reconstructions, other real pictures and chance to the held-out."""
    n = min(len(measured.held_out_ND), len(measured.train_ND))
    # As many real pictures as are held out: a Frechet distance is comparable only at equal numbers.
    drawn_N = np.random.default_rng(seed).choice(len(measured.train_ND), n, replace=False)
    held_out = PictureSet.plain(measured.held_out_ND)
    reconstructions, chance = PictureSet.plain(measured.reconstructions_ND), PictureSet.plain(measured.chance_ND)
    other_real = pair_by_class(measured.train_ND[drawn_N], measured.train_labels_N[drawn_N], measured)
    pairs = {
        "samples": (samples, "samples against held-out pictures"),
        "reconstructions": (
            Pairing(reconstructions, held_out, weighted=False),
            "reconstructions of held-out pictures against those pictures",
        ),
        "floor": (
            other_real,
            "real against real: training pictures drawn at random, as many as held-out, against held-out pictures",
        ),
        "chance": (
            Pairing(chance, held_out, weighted=False),
            "decoded random tokens (drawn by the corpus' code frequencies) against held-out pictures",
        ),
    }
    figures: dict[str, Figure] = {}
    for name, (pairing, what) in pairs.items():
        how = ", each class weighted to its share of the held-out" if pairing.weighted else ""
        sizes = {"samples": len(pairing.pictures.features_ND), "against": len(pairing.reference.features_ND)}
        computed_on = f"{what}{how}; {FEATURES}"
        distance = kid(pairing.pictures, pairing.reference)
        figures[f"kid_{name}"] = {**_estimated(distance, computed_on, "lower"), **sizes}
        value = frechet(pairing.pictures, pairing.reference)
        figures[f"frechet_{name}"] = {**_figure(value, 0, computed_on, "lower"), **sizes}
    return figures


def _reconstruction(measured: Measured) -> dict[str, Figure]:
    on = "held-out pictures through the tokenizer and back"
    return {
        "psnr": _mean(
            measured.psnr_N, f"{on}; dB of each picture on the scale [0, 1], averaged over pictures", "higher"
        ),
        "l1": _mean(measured.l1_N, f"{on}; mean absolute error on the scale [0, 1]", "lower"),
    }


def _codebook(measured: Measured) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    corpus_K = measured.train_codes_K + measured.held_out_codes_K
    for name, counts_K, on in (
        ("held_out", measured.held_out_codes_K, "tokens of held-out pictures"),
        ("corpus", corpus_K, "tokens of the whole corpus"),
    ):
        tokens = int(counts_K.sum())
        share = "share of the codebook's codes that occur at least once"
        figures[f"codebook_used_{name}"] = _figure(used_share(counts_K), tokens, f"{on}: {share}", "higher")
        equal = "exp of the entropy of code frequencies"
        figures[f"codebook_perplexity_{name}"] = _figure(perplexity(counts_K), tokens, f"{on}: {equal}", "higher")
    return figures


def _likelihood(measured: Measured, num_codes: int) -> dict[str, Figure]:
    held_out_N, train_N = measured.held_out_bits_N, measured.train_bits_N
    uniform = float(np.log2(num_codes))
    on_held_out = f"tokens of held-out pictures given their class; a prior that knows nothing needs {uniform:.2f}"
    gap = Estimate(
        float(held_out_N.mean() - train_N.mean()),
        float(np.hypot(held_out_N.std(ddof=1) / len(held_out_N) ** 0.5, train_N.std(ddof=1) / len(train_N) ** 0.5)),
    )
    on = "held-out minus training bits per token: how much the prior learned by heart"
    return {
        "bits_per_token_held_out": {**_mean(held_out_N, on_held_out, "lower"), "uniform": uniform},
        "bits_per_token_train": _mean(train_N, "tokens of training pictures, about as many as held-out", "lower"),
        "overfit_gap": {**_estimated(gap, on, "lower"), "samples": len(held_out_N), "against": len(train_N)},
    }


def _novelty(measured: Measured, samples_N: NDArray[np.float64]) -> dict[str, Figure]:
    """How near samples come to training pictures, beside how near unseen real pictures come."""
    _, real_N = nearest(measured.held_out_ND, measured.train_ND)
    ratio = float(np.median(samples_N) / max(np.median(real_N), 1e-12))
    closest = float((samples_N < np.quantile(real_N, 0.05)).mean())
    on = f"of {len(measured.train_ND):,} training pictures the nearest; {FEATURES}"
    return {
        "nearest_training_ratio": _figure(
            ratio, len(samples_N), f"median distance of samples over that of held-out pictures, {on}", "higher"
        ),
        "suspiciously_near": _figure(
            closest, len(samples_N), f"share of samples nearer than all but 5% of held-out pictures, {on}", "lower"
        ),
    }


def _figure(value: float, samples: int, computed_on: str, better: Literal["higher", "lower"]) -> Figure:
    return {"value": float(value), "samples": samples, "computed_on": computed_on, "better": better}


def _estimated(estimate: Estimate, computed_on: str, better: Literal["higher", "lower"]) -> Figure:
    return {**_figure(estimate.value, 0, computed_on, better), "interval": list(estimate.interval)}


def _mean(values_N: NDArray[np.float64], computed_on: str, better: Literal["higher", "lower"]) -> Figure:
    error = float(values_N.std(ddof=1) / len(values_N) ** 0.5) if len(values_N) > 1 else 0.0
    estimate = Estimate(float(values_N.mean()), error)
    return {**_estimated(estimate, computed_on, better), "samples": len(values_N)}
