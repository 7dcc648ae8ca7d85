"""The plain VQ-VAE against its tutorial's layers, written out here, with the same weights in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from stages.models.backbones.vqvae import from_unit_range, to_unit_range
from stages.models.losses.configs import DiscriminatorConfig, LossConfig, PerceptualConfig
from stages.models.losses.perceptual import NoDistance
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, TokenizerModelConfig, VQVAEBackboneConfig
from stages.training.adversarial import picture_gradient

EXACT = {"rtol": 1e-9, "atol": 1e-11}
DIM = 8


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class TutorialBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(DIM, DIM, 3, 1, 1)
        self.conv2 = nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(self.relu(x))))


def tutorial(channels: int) -> tuple[nn.Module, nn.Module]:
    """Its encoder and decoder, of pixels in [0, 1]."""
    encoder = nn.Sequential(
        nn.Conv2d(channels, DIM, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(DIM, DIM, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(DIM, DIM, 3, 1, 1),
        TutorialBlock(),
        TutorialBlock(),
    )
    decoder = nn.Sequential(
        nn.Conv2d(DIM, DIM, 3, 1, 1),
        TutorialBlock(),
        TutorialBlock(),
        nn.ConvTranspose2d(DIM, DIM, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(DIM, channels, 4, 2, 1),
    )
    return encoder, decoder


def make(channels: int, *, image_size: int = 28, dim: int = DIM) -> Tokenizer:
    config = TokenizerModelConfig(
        backbone=VQVAEBackboneConfig(dim=DIM), quantizer=EMAQuantizerConfig(num_codes=12, dim=dim)
    )
    return Tokenizer(config, image_size=image_size, channels=channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_decoder_and_loss_are_the_tutorials(channels: int) -> None:
    ours, (encoder, decoder) = make(channels), tutorial(channels)
    for theirs, mine in ((encoder, ours.encoder), (decoder, ours.decoder)):
        values = list(mine.state_dict().values())
        theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    unit_BCHW = torch.rand(5, channels, 28, 28)

    latents_BCHW = encoder(unit_BCHW)
    torch.testing.assert_close(ours.encode_latents(from_unit_range(unit_BCHW)), latents_BCHW, **EXACT)
    expected_BCHW = decoder(latents_BCHW)
    found_BCHW = ours.decoder(ours.post_quant_conv(latents_BCHW))
    torch.testing.assert_close(to_unit_range(found_BCHW), expected_BCHW, **EXACT)
    assert ours.quantize.embedding.weight.shape == (12, DIM)
    assert not [name for name in ours.state_dict() if "quant_conv" in name]

    losses = LossConfig(
        l1_weight=0.0,
        l2_weight=0.25,
        perceptual_weight=0.0,
        perceptual=PerceptualConfig(kind="none"),
        discriminator=DiscriminatorConfig(weight=0.0),
    )
    measured = picture_gradient(
        from_unit_range(unit_BCHW),
        found_BCHW,
        losses=losses,
        perceptual=NoDistance(),
        discriminator=None,
        batch_size=len(unit_BCHW),
    )
    torch.testing.assert_close(
        measured.terms["reconstruction"], nn.functional.mse_loss(expected_BCHW, unit_BCHW).detach(), **EXACT
    )


def test_digits_become_7x7_tokens_and_whole_pictures_again() -> None:
    ours = make(1)
    assert ours.grid == (7, 7)
    assert ours.encode(torch.zeros(2, 1, 28, 28)).shape == (2, 7, 7)
    assert ours.reconstruct(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    assert ours.last_layer_weight.shape == (DIM, 1, 4, 4)


def test_codes_of_another_length_are_projected() -> None:
    ours = make(3, image_size=12, dim=5)
    assert ours.encode_latents(torch.zeros(1, 3, 12, 12)).shape == (1, 5, 3, 3)
    assert ours.reconstruct(torch.zeros(1, 3, 12, 12)).shape == (1, 3, 12, 12)
