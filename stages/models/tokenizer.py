"""The tokenizer: pictures to grids of code numbers and back.

Legend: B batch, C channels, H height, W width; a picture is x_BCHW in [-1, 1], its tokens are indices_BHW on the grid.
"""

import json
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError
from stages.models.backbones.light import LightDecoder, LightEncoder
from stages.models.backbones.reference import ReferenceDecoder, ReferenceEncoder
from stages.models.label_maps import most_likely, one_hot
from stages.models.quantizers.ema import EMAQuantizer
from stages.models.tokenizer_config import LightBackboneConfig, TokenizerModelConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class TokenizerOutput(NamedTuple):
    """A training step's forward pass."""

    x_hat_BCHW: Tensor
    commitment_B: Tensor
    """Weighted commitment loss of each picture."""
    z_BCHW: Tensor
    """The vectors before quantization, detached."""
    indices_BHW: Tensor


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
        backbone, inside = config.backbone, config.labels or channels
        if isinstance(backbone, LightBackboneConfig):
            self.encoder: LightEncoder | ReferenceEncoder = LightEncoder(backbone, channels=inside)
            self.decoder: LightDecoder | ReferenceDecoder = LightDecoder(backbone, channels=inside)
            width = backbone.channels[-1]
        else:
            self.encoder = ReferenceEncoder(backbone, image_size=image_size, channels=inside)
            self.decoder = ReferenceDecoder(backbone, image_size=image_size, channels=inside)
            width = backbone.z_channels
        self.quant_conv = nn.Conv2d(width, config.quantizer.dim, 1)
        self.quantize = EMAQuantizer(config.quantizer)
        self.post_quant_conv = nn.Conv2d(config.quantizer.dim, width, 1)

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

    def forward(self, x_BCHW: Tensor) -> TokenizerOutput:
        """A training step's forward pass over pictures in [-1, 1]; x_hat of label maps has a logit for each class."""
        z_BCHW = self.quant_conv(self.encoder(self._seen(x_BCHW)))
        quantized = self.quantize(z_BCHW)
        x_hat_BCHW = self.decoder(self.post_quant_conv(quantized.z_q_BCHW))
        return TokenizerOutput(x_hat_BCHW, quantized.commitment_B, z_BCHW.detach(), quantized.indices_BHW)

    @torch.no_grad()
    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to tokens: x_BCHW -> indices_BHW."""
        indices_BHW: Tensor = self.quantize.nearest(self.quant_conv(self.encoder(self._seen(x_BCHW))))
        return indices_BHW

    @torch.no_grad()
    def decode(self, indices_BHW: Tensor) -> Tensor:
        """Tokens to pictures clamped to [-1, 1]: indices_BHW -> x_BCHW. A grid of any size gives a picture of its."""
        x_BCHW: Tensor = self.decoder(self.post_quant_conv(self.quantize.embed(indices_BHW)))
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
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """The tokenizer saved in `folder`, in evaluation mode. Raises DataError if files are missing or do not fit."""
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise DataError(f"no {name} in {folder}: run --stages tokenizer, or name a finished tokenizer's folder")
        fields = json.loads((folder / CONFIG).read_text())
        config = TokenizerModelConfig.model_validate(fields["model"])
        tokenizer = cls(config, image_size=fields["image_size"], channels=fields["channels"])
        try:
            tokenizer.load_state_dict(load_file(folder / WEIGHTS))
        except RuntimeError as error:
            raise DataError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
        tokenizer.eval().requires_grad_(False)
        if torch.device(device).type == "cpu":
            tokenizer.to(memory_format=torch.channels_last)
        return tokenizer.to(device)
