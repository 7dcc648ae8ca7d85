"""Configuration of the priors, and the description that lies beside a trained one. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import StrictModel
from stages.models.vocabulary import TokenSpace


class SharedPriorConfig(StrictModel):
    """What every prior has: what training hides from it, and the order in which it meets the tokens."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of values dropped in training, to 1/256: of the embedding (GPT) and of what each block adds. Attention
    weights are never dropped: that would leave the fused attention kernel."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training sequences whose whole condition becomes null; guidance needs more than 0. With several
    conditions each becomes null by itself too, in as large a share of the others."""
    pkeep: float = Field(default=1.0, ge=0, le=1)
    """Share of input tokens that training keeps; the others become codes drawn uniformly, and the targets stay: the
    prior learns to go on from draws that it should not have made (`pkeep` of taming-transformers)."""
    order: Literal["raster", "z_curve"] = "raster"
    """Order of a picture's tokens: row by row, or along the Z-curve (Morton 1966), in which each square of 2x2, 4x4,
    8x8... tokens is finished before the next one begins. Stored tokens stay in raster order. Learned positions follow
    the sequence, as in taming-transformers, rotary ones the grid."""


class GPTConfig(SharedPriorConfig):
    """A decoder-only transformer over condition and image tokens."""

    kind: Literal["gpt"] = "gpt"
    form: Literal["reference", "modern"] = "reference"
    """`reference`: learned positions, LayerNorm, GELU, biases; VQGAN's own, whose weights can be exchanged with
    taming-transformers. `modern`: rotary positions of rows and columns, RMSNorm, SwiGLU, normalised queries and keys,
    no biases, after LlamaGen (Sun et al. 2024)."""
    num_layers: int = Field(default=6, gt=0, le=1024)
    """Transformer blocks."""
    num_heads: int = Field(default=8, gt=0)
    """Attention heads; they share the width evenly."""
    width: int = Field(default=320, gt=0)
    """Channels of the residual stream; the MLP has about 8 weights for each of its pairs in either form."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> GPTConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}: "
                f"use {self.width - self.width % self.num_heads} or {self.width + -self.width % self.num_heads}"
            )
        head_width = self.width // self.num_heads
        if self.form == "modern" and head_width % 4:
            raise ValueError(
                f"width {self.width} gives each of {self.num_heads} heads {head_width} channels, and rotary positions "
                f"of rows and columns need a multiple of 4: use {self.num_heads * (head_width + -head_width % 4)}"
            )
        return self


class PixelCNNConfig(SharedPriorConfig):
    """A gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders")."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    num_blocks: int = Field(default=15, gt=0, le=1024)
    """Residual blocks after the first one, which leaves out the token to be predicted."""
    width: int = Field(default=128, gt=0)
    """Channels of both stacks and of the embedding."""
    head_width: int = Field(default=256, gt=0)
    """Channels before the logits: 32 are enough for the 32 codes of digits, hundreds of codes want more."""
    kernel_size: int = Field(default=3, gt=1)
    """Side of the convolutions' windows, of which they see what lies above and to the left. Odd."""

    @model_validator(mode="after")
    def _is_possible(self) -> PixelCNNConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} has no middle: use {self.kernel_size + 1}")
        if self.order != "raster":
            raise ValueError(
                f"order {self.order}: a PixelCNN sees what lies above and to the left, which is raster order; "
                "leave `order` out, or set kind to gpt"
            )
        return self


def _gpt_unless_named(model: Any) -> Any:
    """Configurations and descriptions from before there were kinds are a GPT's."""
    return {"kind": "gpt", **model} if isinstance(model, Mapping) else model


PriorModelConfig = Annotated[
    GPTConfig | PixelCNNConfig, Field(discriminator="kind"), BeforeValidator(_gpt_unless_named)
]
"""Of any kind; without a `kind` it is a GPT."""


class PriorDescription(TokenSpace):
    """The content of a prior's `config.json`: the model, and the tokens that it was trained on."""

    model: PriorModelConfig
    """Architecture of the prior."""

    @classmethod
    def of(cls, model: PriorModelConfig, space: TokenSpace) -> PriorDescription:
        """Describe a prior of architecture `model` over the tokens of `space`."""
        return cls(model=model, **{name: getattr(space, name) for name in TokenSpace.model_fields})
