"""The state of a tokenizer's training as one value, and the networks and optimizers that it begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from stages.models.losses.discriminator import PatchDiscriminator
from stages.models.pretrained_weights import PretrainedTokenizer
from stages.models.tokenizer import Tokenizer
from stages.training.activations import checkpoint_activations
from stages.training.averages import LogitAverage, WeightAverage
from stages.training.checkpoints import reseed
from stages.training.fabric import Fabric
from stages.training.gradients import SkippedSteps
from stages.training.tokenizer_config import TokenizerConfig


@dataclass
class TokenizerState:
    """All of the training's state; the same on every rank."""

    tokenizer: Tokenizer
    discriminator: PatchDiscriminator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    logits: LogitAverage
    """LeCam's anchors; not updated where LeCam is off."""
    average: WeightAverage[Tokenizer] | None
    """The running mean of the tokenizer's weights, if it is asked for."""
    step: int = 0
    """Updates made."""
    samples_seen: int = 0
    """Pictures in these updates."""
    skipped: SkippedSteps = field(default_factory=SkippedSteps)
    best_psnr: float = 0.0
    """Highest held-out PSNR so far, dB."""
    best_step: int = 0

    @property
    def result(self) -> Tokenizer:
        """The tokenizer that is validated, shown and saved."""
        return self.average.network if self.average else self.tokenizer

    def dump(self) -> dict[str, Any]:
        """The state as nested dicts of tensors and numbers."""
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "logits": self.logits.dump(),
            "average": self.average.dump() if self.average else None,
            "step": self.step,
            "samples_seen": self.samples_seen,
            "skipped": {"total": self.skipped.total, "in_a_row": self.skipped.in_a_row},
            "best": {"psnr": self.best_psnr, "step": self.best_step},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.logits.load(state["logits"])
        if self.average:
            self.average.load(state["average"])
        self.step, self.samples_seen = state["step"], state["samples_seen"]
        self.skipped = SkippedSteps(**state["skipped"])
        self.best_psnr, self.best_step = state["best"]["psnr"], state["best"]["step"]


@dataclass(frozen=True)
class Networks:
    """The two trained networks as this gang calls them: their gradients are averaged over ranks."""

    generator: Any
    discriminator: Any


def begin(
    config: TokenizerConfig,
    fabric: Fabric,
    start: PretrainedTokenizer | None = None,
    *,
    image_size: int,
    channels: int,
    activation_checkpointing: bool = False,
) -> tuple[TokenizerState, Networks]:
    """Networks and fresh optimizers, equal on every rank; the networks are fresh too, or those to start from."""
    reseed(config.seed, 0, 0)
    tokenizer = Tokenizer(config.model, image_size=image_size, channels=channels)
    discriminator = PatchDiscriminator(config.losses.discriminator, channels=channels)
    if start is not None:
        tokenizer.load_state_dict(start.weights)
        if start.judge_weights:
            discriminator.load_state_dict(start.judge_weights)
    for network in (tokenizer, discriminator):
        network.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = WeightAverage(tokenizer, config.ema_decay) if config.ema_decay is not None else None
    if activation_checkpointing:
        checkpoint_activations(tokenizer.encoder)
        checkpoint_activations(tokenizer.decoder)
    generator, generator_optimizer = fabric.setup(
        tokenizer,
        torch.optim.AdamW(
            [parameter for parameter in tokenizer.parameters() if parameter.requires_grad],
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        ),
    )
    judge, discriminator_optimizer = fabric.setup(
        discriminator,
        torch.optim.Adam(
            discriminator.parameters(),
            lr=config.losses.discriminator.learning_rate,
            betas=config.optimizer.betas,
            fused=True,
        ),
    )
    logits = LogitAverage(config.losses.discriminator.lecam_decay, like=next(discriminator.parameters()).detach())
    state = TokenizerState(tokenizer, discriminator, generator_optimizer, discriminator_optimizer, logits, average)
    return state, Networks(generator, judge)
