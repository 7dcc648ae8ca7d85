"""The report in plain words: a verdict, what it rests on, and what to distrust. Deterministic, from figures alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.metrics.report.numbers import number, percent

Figures = Mapping[str, Mapping[str, Any]]

FEW_PICTURES = 1000
FEW_OF_A_CLASS = 50

# Share of the way from real pictures to random tokens, in squared kernel distance: below it, these words.
VERDICTS = (
    (0.03, "Samples that can hardly be told from real pictures."),
    (0.15, "Convincing samples with visible flaws."),
    (0.4, "Recognisable samples, clearly not real."),
    (0.8, "Rough samples: the gist is there, the form is not."),
    (math.inf, "Samples hardly better than random tokens."),
)


def way_to_chance(figures: Figures, name: str = "samples") -> float | None:
    """Where a KID lies between other real pictures (0) and random tokens (1); None where those two coincide."""
    floor = max(figures["kid_floor"]["value"], 0.0)
    span = figures["kid_chance"]["value"] - floor
    if span <= 0 or figures["kid_chance"]["interval"][0] <= figures["kid_floor"]["interval"][1]:
        return None
    return float((figures[f"kid_{name}"]["value"] - floor) / span)


def verdict(figures: Figures) -> str:
    """One line on the samples."""
    way = way_to_chance(figures)
    if way is None:
        return "No verdict: random tokens look as real as real pictures, so these features see nothing."
    return next(words for limit, words in VERDICTS if way < limit)


def findings(figures: Figures, classes: int, image_size: int, train: int, held_out: int) -> list[str]:
    """What was trained on what, and how good each half is."""
    lines = [
        f"Trained on {train:,} pictures{f' in {classes} classes' if classes else ''} at "
        f"{image_size}\u00d7{image_size} pixels; judged on {held_out:,} held out from training."
    ]
    way = way_to_chance(figures)
    if way is not None:
        lines.append(
            f"Between other real pictures (0%) and pictures of random tokens (100%), samples stand at {percent(way)}. "
            + _bottleneck(figures)
        )
    if "precision_samples" in figures:
        lines.append(_fidelity_line(figures))
    psnr = figures["psnr"]["value"]
    line = f"The tokenizer brings held-out pictures back at {psnr:.1f} dB: {_sharpness(psnr)}."
    if "codebook_used_corpus" in figures:
        used = figures["codebook_used_corpus"]["value"]
        line += f" The corpus uses {percent(used)} of its codebook{_codebook_remark(used)}."
    return [*lines, line, *([_prior_line(figures)] if "bits_per_token_held_out" in figures else [])]


def distrust(
    figures: Figures, rows: Sequence[Mapping[str, Any]], left_out: Sequence[str], num_warnings: int
) -> list[str]:
    """What a reader should keep in mind before believing the numbers."""
    standard = any(name.startswith(("gfid", "rfid")) for name in figures)
    besides = "; the figures of the standard Inception stand among all figures" if standard else ""
    lines = [
        "The distances above use features of EfficientNet-Lite0. They compare runs of this pipeline with one another, "
        f"never with published FID or KID values, which use another network{besides}."
    ]
    held_out, samples = figures["kid_samples"]["against"], figures["kid_samples"]["samples"]
    if min(held_out, samples) < FEW_PICTURES:
        lines.append(
            f"{samples:,} samples against {held_out:,} held-out pictures are few: mind the 95% intervals. "
            "With fewer pictures than their 1,280 features, Fr\u00e9chet distances are biased upwards: "
            "read the KID first, which is not."
        )
    if figures["kid_floor"]["interval"][0] > 0:
        lines.append(
            "Even other real pictures differ from the held-out ones, as related pictures share a side of the split: "
            "the first bar is what a perfect generator would score."
        )
    copies = figures["held_out_copies"]["value"]
    if copies > 0:
        lines.append(
            f"{percent(copies)} of the held-out pictures are among the training pictures too: what is measured on "
            "held-out pictures is flattered. Give equal pictures one group in the source."
        )
    if left_out:
        lines.append(f"Too few samples to judge these classes: {', '.join(left_out)}.")
    small = [row["class"] for row in rows if row["train"] < FEW_OF_A_CLASS]
    if small:
        lines.append(f"Fewer than {FEW_OF_A_CLASS} training pictures: {', '.join(small)}.")
    near = figures["suspiciously_near"]["value"]
    if near > 0.15:
        lines.append(
            f"{percent(near)} of samples are nearer to a training picture than 95% of unseen real pictures are: "
            "look at the neighbours below for copies."
        )
    if num_warnings:
        lines.append(f"The stages recorded {num_warnings} warning{'s' if num_warnings > 1 else ''}, listed at the end.")
    return lines


def copying(figures: Figures) -> str:
    """How near samples come to training pictures, in a sentence or two."""
    nearer, ratio = figures["nearer_than_held_out"], figures["nearest_training_ratio"]["value"]
    low, high = nearer["interval"]
    compared = (
        f"Take a sample and a held-out picture at random: in {percent(nearer['value'])} of cases (95% interval "
        f"{percent(low)} to {percent(high)}) the sample is the one that lies nearer to a training picture."
    )
    if low > 0.5:
        return f"{compared} For pictures that copy nothing it would be 50%: samples lean towards what they were shown."
    if high < 0.5:
        return (
            f"{compared} For pictures that copy nothing it would be 50%: samples are farther from the training "
            f"pictures than unseen real ones ({number(ratio, 2)} times in the median), so they are flawed, not copied."
        )
    return f"{compared} That is what pictures that copy nothing would give."


def _bottleneck(figures: Figures) -> str:
    """Which half of the model owes the distance. The tokenizer's part is what its reconstructions already show."""
    floor = max(figures["kid_floor"]["value"], 0.0)
    samples = max(figures["kid_samples"]["value"] - floor, 1e-12)
    part = max(figures["kid_reconstructions"]["value"] - floor, 0.0) / samples
    if part >= 0.95:
        return "All of that is the tokenizer's loss of detail: a better prior alone would not help."
    if part >= 0.5:
        return f"Most of that ({percent(part)}) is the tokenizer's loss of detail: improve it first."
    if part >= 0.2:
        return f"The tokenizer's loss of detail is {percent(part)} of it, the prior's mistakes are the rest."
    return f"Nearly all of that is the prior's doing; the tokenizer accounts for {percent(part)}."


