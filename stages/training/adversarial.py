"""The adversarial step of a VQGAN (Esser et al. 2021, eqs. 4-7), with one forward pass of the generator.

The losses meet the generator only through its picture, so their gradients are taken with respect to a detached x_hat
and sent through the generator once. Losses are sums over pictures divided by the size of the global batch: adding the
parts of ranks or micro-batches gives the mean over the batch even where slices are uneven.
Legend: B batch of this rank, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.models.label_maps import label_cross_entropy
from stages.models.losses.configs import DiscriminatorConfig, LossConfig
from stages.models.losses.discriminator import discriminator_loss, generator_loss, lecam_penalty
from stages.models.losses.perceptual import FrozenDistance
from stages.models.precision import full_precision

SumOverRanks = Callable[[Tensor], Tensor]
DEFAULT_DISCRIMINATOR = DiscriminatorConfig()


@dataclass(frozen=True)
class PictureGradient:
    """What one slice's losses want of its pictures; gradients are of the global batch's mean loss."""

    reconstruction_BCHW: Tensor
    """Gradient of the pixel and perceptual terms with respect to x_hat."""
    adversarial_BCHW: Tensor | None
    """Gradient of the adversarial term, before any weight; None where it was not asked for."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """This slice's share of each loss term, unweighted: shares add up to the mean over the global batch."""


def picture_gradient(
    x_BCHW: Tensor,
    x_hat_BCHW: Tensor,
    *,
    losses: LossConfig,
    perceptual: FrozenDistance,
    discriminator: nn.Module | None,
    batch_size: int,
) -> PictureGradient:
    """Gradients of this slice's losses with respect to its reconstruction; `batch_size` is that of the global batch.

    Without a discriminator the adversarial term is left out and costs nothing. A reconstruction with more channels
    than its picture holds the logits of a label map, whose only term is their cross-entropy.
    """
    if x_hat_BCHW.shape[1] > x_BCHW.shape[1]:
        return _label_gradient(x_BCHW, x_hat_BCHW, batch_size)
    leaf = x_hat_BCHW.detach().to(x_BCHW.dtype).requires_grad_()  # under autocast x_hat is in half precision
    difference = leaf - x_BCHW
    l1 = difference.abs().mean(dim=(1, 2, 3)).sum() / batch_size
    l2 = difference.square().mean(dim=(1, 2, 3)).sum() / batch_size
    reconstruction = losses.l1_weight * l1 + losses.l2_weight * l2
    terms = {"l1": l1.detach(), "l2": l2.detach()}
    total = reconstruction
    if losses.perceptual_weight > 0:
        distance = perceptual(x_BCHW, leaf).sum() / batch_size
        total = total + losses.perceptual_weight * distance
        terms["perceptual"] = distance.detach()
    terms["reconstruction"] = reconstruction.detach()
    (gradient_BCHW,) = torch.autograd.grad(total, leaf)
    if discriminator is None:
        return PictureGradient(gradient_BCHW, None, terms)
    adversarial = generator_loss(discriminator(leaf), losses.discriminator.loss).sum() / batch_size
    (adversarial_BCHW,) = torch.autograd.grad(adversarial, leaf)
    terms["adversarial"] = adversarial.detach()
    return PictureGradient(gradient_BCHW, adversarial_BCHW, terms)


def _label_gradient(x_B1HW: Tensor, logits_BKHW: Tensor, batch_size: int) -> PictureGradient:
    leaf = logits_BKHW.detach().to(x_B1HW.dtype).requires_grad_()
    loss = label_cross_entropy(leaf, x_B1HW).sum() / batch_size
    (gradient_BKHW,) = torch.autograd.grad(loss, leaf)
    return PictureGradient(gradient_BKHW, None, {"reconstruction": loss.detach()})


def through_last_layer(x_hat_BCHW: Tensor, gradient: PictureGradient, last_layer: nn.Parameter) -> Tensor:
    """Both gradients pushed on to the decoder's last weight alone, stacked: [2, *last_layer.shape].

    Sum the result over micro-batches and ranks before taking `adaptive_weight` of it. Keeps the graph of x_hat.
    """
    assert gradient.adversarial_BCHW is not None
    pushed = [
        torch.autograd.grad(x_hat_BCHW, last_layer, grad_outputs=wanted.to(x_hat_BCHW.dtype), retain_graph=True)[0]
        for wanted in (gradient.reconstruction_BCHW, gradient.adversarial_BCHW)
    ]
    return torch.stack(pushed)


