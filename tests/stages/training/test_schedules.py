"""Learning-rate schedules: exact values."""

from __future__ import annotations

import math

import pytest

from stages.training.schedules import learning_rate_factor, warmup_constant, warmup_cosine, warmup_linear


def test_constant_schedule_rises_linearly_from_the_first_update_and_stays() -> None:
    factors = [warmup_constant(step, warmup_steps=4) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_constant(0, warmup_steps=0) == 1.0


def test_cosine_schedule_has_the_values_of_half_a_cosine() -> None:
    factors = [warmup_cosine(step, warmup_steps=2, horizon=10, floor=0.2) for step in (0, 1, 2, 4, 6, 8, 10, 99)]
    expected = [0.5, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2, 0.2]
    assert factors == pytest.approx(expected, abs=1e-15)


def test_a_floor_of_one_is_a_constant_schedule() -> None:
    for step in (0, 3, 7, 50, 1000):
        constant = warmup_constant(step, warmup_steps=5)
        assert warmup_cosine(step, warmup_steps=5, horizon=100, floor=1.0) == constant


def test_a_horizon_within_the_warmup_ends_at_the_floor() -> None:
    assert warmup_cosine(4, warmup_steps=5, horizon=3, floor=0.1) == 1.0
    assert warmup_cosine(6, warmup_steps=5, horizon=3, floor=0.1) == pytest.approx(0.1)


def test_a_linear_schedule_falls_along_a_line() -> None:
    factors = [warmup_linear(step, warmup_steps=2, horizon=10, floor=0.2) for step in (0, 1, 2, 4, 6, 10, 99)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.2, 0.2], abs=1e-15)


def test_a_schedule_is_chosen_by_name_and_constant_without_a_horizon() -> None:
    options = {"warmup_steps": 2, "floor": 0.2}
    for step in (0, 1, 5, 10):
        expected = {
            "constant": warmup_constant(step, warmup_steps=2),
            "linear": warmup_linear(step, warmup_steps=2, horizon=10, floor=0.2),
            "cosine": warmup_cosine(step, warmup_steps=2, horizon=10, floor=0.2),
        }
        for name, factor in expected.items():
            assert learning_rate_factor(step, name, horizon=10, **options) == factor  # type: ignore[arg-type]
            assert learning_rate_factor(step, name, horizon=None, **options) == expected["constant"]  # type: ignore[arg-type]
