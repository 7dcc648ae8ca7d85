"""The patch discriminator: the reference's layout and receptive field."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stages.models.losses.configs import DiscriminatorConfig
from stages.models.losses.discriminator import PatchDiscriminator, lecam_penalty


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


def test_spectral_norm_brings_every_convolution_to_a_largest_singular_value_of_one() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, norm="spectral"), channels=3)
    for _ in range(50):
        network.renew_spectral_norms()
    weights = [module.weight for module in network.main if isinstance(module, nn.Conv2d)]
    assert len(weights) == 4
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=1e-4)


def test_spectral_norms_move_when_renewed_and_in_no_forward_pass() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(base_channels=8, norm="spectral"), channels=3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    vectors = [name for name in before if name.endswith(("._u", "._v"))]
    assert len(vectors) == 8
    x_BCHW = torch.randn(2, 3, 16, 16)
    first, second = network(x_BCHW), network(x_BCHW)
    assert torch.equal(first, second)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    network.renew_spectral_norms()
    after = network.state_dict()
    moved = {name for name in vectors if not torch.equal(after[name], before[name])}
    assert moved >= {name for name in vectors if not name.startswith("main.6")}  # its one row is found at once
    other = PatchDiscriminator(DiscriminatorConfig(base_channels=8, norm="spectral"), channels=3)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x_BCHW), network(x_BCHW))


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_without_a_norm_that_centres_the_convolutions_have_biases(norm: str) -> None:
    network = PatchDiscriminator(DiscriminatorConfig.model_validate({"base_channels": 12, "norm": norm}), channels=3)
    assert all(module.bias is not None for module in network.main if isinstance(module, nn.Conv2d))
    assert not any(isinstance(module, nn.GroupNorm | nn.BatchNorm2d) for module in network.main)


def test_lecam_pulls_logits_to_the_other_kind_s_mean_from_one_side_only() -> None:
    real = torch.tensor([[[[3.0, -2.0]]], [[[1.0, 0.0]]]])
    fake = torch.tensor([[[[0.0, 4.0]]], [[[2.0, -1.0]]]])
    anchors = torch.tensor([2.0, -1.0])
    # real above -1: 4, none (-2 is below); 2, 1. Fake below 2: 2, none; 0, 3.
    assert lecam_penalty(real, fake, anchors).tolist() == [(16 + 0) / 2 + (4 + 0) / 2, (4 + 1) / 2 + (0 + 9) / 2]
