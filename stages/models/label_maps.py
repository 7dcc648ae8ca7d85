"""Maps of class numbers as networks see them: a channel for each class going in, a logit for each coming out.

Legend: B batch, K classes, H height, W width; a map is x_B1HW in [-1, 1], which stands for the bytes 0 to 255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(x_B1HW: Tensor, num_labels: int) -> Tensor:
    """A map of class numbers below `num_labels` as a channel of 0 and 1 for each class: [B, K, H, W]."""
    # Maps are checked where they are made; the made-up pictures that try out a GPU's memory are not.
    labels_BHW = ((x_B1HW[:, 0] + 1) * 127.5).round().long().clamp(max=num_labels - 1)
    planes_BKHW = F.one_hot(labels_BHW, num_labels).movedim(-1, 1)
    return planes_BKHW.to(x_B1HW.dtype)


def most_likely(logits_BKHW: Tensor) -> Tensor:
    """The map of the classes with the largest logits: x_B1HW; undoes `one_hot`."""
    return logits_BKHW.argmax(dim=1, keepdim=True) / 127.5 - 1


def label_cross_entropy(logits_BKHW: Tensor, x_B1HW: Tensor) -> Tensor:
    """Binary cross-entropy of every class by itself, meaned over each map: nats_B (BCELossWithQuant of taming)."""
    planes_BKHW = one_hot(x_B1HW, logits_BKHW.shape[1])
    losses_BKHW = F.binary_cross_entropy_with_logits(logits_BKHW, planes_BKHW, reduction="none")
    return losses_BKHW.mean(dim=(1, 2, 3))


def label_accuracy(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Share of pixels of equal class, map by map: share_B."""
    return torch.isclose(x_BCHW, y_BCHW, atol=1e-3).double().mean(dim=(1, 2, 3))
