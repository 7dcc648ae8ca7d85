"""The YAML file that belongs to a checkpoint of taming-transformers. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import DataError
from pipeline.plain_yaml import LONGEST, read_yaml

NAMES = ("{stem}.yaml", "model.yaml", "config.yaml")
"""What it may be called, beside the checkpoint; {stem} is the checkpoint's own name."""


def find_config(path: Path) -> Path | None:
    """Return the configuration that lies beside a checkpoint, None where there is none."""
    places = (path.parent / name.format(stem=path.stem) for name in NAMES)
    return next((place for place in places if place.is_file()), None)


def read_params(config: Path) -> Mapping[str, Any]:
    """Return `model.params`. Raises DataError where there are none."""
    try:
        with config.open("rb") as file:
            params = read_yaml(file.read(LONGEST + 1))["model"]["params"]
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        params = None
    if not isinstance(params, Mapping):
        raise DataError(f"{config} is no configuration of taming-transformers (it has no model.params): name another")
    return params


def write_config(config: Path, target: str, params: Mapping[str, Any]) -> None:
    """Write a configuration whose model is of the class `target`."""
    config.write_text(yaml.safe_dump({"model": {"target": target, "params": dict(params)}}, sort_keys=False))
