"""Gumbel-softmax codes against taming-transformers' GumbelQuantize given the same noise; where noise is from."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.models.dropout import sample_keys
from stages.models.quantizers.configs import GumbelQuantizerConfig
from stages.models.quantizers.gumbel import GumbelQuantizer, gumbel_noise
from stages.models.quantizers.quantizer import StepKeys
from tests import peers

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def make(**settings: Any) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(GumbelQuantizerConfig(**{"num_codes": 12, "dim": 4, **settings})).double()


def make_vectors() -> Tensor:
    return torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(step: int = 0, seed: int = 7) -> StepKeys:
    return StepKeys(step, sample_keys(seed, torch.arange(3) + 3 * step))


@pytest.mark.parametrize("straight_through", [True, False])
def test_codes_loss_and_gradients_are_taming_transformers_given_the_same_noise(straight_through: bool) -> None:
    ours = make(straight_through=straight_through, kl_weight=0.2, temperature_steps=10)
    step = at(4)
    theirs = peers.taming("modules.vqvae.quantize").GumbelQuantize(
        4, 4, 12, straight_through=straight_through, kl_weight=0.2
    )
    theirs.double().load_state_dict(ours.state_dict())
    theirs.temperature = ours.config.temperature_at(4)
    mine, yours = make_vectors().requires_grad_(), make_vectors().requires_grad_()
    wanted_BCHW = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    noise_BKHW = gumbel_noise(step.keys_B, torch.zeros(3, 12, 5, 2, dtype=torch.float64))

    found = ours(mine, step)
    with patch.object(torch.Tensor, "exponential_", lambda own: own.copy_(torch.exp(-noise_BKHW))):
        z_q_BCHW, loss, (_, _, indices_BHW) = theirs(yours)
    ((found.z_q_BCHW * wanted_BCHW).sum() + found.codebook_loss_B.mean()).backward()
    ((z_q_BCHW * wanted_BCHW).sum() + loss).backward()

    assert torch.equal(found.indices_BHW, indices_BHW)
    assert len(indices_BHW.unique()) > 4
    torch.testing.assert_close(found.z_q_BCHW, z_q_BCHW, **EXACT)
    torch.testing.assert_close(found.codebook_loss_B.mean(), loss, **EXACT)
    torch.testing.assert_close(mine.grad, yours.grad, **EXACT)
    theirs_by_name = dict(theirs.named_parameters())
    assert set(theirs_by_name) == {"proj.weight", "proj.bias", "embed.weight"}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad, **EXACT, msg=name)


def test_the_temperature_is_taming_transformers_and_a_function_of_the_step() -> None:
    published = {"temperature_start": 0.9, "temperature_end": 1e-6, "temperature_steps": 1_000_001}
    cosine = GumbelQuantizerConfig(**published)
    theirs = peers.taming("lr_scheduler").LambdaWarmUpCosineScheduler(
        warm_up_steps=0, lr_start=0.9, lr_max=0.9, lr_min=1e-6, max_decay_steps=1_000_001
    )
    for step in (0, 1, 250_000, 999_999, 1_000_001, 3_000_000):
        assert cosine.temperature_at(step) == pytest.approx(theirs(step), rel=1e-9)
    exponential = GumbelQuantizerConfig(**published, temperature_schedule="exponential")
    assert exponential.temperature_at(500_000) == pytest.approx(math.sqrt(0.9 * 1e-6), rel=1e-4)
    assert GumbelQuantizerConfig(temperature_schedule="constant").temperature_at(10**6) == 0.9
    with pytest.raises(ValidationError, match=r"temperature_end 2.0 is above temperature_start 0.9"):
        GumbelQuantizerConfig(temperature_end=2.0)


def test_after_training_the_likeliest_code_is_taken() -> None:
    quantizer, z_BCHW = make(), make_vectors()
    logits_BKHW = quantizer.proj(z_BCHW)
    quiet = quantizer(z_BCHW)
    assert torch.equal(quantizer.nearest(z_BCHW), logits_BKHW.argmax(dim=1))
    assert torch.equal(quiet.indices_BHW, logits_BKHW.argmax(dim=1))
    torch.testing.assert_close(quiet.z_q_BCHW, quantizer.embed(quiet.indices_BHW))
    assert not torch.equal(quantizer(z_BCHW, at()).indices_BHW, quiet.indices_BHW)


def test_a_picture_s_draws_follow_from_its_key_whatever_else_is_in_the_batch() -> None:
    quantizer, z_BCHW, step = make(), make_vectors(), at(5)
    whole = quantizer(z_BCHW, step)
    second = quantizer(z_BCHW[1:2], StepKeys(5, step.keys_B[1:2]))
    assert torch.equal(second.indices_BHW, whole.indices_BHW[1:2])
    assert not torch.equal(quantizer(z_BCHW, at(6)).indices_BHW, whole.indices_BHW)
    assert not torch.equal(quantizer(z_BCHW, at(5, seed=8)).indices_BHW, whole.indices_BHW)


def test_the_noise_is_gumbel_s_and_the_same_in_every_precision() -> None:
    keys_B = sample_keys(0, torch.arange(4))
    noise = gumbel_noise(keys_B, torch.zeros(4, 125, 20, 20))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert (noise < 0).float().mean().item() == pytest.approx(math.exp(-1), abs=0.004)
    double = gumbel_noise(keys_B, torch.zeros(4, 125, 20, 20, dtype=torch.float64))
    torch.testing.assert_close(noise.double(), double, rtol=1e-4, atol=1e-5)
