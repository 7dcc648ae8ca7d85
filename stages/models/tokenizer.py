"""The tokenizer: pictures to grids of code numbers and back.

Legend: B batch, C channels, H height, W width; a picture is x_BCHW in [-1, 1], its tokens are indices_BHW on the grid.
"""

import json
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError, shown
from stages.models.backbones.light import LightDecoder, LightEncoder
from stages.models.backbones.reference import ReferenceDecoder, ReferenceEncoder
from stages.models.backbones.vqvae import VQVAEDecoder, VQVAEEncoder
from stages.models.label_maps import most_likely, one_hot
from stages.models.pretrained import CONFIG, WEIGHTS, home_of
from stages.models.quantizers.build import build_quantizer
from stages.models.quantizers.quantizer import StepKeys
from stages.models.tokenizer_config import (
    BackboneConfig,
    LightBackboneConfig,
    ReferenceBackboneConfig,
    TokenizerDescription,
    TokenizerModelConfig,
    VQVAEBackboneConfig,
)
from stages.models.weights import built_with, read_weights

Encoder = LightEncoder | ReferenceEncoder | VQVAEEncoder
Decoder = LightDecoder | ReferenceDecoder | VQVAEDecoder


class TokenizerOutput(NamedTuple):
    """A training step's forward pass."""

    x_hat_BCHW: Tensor
    codebook_loss_B: Tensor
    """What the quantizer adds to each picture's loss, weighted."""
    z_BCHW: Tensor
    """The vectors before quantization, detached."""
    indices_BHW: Tensor
    soft_counts_BGK: Tensor | None = None
    """Of quantizers whose loss depends on the global batch as a whole, see `Quantizer.batch_loss`."""


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder; names of submodules and weights follow taming-transformers' VQModel.

    Raises ConfigError if the picture does not divide into tokens.
    """

    def __init__(self, config: TokenizerModelConfig, *, image_size: int, channels: int) -> None:
        super().__init__()
        if image_size % config.factor:
            raise ConfigError(
                f"pictures of {image_size}x{image_size} do not divide into tokens of {config.factor}x{config.factor} "
                f"pixels: choose an image size that is a multiple of {config.factor}, or another backbone"
            )
        self.config, self.image_size, self.channels = config, image_size, channels
        inside = config.labels or channels
        self.encoder, self.decoder = build_backbone(config.backbone, image_size=image_size, channels=inside)
        projected = not isinstance(config.backbone, VQVAEBackboneConfig) or config.backbone.dim != config.quantizer.dim
        width, dim = self.encoder.out_channels, config.quantizer.dim
        self.quant_conv = nn.Conv2d(width, dim, 1) if projected else nn.Identity()
        self.quantize = build_quantizer(config.quantizer)
        self.post_quant_conv = nn.Conv2d(dim, width, 1) if projected else nn.Identity()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of one picture."""
        side = self.image_size // self.config.factor
        return side, side

    @property
    def num_codes(self) -> int:
        """A token is a number below this."""
        return self.config.quantizer.num_codes

    @property
    def last_layer_weight(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where the adaptive adversarial weight is measured."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def compile_trunks(self) -> None:
        """Compile encoder and decoder in place, but for the last layer: its weight is differentiated by itself."""
        self.encoder.compile()
        self.decoder.trunk = torch.compile(self.decoder.trunk)  # type: ignore[method-assign]

    def forward(self, x_BCHW: Tensor, at: StepKeys | None = None) -> TokenizerOutput:
        """A training step's forward pass over pictures in [-1, 1]; without `at` nothing is random.

        x_hat of label maps has a logit for each class.
        """
        z_BCHW = self.quant_conv(self.encoder(self._seen(x_BCHW)))
        quantized = self.quantize(z_BCHW, at)
        x_hat_BCHW = self.decoder(self.post_quant_conv(quantized.z_q_BCHW))
        return TokenizerOutput(
            x_hat_BCHW,
            quantized.codebook_loss_B,
            z_BCHW.detach(),
            quantized.indices_BHW,
            quantized.soft_counts_BGK,
        )

    @torch.no_grad()
    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to tokens: x_BCHW -> indices_BHW."""
        indices_BHW: Tensor = self.quantize.nearest(self.encode_latents(x_BCHW))
        return indices_BHW

    @torch.no_grad()
    def decode(self, indices_BHW: Tensor) -> Tensor:
        """Tokens to pictures clamped to [-1, 1]: indices_BHW -> x_BCHW. A grid of any size gives a picture of its."""
        return self.decode_latents(self.quantize.embed(indices_BHW))

    def encode_latents(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to the vectors before quantization: x_BCHW -> z_BCHW, `quantizer.dim` channels."""
        z_BCHW: Tensor = self.quant_conv(self.encoder(self._seen(x_BCHW)))
        return z_BCHW

    def quantize_latents(self, z_BCHW: Tensor) -> Tensor:
        """Each vector's code: z_BCHW -> z_q_BCHW, what `decode` makes pictures of."""
        z_q_BCHW: Tensor = self.quantize.embed(self.quantize.nearest(z_BCHW))
        return z_q_BCHW

    def decode_latents(self, z_BCHW: Tensor) -> Tensor:
        """Vectors, quantized or not, to pictures clamped to [-1, 1]: z_BCHW -> x_BCHW."""
        x_BCHW: Tensor = self.decoder(self.post_quant_conv(z_BCHW))
        return most_likely(x_BCHW) if self.config.labels else x_BCHW.clamp(-1, 1)

    def _seen(self, x_BCHW: Tensor) -> Tensor:
        """What the encoder sees of pictures."""
        return one_hot(x_BCHW, self.config.labels) if self.config.labels else x_BCHW

    def reconstruct(self, x_BCHW: Tensor) -> Tensor:
        """A picture through its tokens and back."""
        return self.decode(self.encode(x_BCHW))

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` and `config.json`; equal weights give equal bytes."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.state_dict().items())}
        save_file(weights, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.description())

    def description(self) -> str:
        """The text of `config.json`: all that `load` needs beside the weights."""
        fields = {
            "model": self.config.model_dump(mode="json"),
            "image_size": self.image_size,
            "channels": self.channels,
        }
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """The tokenizer in `folder`, in evaluation mode: what `save` wrote there, or what a run, a published bundle or
        an import keeps below it. Raises DataError if files are missing or do not fit."""
        found = home_of(folder, "tokenizer")
        if found is None:
            present = [name for name in (CONFIG, WEIGHTS) if (Path(folder) / name).is_file()]
            missing = " and ".join(name for name in (CONFIG, WEIGHTS) if name not in present)
            raise DataError(f"no {missing} in {folder}: run --stages tokenizer, or name a finished tokenizer's folder")
        home = found.local(CONFIG).parent
        found.local(WEIGHTS)  # behind a URL, both are fetched
        try:
            described = TokenizerDescription.model_validate_json((home / CONFIG).read_bytes())
        except ValidationError as error:
            raise DataError(f"{home / CONFIG} describes no tokenizer of this version: {shown(str(error))}") from None
        sizes = {"image_size": described.image_size, "channels": described.channels}
        weights = read_weights(home / WEIGHTS)
        tokenizer = built_with(weights, lambda: cls(described.model, **sizes), home / WEIGHTS, CONFIG)
        tokenizer.eval().requires_grad_(False)
        if torch.device(device).type == "cpu":
            tokenizer.to(memory_format=torch.channels_last)
        return tokenizer.to(device)


def build_backbone(config: BackboneConfig, *, image_size: int, channels: int) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of this configuration, with fresh weights."""
    match config:
        case LightBackboneConfig():
            return LightEncoder(config, channels=channels), LightDecoder(config, channels=channels)
        case ReferenceBackboneConfig():
            sizes = {"image_size": image_size, "channels": channels}
            return ReferenceEncoder(config, **sizes), ReferenceDecoder(config, **sizes)
        case VQVAEBackboneConfig():
            return VQVAEEncoder(config, channels=channels), VQVAEDecoder(config, channels=channels)
