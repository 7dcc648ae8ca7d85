"""Classes by name: a model may have been trained when the data had other classes, and with them other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassNames:
    """The classes of today's data, and those that a model knows; a label is a place in its list."""

    of_data: tuple[str, ...]
    of_model: tuple[str, ...]

    @classmethod
    def of(cls, of_data: Sequence[str], of_model: Sequence[str]) -> ClassNames:
        """Two lists of names."""
        return cls(tuple(of_data), tuple(of_model))

    @property
    def same(self) -> bool:
        """Whether labels mean the same in both."""
        return self.of_data == self.of_model

    @property
    def unknown_to_model(self) -> list[str]:
        """Classes of the data that the model was not trained on."""
        return [name for name in self.of_data if name not in self.of_model]

    @property
    def gone(self) -> list[str]:
        """Classes that the model was trained on and the data no longer has."""
        return [name for name in self.of_model if name not in self.of_data]

    def labels(self, labels_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """The data's labels for the model's; -1 for classes that the data no longer has, and for none."""
        return _renumbered(labels_N, self.of_model, self.of_data)

    def labels_for_model(self, labels_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """The model's labels for the data's; -1 for classes that it does not know, and for none."""
        return _renumbered(labels_N, self.of_data, self.of_model)


def _renumbered(labels_N: NDArray[np.integer], given: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    # One place more, for -1: the last.
    table = np.array([wanted.index(name) if name in wanted else -1 for name in given] + [-1], np.int64)
    labels_N = np.asarray(labels_N, np.int64)
    return table[np.where(labels_N < 0, len(given), labels_N)]
