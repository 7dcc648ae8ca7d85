"""What a user can cause or must know of, each kind with its exit code; all else is a bug and keeps its traceback."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal, turn the direction of writing, or are none."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def visible(text: str) -> str:
    """Return text as a terminal and a log may have it: what would steer them stands there in its escaped form."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def shown(value: Any) -> str:
    """Return a wrong value for a message: its `repr`, however large it is no longer than a few lines."""
    return _SHORT.repr(value)


class UserError(Exception):
    """An error whose message is meant for the person at the keyboard: it names the value and the remedy."""

    exit_code = 1

    def __str__(self) -> str:
        return visible(super().__str__())


class StageError(UserError):
    """A stage failed, for a reason that is neither its configuration nor its input."""


class StorageError(StageError):
    """Storage refused a read or a write: disk full, permission lost, read-only."""


class WorkerLost(StageError):
    """Worker processes died, more often than `cluster.max_failures` allows."""


class OutOfMemory(StageError):
    """Memory ran out. `keys` are those of `cluster`, with their values, that the work takes more or less of it by."""

    def __init__(self, message: str, keys: Mapping[str, Any]) -> None:
        super().__init__(message, keys)
        self.keys = keys

    def __str__(self) -> str:
        return str(self.args[0])


class ClusterUnreachable(StageError):
    """A cluster does not answer; it may do so later."""


class ConfigError(UserError):
    """Bad usage or configuration."""

    exit_code = 2


class DataError(UserError):
    """Bad input data."""

    exit_code = 3


class WorkdirBusy(UserError):
    """Another run holds the workdir."""

    exit_code = 75


class Interrupted(UserError):
    """The user (130, Ctrl-C) or the system (143, SIGTERM) asked the run to leave; what was finished is kept."""

    exit_code = 130

    def __init__(self, signal_number: int = 2) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return "interrupted" if self.exit_code == 130 else "terminated"
