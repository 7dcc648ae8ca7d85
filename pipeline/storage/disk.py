"""Local disks: what makes a write last, and the remedy where the system refuses one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StorageError, UserError

TEMPORARY = ".tmp-"
"""Prefix of everything not yet committed. Listings leave it out; a run sweeps what a killed one left behind."""

_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "no space is left there: make room, then run the same command again",
    errno.EDQUOT: "the quota is used up: make room, then run the same command again",
    errno.EROFS: "it is read-only: choose another --workdir or remount it",
    errno.EACCES: "permission was denied: make it writable for this user, then run the same command again",
}
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def explaining(place: str) -> Iterator[None]:
    """Turn the operating system's refusal to write at `place` into a StorageError that names the remedy."""
    try:
        yield
    except Exception as error:
        remedy = _REMEDIES.get(_error_number(error))
        if remedy is None:
            raise
        raise StorageError(f"cannot write {place}: {remedy}") from error


def is_local_refusal(error: Exception) -> bool:
    """Whether it was this machine's disk that refused, and not the other end of a connection."""
    return _error_number(error) in _REMEDIES


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that none of them is gone after a power cut while what refers to it stays.

    Without this a manifest can outlive the units that it lists: their folder was made by another name's commit.
    """
    missing = [path, *path.parents]
    missing = missing[: next(i for i, folder in enumerate(missing) if folder.exists())]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def _error_number(error: Exception) -> int | None:
    """Return the system's error number; a library may have kept nothing of it but words (safetensors, as Rust does)."""
    if isinstance(error, OSError):
        return error.errno
    if os.strerror(errno.ENOSPC) in str(error):
        return errno.ENOSPC
    told = _IN_WORDS.search(str(error)) if not isinstance(error, UserError) else None
    return int(told[1]) if told else None
