"""The step's gradients in float64: against a plain step, in micro-batches, over ranks, with activations recomputed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.backbones.reference import ReferenceEncoder
from stages.models.tokenizer_config import ReferenceBackboneConfig
from stages.training.activations import blocks, checkpoint_activations
from stages.training.fabric import open_fabric
from stages.training.tokenizer_config import TokenizerConfig
from tests.stages.training.gangs import rank_of, run_gang
from tests.stages.training.steps import BATCH, Blur, batch_of, build, config_of, run_steps, worst_difference

EVERYTHING = {"lecam_weight": 0.3, "loss": "non_saturating", "norm": "spectral", "clip_gradient": 0.5}


def plain_step(
    tokenizer: nn.Module, discriminator: nn.Module, x_BCHW: Tensor, config: TokenizerConfig, anchors: Tensor | None
) -> dict[str, Tensor]:
    """Gradients by the book: every loss through the whole graph, the last layer's gradients by autograd.grad."""
    losses, adversary = config.losses, config.losses.discriminator
    x_hat_BCHW, codebook_loss_B, *_ = tokenizer(x_BCHW)
    nll = (x_BCHW - x_hat_BCHW).abs().mean() * losses.l1_weight
    nll = nll + losses.l2_weight * ((x_BCHW - x_hat_BCHW) ** 2).mean()
    nll = nll + losses.perceptual_weight * Blur()(x_BCHW, x_hat_BCHW).mean()
    fake = discriminator(x_hat_BCHW)
    g_loss = -F.logsigmoid(fake).mean() if adversary.loss == "non_saturating" else -fake.mean()
    last = tokenizer.decoder.conv_out.weight
    (nll_grad,) = torch.autograd.grad(nll, last, retain_graph=True)
    (g_grad,) = torch.autograd.grad(g_loss, last, retain_graph=True)
    ratio = torch.clamp(nll_grad.norm() / (g_grad.norm() + adversary.adaptive_delta), 0.0, 1e4).detach()
    loss = nll + adversary.weight * ratio * g_loss + codebook_loss_B.mean()
    parameters = {n: p for n, p in tokenizer.named_parameters() if p.requires_grad}
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    real, fake = discriminator(x_BCHW), discriminator(x_hat_BCHW.detach())
    if adversary.loss == "hinge":
        d_loss = 0.5 * (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean())
    else:
        d_loss = -0.5 * (F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean())
    if anchors is not None:
        above, below = torch.clamp(real - anchors[1], min=0), torch.clamp(anchors[0] - fake, min=0)
        d_loss = d_loss + adversary.lecam_weight * ((above**2).mean() + (below**2).mean())
    judged = dict(discriminator.named_parameters())
    found |= zip([f"judge.{name}" for name in judged], torch.autograd.grad(d_loss, list(judged.values())), strict=True)
    return found | {"ratio": ratio}


@pytest.mark.parametrize("loss", ["hinge", "vanilla", "non_saturating"])
@pytest.mark.parametrize("norm", ["group", "batch", "spectral", "none"])
def test_one_forward_pass_gives_the_gradients_of_the_plain_step(loss: str, norm: str) -> None:
    config = config_of(loss=loss, norm=norm, lecam_weight=0.3)
    with open_fabric(rank_of(), precision="64-true") as fabric:
        gradients = build(fabric, rank_of(), config).gradients
        state, x_BCHW = gradients.state, batch_of(0)
        state.logits.update(torch.tensor([0.02, -0.01]))
        with torch.no_grad():  # DCGAN's small weights would leave logits of 1e-4, where all losses look alike
            for parameter in state.discriminator.parameters():
                parameter.mul_(5)
        expected = plain_step(state.tokenizer, state.discriminator, x_BCHW, config, state.logits.anchors)
        numbers = gradients.take(x_BCHW, adversarial_weight=0.8, trains_discriminator=True)
        found = {name: p.grad for name, p in state.tokenizer.named_parameters() if p.requires_grad}
        found |= {f"judge.{name}": p.grad for name, p in state.discriminator.named_parameters()}
        found["ratio"] = numbers.whole["adaptive_weight"]

    worst, name = worst_difference(_arrays(found), _arrays(expected))
    assert worst < 1e-9, name
    assert all(value.abs().max() > 0 for value in expected.values())


