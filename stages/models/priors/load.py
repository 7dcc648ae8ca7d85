"""From a description to a prior of its kind, fresh or trained: the only place that knows all kinds."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import DataError, shown
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.gpt import GPT
from stages.models.priors.pixelcnn import PixelCNN
from stages.models.priors.prior import DESCRIPTION, WEIGHTS, Prior
from stages.models.weights import built_with, read_weights


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
    try:
        description = PriorDescription.model_validate_json((folder / DESCRIPTION).read_bytes())
    except ValidationError as error:
        raise DataError(f"{folder / DESCRIPTION} describes no prior of this version: {shown(str(error))}") from None
    weights = read_weights(folder / WEIGHTS)
    return built_with(weights, lambda: build_prior(description), folder / WEIGHTS, DESCRIPTION).to(device).eval()
