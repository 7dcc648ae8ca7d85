"""Lookup-free quantization against the entropies of a plain softmax over all codes, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.models.quantizers.configs import LookupFreeQuantizerConfig
from stages.models.quantizers.lookup_free import LookupFreeQuantizer


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(**settings: Any) -> LookupFreeQuantizer:
    return LookupFreeQuantizer(LookupFreeQuantizerConfig(**{"bits": 6, "entropy_weight": 0.7, **settings}))


def make_vectors(batch: int = 5) -> Tensor:
    return 0.7 * torch.randn(batch, 6, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.2


def plain_loss(z_BCHW: Tensor, *, temperature: float, diversity: float, commitment: float) -> Tensor:
    """Equation 5 with a probability for every vector and code, and the commitment."""
    z_ND = z_BCHW.permute(0, 2, 3, 1).reshape(-1, 6)
    corners_KD = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    log_p_NK = (-(z_ND[:, None] - corners_KD[None]).square().sum(dim=2) / temperature).log_softmax(dim=1)
    p_NK = log_p_NK.exp()
    mean_K = p_NK.mean(dim=0)
    entropy = -(p_NK * log_p_NK).sum(dim=1).mean() + diversity * (mean_K * mean_K.log()).sum()
    return 0.7 * entropy + commitment * (z_ND - torch.where(z_ND > 0, 1.0, -1.0)).square().mean()


def whole_loss(quantizer: LookupFreeQuantizer, z_BCHW: Tensor) -> Tensor:
    found = quantizer(z_BCHW)
    total_GK = found.soft_counts_BGK.detach().sum(dim=0)
    return (found.codebook_loss_B + quantizer.batch_loss(found.soft_counts_BGK, total_GK)).mean()


@pytest.mark.parametrize(("temperature", "diversity"), [(1.0, 1.0), (0.4, 2.5)])
def test_the_loss_and_its_gradient_are_those_of_the_plain_formula(temperature: float, diversity: float) -> None:
    quantizer = make(entropy_temperature=temperature, diversity=diversity, commitment=0.3)
    mine, yours = make_vectors().requires_grad_(), make_vectors().requires_grad_()
    found = whole_loss(quantizer, mine)
    expected = plain_loss(yours, temperature=temperature, diversity=diversity, commitment=0.3)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-9, atol=1e-12)
    assert mine.grad.abs().max() > 1e-4


def test_groups_of_bits_overrate_the_use_of_codes_and_agree_where_bits_are_independent() -> None:
    z_BCHW = make_vectors()
    z_BCHW[:, 3:] = z_BCHW[:, :3]  # each bit twice: half of the bits tell nothing
    one, two, six = (float(whole_loss(make(entropy_groups=groups), z_BCHW)) for groups in (1, 2, 6))
    assert two < one - 0.1
    assert six <= two
    alone_BCHW = torch.zeros(1, 6, 1, 1)  # one vector: the mean is itself, and its bits are independent
    losses = [float(whole_loss(make(entropy_groups=groups), alone_BCHW)) for groups in (1, 2, 3, 6)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)


def test_codes_are_signs_and_the_first_number_is_the_highest_bit() -> None:
    quantizer = make()
    z_BCHW = torch.tensor([0.1, -2.0, -0.3, 5.0, -1.0, 0.2]).view(1, 6, 1, 1)
    assert quantizer.nearest(z_BCHW).item() == 0b100101
    found = quantizer(z_BCHW.requires_grad_())
    assert found.indices_BHW.item() == 0b100101
    assert found.z_q_BCHW.flatten().tolist() == pytest.approx([1, -1, -1, 1, -1, 1])
    assert torch.equal(quantizer.embed(found.indices_BHW), found.z_q_BCHW.detach().round())
    every_BHW = torch.arange(64).view(1, 8, 8)
    assert torch.equal(quantizer.nearest(quantizer.embed(every_BHW)), every_BHW)
    (straight,) = torch.autograd.grad((found.z_q_BCHW * 3).sum(), z_BCHW)
    assert torch.equal(straight, torch.full_like(z_BCHW, 3))


def test_codes_that_nobody_would_choose_leave_the_gradient_finite() -> None:
    quantizer = make(entropy_temperature=1e-4)
    z_BCHW = (3 * make_vectors().abs() + 1).requires_grad_()
    whole_loss(quantizer, z_BCHW).backward()
    assert z_BCHW.grad.isfinite().all()


def test_entropies_too_large_to_compute_are_refused_with_what_fits() -> None:
    with pytest.raises(ValidationError, match=r"entropy_groups 1 does not cut 18 bits .* choose one of 2, 3, 6, 9, 18"):
        LookupFreeQuantizerConfig(bits=18)
    assert LookupFreeQuantizerConfig(bits=18, entropy_groups=2).num_codes == 262_144
