"""Steps of a small tokenizer in float64, everything on, for comparing one way to compute them with another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime import Rank
from stages.models.losses.configs import DiscriminatorConfig, LossConfig
from stages.models.losses.perceptual import FrozenDistance
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.training.fabric import Fabric, open_fabric
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig
from stages.training.tokenizer_gradients import StepGradients
from stages.training.tokenizer_state import begin
from stages.training.tokenizer_step import TokenizerStep

BATCH = 7
SIZE = 16
EMA = EMAQuantizerConfig(num_codes=24, dim=4)


class Blur(FrozenDistance):
    """A stand-in for a perceptual network."""

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        difference = nn.functional.avg_pool2d(x_BCHW.detach(), 4) - nn.functional.avg_pool2d(x_hat_BCHW, 4)
        return difference.pow(4).mean(dim=(1, 2, 3))


def config_of(
    *,
    weight: float = 0.8,
    l2_weight: float = 1.3,
    delta: float = 1e-6,
    quantizer: Any = EMA,
    **adversary: Any,
) -> TokenizerConfig:
    """A tiny tokenizer whose generator feels the discriminator from the first step on."""
    return TokenizerConfig(
        model=TokenizerModelConfig(
            backbone=LightBackboneConfig(channels=(8, 16), residual_blocks=(1, 1), norm_groups=4),
            quantizer=quantizer,
        ),
        losses=LossConfig(
            l2_weight=l2_weight,
            perceptual_weight=0.4,
            discriminator=DiscriminatorConfig(
                **{
                    "base_channels": 8,
                    "num_layers": 1,
                    "weight": weight,
                    "adaptive_delta": delta,
                    "start": 0,
                    "warmup_steps": 0,
                    "ramp_steps": 0,
                    **adversary,
                }
            ),
        ),
        optimizer=TokenizerOptimizerConfig(warmup_steps=0, clip_gradient=0.5),
        ema_decay=0.9,
        batch_size=BATCH,
        precision="fp64",
    )


def batch_of(step: int) -> Tensor:
    """The global batch of a step: coloured noise that differs between its halves."""
    draw = torch.Generator().manual_seed(step)
    x_BCHW = torch.rand(BATCH, 3, SIZE // 4, SIZE // 4, generator=draw, dtype=torch.float64)
    return 2 * x_BCHW.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1


def slice_of(rank: Rank, x_BCHW: Tensor) -> Tensor:
    """A rank's part of the global batch."""
    return x_BCHW[BATCH * rank.rank // rank.world : BATCH * (rank.rank + 1) // rank.world]


def build(
    fabric: Fabric, rank: Rank, config: TokenizerConfig, micro_batch: int = BATCH, **options: bool
) -> TokenizerStep:
    """A step over fresh networks."""
    state, networks = begin(config, fabric, image_size=SIZE, channels=3, **options)
    with torch.no_grad():
        for name, parameter in state.tokenizer.named_parameters():
            if name.endswith("conv2.weight"):  # zero at the start, and all gradients before it as well
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    gradients = StepGradients(config, fabric, rank, state, networks, Blur(), micro_batch)
    return TokenizerStep(gradients, warn=lambda message: None, last_good=lambda: "none")


def run_steps(
    rank: Rank, config: TokenizerConfig, micro_batch: int = BATCH, steps: int = 3, **options: bool
) -> dict[str, Any]:
    """Return the last step's gradients and the state after some steps, as a flat dict of arrays."""
    with open_fabric(rank, precision="64-true") as fabric:
        return take_steps(fabric, rank, config, micro_batch, steps, **options)


def take_steps(
    fabric: Fabric, rank: Rank, config: TokenizerConfig, micro_batch: int = BATCH, steps: int = 3, **options: bool
) -> dict[str, Any]:
    """`run_steps` inside an open Fabric."""
    step = build(fabric, rank, config, micro_batch, **options)
    state = step.gradients.state
    for number in range(steps):
        numbers = step.take(slice_of(rank, batch_of(number)))
        state.step += 1
    networks = {"tokenizer": state.tokenizer, "discriminator": state.discriminator}
    found = {"anchors": state.logits.anchors, "counts": numbers.statistics.counts_K, **numbers.whole}
    for prefix, network in networks.items():
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found[f"gradient/{prefix}/{name}"] = parameter.grad
        found |= {f"after/{prefix}/{name}": value for name, value in network.state_dict().items()}
    if state.average:
        found |= {f"average/{name}": value for name, value in state.average.tokenizer.state_dict().items()}
    assert state.skipped.total == 0
    return {name: value.detach().numpy().copy() for name, value in found.items() if value is not None}


def worst_difference(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, str]:
    """The largest difference of any tensor relative to its largest element, and the tensor's name."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()

    def difference(name: str) -> float:
        scale = float(abs(expected[name]).max())
        return float(abs(found[name] - expected[name]).max()) / scale if scale else float(abs(found[name]).max())

    worst = max(expected, key=difference)
    return difference(worst), worst