def adaptive_weight(last_layer_gradients: Tensor, *, delta: float, cap: float) -> Tensor:
    """|grad reconstruction| / (|grad adversarial| + delta), at most `cap` (eq. 7), of the whole batch's gradients.

    The mean of the ratios of parts is another number, so the parts are to be summed first.
    """
    reconstruction, adversarial = last_layer_gradients.flatten(1).norm(dim=1)
    ratio: Tensor = reconstruction / (adversarial + delta)
    return ratio.clamp(0.0, cap)


def send_back(
    x_hat_BCHW: Tensor,
    codebook_loss_B: Tensor,
    gradient: PictureGradient,
    *,
    adversarial_weight: Tensor | float,
    batch_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A scalar whose backward takes what the losses want of the pictures, and the codebook's loss, to the generator.

    `adversarial_weight` multiplies the adversarial gradient: the scheduled weight times the adaptive one. The scalar's
    value means nothing. Multiply it by the number of ranks where gradients are averaged over them. Also returns this
    slice's share of each term of the loss.
    """
    wanted_BCHW = gradient.reconstruction_BCHW
    if gradient.adversarial_BCHW is not None:
        wanted_BCHW = wanted_BCHW + adversarial_weight * gradient.adversarial_BCHW
    codebook = codebook_loss_B.sum() / batch_size
    terms = {**gradient.terms, "codebook": codebook.detach()}
    return (x_hat_BCHW * wanted_BCHW.to(x_hat_BCHW.dtype)).sum() + codebook, terms


def generator_objective(
    x_BCHW: Tensor,
    x_hat_BCHW: Tensor,
    codebook_loss_B: Tensor,
    *,
    losses: LossConfig,
    perceptual: FrozenDistance,
    discriminator: nn.Module | None,
    last_layer: nn.Parameter,
    adversarial_weight: float,
    batch_size: int,
    sum_over_ranks: SumOverRanks,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All of the generator's side where a rank takes its slice at once: the scalar of `send_back`, and the terms.

    `adversarial_weight` is the scheduled weight, before the adaptive one; `adaptive_weight` among the terms is already
    that of the global batch, the others are this slice's share.
    """
    gradient = picture_gradient(
        x_BCHW,
        x_hat_BCHW,
        losses=losses,
        perceptual=perceptual,
        discriminator=discriminator if adversarial_weight > 0 else None,
        batch_size=batch_size,
    )
    weight: Tensor | float = 0.0
    adaptive: dict[str, Tensor] = {}
    if gradient.adversarial_BCHW is not None:
        pushed = sum_over_ranks(through_last_layer(x_hat_BCHW, gradient, last_layer))
        config = losses.discriminator
        ratio = adaptive_weight(pushed, delta=config.adaptive_delta, cap=config.adaptive_cap)
        weight, adaptive = adversarial_weight * ratio, {"adaptive_weight": ratio}
    objective, terms = send_back(
        x_hat_BCHW, codebook_loss_B, gradient, adversarial_weight=weight, batch_size=batch_size
    )
    return objective, terms | adaptive


def discriminator_objective(
    discriminator: nn.Module,
    x_BCHW: Tensor,
    x_hat_BCHW: Tensor,
    *,
    batch_size: int,
    config: DiscriminatorConfig = DEFAULT_DISCRIMINATOR,
    anchors: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss on real pictures and detached reconstructions (this slice's share), and its terms.

    `anchors` are LeCam's (see `lecam_penalty`); without them there is no penalty.
    """
    logits_real, logits_fake = discriminator(x_BCHW), discriminator(x_hat_BCHW.detach().to(x_BCHW.dtype))
    loss = discriminator_loss(logits_real, logits_fake, config.loss).sum() / batch_size
    terms = {
        "discriminator": loss.detach(),
        "logits_real": full_precision(logits_real.detach()).mean(dim=(1, 2, 3)).sum() / batch_size,
        "logits_fake": full_precision(logits_fake.detach()).mean(dim=(1, 2, 3)).sum() / batch_size,
    }
    if config.lecam_weight > 0 and anchors is not None:
        penalty = lecam_penalty(logits_real, logits_fake, anchors).sum() / batch_size
        terms["lecam"] = penalty.detach()
        loss = loss + config.lecam_weight * penalty
    return loss, terms
