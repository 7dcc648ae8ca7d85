"""The GPT prior: a causal transformer over [condition, image tokens]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from stages.models.dropout import SampleDropout
from stages.models.layers.packed_linear import input_dtype, pack_linear_layers
from stages.models.priors.configs import GPTConfig
from stages.models.priors.prior import FIRST_OWN_SITE, Prior, Stretch
from stages.models.priors.rotary import grid_places, rotation
from stages.models.priors.transformer import Block, LayerCache, Span, new_norm
from stages.models.vocabulary import Vocabulary

# Shapes: B batch, C condition tokens, T image tokens, S positions read at once, P positions, W width, H heads,
# D width of a head, R = D/2 pairs of its channels, V codes; N positions of all stretches, L their last ones.

EMBEDDING_SITE, FIRST_BLOCK_SITE = FIRST_OWN_SITE, FIRST_OWN_SITE + 1
"""Places that draw at random in training; each block has two, for its attention and its MLP."""

Cache = list[LayerCache]


class GPT(Prior):
    """Autoregressive transformer over a picture's tokens, after those of its condition.

    `form: reference` is the transformer of "Taming Transformers for High-Resolution Image Synthesis" (Esser et al.,
    2021; minGPT): learned positions in the sequence, pre-LayerNorm, GELU, weights from N(0, 0.02). Different here: one
    table with separate ranges for condition and image tokens, and a head over the codebook's range alone.
    `form: modern` is that of LlamaGen (Sun et al. 2024) with normalised queries and keys; its rotary positions are
    those in the grid, and condition tokens have positions too (LlamaGen multiplies their queries and keys by 0).
    """

    config: GPTConfig
    remembers = True
    blocks: Sequence[Block]
    order_T: Tensor
    positions_T: Tensor
    """Where in the sequence each place of the grid comes."""
    rotation_2PR: Tensor

    def __init__(self, config: GPTConfig, *, vocabulary: Vocabulary, grid: tuple[int, int]) -> None:
        super().__init__(config, vocabulary=vocabulary, grid=grid)
        # The last image token is only ever a target.
        self.num_positions = vocabulary.condition_length + self.num_tokens - 1
        self.token_embedding = nn.Embedding(vocabulary.size, config.width)
        if config.form == "modern":
            places_P2 = grid_places(vocabulary, grid, self.order[:-1])
            rotation_2PR = rotation(places_P2, config.width // config.num_heads)
            self.register_buffer("rotation_2PR", rotation_2PR, persistent=False)
        else:
            self.position_embedding_PW = nn.Parameter(torch.zeros(self.num_positions, config.width))
        self.dropout = SampleDropout(config.dropout, EMBEDDING_SITE)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(config, FIRST_BLOCK_SITE + 2 * number) for number in range(config.num_layers)
        )
        self.norm = new_norm(config)
        self.head = nn.Linear(config.width, vocabulary.num_codes, bias=False)
        order_T = torch.tensor(self.order)
        self.register_buffer("order_T", order_T, persistent=False)
        self.register_buffer("positions_T", order_T.argsort(), persistent=False)
        self.apply(_initialise)

    def features(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """What the head reads [B, T, W] to predict every image token."""
        permuted = self.config.order != "raster"
        if permuted:
            tokens_BT = tokens_BT[:, self.order_T]
        x_BSW = self.dropout(self._embed(torch.cat([condition_BC, tokens_BT[:, :-1]], dim=1), 0), keys_B)
        rotation_2SR = self._rotation(slice(x_BSW.shape[1]))
        for block in self.blocks:
            x_BSW = block(x_BSW, keys_B, rotation_2SR)
        features_BTW: Tensor = self.norm(x_BSW[:, condition_BC.shape[1] - 1 :])
        return features_BTW[:, self.positions_T] if permuted else features_BTW

    def new_cache(
        self, batch: int, device: Any = None, dtype: torch.dtype | None = None, length: int | None = None
    ) -> Cache:
        """Room for the keys and values of `batch` sequences; device and dtype default to those of the matrices."""
        head_width = self.config.width // self.config.num_heads
        shape = (batch, self.config.num_heads, length or self.num_positions, head_width)

        def room() -> Tensor:
            return torch.empty(shape, device=device or self.head.weight.device, dtype=dtype or self.cache_dtype)

        return [LayerCache(room(), room()) for _ in self.blocks]

    def prefill(self, condition_BC: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] of the first image token; fills the cache with the condition."""
        return self.read([Stretch(condition_BC, 0, cache)])

    def feed(self, tokens_BS: Tensor, position: int, cache: Cache) -> Tensor:
        """Logits [B, V] of the token after those of `tokens_BS`, which come at `position` and after it."""
        self._check_feed(tokens_BS, position)
        return self.read([Stretch(tokens_BS, self.vocabulary.condition_length + position, cache)])

    def read(self, stretches: Sequence[Stretch]) -> Tensor:
        """Logits [L, V] of the token after each row of each stretch; all pass through the layers as one matrix."""
        spans = [Span(len(s.tokens_BS), s.tokens_BS.shape[1], s.start, s.cache) for s in stretches]
        device = self.head.weight.device
        x_NW = torch.cat([self._embed(s.tokens_BS, s.start).flatten(0, 1) for s in stretches])
        rotation_2NR = None
        if self.config.form == "modern":
            parts = [self.rotation_2PR[:, s.start : s.start + s.count].repeat(1, s.batch, 1) for s in spans]
            rotation_2NR = torch.cat(parts, dim=1)
        counts = [span.count for span in spans for _ in range(span.batch)]
        last_L = None if len(counts) == len(x_NW) else torch.tensor(counts, device=device).cumsum(0) - 1
        return self.through_blocks(x_NW, rotation_2NR, spans, last_L)

    def through_blocks(
        self, x_NW: Tensor, rotation_2NR: Tensor | None, spans: Sequence[Span], last_L: Tensor | None = None
    ) -> Tensor:
        """Logits after all positions of the spans, or after `last_L` alone."""
        for layer, block in enumerate(self.blocks):
            is_last = layer == len(self.blocks) - 1
            x_NW = block.read(x_NW, rotation_2NR, spans, layer, last_L if is_last else None)
        logits_LV: Tensor = self.head(self.norm(x_NW))
        return logits_LV

    def stepper(self, cache: Cache) -> Callable[[Tensor, int], Tensor]:
        """`feed` with this cache; on CUDA single steps are one graph."""
        if self.head.weight.device.type != "cuda":
            return super().stepper(cache)
        from stages.models.priors.fixed_step import FixedStep

        return FixedStep(self, cache)

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are computed in."""
        return input_dtype(self.blocks[0].attention.qkv)

    @property
    def cache_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * len(self.blocks) * self.config.width * self.cache_dtype.itemsize

    def for_drawing(self, dtype: torch.dtype | None = None) -> Self:
        """Cast the matrices of the blocks once; below float64 norms, embeddings, the sum of the branches and the logits
        stay as they are. On a CPU those of float32 and float16 are packed, and float16 means the matrices alone.
        """
        super().for_drawing(dtype)
        dtype = dtype or self.cache_dtype
        packed = self.head.weight.device.type == "cpu" and dtype in (torch.float32, torch.float16)
        for block in self.blocks:
            if packed:
                pack_linear_layers(block, dtype)
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
        return self

    def _embed(self, tokens_BS: Tensor, start: int) -> Tensor:
        x_BSW: Tensor = self.token_embedding(tokens_BS)
        if self.config.form == "modern":
            return x_BSW
        return x_BSW + self.position_embedding_PW[start : start + tokens_BS.shape[1]]

    def _rotation(self, positions: slice) -> Tensor | None:
        return self.rotation_2PR[:, positions] if self.config.form == "modern" else None


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for matrices and embeddings, zero biases, as the reference."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
