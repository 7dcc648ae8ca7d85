"""One step of the prior's training: gradients of the global batch in micro-batches, then AdamW."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime import Rank
from stages.models.dropout import sample_keys
from stages.models.priors.prior import Prior
from stages.training.fabric import Fabric, accumulating, all_reduce_sum, autocast
from stages.training.prior_config import PriorConfig
from stages.training.prior_state import PriorState
from stages.training.schedules import learning_rate_factor
from stages.training.token_data import Batch

# Shapes: B batch, C condition tokens, T image tokens.


class TokenNats(nn.Module):
    """The prior as DDP wraps it: forward ends at the likelihoods [B, T], for the logits never exist all at once."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor) -> Tensor:
        """Negative log-likelihood in nats, with everything that training adds at random."""
        return self.prior.loss(condition_BC, tokens_BT, keys_B)[1]


@dataclass
class PriorStep:
    """Updates the prior on this rank's slices of global batches."""

    config: PriorConfig
    fabric: Fabric
    rank: Rank
    state: PriorState
    module: Any
    """`TokenNats` as this gang calls it: its gradients are averaged over ranks."""
    micro_batch: int
    """Pictures that go through the network at once."""

    def take(self, batch: Batch) -> Tensor:
        """The step after `state.step` others; returns the gradient's norm before clipping. Collective."""
        state, config = self.state, self.config
        state.optimizer.zero_grad()
        nats = all_reduce_sum(self.fabric, self.gradients(batch, self.micro_batch))
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_gradient or math.inf)
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(state.step)
        state.optimizer.step()
        if state.average:
            state.average.update(state.model)
        nats = nats + 0.0 * norm  # a gradient that is not finite shows in the sum as well
        state.recent += torch.stack([nats, nats.new_tensor(config.batch_size * state.model.num_tokens)])
        return norm

    def gradients(self, batch: Batch, micro_batch: int, *, alone: bool = False) -> Tensor:
        """Add up the gradients of the global batch's mean loss; returns the sum of this slice's nats. Collective.

        `alone`: nothing is exchanged with other ranks, which may be elsewhere.
        """
        # Sums over slices of any size, scaled so that DDP's mean over ranks is the mean over the global batch.
        scale = self.rank.world / (self.config.batch_size * self.state.model.num_tokens)
        nats = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        parts = batch.split(micro_batch)
        for number, part in enumerate(parts, start=1):
            inputs = self.inputs(part)
            with accumulating(self.fabric, self.module, alone or number < len(parts)):
                with autocast(self.fabric, self.config.precision):
                    nats_BT = self.module(*inputs)
                loss = nats_BT.sum()
                self.fabric.backward(loss * scale)
            nats += loss.detach()
        return nats

    def try_out(self, batch: Batch, micro_batch: int) -> None:
        """Compute the gradients of a slice in micro-batches of this size, and forget them."""
        try:
            self.gradients(batch, micro_batch, alone=True)
        finally:
            self.state.optimizer.zero_grad()

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Condition [B, C], tokens [B, T] and keys [B] on the device."""
        batch = batch.on(self.fabric.device)
        return batch.condition_BC, batch.tokens_BT, sample_keys(self.config.seed, batch.positions_B)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update after `step` others."""
        config = self.config
        return config.learning_rate * learning_rate_factor(
            step,
            "cosine",
            warmup_steps=config.warmup_steps,
            horizon=config.schedule_steps,
            floor=config.min_learning_rate / config.learning_rate,
        )
