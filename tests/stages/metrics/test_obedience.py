"""Obedience: perfect where samples show what they were told, chance where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from stages.metrics.obedience import Pictures, caption_obedience, class_obedience, map_obedience

WORDS = [f"w{number}" for number in range(12)]


def world(count: int, seed: int, *, obedient: bool = True) -> Pictures:
    """Pictures whose features show their label and which of 12 words their caption has."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 4, count)
    said_NK = rng.random((count, 12)) < 0.4
    said_NK[:, 0] |= ~said_NK.any(1)
    features_ND = np.concatenate([np.eye(4)[labels_N], said_NK], axis=1) + rng.normal(0, 0.02, (count, 16))
    captions = [" ".join(np.array(WORDS)[said]) for said in said_NK]
    if not obedient:
        features_ND = features_ND[rng.permutation(count)]
    return Pictures(features_ND.astype(np.float32), labels_N.astype(np.int64), captions, np.arange(count))


def test_samples_of_the_class_they_were_drawn_of_are_recognised() -> None:
    figures = class_obedience(world(400, 0), world(200, 1), world(300, 2), seed=0)
    assert figures["obedience_class"]["value"] == pytest.approx(1.0)
    assert figures["obedience_class_possible"]["value"] == pytest.approx(1.0)
    assert 0.15 < figures["obedience_class_shuffled"]["value"] < 0.35
    assert (figures["obedience_class"]["samples"], figures["obedience_class_possible"]["samples"]) == (300, 200)
    disobedient = class_obedience(world(400, 0), world(200, 1), world(300, 2, obedient=False), seed=0)
    assert 0.15 < disobedient["obedience_class"]["value"] < 0.35


def test_samples_without_a_class_are_left_out() -> None:
    samples = world(10, 2)
    unlabelled = Pictures(samples.features_ND, np.full(10, -1), samples.captions, samples.groups_N)
    assert class_obedience(world(400, 0), world(200, 1), unlabelled, seed=0) == {}


def test_the_own_caption_comes_first_where_the_picture_shows_it_and_anywhere_otherwise() -> None:
    figures = caption_obedience(world(600, 0), world(300, 1), world(120, 2), seed=0)
    assert figures["obedience_caption"]["value"] < 2
    assert figures["obedience_caption_possible"]["value"] < 2
    assert 42 < figures["obedience_caption_shuffled"]["value"] < 59
    disobedient = caption_obedience(world(600, 0), world(300, 1), world(120, 2, obedient=False), seed=0)
    assert 42 < disobedient["obedience_caption"]["value"] < 59


def test_too_few_captions_to_choose_from_give_no_figure() -> None:
    assert caption_obedience(world(600, 0), world(50, 1), world(120, 2), seed=0) == {}


def test_samples_of_one_condition_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(25), 4)
    alone, together = (
        map_obedience("edges", values, values, values, {"samples": groups, "rebuilt": np.arange(100)}, seed=0)
        for groups in (np.arange(100), np.repeat(np.arange(25), 4))
    )
    narrow, wide = (np.diff(figures["obedience_edges"]["interval"])[0] for figures in (alone, together))
    assert wide > 1.5 * narrow
    assert alone["obedience_edges"]["value"] == together["obedience_edges"]["value"] == pytest.approx(values.mean())
