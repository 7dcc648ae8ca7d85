"""What training, sampling and judging need of a prior, whatever its architecture."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from stages.models.dropout import drop_segments, replace_tokens
from stages.models.priors.configs import PriorDescription, PriorModelConfig
from stages.models.priors.cross_entropy import projected_token_nats
from stages.models.priors.token_order import places_in_order
from stages.models.vocabulary import Vocabulary

# Shapes: B batch, C condition tokens, T image tokens, S tokens read at once, W features, V codes.

WEIGHTS = "model.safetensors"
DESCRIPTION = "config.json"
CONDITION_SITE, TOKEN_SITE = range(2)
"""Places that draw at random in training; an architecture's own have the numbers from `FIRST_OWN_SITE`."""
FIRST_OWN_SITE = 2


@dataclass(frozen=True)
class Stretch:
    """Tokens that follow one another in the sequences of B pictures: condition tokens, then image tokens in `order`."""

    tokens_BS: Tensor
    start: int = 0
    """Place of the first in the sequence; the condition begins at 0."""
    cache: Any = None
    """Has what came before, and takes in these. None: they begin at 0, and nothing is to be remembered."""


class Prior(nn.Module, ABC):
    """Autoregressive model of a picture's tokens, given a condition.

    Tokens and what is said of them are in raster order everywhere but in `step`, which takes them in `order`.
    What training adds at random (dropped conditions, replaced input tokens, dropout) is a function of the samples'
    keys (`dropout.sample_keys`) and happens where they are given, whether in `train` or `eval` mode.
    """

    head: nn.Linear
    """Features to logits; without a bias."""
    remembers: ClassVar[bool]
    """Whether a `Stretch` may begin later than at 0, and leave what it read in a cache."""

    def __init__(self, config: PriorModelConfig, *, vocabulary: Vocabulary, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.grid = grid
        self.num_tokens = grid[0] * grid[1]
        self.order = places_in_order(config.order, grid)
        """Places of the grid in the order of drawing."""

    @abstractmethod
    def features(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """What the head reads [B, T, W] of every place, given the condition and the tokens before it in `order`.

        `keys_B` switches dropout on; the inputs are taken as they are.
        """

    @abstractmethod
    def new_cache(
        self, batch: int, device: Any = None, dtype: torch.dtype | None = None, length: int | None = None
    ) -> Any:
        """What `prefill` fills and `feed` reads and extends; device and dtype default to the weights'.

        `length`: room for so many condition and image tokens; default: for all.
        """

    @abstractmethod
    def prefill(self, condition_BC: Tensor, cache: Any) -> Tensor:
        """Logits [B, V] of the first token in `order`; whatever the cache held is forgotten."""

    @abstractmethod
    def feed(self, tokens_BS: Tensor, position: int, cache: Any) -> Tensor:
        """Logits [B, V] of the token that follows `tokens_BS`, which come at `position` of `order` and after it.

        All before `position` are in the cache already.
        """

    @abstractmethod
    def read(self, stretches: Sequence[Stretch]) -> Tensor:
        """Logits [L, V] of the tokens that follow the stretches, a row for each picture of each."""

    def step(self, tokens_B: Tensor, position: int, cache: Any) -> Tensor:
        """Logits [B, V] of the token after `position` in `order`, given `tokens_B` there and all cached before."""
        return self.feed(tokens_B[:, None], position, cache)

    def stepper(self, cache: Any) -> Callable[[Tensor, int], Tensor]:
        """`feed` with this cache, given tokens and position: for a loop over all positions."""
        return functools.partial(self.feed, cache=cache)

    @property
    def cache_bytes(self) -> int:
        """What a cache takes for each token of each picture."""
        return 0

    def for_drawing(self, dtype: torch.dtype | None = None) -> Self:
        """Cast and lay out in place, for good, what draws read of the weights at every step; `dtype` None: as it is.

        What comes back draws; it is not to be trained or saved. Here: all to float64, nothing to what is below.
        """
        return self.to(dtype) if dtype == torch.float64 else self

    def _check_feed(self, tokens_BS: Tensor, position: int) -> None:
        end = position + tokens_BS.shape[1]
        assert 0 <= position < end < self.num_tokens, f"no token follows {end - 1} in a grid of {self.num_tokens}"

    def forward(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of every image token given the condition and the image tokens before it.

        `condition_BC` holds table tokens (`Vocabulary.condition`).
        """
        logits_BTV: Tensor = self.head(self._training_features(condition_BC, tokens_BT, keys_B))
        return logits_BTV

    def loss(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood in nats per image token, and its parts [B, T]; logits never fill the memory."""
        features_BTW = self._training_features(condition_BC, tokens_BT, keys_B)
        nats_BT = projected_token_nats(features_BTW, self.head.weight, tokens_BT)
        return nats_BT.mean(), nats_BT

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW's parameter groups: weights of matrix products and convolutions decay; the others do not."""
        products = {id(module.weight) for module in self.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        decayed = [p for p in self.parameters() if id(p) in products]
        others = [p for p in self.parameters() if id(p) not in products]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def weights(self) -> bytes:
        """The weights as a safetensors file: the same bytes for the same weights."""
        data: bytes = safetensors.torch.save({name: value.contiguous() for name, value in self.state_dict().items()})
        return data

    def save(self, folder: Path, description: PriorDescription) -> None:
        """Write model.safetensors and config.json, all that `load_prior` needs."""
        (folder / WEIGHTS).write_bytes(self.weights())
        text = json.dumps(description.model_dump(mode="json"), indent=2, sort_keys=True)
        (folder / DESCRIPTION).write_text(text + "\n")

    def _training_features(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor | None) -> Tensor:
        if keys_B is not None:
            condition_BC, tokens_BT = self._corrupted(condition_BC, tokens_BT, keys_B)
        return self.features(condition_BC, tokens_BT, keys_B)

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
