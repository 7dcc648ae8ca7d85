"""Checkpoint files of taming-transformers: read without executing anything in them, and written as it reads them."""

from __future__ import annotations

import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError
from stages.models.interop.config_file import find_config, read_params

_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_UNREADABLE = (pickle.UnpicklingError, *_DAMAGED, struct.error, AssertionError, MemoryError)
"""What torch's reader of pickles raises for damaged ones, and for those that ask for more memory than there is."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint under their own names, in their own order, and what its configuration says."""

    path: Path
    weights: dict[str, Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)
    """`model.params` of the configuration; empty without one."""

    def has(self, prefix: str) -> bool:
        """Whether any name starts so."""
        return any(name.startswith(prefix) for name in self.weights)

    def below(self, prefix: str, params: Mapping[str, Any]) -> Checkpoint:
        """The model inside whose names start with `prefix`, which is left out of them."""
        inside = {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}
        return Checkpoint(self.path, inside, params)


def read_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Read a checkpoint, and the YAML configuration given or found beside it.

    Raises DataError where the file is none, or holds anything but tensors and containers of them.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}: name a .ckpt file that holds a state_dict")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DataError(_unreadable(path, error)) from None
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path} holds no state_dict, a mapping of names to tensors: name a model's checkpoint")
    config = config or find_config(path)
    params = read_params(config) if config else {}
    return Checkpoint(path, {str(name): value for name, value in weights.items()}, params)


def write_checkpoint(path: Path, weights: Weights) -> None:
    """Write a file whose state_dict is `weights`, as `init_from_ckpt` of taming-transformers reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": OrderedDict(weights)}, path)


def _unreadable(path: Path, error: Exception) -> str:
    foreign = re.search(r"(?:GLOBAL|class) (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if foreign is None:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return f"{path} is no checkpoint of torch ({reason}): download or copy it again"
    return (
        f"{path} holds more than tensors ({foreign.group(1)}), and reading that could execute code: where you trust "
        'it, load it yourself and save its weights alone, torch.save({"state_dict": content["state_dict"]}, path)'
    )
