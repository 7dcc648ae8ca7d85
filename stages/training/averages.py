"""Running means that are part of the training's state: of the generator's weights, of the discriminator's logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from stages.models.tokenizer import Tokenizer
from stages.training.schedules import warmup_decay


class WeightAverage:
    """A tokenizer whose weights are an exponential moving average of another's.

    What no optimizer trains is simply the other's: codebooks that are running means of the encoder's vectors already.
    """

    def __init__(self, source: Tokenizer, decay: float) -> None:
        """Starts as a copy of `source`."""
        self.decay = decay
        self.updates = 0
        self.tokenizer = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: Tokenizer) -> None:
        """Take in the weights after an update."""
        trained = {name for name, parameter in source.named_parameters() if parameter.requires_grad}
        own = self.tokenizer.state_dict()  # shares memory with the tokenizer
        averaged, current = [], []
        for name, value in source.state_dict().items():
            if name in trained:
                averaged.append(own[name])
                current.append(value)
            else:
                own[name].copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - warmup_decay(self.updates, self.decay))
        self.updates += 1

    def dump(self) -> dict[str, Any]:
        """The state as nested dicts of tensors and numbers."""
        return {"tokenizer": self.tokenizer.state_dict(), "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.updates = state["updates"]


class LogitAverage:
    """Running means of the discriminator's logits of real and of fake pictures, the anchors of LeCam.

    The plain mean of all updates so far, until `decay` remembers less than that.
    """

    def __init__(self, decay: float, like: Tensor) -> None:
        """`like` gives the type and the place."""
        self.decay = decay
        self.updates = 0
        self._real_fake = like.new_zeros(2)

    @property
    def anchors(self) -> Tensor | None:
        """(real, fake); None before the first update."""
        return self._real_fake if self.updates else None

    def update(self, means: Tensor) -> None:
        """Take in the mean logits (real, fake) of a global batch."""
        decay = min(self.decay, self.updates / (self.updates + 1))
        self._real_fake = torch.lerp(means.to(self._real_fake), self._real_fake, decay)
        self.updates += 1

    def dump(self) -> dict[str, Any]:
        """The state as a dict of a tensor and a number."""
        return {"real_fake": self._real_fake, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `dump` gave."""
        self._real_fake = state["real_fake"].to(self._real_fake)
        self.updates = state["updates"]
