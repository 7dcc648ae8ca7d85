"""The configuration of a tokenizer: which backbone, which quantizer, and their sizes. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.config import StrictModel
from stages.models.quantizers.configs import EMAQuantizerConfig, QuantizerConfig


class LightBackboneConfig(StrictModel):
    """A small convolutional encoder and decoder for CPUs: a stride-2 step a level, few layers where maps are large."""

    kind: Literal["light"] = "light"

    channels: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), max_length=12)
    """Channels after each stride-2 step; three steps turn 8x8 pixels into one token."""

    residual_blocks: tuple[Annotated[int, Field(le=256)], ...] = (0, 1, 1)
    """Residual blocks at each of these levels, in the encoder and again in the decoder."""

    norm_groups: PositiveInt = 16
    """Groups of each GroupNorm; divides every number in `channels`."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a token."""
        return int(2 ** len(self.channels))

    @model_validator(mode="after")
    def _levels_agree(self) -> "LightBackboneConfig":
        if not self.channels:
            raise ValueError("channels is empty: give one number of channels for each stride-2 step")
        if len(self.channels) != len(self.residual_blocks):
            raise ValueError(
                f"channels {list(self.channels)} and residual_blocks {list(self.residual_blocks)} differ in length: "
                "give one number of each for each stride-2 step"
            )
        if any(number < 0 for number in self.residual_blocks):
            raise ValueError(f"residual_blocks {list(self.residual_blocks)}: a number of blocks cannot be negative")
        for channels in self.channels:
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide the {channels} in `channels`")
        return self


class ReferenceBackboneConfig(StrictModel):
    """The encoder and decoder of VQGAN (Esser et al. 2021); its weights' names are taming-transformers'."""

    kind: Literal["reference"] = "reference"

    base_channels: PositiveInt = 128
    """Channels at full resolution (`ch`); the published models have 128. A multiple of 32."""

    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), max_length=12)
    """Channels of each level in units of `base_channels` (`ch_mult`); n levels: tokens of 2**(n-1) pixels a side."""

    num_res_blocks: PositiveInt = Field(default=2, le=256)
    """Residual blocks of each level of the encoder; the decoder has one more."""

    attention_resolutions: tuple[PositiveInt, ...] = (16,)
    """Sides of feature maps with self-attention after each block (`attn_resolutions`)."""

    z_channels: PositiveInt = 256
    """Channels between the encoder and the quantizer's projection."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the residual blocks; the published models have none."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a token."""
        return int(2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _groups_divide(self) -> "ReferenceBackboneConfig":
        if not self.multipliers:
            raise ValueError("multipliers is empty: give one multiplier for each level")
        if self.base_channels % 32:
            raise ValueError(f"base_channels {self.base_channels}: GroupNorm's 32 groups need a multiple of 32")
        return self


class VQVAEBackboneConfig(StrictModel):
    """The encoder and decoder of the plain VQ-VAE: tokens of 4x4 pixels, for small pictures and for digits."""

    kind: Literal["vqvae"] = "vqvae"

    dim: PositiveInt = 32
    """Channels of every layer: 32 for digits, 128 for faces. Where `quantizer.dim` is the same there is no projection
    between encoder and codebook, as published."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a token."""
        return 4


BackboneConfig = Annotated[
    LightBackboneConfig | ReferenceBackboneConfig | VQVAEBackboneConfig, Field(discriminator="kind")
]


class TokenizerModelConfig(StrictModel):
    """A VQGAN's generator: encoder, codebook, decoder."""

    backbone: BackboneConfig = LightBackboneConfig()
    """`light` trains in minutes on a CPU; `reference` is VQGAN as published; `vqvae` is older and plain."""

    quantizer: QuantizerConfig = EMAQuantizerConfig()
    """`ema` (which is meant where no kind is given), `cosine`, `gradient`, `gumbel`: a codebook. `fsq`, `lookup_free`:
    rounding to a lattice."""

    labels: int | None = Field(default=None, ge=2, le=256)
    """Pictures are maps of so many class numbers, which the networks see one-hot. Null: pictures are pictures."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a token."""
        return self.backbone.factor

    @field_validator("quantizer", mode="before")
    @classmethod
    def _ema_is_meant(cls, quantizer: Any) -> Any:
        return {"kind": "ema", **quantizer} if isinstance(quantizer, dict) else quantizer


class TokenizerDescription(StrictModel):
    """The content of a tokenizer's `config.json`: the model, and the pictures that it is for."""

    model: TokenizerModelConfig
    """Its sizes."""
    image_size: int = Field(ge=1, le=2**15)
    """Side of the square pictures in pixels."""
    channels: int = Field(ge=1, le=256)
    """Colour channels of the pictures."""
