"""The GPT's layers in both forms: attention with a static key-value cache, and the block around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.dropout import SampleDropout
from stages.models.priors.configs import GPTConfig
from stages.models.priors.rotary import rotate

# Shapes: B batch, S positions fed at once, P positions cached, W width, H heads, D width of a head,
# R = D/2 pairs of a head's channels, M width of an MLP.

RMS_EPSILON = 1e-5
"""LlamaGen's."""


@dataclass
class LayerCache:
    """Keys and values of one attention layer, preallocated for the longest sequence."""

    keys_BHPD: Tensor
    values_BHPD: Tensor

    def extend(self, keys_BHSD: Tensor, values_BHSD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write at positions start.. and return everything up to there, as views."""
        end = start + keys_BHSD.shape[2]
        self.keys_BHPD[:, :, start:end] = keys_BHSD
        self.values_BHPD[:, :, start:end] = values_BHSD
        return self.keys_BHPD[:, :, :end], self.values_BHPD[:, :, :end]


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) in the input's precision: torch's own is slow where the weight's differs."""

    def __init__(self, width: int) -> None:
        super().__init__(width, RMS_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Each vector of the last dimension over its root mean square, times the weight."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values.

    The modern form normalises queries and keys (Henry et al. 2020; Dehghani et al. 2023), then rotates them.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        modern, width = config.form == "modern", config.width
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=not modern)
        self.out = nn.Linear(width, width, bias=not modern)
        head_width = width // config.num_heads
        self.query_norm = RMSNorm(head_width) if modern else nn.Identity()
        self.key_norm = RMSNorm(head_width) if modern else nn.Identity()

    def forward(
        self, x_BSW: Tensor, rotation_2SR: Tensor | None = None, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        """[B, S, W] -> [B, S, W]; with a cache the S positions begin at `start` and see all before."""
        B, S, W = x_BSW.shape
        assert start == 0 or S == 1, "only a single position can follow cached ones: the causal mask starts at 0"
        qkv_3BHSD = self.qkv(x_BSW).view(B, S, 3, self.num_heads, W // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHSD.unbind(0)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation_2SR is not None:
            query, key = rotate(query, rotation_2SR), rotate(key, rotation_2SR)
        if cache is not None:
            key, value = cache.extend(key, value, start)
        mixed_BHSD = F.scaled_dot_product_attention(query, key, value, is_causal=S > 1)
        out_BSW: Tensor = self.out(mixed_BHSD.transpose(1, 2).reshape(B, S, W))
        return out_BSW


class SwiGLU(nn.Module):
    """W2(SiLU(W1 x) * W3 x) (Shazeer 2020); as many weights as an MLP four times as wide as x, rounded up to 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 64 * -(-8 * width // (3 * 64))
        self.gate_and_value = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """[B, S, W] -> [B, S, W]."""
        gate_BSM, value_BSM = self.gate_and_value(x_BSW).chunk(2, dim=-1)
        out_BSW: Tensor = self.out(F.silu(gate_BSM) * value_BSM)
        return out_BSW


def new_norm(config: GPTConfig) -> nn.Module:
    """The norm of the residual stream: RMSNorm in the modern form, else LayerNorm."""
    return RMSNorm(config.width) if config.form == "modern" else nn.LayerNorm(config.width)


def new_mlp(config: GPTConfig) -> nn.Module:
    """What each position passes through alone."""
    width = config.width
    if config.form == "modern":
        return SwiGLU(width)
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy of the residual stream (pre-norm)."""

    def __init__(self, config: GPTConfig, first_site: int) -> None:
        super().__init__()
        self.attention_norm = new_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = new_norm(config)
        self.mlp = new_mlp(config)
        self.attention_dropout = SampleDropout(config.dropout, first_site)
        self.mlp_dropout = SampleDropout(config.dropout, first_site + 1)

    def forward(
        self,
        x_BSW: Tensor,
        keys_B: Tensor | None = None,
        rotation_2SR: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """[B, S, W] -> [B, S, W]; `keys_B` switches dropout on."""
        attended_BSW = self.attention(self.attention_norm(x_BSW), rotation_2SR, cache, start)
        x_BSW = x_BSW + self.attention_dropout(attended_BSW, keys_B)
        out_BSW: Tensor = x_BSW + self.mlp_dropout(self.mlp(self.mlp_norm(x_BSW)), keys_B)
        return out_BSW
