"""The Frechet distance agrees with other implementations and closed forms, its error with the spread it stands for."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from stages.metrics import frechet_distance as frechet_distance_module
from stages.metrics.frechet_distance import frechet, frechet_distance, frechet_to_reference, moments_of
from stages.metrics.moments import Moments
from stages.metrics.picture_set import PictureSet


def draw(seed: int, count: int, size: int, *, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, size))


def test_moments_merged_from_pieces_equal_numpys() -> None:
    x = draw(11, 97, 9, mean=1e4)
    moments = Moments.nothing(9)
    for piece in np.array_split(x, 5):
        moments.add(piece)
    assert np.allclose(moments.mean_D, x.mean(axis=0), rtol=1e-14)
    assert np.allclose(moments.covariance_DD, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)


def test_weighted_moments_equal_numpys_with_reliability_weights() -> None:
    x, weight = draw(12, 60, 4), np.random.default_rng(13).random(60)
    moments = Moments.nothing(4).add(x[:25], weight[:25]).add(x[25:], weight[25:])
    assert np.allclose(moments.mean_D, np.average(x, axis=0, weights=weight))
    assert np.allclose(moments.covariance_DD, np.cov(x, rowvar=False, aweights=weight))


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(2.0, 2.0, mean, covariance)


def test_frechet_distance_has_the_closed_form_of_commuting_gaussians() -> None:
    rotation = np.linalg.qr(draw(14, 6, 6))[0]
    a, b = np.array([1.0, 4, 9, 0.25, 1, 2]), np.array([4.0, 1, 9, 1, 0, 3])
    mean = np.arange(6.0)
    distance = frechet_distance(
        gaussian(mean, rotation * a @ rotation.T), gaussian(mean + 0.5, rotation * b @ rotation.T)
    )
    assert distance == pytest.approx(6 * 0.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-6)


def test_frechet_distance_agrees_with_scipys_matrix_root_as_the_usual_implementations_take_it() -> None:
    x, y = draw(15, 80, 12) @ draw(16, 12, 12), draw(17, 70, 12) @ draw(18, 12, 12)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    usual = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(Moments.nothing(12).add(x), Moments.nothing(12).add(y)) == pytest.approx(usual, rel=1e-8)


def test_frechet_distance_of_fewer_pictures_than_features_agrees_with_the_nuclear_norm_of_the_data() -> None:
    x, y = draw(19, 10, 40), draw(20, 14, 40, mean=0.2, scale=2.0)
    a, b = (x - x.mean(0)) / np.sqrt(9), (y - y.mean(0)) / np.sqrt(13)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross
    assert frechet_distance(Moments.nothing(40).add(x), Moments.nothing(40).add(y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(10, 14), (60, 70), (10, 70)])
def test_both_ways_to_a_frechet_distance_of_weighted_sets_agree(
    n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet_distance_module, "BLOCK_ROWS", 9)
    labels = np.arange(n) % 2
    x = PictureSet.weighted(draw(23, n, 40, mean=0.3), labels, {0: 0.8, 1: 0.2})
    y = PictureSet.plain(draw(24, m, 40, scale=1.5))
    a = Moments.nothing(40).add(x.features_ND, x.weighting.weight_N)
    assert frechet(x, y).value == pytest.approx(frechet_distance(a, Moments.nothing(40).add(y.features_ND)), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(50, 60), (200, 150)])
def test_frechet_distance_is_that_of_torch_fidelity_below_and_above_the_number_of_features(n: int, m: int) -> None:
    x, y = np.abs(draw(40, n, 80)) ** 1.5, np.abs(draw(41, m, 80, mean=0.2)) ** 1.5
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    # Below, theirs takes roots of eigenvalues that are zero but for rounding: it is the less exact one.
    assert frechet(PictureSet.plain(x), PictureSet.plain(y)).value == pytest.approx(
        theirs, rel=1e-6 if n < 80 else 1e-9
    )


@pytest.mark.parametrize("count", [20, 33])
def test_leaving_folds_out_gives_the_same_by_both_ways(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = PictureSet.plain(draw(44, count, 40)), PictureSet.plain(draw(45, 39, 40, mean=0.2))
    by_gram = frechet_distance_module._from_gram_matrices(x, y)
    by_moments = frechet_distance_module._from_moments(x, y)
    assert by_gram.value == pytest.approx(by_moments.value, rel=1e-6)
    assert np.allclose(by_gram.without_x, by_moments.without_x, rtol=1e-6)
    assert np.allclose(by_gram.without_y, by_moments.without_y, rtol=1e-6)
    # Naive: the distance of what is left, from scratch.
    fold = np.arange(count) % 20
    naive = frechet_distance(Moments.nothing(40).add(x.features_ND[fold != 3]), Moments.nothing(40).add(y.features_ND))
    assert by_gram.without_x[3] == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("size", [4, 150])
def test_the_error_is_the_spread_over_worlds(size: int) -> None:
    runs = [
        frechet(PictureSet.plain(draw(2 * i, 100, size)), PictureSet.plain(draw(2 * i + 1, 80, size, mean=0.5)))
        for i in range(60)
    ]
    spread = np.std([run.value for run in runs])
    assert np.sqrt(np.mean([run.error**2 for run in runs])) == pytest.approx(spread, rel=0.35)


def test_sets_of_few_groups_have_an_error_too() -> None:
    x = PictureSet.plain(draw(46, 30, 8), np.repeat(np.arange(3), 10))
    estimate = frechet(x, PictureSet.plain(draw(47, 30, 8)))
    assert 0 < estimate.error < np.inf


@pytest.mark.parametrize("count", [90, 25])
def test_a_fold_left_out_changes_the_distance_to_a_reference_as_a_distance_from_scratch_does(count: int) -> None:
    # 90 pictures of 30 features follow the gradient, 25 are taken from scratch.
    reference = Moments.nothing(30).add(draw(48, 400, 30, mean=0.2))
    for seed in range(5):
        x = draw(50 + seed, count, 30) ** 3
        value, without = frechet_distance_module._leaving_out(PictureSet.plain(x), reference)
        fold = np.arange(count) % 20
        naive = [frechet_distance(Moments.nothing(30).add(x[fold != it]), reference) for it in range(20)]
        assert value == pytest.approx(frechet_distance(Moments.nothing(30).add(x), reference), rel=1e-8)
        if count < 30:
            assert np.allclose(without, naive, rtol=1e-6)
        else:
            assert np.std(without) == pytest.approx(np.std(naive), rel=0.1)
            assert np.corrcoef(without, naive)[0, 1] > 0.95


def test_a_reference_adds_no_error_and_the_same_distance() -> None:
    x, y = PictureSet.plain(draw(60, 200, 10)), PictureSet.plain(draw(61, 150, 10, mean=0.5))
    both, one = frechet(x, y), frechet_to_reference(x, moments_of(y))
    assert one.value == pytest.approx(both.value, rel=1e-9)
    assert 0 < one.error < both.error


def test_a_digest_names_statistics_whatever_pieces_they_came_in() -> None:
    x = np.arange(24.0).reshape(8, 3) ** 2
    whole = Moments.nothing(3).add(x)
    assert whole.digest == Moments.nothing(3).add(x).digest
    assert whole.digest != Moments.nothing(3).add(x[:7]).digest
