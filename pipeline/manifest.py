"""What a finished thing says of its files: entries, records of units, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import field_validator

from pipeline.config import StrictModel
from pipeline.storage import canonical_json, content_hash

MANIFEST = "manifest.json"
"""An artifact's list of files, written last: its existence means finished."""
FORMAT_VERSION = 1
"""Version of the layout on disk; part of every fingerprint."""


class FileEntry(StrictModel):
    """A committed file: its name within the artifact or unit, size and hash."""

    path: str
    bytes: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_in_its_folder(cls, path: str) -> str:
        if not path or path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
            raise ValueError(f"{path!r} leads out of its folder")
        return path

    @classmethod
    def of(cls, path: Path, name: str) -> FileEntry:
        """Hash a local file."""
        return cls(path=name, bytes=path.stat().st_size, sha256=content_hash(path))


class UnitRecord(StrictModel):
    """A finished unit: its address (`key`), the digest of its bytes, what it counted, its files."""

    name: str
    key: str
    digest: str
    counts: dict[str, Any]
    files: tuple[FileEntry, ...]


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the content digest of some files: the hash of their sorted (path, size, sha256)."""
    rows = sorted((entry.path, entry.bytes, entry.sha256) for entry in files)
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()
