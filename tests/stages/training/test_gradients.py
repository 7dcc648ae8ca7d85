"""Finished gradients: measured, found finite or not, clipped, and steps without a sound one counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.errors import StageError
from stages.training.gradients import SkippedSteps, clip, gradient_norm


def test_too_many_skipped_steps_name_the_last_good_checkpoint() -> None:
    skipped = SkippedSteps()
    for finite in (False, False, True, False, False):
        skipped.count(finite=finite, limit=2, step=7, last_good=lambda: "step-00000005")
    assert (skipped.total, skipped.in_a_row) == (4, 2)
    with pytest.raises(StageError, match=r"3 steps in a row up to step 8.*step-00000005"):
        skipped.count(finite=False, limit=2, step=8, last_good=lambda: "step-00000005")


def test_the_norm_is_of_all_gradients_together_and_a_single_nan_shows_in_it() -> None:
    layer = nn.Linear(1, 2)
    assert float(gradient_norm(layer.parameters())) == 0.0
    layer.weight.grad = torch.tensor([[3.0], [0.0]])
    assert float(gradient_norm(layer.parameters())) == 3.0
    layer.bias.grad = torch.tensor([0.0, 4.0])
    assert float(gradient_norm(layer.parameters())) == 5.0
    layer.bias.grad[0] = float("nan")
    assert math.isnan(float(gradient_norm(layer.parameters())))


def test_only_a_gradient_above_the_limit_is_scaled_down() -> None:
    layer = nn.Linear(1, 2)
    for limit, expected in ((None, 5.0), (6.0, 5.0), (2.0, 2.0)):
        layer.weight.grad, layer.bias.grad = torch.tensor([[3.0], [0.0]]), torch.tensor([0.0, 4.0])
        clip(layer.parameters(), gradient_norm(layer.parameters()), limit)
        assert float(gradient_norm(layer.parameters())) == pytest.approx(expected, rel=1e-5)
        assert float(layer.bias.grad[1]) == pytest.approx(0.8 * expected, rel=1e-5)
