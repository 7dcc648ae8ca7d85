"""Drawn pictures, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.sampling.noise import Draw

# Shapes: N samples, C channels, T image tokens, H W picture.


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

    def of_rows(self, rows: Sequence[int]) -> Samples:
        """Some of them, in this order."""
        return Samples(
            pictures_NHWC=self.pictures_NHWC[rows],
            draws=[self.draws[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            classes=[self.classes[row] for row in rows],
            log_likelihood_N=self.log_likelihood_N[rows],
            tokens_NT=self.tokens_NT[rows],
        )
