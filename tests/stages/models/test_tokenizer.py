"""The tokenizer's facade: grids, files, and the reference's names and arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from stages.models.backbones.reference import AttnBlock, Downsample, ResnetBlock
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import (
    EMAQuantizerConfig,
    LightBackboneConfig,
    ReferenceBackboneConfig,
    TokenizerModelConfig,
)

LIGHT = TokenizerModelConfig(
    backbone=LightBackboneConfig(channels=(8, 16), residual_blocks=(1, 1), norm_groups=4),
    quantizer=EMAQuantizerConfig(num_codes=32, dim=6),
)
REFERENCE = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(
        base_channels=32, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), z_channels=16
    ),
    quantizer=EMAQuantizerConfig(num_codes=32, dim=8),
)


def make(config: TokenizerModelConfig, *, channels: int = 3) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(config, image_size=16, channels=channels)


def pictures(channels: int = 3) -> Tensor:
    return torch.rand(3, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("config", "grid"), [(LIGHT, (4, 4)), (REFERENCE, (8, 8))])
def test_pictures_become_grids_of_codes_and_pictures_again(
    config: TokenizerModelConfig, grid: tuple[int, int], channels: int
) -> None:
    tokenizer = make(config, channels=channels)
    indices_BHW = tokenizer.encode(pictures(channels))
    x_BCHW = tokenizer.decode(indices_BHW)

    assert tokenizer.grid == grid
    assert indices_BHW.shape == (3, *grid)
    assert indices_BHW.dtype == torch.int64
    assert tokenizer.num_codes == 32
    assert 0 <= int(indices_BHW.min()) <= int(indices_BHW.max()) < 32
    assert x_BCHW.shape == (3, channels, 16, 16)
    assert float(x_BCHW.abs().max()) <= 1
    assert torch.equal(tokenizer.reconstruct(pictures(channels)), x_BCHW)
    torch.testing.assert_close(tokenizer(pictures(channels)).x_hat_BCHW.clamp(-1, 1), x_BCHW, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [LIGHT, REFERENCE])
def test_latents_lead_through_the_codes_to_the_same_pictures(config: TokenizerModelConfig) -> None:
    tokenizer = make(config)
    z_BCHW = tokenizer.encode_latents(pictures())
    z_q_BCHW = tokenizer.quantize_latents(z_BCHW)

    assert z_BCHW.shape == (3, config.quantizer.dim, *tokenizer.grid)
    assert torch.equal(tokenizer.quantize.embed(tokenizer.encode(pictures())), z_q_BCHW)
    assert torch.equal(tokenizer.decode_latents(z_q_BCHW), tokenizer.reconstruct(pictures()))
    assert not torch.allclose(tokenizer.decode_latents(z_BCHW), tokenizer.decode_latents(z_q_BCHW), atol=1e-3)
    with torch.enable_grad():
        tokenizer.decode_latents(z_BCHW).sum().backward()
    assert tokenizer.last_layer_weight.grad is not None


@pytest.mark.parametrize("config", [LIGHT, REFERENCE])
def test_every_weight_gets_a_gradient(config: TokenizerModelConfig) -> None:
    tokenizer = make(config)
    with torch.no_grad():  # a block that begins as an identity has none before its first update
        for parameter in tokenizer.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    output = tokenizer(pictures())
    ((output.x_hat_BCHW - pictures()).square().sum() + output.codebook_loss_B.sum()).backward()
    still = [name for name, p in tokenizer.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert [name for name in still if not name.endswith(".k.bias")] == []  # a softmax does not see the key's bias
    assert tokenizer.last_layer_weight.grad is not None


def test_a_saved_tokenizer_is_loaded_bit_for_bit_and_saved_to_the_same_bytes(tmp_path: Path) -> None:
    tokenizer = make(LIGHT).to(memory_format=torch.channels_last)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)

    assert loaded.config == LIGHT
    assert (loaded.image_size, loaded.channels, loaded.training) == (16, 3, False)
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no model.safetensors in .*--stages tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_is_found_below_a_run_s_a_bundle_s_or_its_own_folder(tmp_path: Path) -> None:
    own = tmp_path / "runs" / "tokenizer" / "0123456789ab"
    own.mkdir(parents=True)
    make(LIGHT).save(own)
    (own.parent / "latest").symlink_to(own.name)
    bundle = tmp_path / "bundle" / "tokenizer"
    bundle.mkdir(parents=True)
    make(REFERENCE).save(bundle)
    for place in (own, own.parent, tmp_path / "runs"):
        assert Tokenizer.load(place).config == LIGHT
    assert Tokenizer.load(str(bundle.parent)).config == REFERENCE

    (own / "config.json").write_text('{"tokenizer": "of a prior"}')
    with pytest.raises(DataError, match=r"no config.json and model.safetensors in"):
        Tokenizer.load(tmp_path / "runs")
    (own / "config.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match="describes no tokenizer of this version"):
        Tokenizer.load(own)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    make(LIGHT).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_codes": 32', '"num_codes": 64'))
    with pytest.raises(DataError, match="does not fit"):
        Tokenizer.load(tmp_path)


def test_pictures_that_do_not_divide_into_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"18x18 do not divide into tokens of 4x4"):
        Tokenizer(LIGHT, image_size=18, channels=3)


def test_configurations_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValidationError, match="differ in length"):
        LightBackboneConfig(channels=(8, 16), residual_blocks=(1,))
    with pytest.raises(ValidationError, match="does not divide the 20"):
        LightBackboneConfig(channels=(8, 20), residual_blocks=(1, 1), norm_groups=8)
    with pytest.raises(ValidationError, match="multiple of 32"):
        ReferenceBackboneConfig(base_channels=48)
    assert TokenizerModelConfig.model_validate({"backbone": {"kind": "reference"}}).factor == 16
    assert TokenizerModelConfig().factor == 8


def test_the_reference_has_taming_transformers_names() -> None:
    names = set(make(REFERENCE).state_dict())
    own = {"quantize.counts", "quantize.sums"}
    blocks = {f"{block}.{layer}.{kind}" for block in ("block_1", "block_2") for layer in LAYERS for kind in KINDS}
    attention = {f"{layer}.{kind}" for layer in ("norm", "q", "k", "v", "proj_out") for kind in KINDS}
    expected = {f"{part}.{kind}" for part in ("quant_conv", "post_quant_conv") for kind in KINDS}
    expected.add("quantize.embedding.weight")
    for half in ("encoder", "decoder"):
        expected |= {f"{half}.{layer}.{kind}" for layer in ("conv_in", "norm_out", "conv_out") for kind in KINDS}
        expected |= {f"{half}.mid.{name}" for name in blocks} | {f"{half}.mid.attn_1.{name}" for name in attention}
    for path in ("encoder.down.0.block.0", "encoder.down.1.block.0"):
        expected |= {f"{path}.{layer}.{kind}" for layer in LAYERS for kind in KINDS}
    for path in (f"decoder.up.{level}.block.{number}" for level in (0, 1) for number in (0, 1)):
        expected |= {f"{path}.{layer}.{kind}" for layer in LAYERS for kind in KINDS}
    for path in ("encoder.down.1.block.0.nin_shortcut", "decoder.up.0.block.0.nin_shortcut"):
        expected |= {f"{path}.{kind}" for kind in KINDS}
    for path in ("encoder.down.1.attn.0", "decoder.up.1.attn.0", "decoder.up.1.attn.1"):
        expected |= {f"{path}.{name}" for name in attention}
    expected |= {f"encoder.down.0.downsample.conv.{kind}" for kind in KINDS}
    expected |= {f"decoder.up.1.upsample.conv.{kind}" for kind in KINDS}
    assert names - own == expected


LAYERS = ("norm1", "conv1", "norm2", "conv2")
KINDS = ("weight", "bias")


def test_the_reference_pads_its_downsampling_right_and_below() -> None:
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
        y = layer(torch.arange(16.0).view(1, 1, 4, 4))
    # sums of 3x3 windows whose top left corners are at 0 and 2; the second ones reach over the border
    assert y.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


def test_the_reference_attends_as_written_in_taming_transformers() -> None:
    torch.manual_seed(0)
    layer, x_BCHW = AttnBlock(64), torch.randn(2, 64, 3, 5)
    with torch.no_grad():
        actual = layer(x_BCHW)
        h = torch.nn.functional.group_norm(x_BCHW, 32, layer.norm.weight, layer.norm.bias, eps=1e-6)
        q, k, v = layer.q(h).reshape(2, 64, 15), layer.k(h).reshape(2, 64, 15), layer.v(h).reshape(2, 64, 15)
        weights = (torch.bmm(q.permute(0, 2, 1), k) * 64**-0.5).softmax(dim=2)
        expected = x_BCHW + layer.proj_out(torch.bmm(v, weights.permute(0, 2, 1)).reshape(2, 64, 3, 5))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_reference_block_is_norm_swish_convolution_twice_and_a_shortcut() -> None:
    torch.manual_seed(0)
    block, x_BCHW = ResnetBlock(32, 64, dropout=0.0), torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        actual = block(x_BCHW)
        h = torch.nn.functional.group_norm(x_BCHW, 32, block.norm1.weight, block.norm1.bias, eps=1e-6)
        h = block.conv1(h * torch.sigmoid(h))
        h = torch.nn.functional.group_norm(h, 32, block.norm2.weight, block.norm2.bias, eps=1e-6)
        expected = block.nin_shortcut(x_BCHW) + block.conv2(h * torch.sigmoid(h))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
