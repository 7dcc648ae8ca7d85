"""The gated PixelCNN prior: convolutions over the grid of token embeddings, with a cache for drawing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.priors.configs import PixelCNNConfig
from stages.models.priors.gated_block import BlockCache, GatedBlock
from stages.models.priors.prior import FIRST_OWN_SITE, Prior, Stretch
from stages.models.vocabulary import Vocabulary

# Shapes: B batch, C condition tokens, T image tokens, W channels, H rows, P places of a row (its columns), V codes.

Cache = list[BlockCache]


class PixelCNN(Prior):
    """Gated PixelCNN over a picture's tokens (van den Oord et al. 2016, arXiv:1606.05328), without a blind spot.

    It reads tokens through an embedding: their numbers have no order. Of the condition, tokens that form a map reach
    each place from the nearest place of the map (equation 5), all others reach every place alike (equation 4).
    """

    config: PixelCNNConfig
    remembers = False
    blocks: Sequence[GatedBlock]

    def __init__(self, config: PixelCNNConfig, *, vocabulary: Vocabulary, grid: tuple[int, int]) -> None:
        super().__init__(config, vocabulary=vocabulary, grid=grid)
        self.global_places = [
            start + place
            for segment, start in zip(vocabulary.segments, vocabulary.starts, strict=True)
            for place in range(segment.length)
            if segment.grid is None
        ]
        self.token_embedding = nn.Embedding(vocabulary.size, config.width)
        if self.global_places:
            self.condition_projection = nn.Linear(len(self.global_places) * config.width, config.width)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            GatedBlock(config, first=not number, site=FIRST_OWN_SITE + number)
            for number in range(1 + config.num_blocks)
        )
        self.hidden = nn.Linear(config.width, config.head_width)
        self.head = nn.Linear(config.head_width, vocabulary.num_codes, bias=False)

    def features(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """What the head reads [B, T, W] to predict every image token."""
        s_BWHP = self._condition(condition_BC)
        x_BWHP = self._embed_map(tokens_BT, self.grid)
        v_BWHP, h_BWHP = x_BWHP, x_BWHP
        for block in self.blocks:
            v_BWHP, h_BWHP = block(v_BWHP, h_BWHP, s_BWHP, keys_B)
        return self._head_features(h_BWHP.flatten(2).transpose(1, 2))

    def new_cache(
        self, batch: int, device: Any = None, dtype: torch.dtype | None = None, length: int | None = None
    ) -> Cache:
        """Room for what the blocks remember of `batch` pictures; device and dtype default to the weights'."""
        like = self.head.weight.new_empty(0, device=device, dtype=dtype)
        return [block.new_cache(batch, self.grid, like) for block in self.blocks]

    def prefill(self, condition_BC: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] of the first image token."""
        s_BWHP = self._condition(condition_BC)
        for block, block_cache in zip(self.blocks, cache, strict=True):
            block.start(s_BWHP, block_cache)
        logits_BV: Tensor = self.head(self._head_features(self._features_at(0, cache)))
        return logits_BV

    def feed(self, tokens_BS: Tensor, position: int, cache: Cache) -> Tensor:
        """Logits [B, V] of the token after those of `tokens_BS`, which come at `position` and after it.

        The horizontal stack computes one place, the vertical one a row at the end of each.
        """
        self._check_feed(tokens_BS, position)
        for place, tokens_B in enumerate(tokens_BS.unbind(1), position):
            h_BW = self._take_in(tokens_B, place, cache)
        logits_BV: Tensor = self.head(self._head_features(h_BW))
        return logits_BV

    def read(self, stretches: Sequence[Stretch]) -> Tensor:
        """Logits [L, V] of the token after each row of each stretch; all their grids as one batch."""
        conditions, tokens, places = [], [], []
        for stretch in stretches:
            assert not stretch.start and stretch.cache is None, "a PixelCNN reads from the beginning"
            condition_BC, tokens_BS = stretch.tokens_BS.tensor_split([self.vocabulary.condition_length], dim=1)
            conditions.append(condition_BC)
            # What comes after the tokens that are given is never seen.
            tokens.append(F.pad(tokens_BS, (0, self.num_tokens - tokens_BS.shape[1])))
            places += [tokens_BS.shape[1]] * len(tokens_BS)
        features_LTW = self.features(torch.cat(conditions), torch.cat(tokens))
        logits_LV: Tensor = self.head(features_LTW[torch.arange(len(places)), torch.tensor(places)])
        return logits_LV

    def _take_in(self, tokens_B: Tensor, position: int, cache: Cache) -> Tensor:
        row, column = divmod(position, self.grid[1])
        first_cache = cache[0]
        self.blocks[0].remember(self.token_embedding(tokens_B), column, first_cache)
        if column == self.grid[1] - 1:
            v_BWP = first_cache.left_BWQ[:, :, self.blocks[0].reach :]
            for block, block_cache in zip(self.blocks, cache, strict=True):
                v_BWP = block.finish_row(v_BWP, row, block_cache)
        return self._features_at(position + 1, cache)

    def _features_at(self, position: int, cache: Cache) -> Tensor:
        row, column = divmod(position, self.grid[1])
        h_BW = None
        for block, block_cache in zip(self.blocks, cache, strict=True):
            h_BW = block.extend_row(h_BW, row, column, block_cache)
        assert h_BW is not None
        return h_BW

    def _condition(self, condition_BC: Tensor) -> Tensor:
        """What every block knows of the condition: s_BWHP, of one row and column if it is the same everywhere."""
        parts: list[Tensor] = []
        if self.global_places:
            globals_BN = self.token_embedding(condition_BC[:, self.global_places]).flatten(1)
            parts.append(self.condition_projection(globals_BN)[:, :, None, None])
        for segment, start in zip(self.vocabulary.segments, self.vocabulary.starts, strict=True):
            if segment.grid is not None:
                map_BWHP = self._embed_map(condition_BC[:, start : start + segment.length], segment.grid)
                parts.append(F.interpolate(map_BWHP, self.grid, mode="nearest-exact"))
        return functools.reduce(torch.add, parts)

    def _embed_map(self, tokens_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BWHP: Tensor = self.token_embedding(tokens_BN).unflatten(1, grid).permute(0, 3, 1, 2)
        return x_BWHP

    def _head_features(self, h: Tensor) -> Tensor:
        """[..., W] -> [..., head_width]."""
        features: Tensor = self.hidden(h.relu()).relu()
        return features
