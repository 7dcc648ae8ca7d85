"""Codes as directions: angles decide, codes stay on the sphere, and lengths do not matter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.quantizers.configs import CosineQuantizerConfig
from stages.models.quantizers.cosine import CosineQuantizer
from stages.models.quantizers.quantizer import Place


def make() -> CosineQuantizer:
    torch.manual_seed(0)
    return CosineQuantizer(CosineQuantizerConfig(num_codes=16, dim=4, decay=0.5)).double()


def make_vectors() -> Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_smallest_angle_decides_and_the_loss_is_beta_times_two_minus_two_cosines() -> None:
    quantizer, z_BCHW = make(), make_vectors()
    codes_KD = quantizer.codebook.embedding.weight
    vectors_ND = z_BCHW.permute(0, 2, 3, 1).reshape(-1, 4)
    cosines_NK = F.cosine_similarity(vectors_ND[:, None], codes_KD[None], dim=2)
    found = quantizer(z_BCHW)
    assert found.indices_BHW.flatten().tolist() == cosines_NK.argmax(dim=1).tolist()
    assert torch.equal(quantizer.nearest(z_BCHW * torch.rand(6, 1, 3, 3) * 9), found.indices_BHW)
    torch.testing.assert_close(found.z_q_BCHW.norm(dim=1), torch.ones(6, 3, 3, dtype=torch.float64))
    expected = 0.25 * (2 - 2 * cosines_NK.amax(dim=1)).mean() / 4
    torch.testing.assert_close(found.codebook_loss_B.mean(), expected)


def test_codes_move_to_the_directions_of_what_chose_them_and_stay_on_the_sphere() -> None:
    quantizer, z_BCHW = make(), make_vectors()
    before = float(quantizer(z_BCHW).codebook_loss_B.mean())
    for step in range(8):
        found = quantizer(z_BCHW)
        place = Place(first=0, num_vectors=54, seed=0, step=step)
        quantizer.update(quantizer.statistics(z_BCHW, found.indices_BHW, place))
        lengths_K = quantizer.codebook.embedding.weight.norm(dim=1)
        torch.testing.assert_close(lengths_K, torch.ones_like(lengths_K))
    assert float(quantizer(z_BCHW).codebook_loss_B.mean()) < 0.5 * before


def test_a_vector_feels_nothing_along_itself() -> None:
    quantizer, z_BCHW = make(), make_vectors().requires_grad_()
    found = quantizer(z_BCHW)
    (gradient,) = torch.autograd.grad(found.z_q_BCHW[:, 0].sum() + found.codebook_loss_B.sum(), z_BCHW)
    assert gradient.abs().max() > 0.1
    assert (gradient * z_BCHW).sum(dim=1).abs().max().item() == pytest.approx(0, abs=1e-12)
