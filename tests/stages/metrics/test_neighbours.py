"""Precision and its kin agree with torch-fidelity and naive loops; nearness tells copies from news."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch_fidelity.metric_prc import prc_features_to_metric

from stages.metrics import neighbours
from stages.metrics.neighbours import Nearness, nearest, overlap, weighted_quantile
from stages.metrics.weighting import Weighting


def draw(seed: int, count: int, size: int, *, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, size))


def test_nearest_finds_what_a_full_distance_matrix_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(21, 30, 5), draw(22, 40, 5)
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 8)
    full = np.linalg.norm(x[:, None] - y[None], axis=2)
    index, distance = nearest(x, y)
    assert (index == full.argmin(axis=1)).all()
    assert np.allclose(distance, full.min(axis=1), rtol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (70, 30)])
def test_precision_and_recall_are_those_of_torch_fidelity(n: int, m: int) -> None:
    generated, real = draw(1, n, 6, scale=0.8), draw(2, m, 6, mean=0.4)
    theirs = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, prc_batch_size=1000, verbose=False
    )
    ours = overlap(generated, real)
    assert 0.1 < theirs["precision"] < 0.95 and 0.1 < theirs["recall"] < 0.95
    assert ours.inside_N.mean() == pytest.approx(theirs["precision"], abs=1e-6)  # theirs is a mean in single precision
    assert ours.reached_M.mean() == pytest.approx(theirs["recall"], abs=1e-6)


def test_all_four_agree_with_naive_loops_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 7)
    x, y, k = draw(3, 25, 3) + 1e4, draw(4, 18, 3, mean=0.3) + 1e4, 3
    radius_x = [sorted(np.linalg.norm(x - a, axis=1))[k] for a in x]
    radius_y = [sorted(np.linalg.norm(y - b, axis=1))[k] for b in y]
    found = overlap(x, y, neighbourhood=k)
    for i, a in enumerate(x):
        balls = sum(np.linalg.norm(a - b) <= radius for b, radius in zip(y, radius_y, strict=True))
        assert found.inside_N[i] == (balls > 0) and found.density_N[i] == pytest.approx(balls / k)
    for j, b in enumerate(y):
        distances = [np.linalg.norm(a - b) for a in x]
        assert found.reached_M[j] == any(d <= radius for d, radius in zip(distances, radius_x, strict=True))
        assert found.covered_M[j] == (min(distances) <= radius_y[j])


def test_the_same_pictures_have_full_precision_and_recall_and_far_ones_none() -> None:
    x = draw(5, 30, 4)
    same, far = overlap(x, x), overlap(x + 100, x)
    assert same.inside_N.all() and same.reached_M.all() and same.covered_M.all()
    assert not (far.inside_N.any() or far.reached_M.any() or far.density_N.any())


def test_a_generator_of_one_good_picture_is_precise_without_recall() -> None:
    real = draw(6, 200, 4)
    found = overlap(real[:1] + 1e-6 * draw(7, 50, 4), real)
    assert found.inside_N.mean() == 1.0
    assert found.reached_M.mean() <= 0.01 and found.covered_M.mean() < 0.05


def nearness(samples: np.ndarray, held_out: np.ndarray) -> Nearness:
    return Nearness(samples, Weighting.plain(len(samples)), held_out, Weighting.plain(len(held_out)), seed=0)


def test_the_chance_to_be_nearer_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(8)
    samples, held_out = rng.integers(0, 12, 40) / 4, rng.integers(2, 15, 30) / 4  # with ties
    statistic = mannwhitneyu(held_out, samples).statistic / (40 * 30)
    assert nearness(samples, held_out).nearer_than_held_out().value == pytest.approx(statistic)


def test_copies_and_news_are_told_apart() -> None:
    train, held_out = draw(9, 400, 5), draw(10, 150, 5)
    news, copies = draw(11, 150, 5), train[:150] + 0.02 * draw(12, 150, 5)
    found = {name: nearest(pictures, train)[1] for name, pictures in (("h", held_out), ("n", news), ("c", copies))}
    fresh, copied = nearness(found["n"], found["h"]), nearness(found["c"], found["h"])
    low, high = fresh.nearer_than_held_out().interval
    assert low < 0.5 < high and fresh.suspicious().value < 0.15
    low, high = fresh.ratio().interval
    assert low < 1 < high
    assert copied.nearer_than_held_out().interval[0] > 0.95 and copied.suspicious().value > 0.95
    assert copied.ratio().value < 0.2


def test_held_out_pictures_that_are_training_pictures_are_counted() -> None:
    train = draw(13, 50, 5)
    held_out = np.concatenate([train[:2], draw(14, 18, 5)])
    _, distances = nearest(held_out, train)
    assert nearness(distances, distances).held_out_copies().value == pytest.approx(0.1)


def test_weights_move_shares_and_medians() -> None:
    samples = np.array([0.1, 0.2, 5.0, 6.0])
    weighting = Weighting.by_label(np.array([0, 0, 1, 1]), {0: 0.9, 1: 0.1})
    found = Nearness(samples, weighting, np.arange(1.0, 21.0), Weighting.plain(20), seed=0)
    assert found.suspicious().value == pytest.approx(0.9)
    assert found.ratio().value == pytest.approx(0.2 / 10)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_an_even_weighted_quantile_is_numpys(share: float) -> None:
    values = draw(15, 41, 1)[:, 0]
    expected = np.quantile(values, share, method="inverted_cdf")
    assert weighted_quantile(values, np.full(41, 1 / 41), share) == expected
