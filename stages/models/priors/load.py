"""From a description to a prior of its kind, fresh or trained: the only place that knows all kinds."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from pipeline.errors import DataError
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.gpt import GPT
from stages.models.priors.pixelcnn import PixelCNN
from stages.models.priors.prior import DESCRIPTION, WEIGHTS, Prior


def build_prior(description: PriorDescription) -> Prior:
    """A fresh model that fits the description."""
    model, vocabulary = description.model, description.vocabulary
    if isinstance(model, GPTConfig):
        return GPT(model, vocabulary=vocabulary, grid=description.grid)
    return PixelCNN(model, vocabulary=vocabulary, grid=description.grid)


def load_prior(folder: Path, device: str = "cpu") -> Prior:
    """The prior that `Prior.save` wrote, in evaluation mode. Raises DataError if files are missing or do not fit."""
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}: run --stages prior, or name a finished prior's folder")
    prior = build_prior(PriorDescription.model_validate_json((folder / DESCRIPTION).read_bytes()))
    try:
        prior.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise DataError(f"{folder / WEIGHTS} does not fit {folder / DESCRIPTION}: {error}") from error
    return prior.to(device).eval()
