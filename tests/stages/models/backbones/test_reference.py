"""The reference architecture against taming-transformers' own modules with the same weights, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stages.models.losses.configs import DiscriminatorConfig
from stages.models.losses.discriminator import PatchDiscriminator
from stages.models.quantizers.configs import GradientQuantizerConfig
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, ReferenceBackboneConfig, TokenizerModelConfig
from tests import peers

EXACT = {"rtol": 1e-9, "atol": 1e-11}

SMALL = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(
        base_channels=32, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), z_channels=16
    ),
    quantizer=EMAQuantizerConfig(num_codes=40, dim=8, commitment=1.0),
)
DEEP = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(
        base_channels=32, multipliers=(1, 1, 2, 2), num_res_blocks=2, attention_resolutions=(8, 4), z_channels=24
    ),
    quantizer=EMAQuantizerConfig(num_codes=8, dim=24, commitment=1.0),
)
LEARNT = DEEP.model_copy(update={"quantizer": GradientQuantizerConfig(num_codes=8, dim=24)})


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def both(config: TokenizerModelConfig, channels: int) -> tuple[Tokenizer, torch.nn.Module, Tensor]:
    """Ours, theirs with its weights, and pictures."""
    ours = Tokenizer(config, image_size=16, channels=channels)
    for parameter in ours.parameters():  # biases and norms begin at 0 and 1, where mistakes would not show
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x_BCHW = torch.rand(3, channels, 16, 16) * 2 - 1
    peers.spread_codes(ours, x_BCHW)
    theirs = peers.taming_vqgan(config, image_size=16, channels=channels, disc_start=0, disc_in_channels=channels)
    peers.copy_weights(theirs, ours)
    return ours, theirs, x_BCHW


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("config", "channels"), [(SMALL, 3), (SMALL, 1), (DEEP, 3)])
def test_encoder_codes_and_decoder_are_taming_transformers(
    config: TokenizerModelConfig, channels: int, layout: torch.memory_format
) -> None:
    ours, theirs, x_BCHW = both(config, channels)
    ours.to(memory_format=layout)
    with torch.no_grad():
        z_BCHW = theirs.quant_conv(theirs.encoder(x_BCHW))
        quantized_BCHW, loss, (_, _, indices_BHW) = theirs.quantize(z_BCHW)
        output = ours(x_BCHW.to(memory_format=layout))

    torch.testing.assert_close(output.z_BCHW, z_BCHW, **EXACT)
    assert torch.equal(ours.encode(x_BCHW), indices_BHW)
    assert torch.equal(output.indices_BHW, indices_BHW)
    assert len(indices_BHW.unique()) > 4
    torch.testing.assert_close(output.x_hat_BCHW, theirs.decode(quantized_BCHW).detach(), **EXACT)
    torch.testing.assert_close(output.codebook_loss_B.mean() * 1.25, loss, **EXACT)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("config", [DEEP, LEARNT])
def test_the_generators_gradient_is_taming_transformers(
    config: TokenizerModelConfig, layout: torch.memory_format
) -> None:
    """The codes' too, where they are parameters."""
    ours, theirs, x_BCHW = both(config, 3)
    ours.to(memory_format=layout)
    wanted_BCHW = torch.randn_like(x_BCHW)
    output = ours(x_BCHW.to(memory_format=layout))
    ((output.x_hat_BCHW * wanted_BCHW).sum() + output.codebook_loss_B.mean()).backward()
    x_hat_BCHW, loss = theirs(x_BCHW)
    ((x_hat_BCHW * wanted_BCHW).sum() + loss).backward()

    theirs_by_name = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad and not name.endswith(".k.bias"):  # a softmax does not see it: rounding alone
            torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad, **EXACT, msg=name)
            compared += 1
    assert compared > 150


def test_lpips_and_its_gradient_are_taming_transformers() -> None:
    ours, theirs = peers.lpips_vgg().double(), peers.taming_lpips().double()
    x_BCHW, x_hat_BCHW = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2))
    mine, yours = x_hat_BCHW.clone().requires_grad_(), x_hat_BCHW.clone().requires_grad_()
    distance_B, expected_B = ours(x_BCHW, mine), theirs(x_BCHW, yours)[:, 0, 0, 0]
    (distance_B * torch.tensor([1.0, 3.0])).sum().backward()
    (expected_B * torch.tensor([1.0, 3.0])).sum().backward()

    assert expected_B.min().item() > 1e-3
    torch.testing.assert_close(distance_B, expected_B, **EXACT)
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("layers", "width"), [(3, 16), (2, 8)])
def test_the_discriminator_with_batch_norm_is_taming_transformers(layers: int, width: int) -> None:
    ours = PatchDiscriminator(DiscriminatorConfig(base_channels=width, num_layers=layers, norm="batch"), channels=3)
    theirs = peers.taming("modules.discriminator.model").NLayerDiscriminator(ndf=width, n_layers=layers)
    theirs.load_state_dict(ours.state_dict())
    x_BCHW = torch.rand(4, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW), **EXACT)
