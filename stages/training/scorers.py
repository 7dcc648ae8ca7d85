"""Fits the scorers' heads to features that the frozen network has seen already: seconds on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.scorers.description import ClassifierDescription, TwoTowerDescription
from stages.models.scorers.heads import ClassifierHead, TwoTowerHead

# Shapes: N training pictures, D features, L tokens of a caption.

CLASSIFIER_STEPS, CLASSIFIER_RATE, CLASSIFIER_PENALTY = 300, 3e-3, 3.0
TOWER_EPOCHS, TOWER_BATCH, TOWER_RATE, TOWER_DECAY = 30, 256, 1e-3, 0.1


def fit_classifier(
    description: ClassifierDescription, features_ND: Tensor, labels_N: Tensor, *, seed: int
) -> ClassifierHead:
    """Multinomial logistic regression with a squared penalty, all pictures at every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ClassifierHead(description)
    head.standardise_by(features_ND)
    seen_ND = head.standardised(features_ND)
    optimizer = torch.optim.Adam(head.parameters(), CLASSIFIER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CLASSIFIER_STEPS)
    for _ in range(CLASSIFIER_STEPS):
        penalty = CLASSIFIER_PENALTY * head.head.weight.square().sum() / len(seen_ND)
        loss = F.cross_entropy(head.head(seen_ND), labels_N) + penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head.eval()


def fit_two_tower(
    description: TwoTowerDescription, features_ND: Tensor, values_NL: Tensor, captions: Sequence[str], *, seed: int
) -> TwoTowerHead:
    """Symmetric InfoNCE over shuffled batches; `values_NL` are the byte pairs of `captions`."""
    number = {caption: place for place, caption in enumerate(sorted(set(captions)))}
    caption_N = torch.tensor([number[caption] for caption in captions])
    size = min(TOWER_BATCH, len(captions))
    steps = len(captions) // size * TOWER_EPOCHS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TwoTowerHead(description).train()
        head.standardise_by(features_ND)
        optimizer = torch.optim.AdamW(head.parameters(), TOWER_RATE, weight_decay=TOWER_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TOWER_RATE, total_steps=steps + 1, pct_start=0.1)
        for _ in range(TOWER_EPOCHS):
            order_N = torch.randperm(len(captions))
            for chosen_B in order_N[: len(order_N) // size * size].view(-1, size):
                same_BB = caption_N[chosen_B, None] == caption_N[chosen_B]
                loss = head.loss(features_ND[chosen_B], values_NL[chosen_B], same_BB)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return head.eval()
