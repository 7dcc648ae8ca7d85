"""Finite scalar quantization against the paper's few lines written out in numpy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.models.quantizers.configs import FSQQuantizerConfig
from stages.models.quantizers.fsq import FSQQuantizer

LEVELS = [(8, 5, 5, 5), (3, 2), (4,), (8, 6, 5)]


@pytest.fixture(autouse=True)
def in_float64() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_the_paper(z_NC: np.ndarray, levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Appendix A.1 of Mentzer et al. 2023: bounded vectors, codes, indices."""
    levels_C = np.asarray(levels)
    half_l = (levels_C - 1) * (1 + 1e-3) / 2
    offset = np.where(levels_C % 2 == 1, 0.0, 0.5)
    shift = np.arctanh(offset / half_l)
    bounded = np.tanh(z_NC + shift) * half_l - offset
    half_width = levels_C // 2
    codes = np.round(bounded) / half_width
    basis = np.concatenate(([1], np.cumprod(levels_C[:-1])))
    indices = ((codes * half_width + half_width) * basis).sum(axis=-1).astype(np.int64)
    return bounded / half_width, codes, indices


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_numbers_are_the_paper_s(levels: tuple[int, ...]) -> None:
    quantizer = FSQQuantizer(FSQQuantizerConfig(levels=levels))
    z_BCHW = 2 * torch.randn(5, len(levels), 6, 7, generator=torch.Generator().manual_seed(0))
    _, codes, indices = by_the_paper(z_BCHW.permute(0, 2, 3, 1).numpy(), levels)
    found = quantizer(z_BCHW)
    np.testing.assert_allclose(found.z_q_BCHW.permute(0, 2, 3, 1).numpy(), codes, atol=1e-12)
    np.testing.assert_array_equal(found.indices_BHW.numpy(), indices)
    np.testing.assert_array_equal(quantizer.nearest(z_BCHW).numpy(), indices)
    torch.testing.assert_close(quantizer.embed(found.indices_BHW), found.z_q_BCHW)
    assert not found.codebook_loss_B.any()
    assert not list(quantizer.state_dict())


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_its_own_nearest_and_all_are_reached(levels: tuple[int, ...]) -> None:
    quantizer = FSQQuantizer(FSQQuantizerConfig(levels=levels))
    every_BHW = torch.arange(quantizer.num_codes).view(1, 1, -1)
    codes_BCHW = quantizer.embed(every_BHW)
    assert len(codes_BCHW[0, :, 0].t().unique(dim=0)) == quantizer.num_codes
    wide_BCHW = 30 * torch.rand(1, len(levels), 400, 400, generator=torch.Generator().manual_seed(0)) - 15
    mixed_BCHW = torch.where(torch.rand_like(wide_BCHW) < 0.5, wide_BCHW, torch.randn_like(wide_BCHW))
    assert len(quantizer.nearest(mixed_BCHW).unique()) == quantizer.num_codes


def test_the_gradient_goes_straight_through_the_rounding_to_tanh() -> None:
    levels = (8, 5, 3)
    quantizer = FSQQuantizer(FSQQuantizerConfig(levels=levels))
    z_BCHW = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (found,) = torch.autograd.grad(quantizer(z_BCHW).z_q_BCHW.sum(), z_BCHW)
    step = 1e-6
    z_NC = z_BCHW.detach().permute(0, 2, 3, 1).numpy()
    slope = (by_the_paper(z_NC + step, levels)[0] - by_the_paper(z_NC - step, levels)[0]) / (2 * step)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), slope, rtol=1e-6)


def test_levels_that_make_no_lattice_are_refused() -> None:
    with pytest.raises(ValidationError, match="levels is empty"):
        FSQQuantizerConfig(levels=())
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        FSQQuantizerConfig(levels=(8, 1))
    assert FSQQuantizerConfig(levels=(8, 5, 5, 5)).num_codes == 1000
