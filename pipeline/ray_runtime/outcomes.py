"""What a worker's task came to."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipeline.errors import UserError

POLL_SECONDS = 0.3
"""How often the driver looks at running work."""


def result_of(reference: Any) -> Any:
    """Return a finished task's value; a user error it returned is raised, a bug keeps the worker's traceback."""
    try:
        value = ray.get(reference)
    except RayTaskError as error:
        raise error.as_instanceof_cause() from None
    if isinstance(value, UserError):
        raise value
    return value
