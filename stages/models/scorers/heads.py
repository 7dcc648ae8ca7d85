"""The scorers' networks: a linear classifier, and two towers whose cosine says how well a caption suits a picture.

Both look at features that are standardised by the training pictures' mean and deviation, kept as buffers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.efficientnet_lite0 import POOLED_FEATURES
from stages.models.scorers.description import ClassifierDescription, TwoTowerDescription

# Shapes: B pictures or captions, D features, K classes, L tokens of a caption, E numbers of the common space.

LARGEST_SCALE = 100.0
"""Of cosines in the softmax, as in CLIP."""


class _Standardised(nn.Module):
    centre_D: Tensor
    scale_D: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre_D", torch.zeros(POOLED_FEATURES))
        self.register_buffer("scale_D", torch.ones(POOLED_FEATURES))

    def standardise_by(self, features_BD: Tensor) -> None:
        """Take mean and deviation from these features."""
        self.centre_D.copy_(features_BD.mean(0))
        self.scale_D.copy_(features_BD.std(0) + 1e-6)

    def standardised(self, features_BD: Tensor) -> Tensor:
        """Features of about mean 0 and deviation 1."""
        return (features_BD - self.centre_D) / self.scale_D


class ClassifierHead(_Standardised):
    """Multinomial logistic regression."""

    def __init__(self, description: ClassifierDescription) -> None:
        super().__init__()
        self.head = nn.Linear(POOLED_FEATURES, len(description.classes))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.standardised(features_BD))
        return logits_BK

    def probabilities(self, features_BD: Tensor) -> Tensor:
        """Probabilities [B, K] in float64, where sure ones still differ."""
        probabilities_BK: Tensor = self(features_BD).double().softmax(-1)
        return probabilities_BK


class TwoTowerHead(_Standardised):
    """Directions of pictures and of captions (Radford et al. 2021): a linear picture tower, a text tower of words.

    The text tower is a layer of self-attention over byte pairs and their mean: names are few words.
    """

    def __init__(self, description: TwoTowerDescription) -> None:
        super().__init__()
        width = description.width
        self.dropped = nn.Dropout(0.2)
        self.picture = nn.Linear(POOLED_FEATURES, width)
        self.token = nn.Embedding(description.vocabulary_size, width)
        self.place = nn.Embedding(description.length, width)
        self.text = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.2, "gelu", batch_first=True, norm_first=True)
        self.caption = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def pictures(self, features_BD: Tensor) -> Tensor:
        """Directions [B, E] of pictures: length 1."""
        return F.normalize(self.picture(self.dropped(self.standardised(features_BD))), dim=-1)

    def captions(self, values_BL: Tensor) -> Tensor:
        """Directions [B, E] of captions, given as byte pairs: 0 is padding, -1 (nothing is known) taken for it."""
        values_BL = values_BL.clamp(min=0)
        padding_BL = values_BL == 0
        padding_BL[:, 0] = False  # a caption of nothing would attend to nothing
        x_BLE = self.token(values_BL) + self.place.weight[: values_BL.shape[1]]
        x_BLE = self.text(x_BLE, src_key_padding_mask=padding_BL).masked_fill(padding_BL[..., None], 0)
        mean_BE = x_BLE.sum(1) / (~padding_BL).sum(1, keepdim=True)
        return F.normalize(self.caption(mean_BE), dim=-1)

    def loss(self, features_BD: Tensor, values_BL: Tensor, same_BB: Tensor) -> Tensor:
        """Symmetric InfoNCE of a batch of pairs (CLIP, figure 3).

        `same_BB` marks captions that are equal: none is the wrong one for the other's picture.
        """
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        logits_BB = scale * self.pictures(features_BD) @ self.captions(values_BL).T
        own_BB = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
        logits_BB = logits_BB.masked_fill(same_BB & ~own_BB, -torch.inf)
        right_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, right_B) + F.cross_entropy(logits_BB.T, right_B)) / 2
