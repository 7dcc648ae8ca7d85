"""What bytes and values are told apart by: hashes of files, and the one JSON text of a value."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol


class Known(Protocol):
    """What is recorded of a file when it is committed."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its hash, as hex."""


def content_hash(path: Path) -> str:
    """Return the sha256 of a local file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN. Fingerprints hash this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
