"""The rows of the report's tables: comparisons with real pictures, classes, every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from stages.metrics.judge import psnr
from stages.metrics.measured import Measured

Figures = Mapping[str, Mapping[str, Any]]

SUBJECTS = {
    "floor": "Other real pictures",
    "reconstructions": "Reconstructions",
    "samples": "Samples",
    "chance": "Random tokens",
}
"""What is compared with the held-out pictures, from the best possible to chance."""
COMPARISONS = {
    "kid": "KID",
    "frechet": "Fr\u00e9chet distance",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
FIGURE_NAMES = {
    "psnr": "PSNR",
    "psnr_of_mean_error": "PSNR of the mean error",
    "ssim": "SSIM",
    "perceptual": "Perceptual distance",
    "l1": "L1",
    "codebook_used_held_out": "Codebook in use",
    "codebook_used_corpus": "Codebook in use",
    "codebook_perplexity_held_out": "Codebook perplexity",
    "codebook_perplexity_corpus": "Codebook perplexity",
    "bits_per_token_held_out": "Bits per token",
    "bits_per_token_train": "Bits per token",
    "overfit_gap": "Overfit gap",
    "nearest_training_ratio": "Distance to training pictures, ratio",
    "suspiciously_near": "Suspiciously near",
    "nearer_than_held_out": "Nearer than a held-out picture",
    "held_out_copies": "Held-out copies",
}
ENDS = {"_held_out": "held-out", "_corpus": "whole corpus", "_train": "training"}
ABBREVIATIONS = {"fid": "FID", "rfid": "rFID", "gfid": "gFID", "kid": "KID", "gkid": "gKID", "is": "IS"}
OBEDIENCE = {
    "class": "Class",
    "caption": "Caption",
    "edges": "Edges",
    "sketch": "Sketch",
    "low_resolution": "Low resolution",
    "coordinates": "Coordinates",
    "alpha": "Opacity",
    "segmentation": "Segmentation",
}
"""What the prior may be told, of what can be found in a picture again."""
SHARES = (
    "precision",
    "recall",
    "gprecision",
    "grecall",
    "coverage",
    "codebook_used",
    "suspiciously_near",
    "nearer_than",
    "held_out",
    "obedience_class",
    "obedience_coordinates",
    "obedience_segmentation",
)
"""How names of figures begin that are printed as percents."""


def scale(figures: Figures) -> list[dict[str, Any]]:
    """Bars of the KID of everything that was compared, from the best possible to chance."""
    longest = max(figures[f"kid_{subject}"]["interval"][1] for subject in SUBJECTS)
    rows = []
    for subject, name in SUBJECTS.items():
        figure = figures[f"kid_{subject}"]
        low, high = (min(max(end / longest, 0.0), 1.0) for end in figure["interval"])
        width = min(max(figure["value"] / longest, 0.0), 1.0)
        error = (figure["interval"][1] - figure["interval"][0]) / 2
        rows.append(
            {"key": subject, "name": name, "figure": figure, "width": width, "low": low, "high": high, "error": error}
        )
    return rows


def comparisons(figures: Figures) -> tuple[list[str], list[tuple[str, list[dict[str, Any]]]]]:
    """How everything compares with the held-out pictures: the heads of columns, and for each subject its figures."""
    kinds = [kind for kind in COMPARISONS if f"{kind}_samples" in figures and kind != "kid"]
    rows = [
        (name, [{**figures[f"{kind}_{subject}"], "is_share": kind in SHARES} for kind in kinds])
        for subject, name in SUBJECTS.items()
        if all(f"{kind}_{subject}" in figures for kind in kinds)
    ]
    return [COMPARISONS[kind] for kind in kinds], rows


def every_figure(figures: Figures) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """All figures in groups of what they were computed on, each with its name."""
    for computed_on, group in groupby(figures.items(), key=lambda item: item[1]["computed_on"]):
        yield (
            computed_on,
            [
                {**figure, "name": figure.get("title") or figure_name(name), "is_share": name.startswith(SHARES)}
                for name, figure in group
            ],
        )


def obedience(figures: Figures) -> list[dict[str, Any]]:
    """For each condition its figure for samples, for shuffled conditions, and for what is possible."""
    return [
        {
            "name": name,
            "what": figures[f"obedience_{kind}"]["what"],
            "cells": [
                {**figures[f"obedience_{kind}{suffix}"], "is_share": f"obedience_{kind}" in SHARES}
                for suffix in ("", "_shuffled", "_possible")
            ],
        }
        for kind, name in OBEDIENCE.items()
        if f"obedience_{kind}" in figures
    ]


def figure_name(name: str) -> str:
    """What a figure is called among others that were computed on the same."""
    kind, _, subject = name.partition("_")
    if kind == "obedience":
        told = subject.removesuffix("_shuffled").removesuffix("_possible")
        return f"Obedience, {OBEDIENCE.get(told, told.replace('_', ' ')).lower()}"
    if kind in COMPARISONS and subject in SUBJECTS:
        return COMPARISONS[kind]
    return FIGURE_NAMES.get(name) or _spelled(name)


def full_name(name: str, figure: Mapping[str, Any]) -> str:
    """What a figure is called by itself, with what it was computed on; some bring their `title`."""
    if "title" in figure:
        return str(figure["title"])
    short = figure_name(name)
    kind, _, subject = name.partition("_")
    if kind in COMPARISONS and subject in SUBJECTS:
        return f"{short} of {SUBJECTS[subject].lower()}"
    of = next((words for end, words in ENDS.items() if name.endswith(end) and name in FIGURE_NAMES), "")
    return f"{short}, {of}" if of else short


def _spelled(name: str) -> str:
    """A name without an entry of its own, its abbreviations as they are written."""
    first, *rest = [ABBREVIATIONS.get(word, word) for word in name.split("_")]
    return " ".join([first[0].upper() + first[1:] if first not in ABBREVIATIONS.values() else first, *rest])


def distances_by_class(class_figures: Mapping[str, Figures]) -> dict[str, float]:
    """KID of each class's samples, by the standard Inception where it looked, else by the packaged network."""
    names = ("gkid_val", "gkid_lite0_val")
    seen = {
        name: next((found[it]["value"] for it in names if it in found), None) for name, found in class_figures.items()
    }
    return {name: value for name, value in seen.items() if value is not None}


def class_table(
    classes: Sequence[str], class_counts: Mapping[str, int], measured: Measured
) -> list[dict[str, str | int | float | None]]:
    """A row for each class: how many pictures there are, and what they scored."""
    rows: list[dict[str, str | int | float | None]] = []
    psnr_N = psnr(measured.mse_N)
    for label, name in enumerate(classes):
        held_out_N = measured.held_out_labels_N == label
        bits_N = measured.held_out_bits_N[measured.held_out_bits_labels_N == label]
        rows.append(
            {
                "class": name,
                "train": class_counts[name] - int(held_out_N.sum()),
                "held_out": int(held_out_N.sum()),
                "samples": int((measured.sample_labels_N == label).sum()),
                "psnr": float(psnr_N[held_out_N].mean()) if held_out_N.any() else None,
                "bits_per_token": float(bits_N.mean()) if len(bits_N) else None,
            }
        )
    return rows