def _fidelity_line(figures: Figures) -> str:
    """Precision and recall in plain words, beside what other real pictures reach."""
    share = {
        f"{kind}_{name}": percent(figures[f"{kind}_{name}"]["value"])
        for kind in ("precision", "recall")
        for name in ("samples", "floor")
    }
    return (
        f"{share['precision_samples']} of samples lie where held-out pictures lie (precision; other real pictures "
        f"{share['precision_floor']}), and they reach {share['recall_samples']} of the held-out pictures (recall; "
        f"{share['recall_floor']})."
    )


def _sharpness(psnr: float) -> str:
    for limit, words in (
        (18, "shapes and colours survive, little else"),
        (22, "clearly recognisable, fine detail is lost"),
        (26, "good, with soft edges"),
        (32, "very good, differences show side by side"),
    ):
        if psnr < limit:
            return words
    return "hard to tell from the originals"


def _codebook_remark(used: float) -> str:
    return "" if used >= 0.5 else ": it has collapsed onto few codes" if used < 0.1 else ": much of it lies idle"


def _prior_line(figures: Figures) -> str:
    held_out, gap = figures["bits_per_token_held_out"]["value"], figures["overfit_gap"]["value"]
    line = f"The prior needs {held_out:.2f} bits for a token of a picture it has not seen"
    share = gap / held_out
    nothing = figures["bits_per_token_held_out"]["uniform"]
    if held_out > 0.98 * nothing:
        return f"{line}; knowing nothing at all takes {nothing:.2f}: it has learned next to nothing."
    if share > 0.1:
        return f"{line}, but {gap:.2f} fewer for training pictures: it is learning them by heart."
    if share > 0.03:
        return f"{line}, {gap:.2f} more than for training pictures: a mild overfit."
    return f"{line}, about as many as for training pictures: it does not overfit."
