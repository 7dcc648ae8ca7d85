"""From what was measured to the report's figures: each states what it was computed on, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.metrics.figures import Better, Figure, Looked, features_digest
from stages.metrics.figures import figure as _figure
from stages.metrics.frechet_distance import frechet
from stages.metrics.kernel_distance import kid
from stages.metrics.measured import Integers, Measured, Pairing, Values, pair_by_class
from stages.metrics.neighbours import NEIGHBOURHOOD, Nearness, nearest, overlap
from stages.metrics.picture_set import PictureSet
from stages.metrics.standard import Network
from stages.metrics.token_figures import codebook_figures, likelihood_figures
from stages.metrics.weighting import Array, Estimate, Weighting, bootstrap, bootstrap_mean, bootstrap_share

FEATURES = "pooled features of EfficientNet-Lite0 (ImageNet)"


@dataclass(frozen=True)
class Judgement:
    """All figures by name, and what the report shows beside them."""

    figures: dict[str, Figure]
    left_out: tuple[int, ...]
    """Labels whose held-out pictures had too few samples to be compared with."""
    neighbour_N: Integers
    """For each sample the index of its nearest training picture."""
    neighbour_distance_N: Values
    nearness: Nearness


def judge(
    measured: Measured,
    *,
    num_codes: int,
    seed: int,
    network: Network,
    beside: Mapping[str, Figure] | None = None,
) -> Judgement:
    """Turn what was measured into figures.

    `seed` chooses the training pictures of the real-against-real floor, and draws for the bootstrap intervals;
    `network` is what the features are of; `beside` are figures that stand beside.
    """
    samples = pair_by_class(measured.samples_ND, measured.sample_labels_N, measured)
    neighbour_N, distance_N = nearest(measured.samples_ND, measured.train_ND)
    _, held_out_N = nearest(measured.held_out_ND, measured.train_ND)
    held_out_weighting = Weighting.plain(len(held_out_N), measured.held_out_groups_N)
    kept_N = distance_N[samples.kept_N]
    nearness = Nearness(kept_N, samples.pictures.weighting, held_out_N, held_out_weighting, seed)
    figures = {
        **_distances(measured, samples, network, seed),
        **_reconstruction(measured, seed),
        **codebook_figures(measured),
        **likelihood_figures(measured, num_codes, seed),
        **_novelty(nearness, len(measured.train_ND), weighted=samples.weighted),
        **(beside or {}),
    }
    return Judgement(figures, samples.left_out, neighbour_N, distance_N, nearness)


def _distances(measured: Measured, samples: Pairing, network: Network, seed: int) -> dict[str, Figure]:
    """How samples, reconstructions, other real pictures and chance compare with the held-out pictures."""
    n = min(len(measured.held_out_ND), len(measured.train_ND))
    # As many real pictures as are held out: a Frechet distance is comparable only at equal numbers.
    drawn_N = np.random.default_rng(seed).choice(len(measured.train_ND), n, replace=False)
    held_out = PictureSet.plain(measured.held_out_ND, measured.held_out_groups_N)
    reconstructions = PictureSet.plain(measured.reconstructions_ND, measured.held_out_groups_N)
    chance = PictureSet.plain(measured.chance_ND)
    other_real = pair_by_class(
        measured.train_ND[drawn_N], measured.train_labels_N[drawn_N], measured, measured.train_groups_N[drawn_N]
    )
    pairs = {
        "samples": (samples.pictures, samples.reference, samples.weighted, "samples against held-out pictures"),
        "reconstructions": (
            reconstructions,
            held_out,
            False,
            "reconstructions of held-out pictures against those pictures",
        ),
        "floor": (
            other_real.pictures,
            other_real.reference,
            other_real.weighted,
            "real against real: training pictures drawn at random, as many as held-out, against held-out pictures",
        ),
        "chance": (
            chance,
            held_out,
            False,
            f"decoded random tokens (drawn {_how_chance_draws(measured)}) against held-out pictures",
        ),
    }
    figures: dict[str, Figure] = {}
    for name, (pictures, reference, weighted, what) in pairs.items():
        how = ", each class weighted to its share of the held-out" if weighted else ""
        on, digest = f"{what}{how}; {FEATURES}", features_digest(reference.features_ND)
        looked = Looked(network.described, {"what": "held-out pictures", "pictures": len(reference), "digest": digest})
        compared = _compare(pictures, reference, on, looked, seed, paired=name == "reconstructions")
        figures |= {f"{kind}_{name}": figure for kind, figure in compared.items()}
    return figures


def _how_chance_draws(measured: Measured) -> str:
    return "by the corpus' code frequencies" if measured.train_codes_K.any() else "each code alike"


def _compare(
    pictures: PictureSet, reference: PictureSet, on: str, looked: Looked, seed: int, *, paired: bool
) -> dict[str, Figure]:
    """All figures of one pair of sets."""
    sizes: dict[str, Any] = {"samples": len(pictures), "against": len(reference), "looked": looked}
    kernel = "squared kernel distance (KID: polynomial kernel, unbiased)"
    gaussian = "squared Fr\u00e9chet distance of Gaussians; the fewer pictures, the higher it comes out"
    figures = {
        "kid": _figure(kid(pictures, reference, paired=paired), kernel, on, "lower", **sizes),
        "frechet": _figure(frechet(pictures, reference, paired=paired), gaussian, on, "lower", **sizes),
    }
    if min(len(pictures), len(reference)) <= NEIGHBOURHOOD:
        return figures
    found = overlap(pictures.features_ND, reference.features_ND)
    inside, reached = (
        "share of them within reach of a held-out picture",
        "share of held-out pictures within their reach",
    )
    reach = "a picture reaches to its third neighbour in its own set; interval for this reach"
    for name, values_N, weighting, what in (
        ("precision", found.inside_N, pictures.weighting, f"{inside}; {reach}"),
        ("recall", found.reached_M, reference.weighting, f"{reached}; {reach}"),
        ("density", found.density_N, pictures.weighting, f"held-out pictures that reach one of them, over 3; {reach}"),
        (
            "coverage",
            found.covered_M,
            reference.weighting,
            f"share of held-out pictures that reach one of them; {reach}",
        ),
    ):
        mean = bootstrap_mean if name == "density" else _bootstrapped_share
        figures[name] = _figure(mean(values_N, weighting, seed=seed), what, on, "higher", **sizes)
    return figures


def _bootstrapped_share(values_N: Array, weighting: Weighting, *, seed: int) -> Estimate:
    return bootstrap_share(lambda weight_N: float(weight_N @ values_N), weighting, seed=seed)


def _reconstruction(measured: Measured, seed: int) -> dict[str, Figure]:
    on = "held-out pictures through the tokenizer and back, in 8 bits, on the scale [0, 1]"
    weighting = Weighting.plain(len(measured.mse_N), measured.held_out_groups_N)

    def mean(values_N: Values, what: str, better: Better) -> Figure:
        return _figure(bootstrap_mean(values_N, weighting, seed=seed), what, on, better, samples=len(values_N))

    def psnr_of_mean(weight_N: Array) -> float:
        return float(psnr(np.array(weight_N @ measured.mse_N)))

    figures = {
        "psnr": mean(psnr(measured.mse_N), "dB of each picture, averaged over pictures", "higher"),
        "psnr_of_mean_error": _figure(
            bootstrap(psnr_of_mean, weighting, seed=seed),
            "dB of the squared error averaged over all pictures: the worst of them count most",
            on,
            "higher",
            samples=len(measured.mse_N),
        ),
    }
    if measured.ssim_N is not None:
        figures["ssim"] = mean(
            measured.ssim_N, "structural similarity (Gaussian window of 11 pixels), averaged", "higher"
        )
    perceptual = (
        "LPIPS's formula with all weights 1 on the five stages of EfficientNet-Lite0 (ImageNet): not calibrated on "
        "people's judgements, not comparable with published LPIPS, flattering if the training loss used that network"
    )
    figures["perceptual"] = mean(measured.perceptual_N, perceptual, "lower")
    figures["l1"] = mean(measured.l1_N, "mean absolute error", "lower")
    return figures


def psnr(mse_N: Values) -> Values:
    """-10 log10 of squared errors on the scale [0, 1], at most 100 dB."""
    psnr_N: Values = -10 * np.log10(mse_N.clip(min=1e-10))
    return psnr_N


def _novelty(nearness: Nearness, num_train: int, *, weighted: bool) -> dict[str, Figure]:
    """How near samples come to training pictures, beside how near unseen real pictures come."""
    how = ", each class weighted to its share of the held-out" if weighted else ""
    on = f"samples and held-out pictures, each beside the nearest of {num_train:,} training pictures{how}; {FEATURES}"
    sizes: dict[str, Any] = {"samples": len(nearness.distance_N), "against": len(nearness.held_out_M)}
    ratio = "median of samples over median of held-out pictures"
    suspicious = "share of samples nearer than all but 5% of held-out pictures: 5% for unseen pictures"
    both = f"held-out pictures beside the nearest of {num_train:,} training pictures; {FEATURES}"
    nearer = "chance that a sample is nearer than a held-out picture: 50% for unseen pictures"
    return {
        "nearest_training_ratio": _figure(nearness.ratio(), ratio, on, "higher", **sizes),
        "suspiciously_near": _figure(nearness.suspicious(), suspicious, on, "lower", **sizes),
        "nearer_than_held_out": _figure(nearness.nearer_than_held_out(), nearer, on, "lower", **sizes),
        "held_out_copies": _figure(
            nearness.held_out_copies(),
            "share of held-out pictures that are a training picture as well: the split leaks",
            both,
            "lower",
            samples=len(nearness.held_out_M),
        ),
    }
