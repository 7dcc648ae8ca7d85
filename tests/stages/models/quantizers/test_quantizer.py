"""What holds for every quantizer: the tokenizer and its training never ask which one they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stages.models.quantizers.build import build_quantizer
from stages.models.quantizers.configs import (
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQQuantizerConfig,
    GradientQuantizerConfig,
    GumbelQuantizerConfig,
    LookupFreeQuantizerConfig,
    UsedCodesConfig,
)
from stages.models.quantizers.quantizer import Place
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import LightBackboneConfig, TokenizerModelConfig

CONFIGS = {
    config.kind: config
    for config in (
        EMAQuantizerConfig(num_codes=12, dim=4),
        CosineQuantizerConfig(num_codes=12, dim=4),
        GradientQuantizerConfig(num_codes=12, dim=4),
        GumbelQuantizerConfig(num_codes=12, dim=4),
        FSQQuantizerConfig(levels=(4, 3)),
        LookupFreeQuantizerConfig(bits=4),
        UsedCodesConfig(quantizer=FSQQuantizerConfig(levels=(4, 3)), num_codes=5),
    )
}
every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make_tokenizer(config: Any) -> Tokenizer:
    torch.manual_seed(0)
    backbone = LightBackboneConfig(channels=(8, 16), residual_blocks=(0, 0), norm_groups=4)
    model = TokenizerModelConfig(backbone=backbone, quantizer=config)
    return Tokenizer(model, image_size=16, channels=3)


@every_kind
def test_forward_nearest_and_embed_agree_and_change_nothing(config: Any) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z_BCHW = torch.randn(3, config.dim, 4, 5, requires_grad=True)
    found = quantizer(z_BCHW)

    assert (quantizer.num_codes, quantizer.dim) == (config.num_codes, config.dim)
    assert found.indices_BHW.shape == (3, 4, 5)
    assert found.indices_BHW.dtype == torch.int64
    assert found.codebook_loss_B.shape == (3,)
    assert 0 <= int(found.indices_BHW.min()) <= int(found.indices_BHW.max()) < config.num_codes
    assert torch.equal(quantizer.nearest(z_BCHW), found.indices_BHW)
    torch.testing.assert_close(quantizer.embed(found.indices_BHW), found.z_q_BCHW)
    (gradient,) = torch.autograd.grad((found.z_q_BCHW * torch.randn_like(z_BCHW)).sum(), z_BCHW)
    assert gradient.abs().min() > 0
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@every_kind
def test_statistics_count_codes_and_halves_of_a_batch_add_up(config: Any) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    z_BCHW = torch.randn(4, config.dim, 3, 3)
    indices_BHW = quantizer.nearest(z_BCHW)
    whole = quantizer.statistics(z_BCHW, indices_BHW, Place(first=0, num_vectors=36, seed=0, step=1))
    halves = [
        quantizer.statistics(
            z_BCHW[rows], indices_BHW[rows], Place(first=9 * rows.start, num_vectors=36, seed=0, step=1)
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert whole.counts_K.tolist() == torch.bincount(indices_BHW.flatten(), minlength=config.num_codes).tolist()
    torch.testing.assert_close(halves[0].flat() + halves[1].flat(), whole.flat())
    rebuilt = whole.like(whole.flat())
    assert type(rebuilt) is type(whole)
    assert torch.equal(rebuilt.counts_K, whole.counts_K)


@every_kind
def test_a_tokenizer_of_each_kind_is_saved_and_loaded(config: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(config)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    x_BCHW = torch.rand(2, 3, 16, 16) * 2 - 1
    assert loaded.config.quantizer == config
    assert torch.equal(loaded.encode(x_BCHW), tokenizer.encode(x_BCHW))
    torch.testing.assert_close(loaded.reconstruct(x_BCHW), tokenizer(x_BCHW).x_hat_BCHW.clamp(-1, 1))


@every_kind
def test_half_precision_around_a_quantizer_does_not_reach_into_it(config: Any) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    z_BCHW = torch.randn(3, config.dim, 4, 5)
    plain = quantizer(z_BCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(z_BCHW)
    assert torch.equal(found.z_q_BCHW, plain.z_q_BCHW)
    assert torch.equal(found.codebook_loss_B, plain.codebook_loss_B)


@every_kind
def test_a_quantizer_in_double_precision_stays_in_it(config: Any) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config).double()
    found = quantizer(torch.randn(3, config.dim, 4, 5, dtype=torch.float64))
    assert found.z_q_BCHW.dtype == quantizer.embed(found.indices_BHW).dtype == torch.float64
    torch.testing.assert_close(quantizer.embed(found.indices_BHW), found.z_q_BCHW, rtol=1e-9, atol=1e-12)


def test_a_quantizer_without_a_kind_is_the_moving_average() -> None:
    model = TokenizerModelConfig.model_validate({"quantizer": {"num_codes": 32, "dim": 8}})
    assert model.quantizer == EMAQuantizerConfig(num_codes=32, dim=8)
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        TokenizerModelConfig.model_validate({"quantizer": {"kind": "vq"}})
