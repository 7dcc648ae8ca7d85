"""Weights from files that anyone may have made: nothing is executed, and memory is no more than they have.

The only file that opens safetensors of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import DataError, shown

Model = TypeVar("Model", bound=nn.Module)


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills fresh weights: without memory there is nothing to fill, and torch imports sympy for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = getattr(func, "__module__", "") == "torch.nn.init"
        if fills or getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file whose names start with `prefix`, which is left out of them, on the CPU.

    Raises DataError where it is no safetensors file: cut, of wrong sizes, or something else.
    """
    try:
        if not prefix:
            return dict(load_file(path))
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({shown(str(error))}): copy or make it again") from None


def built_with(weights: Mapping[str, Tensor], build: Callable[[], Model], path: Path, description: str) -> Model:
    """Return the model that `build` makes with these weights, of the file `path`; `description` is the file beside it.

    It is built without memory first: a description may ask for anything. Raises DataError where the weights
    are not those of the model.
    """
    try:
        with torch.device("meta"), _Unfilled():
            places = build().state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path.with_name(description)} describes no possible model: {shown(str(error))}") from None
    complaints = [
        *(f"it has no {name}" for name in places.keys() - weights.keys()),
        *(f"it has {name}, which the model has not" for name in weights.keys() - places.keys()),
        *(
            f"{name} is {list(weights[name].shape)}, the model's {list(places[name].shape)}"
            for name in places.keys() & weights.keys()
            if weights[name].shape != places[name].shape
        ),
    ]
    if complaints:
        more = f" and {len(complaints) - 1} more" if complaints[1:] else ""
        raise DataError(f"{path} does not fit {path.with_name(description)}: {min(complaints)}{more}: make it again")
    model = build()
    model.load_state_dict(weights)
    return model
