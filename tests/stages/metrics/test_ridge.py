"""Ridge regression: the textbook's solution, and a penalty that suits the noise."""

import numpy as np
import pytest

from stages.metrics import ridge
from stages.metrics.ridge import Ridge


def data(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features_ND = rng.normal(3, 2, (60, 8))
    weight_DK = rng.normal(size=(8, 2))
    return features_ND, features_ND @ weight_DK + 5 + noise * rng.normal(size=(60, 2)), weight_DK


def test_it_solves_the_penalised_normal_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, targets_NK, _ = data(0.5)
    monkeypatch.setattr(ridge, "PENALTIES", np.array([0.3]))
    fitted = Ridge.fit(features_ND, targets_NK)
    x_ND = (features_ND - features_ND.mean(0)) / (features_ND.std(0) + 1e-6)
    penalty = 0.3 * np.square(np.linalg.svd(x_ND)[1]).mean()
    expected_DK = np.linalg.solve(x_ND.T @ x_ND + penalty * np.eye(8), x_ND.T @ (targets_NK - targets_NK.mean(0)))
    np.testing.assert_allclose(fitted.weight_DK, expected_DK, atol=1e-9)
    np.testing.assert_allclose(fitted(features_ND), x_ND @ expected_DK + targets_NK.mean(0), atol=1e-9)


def test_exact_targets_are_met_and_pure_noise_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, targets_NK, _ = data(0.0)
    np.testing.assert_allclose(Ridge.fit(features_ND, targets_NK)(features_ND), targets_NK, atol=0.02)
    noise_NK = np.random.default_rng(1).normal(size=(60, 2))
    shrunk = Ridge.fit(features_ND, noise_NK)
    monkeypatch.setattr(ridge, "PENALTIES", np.array([1e-9]))
    assert np.linalg.norm(shrunk.weight_DK) < 0.5 * np.linalg.norm(Ridge.fit(features_ND, noise_NK).weight_DK)


def test_the_penalty_is_that_of_the_smallest_error_when_each_row_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, targets_NK, _ = data(4.0)

    def error_left_out(penalty: float) -> float:
        monkeypatch.setattr(ridge, "PENALTIES", np.array([penalty]))
        kept = [np.arange(60) != n for n in range(60)]
        misses = [Ridge.fit(features_ND[k], targets_NK[k])(features_ND[~k]) - targets_NK[~k] for k in kept]
        return float(np.square(misses).mean())

    tried = [0.001, 0.1, 10.0]
    best = min(tried, key=error_left_out)
    monkeypatch.setattr(ridge, "PENALTIES", np.array(tried))
    chosen = Ridge.fit(features_ND, targets_NK).weight_DK
    monkeypatch.setattr(ridge, "PENALTIES", np.array([best]))
    np.testing.assert_allclose(chosen, Ridge.fit(features_ND, targets_NK).weight_DK)
