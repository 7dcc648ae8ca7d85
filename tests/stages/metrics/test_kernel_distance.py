"""KID agrees with naive implementations, with torch-fidelity, with closed forms, and with what it promises."""

import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from stages.metrics import kernel_distance
from stages.metrics.kernel_distance import kid
from stages.metrics.picture_set import PictureSet


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
    monkeypatch.setattr(kernel_distance, "BLOCK_ROWS", 7)
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


def test_kid_is_that_of_torch_fidelity_over_all_pictures_at_once() -> None:
    # Its subsets are as large as the sets: each is a permutation. Features like those of a network: positive, skewed.
    x, y = (np.abs(draw(seed, 60, 48, mean=mean)) ** 1.5 for seed, mean in ((30, 0.0), (31, 0.3)))
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=60, verbose=False
    )["kernel_inception_distance_mean"]
    assert kid(PictureSet.plain(x), PictureSet.plain(y)).value == pytest.approx(theirs, rel=1e-10)


def test_the_error_of_groups_is_the_spread_over_worlds_of_groups_and_the_naive_one_is_too_small() -> None:
    # 20 groups of 4 pictures that differ little: only 20 independent pictures.
    group = np.repeat(np.arange(20), 4)

    def world(seed: int) -> np.ndarray:
        return draw(3 * seed, 20, 6, mean=0.7)[group] + 0.1 * draw(3 * seed + 1, 80, 6)

    references = [PictureSet.plain(draw(3 * seed + 2, 60, 6)) for seed in range(100)]
    runs = [kid(PictureSet.plain(world(seed), group), reference) for seed, reference in enumerate(references)]
    careless = [kid(PictureSet.plain(world(seed)), reference) for seed, reference in enumerate(references)]
    spread = np.std([run.value for run in runs])
    assert np.sqrt(np.mean([run.error**2 for run in runs])) == pytest.approx(spread, rel=0.3)
    assert np.sqrt(np.mean([run.error**2 for run in careless])) < 0.7 * spread


def test_paired_sets_lose_a_picture_in_both_at_once() -> None:
    x = draw(32, 9, 4)
    y = x + 0.3 * draw(33, 9, 4)
    left_out = [naive_kid(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(9)]
    naive = np.sqrt(8 / 9 * np.square(np.array(left_out) - np.mean(left_out)).sum())
    paired = kid(PictureSet.plain(x), PictureSet.plain(y), paired=True)
    assert paired.error == pytest.approx(naive, rel=1e-10)
    assert paired.value == kid(PictureSet.plain(x), PictureSet.plain(y)).value
    assert paired.error < 0.9 * kid(PictureSet.plain(x), PictureSet.plain(y)).error


@pytest.mark.parametrize("paired", [False, True])
def test_the_error_of_groups_agrees_with_leaving_whole_groups_out(paired: bool) -> None:
    x, y = draw(34, 11, 4), draw(35, 11, 4, mean=0.3)
    group = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4])

    def variance(left_out: list[float]) -> float:
        return 4 / 5 * float(np.square(np.array(left_out) - np.mean(left_out)).sum())

    if paired:
        naive = variance([naive_kid(x[group != g], y[group != g]) for g in range(5)])
    else:
        naive = variance([naive_kid(x[group != g], y) for g in range(5)])
        naive += variance([naive_kid(x, y[group != g]) for g in range(5)])
    estimate = kid(PictureSet.plain(x, group), PictureSet.plain(y, group), paired=paired)
    assert estimate.error == pytest.approx(np.sqrt(naive), rel=1e-10)
    assert estimate.value == pytest.approx(naive_kid(x, y), rel=1e-12), "groups are about the error alone"


def test_stratified_groups_agree_with_leaving_them_out_of_their_strata() -> None:
    x, y = draw(36, 16, 3), draw(37, 5, 3)
    labels = np.repeat([0, 1], 8)
    group = np.array([0, 0, 1, 1, 2, 3, 3, 3, 9, 9, 9, 9, 8, 8, 8, 8])  # stratum 1 has too few groups: pictures
    shares = {0: 0.7, 1: 0.3}
    variance = 0.0
    for parts in ([[0, 1], [2, 3], [4], [5, 6, 7]], [[i] for i in range(8, 16)]):
        values = [naive_stratified(np.delete(x, part, 0), np.delete(labels, part), shares, y) for part in parts]
        variance += (len(parts) - 1) / len(parts) * np.square(np.array(values) - np.mean(values)).sum()
    values = [naive_stratified(x, labels, shares, np.delete(y, i, 0)) for i in range(len(y))]
    variance += (len(values) - 1) / len(values) * np.square(np.array(values) - np.mean(values)).sum()
    estimate = kid(PictureSet.weighted(x, labels, shares, group), PictureSet.plain(y))
    assert estimate.error == pytest.approx(np.sqrt(variance), rel=1e-10)
