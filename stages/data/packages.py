"""Where installed packages keep the data that they ship; none of them is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.errors import DataError


def package_folder(module: str, package: str, *, source: str) -> Path:
    """Return the folder of a top-level module. Raises DataError where the source's package is missing."""
    spec = importlib.util.find_spec(module)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the {source} source needs the package {package}: install it, or choose another shard.source")
    return Path(spec.submodule_search_locations[0])
