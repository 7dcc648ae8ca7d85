"""The GPT prior: a causal transformer over [condition, image tokens] with a static key-value cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.dropout import SampleDropout, drop_segments, replace_tokens
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.cross_entropy import projected_token_nats
from stages.models.vocabulary import Vocabulary

# Shapes: B batch, C condition tokens, T image tokens, S positions fed at once, P positions cached, W width,
# H heads, D width of a head, V codes.

CONDITION_SITE, TOKEN_SITE, EMBEDDING_SITE, FIRST_BLOCK_SITE = range(4)
"""Places that draw at random in training; each block has two, for its attention and its MLP."""


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


Cache = list[LayerCache]


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BSW: Tensor, cache: LayerCache | None = None, start: int = 0) -> Tensor:
        """[B, S, W] -> [B, S, W]; with a cache the S positions begin at `start` and see all before."""
        B, S, W = x_BSW.shape
        assert start == 0 or S == 1, "only a single position can follow cached ones: the causal mask starts at 0"
        qkv_3BHSD = self.qkv(x_BSW).view(B, S, 3, self.num_heads, W // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHSD.unbind(0)
        if cache is not None:
            key, value = cache.extend(key, value, start)
        mixed_BHSD = F.scaled_dot_product_attention(query, key, value, is_causal=S > 1)
        out_BSW: Tensor = self.out(mixed_BHSD.transpose(1, 2).reshape(B, S, W))
        return out_BSW


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy of the residual stream (pre-LayerNorm)."""

    def __init__(self, width: int, num_heads: int, dropout: float, first_site: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attention_dropout = SampleDropout(dropout, first_site)
        self.mlp_dropout = SampleDropout(dropout, first_site + 1)

    def forward(
        self, x_BSW: Tensor, keys_B: Tensor | None = None, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        """[B, S, W] -> [B, S, W]; `keys_B` switches dropout on."""
        attended_BSW = self.attention(self.attention_norm(x_BSW), cache, start)
        x_BSW = x_BSW + self.attention_dropout(attended_BSW, keys_B)
        out_BSW: Tensor = x_BSW + self.mlp_dropout(self.mlp(self.mlp_norm(x_BSW)), keys_B)
        return out_BSW


class GPT(nn.Module):
    """Autoregressive model of a picture's tokens in raster order, given a condition.

    The architecture of the transformer in "Taming Transformers for High-Resolution Image Synthesis" (Esser et al.,
    2021; minGPT): learned positions, pre-LayerNorm, GELU, weights from N(0, 0.02). Different here: one table with
    separate ranges for condition and image tokens, and a head over the codebook's range alone.

    What training adds at random (dropped conditions, replaced input tokens, dropout) is a function of the samples'
    keys (`dropout.sample_keys`) and happens where they are given, whether in `train` or `eval` mode.
    """

    def __init__(self, config: GPTConfig, *, vocabulary: Vocabulary, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.num_tokens = num_tokens
        # The last image token is only ever a target.
        self.num_positions = vocabulary.condition_length + num_tokens - 1
        self.token_embedding = nn.Embedding(vocabulary.size, config.width)
        self.position_embedding_PW = nn.Parameter(torch.zeros(self.num_positions, config.width))
        self.dropout = SampleDropout(config.dropout, EMBEDDING_SITE)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout, FIRST_BLOCK_SITE + 2 * number)
            for number in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary.num_codes, bias=False)
        self.apply(_initialise)

    def forward(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of every image token given the condition and the image tokens before it.

        `condition_BC` holds table tokens (`Vocabulary.condition`).
        """
        logits_BTV: Tensor = self.head(self._features(condition_BC, tokens_BT, keys_B))
        return logits_BTV

    def loss(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood in nats per image token, and its parts [B, T]; logits never fill the memory."""
        features_BTW = self._features(condition_BC, tokens_BT, keys_B)
        nats_BT = projected_token_nats(features_BTW, self.head.weight, tokens_BT)
        return nats_BT.mean(), nats_BT

    def new_cache(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> Cache:
        """Room for the keys and values of `batch` whole sequences; device and dtype default to the weights'."""
        like = self.head.weight
        head_width = self.config.width // self.config.num_heads
        shape = (batch, self.config.num_heads, self.num_positions, head_width)

        def room() -> Tensor:
            return torch.zeros(shape, device=device or like.device, dtype=dtype or like.dtype)

        return [LayerCache(room(), room()) for _ in self.blocks]

    def prefill(self, condition_BC: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] of the first image token; fills the cache with the condition."""
        return self._extend(condition_BC, 0, cache)

    def step(self, tokens_B: Tensor, position: int, cache: Cache) -> Tensor:
        """Logits [B, V] of image token position + 1, given `tokens_B` at `position` and the cached ones before it."""
        assert 0 <= position < self.num_tokens - 1, f"no token follows {position} in a grid of {self.num_tokens}"
        return self._extend(tokens_B[:, None], self.vocabulary.condition_length + position, cache)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW's parameter groups: weights of matrix products decay; embeddings, norms and biases do not."""
        matrices = {id(module.weight) for module in self.modules() if isinstance(module, nn.Linear)}
        decayed = [p for p in self.parameters() if id(p) in matrices]
        others = [p for p in self.parameters() if id(p) not in matrices]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def weights(self) -> bytes:
        """The weights as a safetensors file: the same bytes for the same weights."""
        data: bytes = safetensors.torch.save({name: value.contiguous() for name, value in self.state_dict().items()})
        return data

    def save(self, folder: Path, description: PriorDescription) -> None:
        """Write model.safetensors and config.json, all that `load` needs."""
        (folder / "model.safetensors").write_bytes(self.weights())
        text = json.dumps(description.model_dump(mode="json"), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")

    @classmethod
    def build(cls, description: PriorDescription) -> GPT:
        """A fresh model that fits the description."""
        return cls(description.model, vocabulary=description.vocabulary, num_tokens=description.num_tokens)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> GPT:
        """The model that `save` wrote, in evaluation mode."""
        description = PriorDescription.model_validate_json((folder / "config.json").read_bytes())
        model = cls.build(description)
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        return model.to(device).eval()

    def _features(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None) -> Tensor:
        """What the head reads [B, T, W] to predict every image token."""
        inputs_BT = tokens_BT
        if keys_B is not None:
            condition_BC, inputs_BT = self._corrupted(condition_BC, tokens_BT, keys_B)
        x_BSW = self.dropout(self._embed(torch.cat([condition_BC, inputs_BT[:, :-1]], dim=1), 0), keys_B)
        for block in self.blocks:
            x_BSW = block(x_BSW, keys_B)
        features_BTW: Tensor = self.norm(x_BSW[:, condition_BC.shape[1] - 1 :])
        return features_BTW

    def _corrupted(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs as training sees them: some conditions are null, some tokens are any code."""
        config = self.config
        if config.condition_dropout:
            dropped_BG = drop_segments(keys_B, CONDITION_SITE, len(self.vocabulary.segments), config.condition_dropout)
            condition_BC = self.vocabulary.drop(condition_BC, dropped_BG)
        if config.pkeep < 1:
            tokens_BT = replace_tokens(
                tokens_BT, keys_B, TOKEN_SITE, share=1 - config.pkeep, num_codes=self.vocabulary.num_codes
            )
        return condition_BC, tokens_BT

    def _embed(self, tokens_BS: Tensor, start: int) -> Tensor:
        positions_SW = self.position_embedding_PW[start : start + tokens_BS.shape[1]]
        x_BSW: Tensor = self.token_embedding(tokens_BS) + positions_SW
        return x_BSW

    def _extend(self, tokens_BS: Tensor, start: int, cache: Cache) -> Tensor:
        """Feed tokens at positions start.. through the cached layers: logits [B, V] after the last one."""
        x_BSW = self._embed(tokens_BS, start)
        for block, layer_cache in zip(self.blocks, cache, strict=True):
            x_BSW = block(x_BSW, cache=layer_cache, start=start)
        logits_BV: Tensor = self.head(self.norm(x_BSW[:, -1]))
        return logits_BV


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for matrices and embeddings, zero biases, as the reference."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