def _arrays(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def at_once() -> dict[str, Any]:
    return run_steps(rank_of(), config_of(**EVERYTHING))


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_change_nothing(at_once: dict[str, Any], micro_batch: int) -> None:
    """Gradients, adaptive weight, codebook with restarts, LeCam's means, weight average, after three steps."""
    worst, name = worst_difference(run_steps(rank_of(), config_of(**EVERYTHING), micro_batch), at_once)
    assert worst < 1e-9, name
    assert at_once["adaptive_weight"] > 0.1 and np.abs(at_once["anchors"]).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "micro_batch", "recompute"), [(2, BATCH, False), (2, 3, False), (3, BATCH, False), (3, 2, True)]
)
def test_ranks_with_uneven_slices_change_nothing(
    at_once: dict[str, Any], world: int, micro_batch: int, recompute: bool
) -> None:
    """Slices of 3 and 4 pictures, or 2, 2 and 3: in micro-batches of 3 or 2 some ranks have one, others two."""
    steps = partial(run_steps, activation_checkpointing=recompute)
    for found in run_gang(world, steps, config_of(**EVERYTHING), micro_batch):
        worst, name = worst_difference(found, at_once)
        assert worst < 1e-9, name


def test_before_the_generator_feels_the_discriminator_one_pass_is_made_of_each_micro_batch() -> None:
    calls: list[int] = []
    with open_fabric(rank_of(), precision="64-true") as fabric:
        gradients = build(fabric, rank_of(), config_of(), micro_batch=3).gradients
        gradients.state.tokenizer.encoder.register_forward_hook(lambda *call: calls.append(len(call[1][0])))
        gradients.take(batch_of(0), adversarial_weight=0.0, trains_discriminator=True)
        assert calls == [3, 3, 1]
        gradients.take(batch_of(0), adversarial_weight=0.8, trains_discriminator=True)
        assert calls == [3, 3, 1] + 2 * [3, 3, 1]


def test_trying_out_a_micro_batch_leaves_no_trace() -> None:
    with open_fabric(rank_of(), precision="64-true") as fabric:
        step = build(fabric, rank_of(), config_of(norm="batch"))
        state = step.gradients.state
        before = {name: value.clone() for name, value in {**state.tokenizer.state_dict(), **_judge(state)}.items()}
        step.gradients.try_out(2)
        after = {**state.tokenizer.state_dict(), **_judge(state)}
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(p.grad is None for p in [*state.tokenizer.parameters(), *state.discriminator.parameters()])


def _judge(state: Any) -> dict[str, Tensor]:
    return {f"judge.{name}": value for name, value in state.discriminator.state_dict().items()}


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients_and_hold_less(at_once: dict[str, Any]) -> None:
    found = run_steps(rank_of(), config_of(**EVERYTHING), activation_checkpointing=True)
    worst, name = worst_difference(found, at_once)
    assert worst < 1e-12, name
    assert _held_by_the_graph(activation_checkpointing=True) < 0.7 * _held_by_the_graph()


@pytest.mark.slow
def test_the_reference_s_blocks_are_its_levels_and_its_middle() -> None:
    backbone = ReferenceBackboneConfig(base_channels=32, multipliers=(1, 1), z_channels=8, attention_resolutions=(8,))
    encoder = ReferenceEncoder(backbone, image_size=16, channels=3)
    x_BCHW = torch.randn(2, 3, 16, 16)
    assert list(blocks(encoder)) == [*encoder.down, encoder.mid]
    expected = torch.autograd.grad(encoder(x_BCHW).square().sum(), encoder.conv_in.weight)
    assert checkpoint_activations(encoder) == 3
    assert torch.equal(*expected, *torch.autograd.grad(encoder(x_BCHW).square().sum(), encoder.conv_in.weight))


def _held_by_the_graph(**options: bool) -> int:
    """Bytes that a forward pass of the generator keeps for its backward pass, parameters left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with open_fabric(rank_of(), precision="64-true") as fabric:
        tokenizer = build(fabric, rank_of(), config_of(), **options).gradients.state.tokenizer
        assert len(list(blocks(tokenizer.encoder))) == 2
        own = {parameter.data_ptr() for parameter in tokenizer.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = tokenizer(batch_of(0))
    assert output.x_hat_BCHW.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own)
