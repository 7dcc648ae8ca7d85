"""The report's words follow its numbers, and say so when there is nothing to say."""

from __future__ import annotations

from typing import Any

import pytest

from stages.metrics.report.words import copying, distrust, findings, verdict, way_to_chance


def figures(**values: float) -> dict[str, dict[str, Any]]:
    """Figures of a decent run, with some replaced."""
    decent = {
        "kid_samples": 0.3,
        "kid_reconstructions": 0.2,
        "kid_floor": 0.1,
        "kid_chance": 1.1,
        "psnr": 23.0,
        "codebook_used_corpus": 0.9,
        "bits_per_token_held_out": 6.0,
        "overfit_gap": 0.05,
        "suspiciously_near": 0.05,
        "nearer_than_held_out": 0.5,
        "nearest_training_ratio": 1.0,
        "held_out_copies": 0.0,
        "precision_samples": 0.3,
        "precision_floor": 0.6,
        "recall_samples": 0.2,
        "recall_floor": 0.7,
    }
    made: dict[str, dict[str, Any]] = {}
    for name, value in {**decent, **values}.items():
        made[name] = {"value": value, "interval": [value - 0.02, value + 0.02], "samples": 5000, "against": 5000}
    made["bits_per_token_held_out"]["uniform"] = 9.0
    return made


@pytest.mark.parametrize(
    ("kid", "words"),
    [
        (0.11, "hardly be told"),
        (0.2, "Convincing"),
        (0.3, "Recognisable"),
        (0.7, "Rough"),
        (1.05, "hardly better than"),
    ],
)
def test_the_verdict_grows_worse_with_the_distance(kid: float, words: str) -> None:
    assert words in verdict(figures(kid_samples=kid))


def test_the_way_to_chance_is_measured_from_the_floor() -> None:
    assert way_to_chance(figures()) == pytest.approx(0.2)
    assert way_to_chance(figures(), "reconstructions") == pytest.approx(0.1)
    assert way_to_chance(figures(kid_floor=-0.1, kid_samples=0.11, kid_chance=1.1)) == pytest.approx(0.1)


def test_features_that_cannot_tell_noise_from_pictures_give_no_verdict() -> None:
    blind = figures(kid_chance=0.11)
    assert verdict(blind).startswith("No verdict")
    assert not any("random tokens (100%)" in line for line in findings(blind, 3, 64, 100, 10))


@pytest.mark.parametrize(
    ("kid", "words"),
    [
        (0.3, "All of that is the tokenizer's"),
        (0.2, "Most of that (50%)"),
        (0.15, "is 25% of it"),
        (0.1, "the prior's doing"),
    ],
)
def test_the_bottleneck_is_named(kid: float, words: str) -> None:
    assert any(words in line for line in findings(figures(kid_reconstructions=kid), 3, 64, 100, 10))


@pytest.mark.parametrize(
    ("held_out", "gap", "words"),
    [
        (6.0, 0.05, "does not overfit"),
        (6.0, 0.4, "mild overfit"),
        (6.0, 1.0, "learning them by heart"),
        (8.95, 0.0, "learned next to nothing"),
    ],
)
def test_the_prior_is_judged_by_its_gap_and_by_what_it_knows(held_out: float, gap: float, words: str) -> None:
    lines = findings(figures(bits_per_token_held_out=held_out, overfit_gap=gap), 3, 64, 100, 10)
    assert words in lines[-1]


def test_what_was_trained_comes_first() -> None:
    assert findings(figures(), 9, 64, 3519, 254)[0] == (
        "Trained on 3,519 pictures in 9 classes at 64\u00d764 pixels; judged on 254 held out from training."
    )
    assert "classes" not in findings(figures(), 0, 64, 3519, 254)[0]


def test_doubts_are_listed_only_where_there_are_any() -> None:
    rows = [{"class": "flags", "train": 200}, {"class": "food", "train": 12}]
    calm = distrust(figures(kid_floor=0.01), rows[:1], [], 0)
    assert len(calm) == 1 and "never with published" in calm[0] and "standard Inception" not in calm[0]
    standard = distrust({**figures(kid_floor=0.01), "gfid_train": {"value": 9.0}}, rows[:1], [], 0)
    assert "figures of the standard Inception stand among all figures" in standard[0]
    few = figures(suspiciously_near=0.3, held_out_copies=0.02)
    few["kid_samples"] |= {"samples": 256, "against": 254}
    lines = distrust(few, rows, ["symbols"], 2)
    assert len(lines) == 8
    text = " ".join(lines)
    assert "food" in text and "flags" not in text
    assert "symbols" in text and "2 warnings" in text and "30%" in text
    assert "2.0% of the held-out pictures are among the training pictures" in text


@pytest.mark.parametrize(
    ("nearer", "words"), [(0.5, "copy nothing would give"), (0.8, "lean towards"), (0.1, "farther from the training")]
)
def test_copying_is_told_from_news_and_from_flaws(nearer: float, words: str) -> None:
    assert words in copying(figures(nearer_than_held_out=nearer))


def test_precision_and_recall_stand_beside_those_of_other_real_pictures() -> None:
    (line,) = [line for line in findings(figures(), 3, 64, 100, 10) if "precision" in line]
    assert line.startswith("30% of samples") and "other real pictures 60%" in line and "recall; 70%" in line
    without = {name: figure for name, figure in figures().items() if not name.startswith(("precision", "recall"))}
    assert not any("precision" in line for line in findings(without, 3, 64, 100, 10))
