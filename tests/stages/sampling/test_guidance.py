"""Guidance: what each schedule gives, and the two scales that are no mixture."""

import math

import pytest
import torch

from stages.sampling.guidance import Guidance, Schedule, as_guidance, guide


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [3, 3, 3, 3, 3]),
        ("linear", [1, 1.5, 2, 2.5, 3]),
        ("cosine", [1, 2 - math.sqrt(0.5), 2, 2 + math.sqrt(0.5), 3]),
        ("interval", [1, 3, 3, 3, 3]),
    ],
)
def test_schedules_over_the_sequence(schedule: Schedule, expected: list[float]) -> None:
    guidance = Guidance(3.0, schedule)
    assert [guidance.at(step, 5) for step in range(5)] == pytest.approx(expected)


def test_a_picture_of_one_token_is_guided_as_the_first_of_many() -> None:
    assert [Guidance(3.0, schedule).at(0, 1) for schedule in ("constant", "linear", "cosine")] == [3, 1, 1]


def test_scale_1_is_off_whatever_the_schedule() -> None:
    for schedule in ("constant", "linear", "cosine", "interval"):
        assert Guidance(1.0, schedule).is_off
        assert all(Guidance(1.0, schedule).at(step, 7) == 1 for step in range(7))
        assert not Guidance(1.5, schedule).is_off


def test_only_a_constant_0_leaves_the_condition_out() -> None:
    assert Guidance(0.0).is_unconditional
    assert not Guidance(0.0, "linear").is_unconditional
    assert Guidance(0.0, "linear").at(0, 3) == 1


def test_a_number_is_a_constant_scale() -> None:
    assert as_guidance(2.5) == Guidance(2.5, "constant")
    assert as_guidance(Guidance(2.0, "cosine")) == Guidance(2.0, "cosine")


def test_logits_are_those_of_one_branch_at_0_and_1_and_beyond_them_above() -> None:
    conditional_BV, unconditional_BV = torch.randn(2, 3, 5, dtype=torch.float64)
    assert guide(conditional_BV, unconditional_BV, 1.0) is conditional_BV
    assert guide(conditional_BV, unconditional_BV, 0.0) is unconditional_BV
    torch.testing.assert_close(guide(conditional_BV, unconditional_BV, 3.0), 3 * conditional_BV - 2 * unconditional_BV)
