"""Training state <-> safetensors + JSON: nested dicts of tensors and scalars, bit for bit, without pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

State = Mapping[str, Any]
"""Nested dicts (keys all str or all int), lists and tuples of tensors, numbers, strings, booleans and None."""

_TENSOR, _INT_KEYS, _TUPLE, _FLOAT = "$tensor", "$int_keys", "$tuple", "$float"


def save_state(folder: Path, stem: str, state: State) -> list[str]:
    """Write `STEM.safetensors` (the tensors, on CPU) and `STEM.json` (everything else); return the two names.

    Equal states give equal bytes, whatever the order of their dict keys. Strides of dense tensors (channels-last)
    are kept, so that optimizers go on at full speed. Raises TypeError for a value that is not a `State`.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    save_file(tensors, folder / f"{stem}.safetensors")
    text = json.dumps(tree, indent=1, sort_keys=True, allow_nan=False)
    (folder / f"{stem}.json").write_text(text + "\n")
    return [f"{stem}.json", f"{stem}.safetensors"]


def load_state(folder: Path, stem: str) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on CPU."""
    with safe_open(folder / f"{stem}.safetensors", framework="pt") as tensors:
        state = _restore(json.loads((folder / f"{stem}.json").read_text()), tensors)
    if not isinstance(state, dict):
        raise ValueError("a state is a mapping")
    return state


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return _flatten_tensor(value, path, tensors)
    if isinstance(value, Mapping):
        kinds = {type(key) for key in value}
        if not kinds <= {str} and kinds != {int}:
            raise TypeError(f"state {path or '/'}: keys must all be str or all be int, not {value.keys()!r}")
        flat = {str(key): _flatten(item, f"{path}/{key}" if path else str(key), tensors) for key, item in value.items()}
        assert not any(key.startswith("$") for key in flat), f"state {path}: keys must not start with $"
        return {_INT_KEYS: flat} if kinds == {int} else flat
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"state {path}: {type(value).__name__} can not be saved; use tensors, numbers, strings or None")


def _flatten_tensor(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if path in tensors:
        raise TypeError(f"state {path}: two values have this name; keep slashes out of keys")
    source = tensor.detach()
    tensors[path] = source.to("cpu", copy=True, memory_format=torch.contiguous_format)
    node: dict[str, Any] = {_TENSOR: path}
    if not source.is_contiguous() and _is_dense(source):
        node["strides"] = list(source.stride())
    return node


def _is_dense(tensor: Tensor) -> bool:
    """Whether the strides are a permutation of a contiguous tensor's: every element has a place of its own."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _restore(node: Any, tensors: Any) -> Any:
    if isinstance(node, list):
        return [_restore(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    kind = next(iter(node), None)
    if kind == _TENSOR:  # "$" sorts before "strides"
        return _restore_tensor(node, tensors)
    if kind == _FLOAT:
        return float(node[_FLOAT])
    restored = {key: _restore(item, tensors) for key, item in node.items()}
    if kind == _TUPLE:
        return tuple(restored[_TUPLE])
    return {int(key): item for key, item in restored[_INT_KEYS].items()} if kind == _INT_KEYS else restored


def _restore_tensor(node: Mapping[str, Any], tensors: Any) -> Tensor:
    tensor: Tensor = tensors.get_tensor(node[_TENSOR])
    if "strides" not in node:
        return tensor
    strided = torch.empty_strided(tensor.shape, node["strides"], dtype=tensor.dtype)
    return strided.copy_(tensor)
