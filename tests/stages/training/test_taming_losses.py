"""The whole adversarial step against taming-transformers' own loss module, discriminator and adaptive weight."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.models.losses.discriminator import discriminator_loss
from stages.training.fabric import open_fabric
from tests import peers
from tests.stages.training.gangs import rank_of
from tests.stages.training.steps import Blur, batch_of, build, config_of, worst_difference


class StandIn(nn.Module):
    """In place of taming's LPIPS, whose weights are downloaded: a map of one place for each picture."""

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        return Blur()(x_BCHW, x_hat_BCHW).view(-1, 1, 1, 1)


@pytest.fixture
def taming() -> Iterator[Any]:
    module = peers.taming("modules.losses.vqperceptual")
    with patch.object(module, "LPIPS", StandIn):
        yield module


def test_the_discriminator_s_losses_are_theirs(taming: Any) -> None:
    real, fake = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64).unbind()
    for kind, theirs in (("hinge", taming.hinge_d_loss), ("vanilla", taming.vanilla_d_loss)):
        ours = discriminator_loss(real, fake, kind).mean()  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs(real, fake), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_a_step_has_the_gradients_of_their_loss_module(taming: Any, kind: str) -> None:
    """BatchNorm, delta 1e-4, L1 without L2, as published; their LPIPS replaced."""
    config = config_of(loss=kind, norm="batch", l2_weight=0.0, delta=1e-4, num_layers=2)
    with open_fabric(rank_of(), precision="64-true") as fabric:
        gradients = build(fabric, rank_of(), config).gradients
        tokenizer, discriminator, x_BCHW = gradients.state.tokenizer, gradients.state.discriminator, batch_of(0)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = taming.VQLPIPSWithDiscriminator(
                disc_start=0,
                disc_num_layers=2,
                disc_weight=config.losses.discriminator.weight,
                perceptual_weight=config.losses.perceptual_weight,
                disc_ndf=8,
                disc_loss=kind,
            )
        theirs.discriminator.load_state_dict(discriminator.state_dict())
        expected, log = _their_gradients(theirs, tokenizer, x_BCHW)
        numbers = gradients.take(x_BCHW, adversarial_weight=0.8, trains_discriminator=True)
        found = {name: p.grad for name, p in tokenizer.named_parameters() if p.requires_grad}
        found |= {f"judge.{name}": p.grad for name, p in discriminator.named_parameters()}

    worst, name = worst_difference(_arrays(found), _arrays(expected))
    assert worst < 1e-9, name
    pairs = {
        "train/d_weight": 0.8 * numbers.whole["adaptive_weight"],
        "train/g_loss": numbers.shares["adversarial"],
        "train/quant_loss": numbers.shares["codebook"],
        "train/p_loss": numbers.shares["perceptual"],
        "train/disc_loss": numbers.shares["discriminator"],
        "train/logits_real": numbers.shares["logits_real"],
        "train/logits_fake": numbers.shares["logits_fake"],
    }
    for name, value in pairs.items():
        np.testing.assert_allclose(float(value), float(log[name]), rtol=1e-9, err_msg=name)


def _their_gradients(theirs: Any, tokenizer: Any, x_BCHW: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    x_hat_BCHW, codebook_loss_B, *_ = tokenizer(x_BCHW)
    weight = tokenizer.last_layer_weight
    loss, log = theirs(codebook_loss_B, x_BCHW, x_hat_BCHW, 0, 1, last_layer=weight)
    parameters = {name: p for name, p in tokenizer.named_parameters() if p.requires_grad}
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    judge_loss, judge_log = theirs(codebook_loss_B, x_BCHW, x_hat_BCHW, 1, 1, last_layer=weight)
    judged = dict(theirs.discriminator.named_parameters())
    gradients = torch.autograd.grad(judge_loss, list(judged.values()))
    found |= {f"judge.{name}": gradient for name, gradient in zip(judged, gradients, strict=True)}
    return found, {**log, **judge_log}


def _arrays(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in tensors.items()}
