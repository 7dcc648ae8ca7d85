"""A trained tokenizer and prior as one thing that draws pictures, for the sample stage and for anyone's own script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import ConfigError
from stages.data.images import to_uint8
from stages.models.priors.configs import PriorDescription
from stages.models.priors.load import load_prior
from stages.models.priors.prior import Prior
from stages.models.tokenizer import Tokenizer
from stages.sampling.filters import LogitFilter
from stages.sampling.noise import Draw, GumbelNoise
from stages.sampling.tokens import draw_tokens

# Shapes: N samples, B batch, C condition tokens (of a picture: channels), T image tokens, H W picture.


@dataclass(frozen=True)
class Samples:
    """Pictures and what is known of each."""

    pictures_NHWC: np.ndarray
    """uint8."""
    draws: list[Draw]
    """The noise that each was drawn with."""
    labels: list[int]
    """-1: without a class."""
    classes: list[str]
    """The labels' names; empty without a class."""
    log_likelihood_N: np.ndarray
    """Nats of the whole token sequence given the condition, float64."""
    tokens_NT: np.ndarray

    @property
    def keys(self) -> list[str]:
        """Names of the samples: `s` and the id."""
        return [f"s{draw.sample_id:08d}" for draw in self.draws]

    def table(self) -> dict[str, Any]:
        """Columns of the table that lies beside the pictures."""
        return {
            "id": [draw.sample_id for draw in self.draws],
            "key": self.keys,
            "seed": [draw.seed for draw in self.draws],
            "label": self.labels,
            "class": self.classes,
            "log_likelihood": self.log_likelihood_N,
            "tokens": self.tokens_NT,
        }


class Generator:
    """Draws pictures; what (draw, condition) give depends on the batch's shape, not on the others in it."""

    def __init__(self, tokenizer: Tokenizer, prior: Prior, classes: Sequence[str]) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.classes = tuple(classes)
        self.device = next(prior.parameters()).device

    @classmethod
    def load(cls, tokenizer_folder: Path, prior_folder: Path, device: str = "cpu") -> Generator:
        """Load both from the folders of their artifacts. Raises ConfigError where they do not fit each other."""
        tokenizer = Tokenizer.load(tokenizer_folder, device)
        prior = PriorDescription.model_validate_json((prior_folder / "config.json").read_bytes())
        ours, theirs = (tokenizer.num_codes, tuple(tokenizer.grid)), (prior.codebook_size, prior.grid)
        if ours != theirs:
            raise ConfigError(
                f"the tokenizer in {tokenizer_folder} has codebook size and grid {ours}, the prior in {prior_folder} "
                f"expects {theirs}: load the tokenizer that the prior was trained with, {prior.tokenizer[:12]}"
            )
        return cls(tokenizer, load_prior(prior_folder, device), prior.classes)

    def of_classes(self, labels: Sequence[int]) -> np.ndarray:
        """Condition tokens [N, C] of pictures of which only the class is given; label -1: not even that."""
        vocabulary = self.prior.vocabulary
        unknown = sorted({label for label in labels if not -1 <= label < len(self.classes)})
        if unknown:
            raise ConfigError(f"labels {unknown} are unknown: use 0 to {len(self.classes) - 1}, or -1 for no class")
        given_N = torch.tensor(labels, dtype=torch.long)
        unknown_N = torch.full_like(given_N, -1)
        values = [
            given_N if segment.kind == "class" else unknown_N[:, None].expand(-1, segment.length)
            for segment in vocabulary.segments
        ]
        return vocabulary.condition(*values).numpy()

    def draw(
        self,
        condition_NC: np.ndarray,
        draws: Sequence[Draw],
        *,
        logit_filter: LogitFilter | None = None,
        guidance: float = 1.0,
        batch_size: int = 64,
    ) -> Samples:
        """Draw one picture for each (condition, draw); conditions as `of_classes` or a table of tokens has them.

        Every batch has exactly `batch_size` rows, the last one padded: the order of additions in a matrix product
        depends on its shape, so only a fixed shape gives the same bits wherever a sample lands.
        """
        conditions_NC = torch.from_numpy(condition_NC).long()
        pictures, likelihoods, tokens = [], [], []
        for start in range(0, len(draws), batch_size):
            count = min(batch_size, len(draws) - start)
            rows = [min(start + row, len(draws) - 1) for row in range(batch_size)]
            tokens_BT, log_likelihood_B = draw_tokens(
                self.prior,
                conditions_NC[rows].to(self.device),
                GumbelNoise([draws[row] for row in rows]),
                logit_filter=logit_filter,
                guidance=guidance,
            )
            with torch.inference_mode():
                x_BCHW = self.tokenizer.decode(tokens_BT.view(batch_size, *self.tokenizer.grid))
            pictures.append(to_uint8(x_BCHW)[:count])
            likelihoods.append(log_likelihood_B[:count].cpu().numpy())
            tokens.append(tokens_BT[:count].cpu().numpy())
        labels = self._labels(conditions_NC)
        return Samples(
            pictures_NHWC=np.concatenate(pictures),
            draws=list(draws),
            labels=labels,
            classes=[self.classes[label] if label >= 0 else "" for label in labels],
            log_likelihood_N=np.concatenate(likelihoods),
            tokens_NT=np.concatenate(tokens),
        )

    def _labels(self, conditions_NC: torch.Tensor) -> list[int]:
        if "class" not in (segment.kind for segment in self.prior.vocabulary.segments):
            return [-1] * len(conditions_NC)
        labels: list[int] = self.prior.vocabulary.values(conditions_NC, "class")[:, 0].tolist()
        return labels
