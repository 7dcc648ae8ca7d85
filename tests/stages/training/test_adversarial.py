"""The adversarial step against the plain one: two autograd passes through everything, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from stages.models.losses.configs import DiscriminatorConfig, LossConfig
from stages.models.losses.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from stages.models.losses.perceptual import FrozenDistance
from stages.training.adversarial import (
    adaptive_weight,
    discriminator_objective,
    generator_objective,
    picture_gradient,
    through_last_layer,
)

LOSSES = LossConfig(l1_weight=0.7, l2_weight=1.3, perceptual_weight=0.4)
BATCH = 6


class Blur(FrozenDistance):
    """A stand-in for a perceptual network."""

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        difference = nn.functional.avg_pool2d(x_BCHW.detach(), 4) - nn.functional.avg_pool2d(x_hat_BCHW, 4)
        return difference.pow(4).mean(dim=(1, 2, 3))


class Generator(nn.Module):
    """A body, a last layer, something after it, and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh())
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x_BCHW)
        return nn.functional.pixel_shuffle(self.last(y), 2), y.square().mean(dim=(1, 2, 3))


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make() -> tuple[Generator, PatchDiscriminator, Tensor]:
    discriminator = PatchDiscriminator(DiscriminatorConfig(base_channels=8), channels=3)
    for parameter in discriminator.parameters():  # DCGAN's small weights would leave gradients of 1e-9
        parameter.data.mul_(5)
    return Generator(), discriminator, torch.rand(BATCH, 3, 16, 16) * 2 - 1


def ours(
    generator: Generator, discriminator: nn.Module, x_BCHW: Tensor, weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    x_hat_BCHW, codebook_loss_B = generator(x_BCHW)
    objective, terms = generator_objective(
        x_BCHW,
        x_hat_BCHW,
        codebook_loss_B,
        losses=LOSSES,
        perceptual=Blur(),
        discriminator=discriminator,
        last_layer=generator.last.weight,
        adversarial_weight=weight,
        batch_size=BATCH,
        sum_over_ranks=lambda tensor: tensor,
    )
    objective.backward()
    return {name: parameter.grad for name, parameter in generator.named_parameters()}, terms


def plain(
    generator: Generator, discriminator: nn.Module, x_BCHW: Tensor, weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """taming-transformers' VQLPIPSWithDiscriminator, optimizer_idx 0, with delta 1e-6."""
    x_hat_BCHW, codebook_loss_B = generator(x_BCHW)
    nll = 0.7 * (x_hat_BCHW - x_BCHW).abs().mean() + 1.3 * (x_hat_BCHW - x_BCHW).square().mean()
    nll = nll + 0.4 * Blur()(x_BCHW, x_hat_BCHW).mean()
    g_loss = -discriminator(x_hat_BCHW).mean()
    last = generator.last.weight
    (nll_grad,) = torch.autograd.grad(nll, last, retain_graph=True)
    (g_grad,) = torch.autograd.grad(g_loss, last, retain_graph=True)
    ratio = (nll_grad.norm() / (g_grad.norm() + 1e-6)).clamp(0.0, 1e4).detach()
    (nll + weight * ratio * g_loss + codebook_loss_B.mean()).backward()
    terms = {"adaptive_weight": ratio, "adversarial": g_loss.detach(), "codebook": codebook_loss_B.mean().detach()}
    return {name: parameter.grad for name, parameter in generator.named_parameters()}, terms


def test_one_backward_gives_the_gradient_of_the_plain_step() -> None:
    generator, discriminator, x_BCHW = make()

    expected, expected_terms = plain(copy.deepcopy(generator), copy.deepcopy(discriminator), x_BCHW, 0.8)
    gradients, terms = ours(generator, discriminator, x_BCHW, 0.8)

    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-13)
    for name, term in expected_terms.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-10, atol=1e-13)
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_without_adversarial_weight_the_discriminator_is_not_called() -> None:
    generator, _, x_BCHW = make()
    calls: list[Tensor] = []

    gradients, terms = ours(generator, calls.append, x_BCHW, 0.0)  # type: ignore[arg-type]
    generator.zero_grad()
    x_hat_BCHW, codebook_loss_B = generator(x_BCHW)
    loss = 0.7 * (x_hat_BCHW - x_BCHW).abs().mean() + 1.3 * (x_hat_BCHW - x_BCHW).square().mean()
    loss = loss + 0.4 * Blur()(x_BCHW, x_hat_BCHW).mean() + codebook_loss_B.mean()
    expected = torch.autograd.grad(loss, list(generator.parameters()))

    assert not calls
    assert "adaptive_weight" not in terms
    for gradient, wanted in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-13)


def test_the_adaptive_weight_of_uneven_slices_is_that_of_the_whole_batch() -> None:
    generator, discriminator, x_BCHW = make()
    _, terms = ours(copy.deepcopy(generator), discriminator, x_BCHW, 0.8)
    parts, ratios = [], []
    for slice_BCHW in (x_BCHW[:1], x_BCHW[1:]):
        x_hat_BCHW, _ = generator(slice_BCHW)
        gradient = picture_gradient(
            slice_BCHW,
            x_hat_BCHW,
            losses=LOSSES,
            perceptual=Blur(),
            discriminator=discriminator,
            batch_size=BATCH,
        )
        parts.append(through_last_layer(x_hat_BCHW, gradient, generator.last.weight))
        ratios.append(float(adaptive_weight(parts[-1], delta=1e-6, cap=1e4)))

    whole = adaptive_weight(parts[0] + parts[1], delta=1e-6, cap=1e4)

    torch.testing.assert_close(whole, terms["adaptive_weight"], rtol=1e-10, atol=0)
    assert abs(sum(ratios) / 2 / float(whole) - 1) > 0.01  # the mean of ratios is another number


def test_the_adaptive_weight_has_a_cap() -> None:
    gradients = torch.stack([torch.ones(4), torch.full((4,), 1e-9)])
    assert float(adaptive_weight(gradients, delta=1e-6, cap=50.0)) == 50.0
    assert float(adaptive_weight(gradients, delta=1e-6, cap=1e9)) == pytest.approx(2 / (2e-9 + 1e-6))


def test_the_discriminator_learns_from_real_and_detached_pictures() -> None:
    generator, discriminator, x_BCHW = make()
    x_hat_BCHW, _ = generator(x_BCHW)

    loss, terms = discriminator_objective(discriminator, x_BCHW, x_hat_BCHW, batch_size=BATCH)
    loss.backward()

    real, fake = discriminator(x_BCHW), discriminator(x_hat_BCHW)
    expected = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
    torch.testing.assert_close(terms["discriminator"], expected.detach())
    torch.testing.assert_close(terms["logits_real"], real.mean().detach())
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_hinge_losses_are_zero_once_the_discriminator_is_sure() -> None:
    sure = discriminator_loss(torch.full((2, 1, 3, 3), 1.5), torch.full((2, 1, 3, 3), -1.5))
    assert sure.tolist() == [0.0, 0.0]
    assert generator_loss(torch.full((2, 1, 3, 3), 1.5)).tolist() == [-1.5, -1.5]


def test_the_weight_waits_for_the_discriminator_and_then_rises() -> None:
    config = DiscriminatorConfig(weight=0.4, start=10, warmup_steps=5, ramp_steps=3)
    assert [config.weight_at(step) for step in (0, 14)] == [0.0, 0.0]
    assert [config.weight_at(step) for step in (15, 16, 17, 18, 99)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
