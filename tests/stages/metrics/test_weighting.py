"""Weights keep the shares of strata; bootstrap intervals cover as often as they say, with groups too."""

import numpy as np
import pytest
from scipy.stats import beta

from stages.metrics.weighting import Weighting, bootstrap_mean, bootstrap_share


def test_strata_count_by_their_share_however_many_pictures_they_have() -> None:
    weighting = Weighting.by_label(np.array([7, 2, 7, 7]), {2: 3.0, 7: 1.0})
    assert weighting.weight_N == pytest.approx([1 / 12, 0.75, 1 / 12, 1 / 12])
    drawn = weighting.weights_of(np.array([0, 1, 2, 0]))
    assert drawn == pytest.approx([0, 0.75, 0.25, 0])
    assert weighting.weights_of(np.array([1, 0, 1, 0])) == pytest.approx([0.5, 0, 0.5, 0]), "an empty stratum loses"


def test_a_draw_takes_whole_groups_and_keeps_the_shares() -> None:
    weighting = Weighting.by_label(np.repeat([0, 1], 6), {0: 0.3, 1: 0.7}, np.repeat(np.arange(6), 2))
    rng = np.random.default_rng(0)
    draws = np.array([weighting.resampled(rng) for _ in range(200)])
    assert draws[:, :6].sum(axis=1) == pytest.approx(0.3)
    assert (draws[:, ::2] == draws[:, 1::2]).all()
    assert draws.mean(axis=0) == pytest.approx(weighting.weight_N, rel=0.2)
    assert len(np.unique(draws, axis=0)) > 5


def test_groups_are_numbered_stratum_by_stratum_and_taken_apart_where_there_are_too_few() -> None:
    labels, groups = np.array([1, 0, 1, 0, 0, 0, 1]), np.array([5, 5, 5, 6, 7, 7, 6])
    weighting = Weighting.by_label(labels, {0: 0.5, 1: 0.5}, groups)
    assert weighting.drawn_N.tolist() == [3, 0, 4, 1, 2, 2, 5], "stratum 1 has two groups: its pictures stand alone"
    assert weighting.stratum_G.tolist() == [0, 0, 0, 1, 1, 1] and weighting.size_G.tolist() == [1, 1, 2, 1, 1, 1]
    assert weighting.sums_of_groups(np.arange(7.0)).tolist() == [1, 3, 9, 0, 2, 6]


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    estimate = bootstrap_mean(values, Weighting.plain(400), seed=0)
    assert estimate.value == pytest.approx(values.mean())
    error = values.std(ddof=1) / 20
    assert estimate.interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03)
    assert estimate.by == "bootstrap"
    assert bootstrap_mean(values, Weighting.plain(400), seed=0) == estimate


@pytest.mark.slow
@pytest.mark.parametrize(("grouped", "at_least", "at_most"), [(True, 0.86, 0.99), (False, 0.3, 0.8)])
def test_intervals_of_grouped_pictures_cover_the_truth_only_if_groups_are_drawn(
    grouped: bool, at_least: float, at_most: float
) -> None:
    rng, group = np.random.default_rng(2), np.repeat(np.arange(30), 5)
    covered = []
    for seed in range(120):
        values = rng.normal(0, 1, 30)[group] + rng.normal(0, 0.1, 150)
        weighting = Weighting.plain(150, group if grouped else None)
        low, high = bootstrap_mean(values, weighting, seed=seed).interval
        covered.append(low < 0 < high)
    assert at_least <= np.mean(covered) <= at_most


def test_a_share_of_nothing_has_the_exact_binomial_bound() -> None:
    estimate = bootstrap_share(lambda weight: 0.0, Weighting.plain(60), seed=0)
    assert estimate.interval == pytest.approx((0.0, beta.ppf(0.975, 1, 60))) and estimate.by == "binomial"
    full = bootstrap_share(lambda weight: 1.0, Weighting.plain(60, np.repeat(np.arange(12), 5)), seed=0)
    assert full.interval == pytest.approx((beta.ppf(0.025, 12, 1), 1.0)), "of groups, not of pictures"
    half = bootstrap_share(lambda weight: float(weight[:30].sum()), Weighting.plain(60), seed=0)
    assert half.by == "bootstrap" and 0.3 < half.interval[0] < 0.5 < half.interval[1] < 0.7


def test_unequal_weights_lower_the_effective_size() -> None:
    assert Weighting.plain(50).effective_size == pytest.approx(50)
    assert Weighting.plain(50, np.repeat(np.arange(10), 5)).effective_size == pytest.approx(10)
    uneven = Weighting.by_label(np.repeat([0, 1], [10, 40]), {0: 0.8, 1: 0.2})
    assert uneven.effective_size == pytest.approx(1 / (10 * 0.08**2 + 40 * 0.005**2))
