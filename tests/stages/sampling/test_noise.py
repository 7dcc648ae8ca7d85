"""Gumbel noise: its distribution, its independence, and that it belongs to the sample alone."""

import numpy as np
import pytest
from scipy import stats

from stages.sampling.noise import Draw, GumbelNoise, draws_of


def test_candidates_of_one_sample_have_noise_of_their_own() -> None:
    first, second = (GumbelNoise([Draw(7, 3, candidate)]).at(5, 100) for candidate in (0, 1))
    assert np.array_equal(first, GumbelNoise(draws_of(7, [3])).at(5, 100))
    assert not np.isin(first, second).any()


def test_noise_follows_the_gumbel_distribution() -> None:
    values = np.concatenate([GumbelNoise(draws_of(0, range(20))).at(t, 500).ravel() for t in range(10)])
    assert np.isfinite(values).all()
    assert values.mean() == pytest.approx(np.euler_gamma, abs=4 * np.pi / np.sqrt(6 * values.size))
    assert stats.kstest(values, stats.gumbel_r.cdf).pvalue > 1e-3


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    together = GumbelNoise(draws_of(7, [3, 10, 4])).at(5, 100)
    assert np.array_equal(GumbelNoise(draws_of(7, [10])).at(5, 100)[0], together[1])


def test_noise_of_a_position_does_not_depend_on_what_was_drawn_before() -> None:
    noise = GumbelNoise(draws_of(7, [3, 4]))
    late_first = noise.at(9, 100)
    noise.at(2, 33)
    assert np.array_equal(noise.at(9, 100), late_first)


def test_noise_of_a_code_does_not_depend_on_the_size_of_the_codebook() -> None:
    assert np.array_equal(GumbelNoise(draws_of(7, [3])).at(1, 37), GumbelNoise(draws_of(7, [3])).at(1, 100)[:, :37])


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 5, 3), (1, 5, 3)), ((0, 5, 3), (0, 6, 3)), ((0, 5, 3), (0, 5, 4)), ((0, 5, 3), (5, 0, 3))],
    ids=["seeds", "ids", "positions", "seed and id swapped"],
)
def test_noise_of_different_sources_is_independent(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    (a,), (b,) = (GumbelNoise(draws_of(seed, [sample])).at(position, 20000) for seed, sample, position in (one, other))
    assert not np.intersect1d(a, b).size
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20000)


def test_noise_stays_the_same_for_ever() -> None:
    raw = np.array([17059829446778525614, 11537922167571313856, 9726830961731228595], dtype=np.uint64)
    uniform = ((raw >> np.uint64(12)) + 0.5) / 2**52
    assert np.array_equal(GumbelNoise(draws_of(2**64 - 1, [42])).at(3, 3)[0], -np.log(-np.log(uniform)))


def test_argmax_of_logits_and_noise_draws_from_the_softmax() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    draws = [(np.log(probabilities) + GumbelNoise(draws_of(0, range(1000))).at(t, 5)).argmax(axis=1) for t in range(8)]
    counts = np.bincount(np.concatenate(draws), minlength=5)
    assert stats.chisquare(counts, 8000 * probabilities).pvalue > 1e-3
