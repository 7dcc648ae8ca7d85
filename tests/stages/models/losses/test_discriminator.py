"""The patch discriminator: the reference's layout and receptive field."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stages.models.losses.configs import DiscriminatorConfig
from stages.models.losses.discriminator import PatchDiscriminator


def test_with_batch_norm_it_has_taming_transformers_names() -> None:
    config = DiscriminatorConfig(base_channels=8, num_layers=2, norm="batch")
    state = PatchDiscriminator(config, channels=3).state_dict()
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"main.0.weight", "main.0.bias", "main.2.weight", "main.5.weight", "main.8.weight", "main.8.bias"}
    expected |= {f"main.{layer}.{name}" for layer in (3, 6) for name in norms}
    assert set(state) == expected
    assert [tuple(state[f"main.{layer}.weight"].shape) for layer in (0, 2, 5, 8)] == [
        (8, 3, 4, 4),
        (16, 8, 4, 4),
        (32, 16, 4, 4),
        (1, 32, 4, 4),
    ]


def test_a_logit_sees_a_patch_of_34_pixels() -> None:
    network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, num_layers=2), channels=1)
    for number, module in enumerate(network.main):  # norms see the whole picture: not what is measured here
        if isinstance(module, nn.GroupNorm):
            network.main[number] = nn.Identity()
    x_BCHW = torch.randn(1, 1, 64, 64, requires_grad=True)
    logits = network(x_BCHW)
    logits[0, 0, 7, 7].backward()
    assert logits.shape == (1, 1, 14, 14)
    assert x_BCHW.grad is not None
    seen = x_BCHW.grad[0, 0].abs().sum(dim=0).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == 34


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 8"):
        DiscriminatorConfig(base_channels=12)
