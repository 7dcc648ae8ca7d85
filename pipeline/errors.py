"""What a user can cause or must know of, each kind with its exit code; all else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """An error whose message is meant for the person at the keyboard: it names the value and the remedy."""

    exit_code = 1


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
