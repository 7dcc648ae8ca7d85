"""Running out of memory: how it is recognised in an error, and which keys of the config to lower."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.config import flatten
from pipeline.errors import OutOfMemory

log = logging.getLogger(__name__)

KEYS = ("batch_size", "max_pixels")
"""Last parts of the keys of a stage's config that decide how much memory it takes at once."""

_WORDS = ("can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How torch on a CPU, the system and CUDA's libraries say it inside errors that mean anything."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a device (torch's kind is known by its name)."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or any(words in str(error) for words in _WORDS)


@contextlib.contextmanager
def watching(keys: Mapping[str, Any]) -> Iterator[None]:
    """Turn an error of the block that says so into OutOfMemory, which carries these keys of `cluster`."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        log.exception("memory ran out")
        raise OutOfMemory(str(error).strip().splitlines()[0] if str(error) else type(error).__name__, keys) from error


def keys_to_lower(stage: str, config: BaseModel, cluster: Mapping[str, Any]) -> str:
    """Return what to lower: the stage's own keys, which may change its result, and those of `cluster`, which do not."""
    own = flatten(config.model_dump(mode="json"))
    found = {f"{stage}.{key}": value for key, value in own.items() if key.rpartition(".")[2] in KEYS}
    found |= {f"cluster.{key}": value for key, value in cluster.items()}
    shown = [f"{key} (now {'not set' if value is None else value})" for key, value in found.items()]
    return "lower " + " or ".join(shown)
