"""A GPT's single step in shapes that never change, which CUDA replays as one graph.

A step is hundreds of small kernels, and starting them takes a GPU longer than running them. What is here has been run
on CPUs alone, without a graph, against the ordinary step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.priors.transformer import LayerCache, Span

if TYPE_CHECKING:
    from stages.models.priors.gpt import GPT

# Shapes: B batch, S positions read at once, P positions of the cache, H heads, D width of a head, W width, V codes.

WARM_UP = 3
"""Steps before the graph is recorded, as CUDA's libraries want."""


@dataclass
class FixedLayerCache(LayerCache):
    """A cache at whose one position, a tensor, the step is, and which is attended to as a whole behind a mask."""

    position_1: Tensor
    seen_P: Tensor

    def attend(self, query_BHSD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, start: int) -> Tensor:
        """Take in the keys and values of one position; `start` is not used."""
        self.keys_BHPD.index_copy_(2, self.position_1, key_BHSD)
        self.values_BHPD.index_copy_(2, self.position_1, value_BHSD)
        mask_SP = self.seen_P[None]
        return F.scaled_dot_product_attention(query_BHSD, self.keys_BHPD, self.values_BHPD, attn_mask=mask_SP)


class FixedStep:
    """`GPT.feed` with one cache: single tokens by the graph, runs of several in the ordinary way."""

    def __init__(self, model: GPT, cache: list[LayerCache]) -> None:
        keys_BHPD = cache[0].keys_BHPD
        batch, device = len(keys_BHPD), keys_BHPD.device
        self.model, self.cache = model, cache
        self.tokens_B = torch.zeros(batch, dtype=torch.long, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.places_P = torch.arange(keys_BHPD.shape[2], device=device)
        self.seen_P = self.places_P <= self.position_1
        for layer in cache:  # behind the mask a NaN would still be one
            layer.keys_BHPD.nan_to_num_(0, 0, 0)
            layer.values_BHPD.nan_to_num_(0, 0, 0)
        layers = [FixedLayerCache(c.keys_BHPD, c.values_BHPD, self.position_1, self.seen_P) for c in cache]
        self.span = Span(batch, 1, 0, layers)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_BV: Tensor | None = None

    def __call__(self, tokens_BS: Tensor, position: int) -> Tensor:
        """Logits [B, V] of the token after those of `tokens_BS`, which come at `position` and after it."""
        if tokens_BS.shape[1] > 1:
            return self.model.feed(tokens_BS, position, self.cache)
        self.tokens_B.copy_(tokens_BS[:, 0])
        self.position_1.fill_(self.model.vocabulary.condition_length + position)
        if self.tokens_B.device.type != "cuda":
            return self._run()
        if self.graph is None:
            self._record()
        assert self.graph is not None and self.logits_BV is not None
        self.graph.replay()
        return self.logits_BV.clone()

    def _record(self) -> None:
        """Running a step more than once at the same position changes nothing."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_BV = self._run()

    def _run(self) -> Tensor:
        model = self.model
        torch.le(self.places_P, self.position_1, out=self.seen_P)
        x_BW, rotation_2BR = model.token_embedding(self.tokens_B), None
        if model.config.form == "modern":
            rotation_2BR = model.rotation_2PR.index_select(1, self.position_1).expand(-1, len(x_BW), -1)
        else:
            x_BW = x_BW + model.position_embedding_PW.index_select(0, self.position_1)
        return model.through_blocks(x_BW, rotation_2BR, [self.span])
