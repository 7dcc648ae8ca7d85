"""The GPT's layers in both forms: attention with a static key-value cache, and the block around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.dropout import SampleDropout
from stages.models.layers.packed_linear import PackedLinear, input_dtype
from stages.models.priors.configs import GPTConfig
from stages.models.priors.rotary import rotate

# Shapes: B batch, S positions fed at once, P positions cached, W width, H heads, D width of a head,
# R = D/2 pairs of a head's channels, M width of an MLP, N = B * S positions of all stretches, L their last ones.

RMS_EPSILON = 1e-5
"""LlamaGen's."""


@dataclass
class LayerCache:
    """Keys and values of one attention layer, preallocated for the longest sequence."""

    keys_BHPD: Tensor
    values_BHPD: Tensor

    def attend(self, query_BHSD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, start: int) -> Tensor:
        """Take in keys and values of positions start..; attention [B, H, S, D] of queries at the last of them."""
        end = start + key_BHSD.shape[2]
        self.keys_BHPD[:, :, start:end] = key_BHSD
        self.values_BHPD[:, :, start:end] = value_BHSD
        return attend(query_BHSD, self.keys_BHPD[:, :, :end], self.values_BHPD[:, :, :end])


@dataclass(frozen=True)
class Span:
    """S positions in a row of B sequences, as they lie among all N that pass through the layers together."""

    batch: int
    count: int
    start: int
    """Position in the sequence of the first."""
    cache: Sequence[LayerCache] | None
    """A layer's each; None where nothing came before and nothing is to be remembered."""

    def cut(self, x_NHD: Tensor, count: int) -> Tensor:
        """[B, H, count, D] of the rows [B * count, H, D] that belong to this span."""
        return x_NHD.view(self.batch, count, *x_NHD.shape[1:]).transpose(1, 2)


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
        self.qkv: nn.Linear | PackedLinear = nn.Linear(width, 3 * width, bias=not modern)
        self.out = nn.Linear(width, width, bias=not modern)
        head_width = width // config.num_heads
        self.query_norm = RMSNorm(head_width) if modern else nn.Identity()
        self.key_norm = RMSNorm(head_width) if modern else nn.Identity()

    def forward(self, x_BSW: Tensor, rotation_2SR: Tensor | None = None) -> Tensor:
        """[B, S, W] -> [B, S, W] of whole sequences."""
        B, S, W = x_BSW.shape
        qkv_3BHSD = self.qkv(x_BSW).view(B, S, 3, self.num_heads, W // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHSD.unbind(0)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation_2SR is not None:
            query, key = rotate(query, rotation_2SR), rotate(key, rotation_2SR)
        mixed_BHSD = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out_BSW: Tensor = self.out(mixed_BHSD.transpose(1, 2).reshape(B, S, W))
        return out_BSW

    def read(
        self, x_NW: Tensor, rotation_2NR: Tensor | None, spans: Sequence[Span], layer: int, last_L: Tensor | None
    ) -> Tensor:
        """[N, W] -> [N, W] of spans that see what came before them; [L, W] of positions `last_L` alone if given."""
        x_NW = x_NW.to(input_dtype(self.qkv))
        query_NHD, key_NHD, value_NHD = self._project(x_NW, rotation_2NR, last_L)
        query_counts = [span.count if last_L is None else 1 for span in spans]
        mixed = []
        for span, query_count, query, key, value in zip(
            spans,
            query_counts,
            query_NHD.split_with_sizes([span.batch * count for span, count in zip(spans, query_counts, strict=True)]),
            key_NHD.split_with_sizes([span.batch * span.count for span in spans]),
            value_NHD.split_with_sizes([span.batch * span.count for span in spans]),
            strict=True,
        ):
            key_BHSD, value_BHSD = span.cut(key, span.count), span.cut(value, span.count)
            query_BHSD = span.cut(query, query_count)
            if span.cache is None:
                mixed_BHSD = attend(query_BHSD, key_BHSD, value_BHSD)
            else:
                mixed_BHSD = span.cache[layer].attend(query_BHSD, key_BHSD, value_BHSD, span.start)
            mixed.append(mixed_BHSD.transpose(1, 2).flatten(0, 1).flatten(1))
        out_NW: Tensor = self.out(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        return out_NW

    def _project(
        self, x_NW: Tensor, rotation_2NR: Tensor | None, last_L: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of `last_L` alone if given), keys and values [N, H, D]."""
        query_NW, key_NW, value_NW = self.qkv(x_NW).chunk(3, dim=1)
        if last_L is not None:
            query_NW = query_NW[last_L]
        query_NHD, key_NHD, value_NHD = (x.unflatten(1, (self.num_heads, -1)) for x in (query_NW, key_NW, value_NW))
        query_NHD, key_NHD = self.query_norm(query_NHD), self.key_norm(key_NHD)
        if rotation_2NR is not None:
            of_queries = rotation_2NR if last_L is None else rotation_2NR[:, last_L]
            query_NHD, key_NHD = (
                rotate(x_NHD.transpose(0, 1), of_rows).transpose(0, 1)
                for x_NHD, of_rows in ((query_NHD, of_queries), (key_NHD, rotation_2NR))
            )
        return query_NHD, key_NHD, value_NHD


def attend(query_BHSD: Tensor, key_BHPD: Tensor, value_BHPD: Tensor) -> Tensor:
    """Causal attention [B, H, S, D] of the last S of P positions."""
    S, P = query_BHSD.shape[2], key_BHPD.shape[2]
    if S in (1, P):
        return F.scaled_dot_product_attention(query_BHSD, key_BHPD, value_BHPD, is_causal=S > 1)
    seen_SP = torch.ones(S, P, dtype=torch.bool, device=query_BHSD.device).tril(P - S)
    return F.scaled_dot_product_attention(query_BHSD, key_BHPD, value_BHPD, attn_mask=seen_SP)


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

    def forward(self, x_BSW: Tensor, keys_B: Tensor | None = None, rotation_2SR: Tensor | None = None) -> Tensor:
        """[B, S, W] -> [B, S, W]; `keys_B` switches dropout on."""
        attended_BSW = self.attention(self.attention_norm(x_BSW), rotation_2SR)
        x_BSW = x_BSW + self.attention_dropout(attended_BSW, keys_B)
        out_BSW: Tensor = x_BSW + self.mlp_dropout(self.mlp(self.mlp_norm(x_BSW)), keys_B)
        return out_BSW

    def read(
        self, x_NW: Tensor, rotation_2NR: Tensor | None, spans: Sequence[Span], layer: int, last_L: Tensor | None
    ) -> Tensor:
        """[N, W] -> [N, W], or [L, W] of the positions `last_L`: what no later layer reads is not computed."""
        attended = self.attention.read(self.attention_norm(x_NW), rotation_2NR, spans, layer, last_L)
        x = attended + (x_NW if last_L is None else x_NW[last_L])
        out: Tensor = x + self.mlp(self.mlp_norm(x).to(attended.dtype))
        return out
