"""The codebook by gradient against taming-transformers' VectorQuantizer2, in float64."""

from __future__ import annotations

import pytest
import torch

from stages.models.quantizers.configs import GradientQuantizerConfig
from stages.models.quantizers.gradient import GradientQuantizer
from tests import peers

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("legacy", [True, False])
def test_codes_loss_and_gradients_are_taming_transformers(legacy: bool) -> None:
    torch.manual_seed(0)
    ours = GradientQuantizer(GradientQuantizerConfig(num_codes=16, dim=4, beta=0.3, legacy=legacy)).double()
    theirs = peers.taming("modules.vqvae.quantize").VectorQuantizer2(16, 4, 0.3, sane_index_shape=True, legacy=legacy)
    theirs.double().load_state_dict(ours.state_dict())
    z_BCHW = 0.05 * torch.randn(3, 4, 5, 2, dtype=torch.float64)
    wanted_BCHW = torch.randn_like(z_BCHW)
    mine, yours = z_BCHW.clone().requires_grad_(), z_BCHW.clone().requires_grad_()

    found = ours(mine)
    z_q_BCHW, loss, (_, _, indices_BHW) = theirs(yours)
    ((found.z_q_BCHW * wanted_BCHW).sum() + found.codebook_loss_B.mean()).backward()
    ((z_q_BCHW * wanted_BCHW).sum() + loss).backward()

    assert torch.equal(found.indices_BHW, indices_BHW)
    assert len(indices_BHW.unique()) > 4
    torch.testing.assert_close(found.z_q_BCHW, z_q_BCHW, **EXACT)
    torch.testing.assert_close(found.codebook_loss_B.mean(), loss, **EXACT)
    torch.testing.assert_close(mine.grad, yours.grad, **EXACT)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.embedding.weight.grad, **EXACT)
    assert ours.embedding.weight.grad.abs().sum() > 0
    torch.testing.assert_close(ours.embed(indices_BHW), theirs.get_codebook_entry(indices_BHW.flatten(), (3, 5, 2, 4)))


def test_legacy_decides_which_side_beta_weighs() -> None:
    torch.manual_seed(0)
    z_BCHW = torch.randn(2, 4, 3, 3, requires_grad=True)
    norms = {}
    for legacy in (True, False):
        torch.manual_seed(1)
        quantizer = GradientQuantizer(GradientQuantizerConfig(num_codes=16, dim=4, beta=0.25, legacy=legacy))
        loss = quantizer(z_BCHW).codebook_loss_B.mean()
        codes, vectors = torch.autograd.grad(loss, (quantizer.embedding.weight, z_BCHW))
        norms[legacy] = codes.norm(), vectors.norm()
    torch.testing.assert_close(norms[False][0], 4 * norms[True][0])
    torch.testing.assert_close(norms[True][1], 4 * norms[False][1])


def test_the_codebook_begins_uniform_in_one_over_its_size() -> None:
    torch.manual_seed(0)
    weight_KD = GradientQuantizer(GradientQuantizerConfig(num_codes=64, dim=32)).embedding.weight
    assert 0.99 / 64 < weight_KD.max() <= 1 / 64
    assert -1 / 64 <= weight_KD.min() < -0.99 / 64
    assert weight_KD.std().item() == pytest.approx(1 / 64 / 3**0.5, rel=0.03)
