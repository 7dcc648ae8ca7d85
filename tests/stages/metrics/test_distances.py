"""KID and the Frechet distance agree with naive implementations, with closed forms, and with what they promise."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from stages.metrics import distances
from stages.metrics.distances import Moments, PictureSet, frechet, frechet_distance, kid, nearest


def draw(seed: int, count: int, size: int, *, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, size))


def naive_kernel(a: np.ndarray, b: np.ndarray) -> float:
    return float((sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3)


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    xx = sum(naive_kernel(x[i], x[j]) for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    yy = sum(naive_kernel(y[i], y[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
    xy = sum(naive_kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def naive_stratified(x: np.ndarray, labels: np.ndarray, shares: dict[int, float], y: np.ndarray) -> float:
    value = 0.0
    for c, d in itertools.product(shares, repeat=2):
        ic, id_ = np.flatnonzero(labels == c), np.flatnonzero(labels == d)
        pairs = [naive_kernel(x[i], x[j]) for i in ic for j in id_ if i != j]
        value += shares[c] * shares[d] * sum(pairs) / len(pairs)
    m = len(y)
    value += sum(naive_kernel(y[i], y[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
    for c, share in shares.items():
        value -= 2 * share * float(np.mean([naive_kernel(a, b) for a in x[labels == c] for b in y]))
    return value


def naive_jackknife(x: np.ndarray, y: np.ndarray) -> float:
    variance = 0.0
    left_x = [naive_kid(np.delete(x, i, 0), y) for i in range(len(x))]
    left_y = [naive_kid(x, np.delete(y, i, 0)) for i in range(len(y))]
    for values in (left_x, left_y):
        n = len(values)
        variance += (n - 1) / n * np.square(np.array(values) - np.mean(values)).sum()
    return float(np.sqrt(variance))


def test_kid_agrees_with_the_textbook_double_loop_and_its_error_with_a_naive_jackknife() -> None:
    x, y = draw(0, 7, 5), draw(1, 6, 5, mean=0.5)
    estimate = kid(PictureSet.plain(x), PictureSet.plain(y))
    assert estimate.value == pytest.approx(naive_kid(x, y), rel=1e-12)
    assert estimate.error == pytest.approx(naive_jackknife(x, y), rel=1e-10)


def test_stratified_kid_agrees_with_a_naive_one() -> None:
    x, y = draw(2, 12, 4), draw(3, 6, 4)
    labels = np.array([0, 1, 2] * 4)
    shares = {0: 0.6, 1: 0.3, 2: 0.1}
    estimate = kid(PictureSet.weighted(x, labels, shares), PictureSet.plain(y))
    assert estimate.value == pytest.approx(naive_stratified(x, labels, shares, y), rel=1e-12)


def test_stratified_jackknife_agrees_with_leaving_pictures_out_one_by_one() -> None:
    x, y = draw(4, 10, 3), draw(5, 5, 3)
    labels = np.array([0, 1] * 5)
    shares = {0: 0.8, 1: 0.2}
    variance = 0.0
    for c in (0, 1):
        values = [
            naive_stratified(np.delete(x, i, 0), np.delete(labels, i), shares, y) for i in np.flatnonzero(labels == c)
        ]
        variance += (len(values) - 1) / len(values) * np.square(np.array(values) - np.mean(values)).sum()
    values = [naive_stratified(x, labels, shares, np.delete(y, i, 0)) for i in range(len(y))]
    variance += (len(values) - 1) / len(values) * np.square(np.array(values) - np.mean(values)).sum()
    estimate = kid(PictureSet.weighted(x, labels, shares), PictureSet.plain(y))
    assert estimate.error == pytest.approx(np.sqrt(variance), rel=1e-10)


def test_kid_of_many_blocks_equals_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = PictureSet.plain(draw(6, 50, 8)), PictureSet.plain(draw(7, 40, 8))
    whole = kid(x, y)
    monkeypatch.setattr(distances, "BLOCK_ROWS", 7)
    assert kid(x, y).value == pytest.approx(whole.value, rel=1e-10)


def test_kid_of_shifted_gaussians_has_its_closed_form_as_mean_and_its_error_as_spread() -> None:
    # d = 1, x ~ N(0, 1), y ~ N(s, 1): E k = E (xy + 1)^3 = m3 m3' + 3 m2 m2' + 3 m1 m1' + 1 for independent x, y.
    s = 0.7
    m_x, m_y = (0.0, 1.0, 0.0), (s, 1 + s**2, 3 * s + s**3)

    def mean_kernel(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1

    truth = mean_kernel(m_x, m_x) + mean_kernel(m_y, m_y) - 2 * mean_kernel(m_x, m_y)
    runs = [
        kid(PictureSet.plain(draw(2 * i, 80, 1)), PictureSet.plain(draw(2 * i + 1, 80, 1, mean=s))) for i in range(400)
    ]
    values = np.array([run.value for run in runs])
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    assert np.sqrt(np.mean([run.error**2 for run in runs])) == pytest.approx(values.std(), rel=0.25)


def test_kid_between_halves_of_one_distribution_is_unbiased_around_zero() -> None:
    values = np.array(
        [
            kid(PictureSet.plain(draw(2 * i, 40, 16)), PictureSet.plain(draw(2 * i + 1, 40, 16))).value
            for i in range(200)
        ]
    )
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    assert (values < 0).any()


def test_class_weights_undo_a_balanced_draw_from_an_unbalanced_world() -> None:
    # Two classes far apart, 90% and 10% in the world; the samples are balanced but perfect within each class.
    rng = np.random.default_rng(8)
    real_labels = (np.arange(400) % 10 == 0).astype(int)
    real = rng.normal(0, 1, (400, 6)) + 2.0 * real_labels[:, None]
    labels = np.arange(400) % 2
    samples = rng.normal(0, 1, (400, 6)) + 2.0 * labels[:, None]
    unweighted = kid(PictureSet.plain(samples), PictureSet.plain(real))
    weighted = kid(PictureSet.weighted(samples, labels, {0: 0.9, 1: 0.1}), PictureSet.plain(real))
    assert unweighted.interval[0] > 1.0
    assert weighted.interval[0] < 0.0 < weighted.interval[1] < 0.1 * unweighted.value


def test_a_class_without_a_share_does_not_count() -> None:
    x, y = draw(9, 12, 4), PictureSet.plain(draw(10, 6, 4))
    labels = np.array([0, 1, 5] * 4)
    some = kid(PictureSet.weighted(x, labels, {0: 3.0, 1: 1.0, 5: 0.0}), y)
    assert some.value == kid(PictureSet.weighted(x[labels != 5], labels[labels != 5], {0: 0.75, 1: 0.25}), y).value


def test_moments_merged_from_pieces_equal_numpys() -> None:
    x = draw(11, 97, 9, mean=1e4)
    moments = Moments(9)
    for piece in np.array_split(x, 5):
        moments.add(piece)
    assert np.allclose(moments.mean_D, x.mean(axis=0), rtol=1e-14)
    assert np.allclose(moments.covariance_DD, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)


def test_weighted_moments_equal_numpys_with_reliability_weights() -> None:
    x, weight = draw(12, 60, 4), np.random.default_rng(13).random(60)
    moments = Moments(4).add(x[:25], weight[:25]).add(x[25:], weight[25:])
    assert np.allclose(moments.mean_D, np.average(x, axis=0, weights=weight))
    assert np.allclose(moments.covariance_DD, np.cov(x, rowvar=False, aweights=weight))


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    moments = Moments(len(mean))
    moments.weight, moments.weight_squared, moments.mean_D = 2.0, 2.0, mean
    moments.scatter_DD = covariance
    return moments


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
    assert frechet_distance(Moments(12).add(x), Moments(12).add(y)) == pytest.approx(usual, rel=1e-8)


def test_frechet_distance_of_fewer_pictures_than_features_agrees_with_the_nuclear_norm_of_the_data() -> None:
    x, y = draw(19, 10, 40), draw(20, 14, 40, mean=0.2, scale=2.0)
    a, b = (x - x.mean(0)) / np.sqrt(9), (y - y.mean(0)) / np.sqrt(13)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross
    assert frechet_distance(Moments(40).add(x), Moments(40).add(y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(10, 14), (60, 70), (10, 70)])
def test_both_ways_to_a_frechet_distance_of_weighted_sets_agree(
    n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "BLOCK_ROWS", 9)
    labels = np.arange(n) % 2
    x = PictureSet.weighted(draw(23, n, 40, mean=0.3), labels, {0: 0.8, 1: 0.2})
    y = PictureSet.plain(draw(24, m, 40, scale=1.5))
    a = Moments(40).add(x.features_ND, x.weight_N)
    assert frechet(x, y) == pytest.approx(frechet_distance(a, Moments(40).add(y.features_ND)), rel=1e-6)


def test_nearest_finds_what_a_full_distance_matrix_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(21, 30, 5), draw(22, 40, 5)
    monkeypatch.setattr(distances, "BLOCK_ROWS", 8)
    full = np.linalg.norm(x[:, None] - y[None], axis=2)
    index, distance = nearest(x, y)
    assert (index == full.argmin(axis=1)).all()
    assert np.allclose(distance, full.min(axis=1), rtol=1e-12)
