"""Scorers that look at pictures: from pictures to scores, and from and to their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.storage import Folder
from stages.data.captions import Captions
from stages.models.efficientnet_lite0 import EfficientNetLite0, load_efficientnet_lite0
from stages.models.picture_features import picture_features
from stages.models.scorers.description import (
    CAPTIONS,
    DESCRIPTION,
    WEIGHTS,
    ClassifierDescription,
    TwoTowerDescription,
    read_description,
)
from stages.models.scorers.heads import ClassifierHead, TwoTowerHead
from stages.models.weights import built_with, read_weights

# Shapes: B batch, C channels, H W picture, D features, K classes.


class Classifier:
    """How probable the class that was asked for looks."""

    def __init__(self, description: ClassifierDescription, head: ClassifierHead) -> None:
        self.description = description
        self.head = head.eval()

    def scores(self, features_BD: Tensor, classes: Sequence[str]) -> np.ndarray:
        """The probability [B] (float64) of each picture's class, given by name."""
        columns = torch.tensor([self.description.classes.index(name) for name in classes], device=features_BD.device)
        with torch.inference_mode():
            probabilities_BK = self.head.probabilities(features_BD)
        scores_B: np.ndarray = probabilities_BK.gather(1, columns[:, None])[:, 0].cpu().numpy()
        return scores_B

    def save(self, folder: Path) -> None:
        """Write the scorer's files into a folder."""
        _save(folder, self.description, self.head)


class TwoTower:
    """How well the picture suits the caption that it was drawn from."""

    def __init__(self, description: TwoTowerDescription, head: TwoTowerHead, captions: str) -> None:
        self.description = description
        self.head = head.eval()
        self._json = captions
        self._captions = Captions(captions)

    def values(self, texts: Sequence[str]) -> Tensor:
        """Captions as byte pairs [B, L]."""
        return torch.from_numpy(self._captions.values(texts, self.description.length))

    def scores(self, features_BD: Tensor, texts: Sequence[str]) -> np.ndarray:
        """The cosine [B] (float64) of each picture with its own text."""
        with torch.inference_mode():
            own_BE = self.head.captions(self.values(texts).to(features_BD.device))
            cosines_B = (self.head.pictures(features_BD).double() * own_BE.double()).sum(-1)
        scores_B: np.ndarray = cosines_B.cpu().numpy()
        return scores_B

    def save(self, folder: Path) -> None:
        """Write the scorer's files into a folder."""
        _save(folder, self.description, self.head)
        (folder / CAPTIONS).write_text(self._json)


class SeeingScorer:
    """A scorer together with the network that it looks at pictures with."""

    def __init__(self, scorer: Classifier | TwoTower, network: EfficientNetLite0) -> None:
        self.scorer = scorer
        self.network = network

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> SeeingScorer:
        """Load a scorer's folder. Raises ConfigError where it holds none, DataError where its files do not fit."""
        scorer = load_scorer(folder)
        scorer.head.to(device)
        return cls(scorer, load_efficientnet_lite0(device))

    def scores(self, x_BCHW: Tensor, wanted: Sequence[str]) -> np.ndarray:
        """Scores [B] (float64) of pictures in [-1, 1] for the class or text wanted of each."""
        return self.scorer.scores(picture_features(self.network, x_BCHW, self.scorer.description.feature_size), wanted)


def load_scorer(folder: Path) -> Classifier | TwoTower:
    """Load the head alone. Raises ConfigError where the folder holds none, DataError where its files do not fit."""
    description = read_description(Folder.at(folder))
    weights, path = read_weights(folder / WEIGHTS), folder / WEIGHTS

    def build() -> ClassifierHead | TwoTowerHead:
        return (
            ClassifierHead(description) if isinstance(description, ClassifierDescription) else TwoTowerHead(description)
        )

    head: ClassifierHead | TwoTowerHead = built_with(weights, build, path, DESCRIPTION)
    if isinstance(description, ClassifierDescription):
        assert isinstance(head, ClassifierHead)
        return Classifier(description, head)
    assert isinstance(head, TwoTowerHead)
    if not (folder / CAPTIONS).is_file():
        raise DataError(f"no {CAPTIONS} in {folder}: a two_tower scorer needs the byte pairs it was trained with")
    return TwoTower(description, head, (folder / CAPTIONS).read_text())


def _save(
    folder: Path, description: ClassifierDescription | TwoTowerDescription, head: ClassifierHead | TwoTowerHead
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
