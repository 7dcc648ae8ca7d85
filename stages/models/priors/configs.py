"""Configuration of the priors, and the description that lies beside a trained one. Free of torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config import StrictModel
from stages.models.vocabulary import TokenSpace


class GPTConfig(StrictModel):
    """A decoder-only transformer over condition and image tokens."""

    num_layers: int = Field(default=6, gt=0)
    """Transformer blocks."""
    num_heads: int = Field(default=8, gt=0)
    """Attention heads; they share the width evenly."""
    width: int = Field(default=320, gt=0)
    """Channels of the residual stream; the MLP is four times as wide."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of embedding and residual-branch values dropped in training, to 1/256. Attention weights are never
    dropped: that would leave the fused attention kernel."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training sequences whose whole condition becomes null; guidance needs more than 0. With several
    conditions each becomes null by itself too, in as large a share of the others."""
    pkeep: float = Field(default=1.0, ge=0, le=1)
    """Share of input tokens that training keeps; the others become codes drawn uniformly, and the targets stay: the
    prior learns to go on from draws that it should not have made (`pkeep` of taming-transformers)."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> GPTConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}: "
                f"use {self.width - self.width % self.num_heads} or {self.width + -self.width % self.num_heads}"
            )
        return self


class PriorDescription(TokenSpace):
    """The content of a prior's `config.json`: the model, and the tokens that it was trained on."""

    model: GPTConfig
    """Architecture of the prior."""

    @classmethod
    def of(cls, model: GPTConfig, space: TokenSpace) -> PriorDescription:
        """Describe a prior of architecture `model` over the tokens of `space`."""
        return cls(model=model, **{name: getattr(space, name) for name in TokenSpace.model_fields})
