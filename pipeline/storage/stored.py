"""A reference to a committed file, which may be sent to any machine and is verified where it is opened."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.content import Known, verified
from pipeline.storage.folder import Folder


@dataclass(frozen=True)
class StoredFile:
    """A committed file, wherever it lies: what units and readers are given, on whatever machine they run."""

    folder: Folder
    name: str
    known: Known | None = None
    """Its recorded size and hash: it is verified when a process first opens it."""
    remedy: str = ""
    """How to make it again where it is damaged."""

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's file systems."""
        return self.folder.is_local

    @property
    def size(self) -> int:
        """Its size in bytes. Raises FileNotFoundError."""
        size = self.known.bytes if self.known else self.folder.size(self.name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(self))
        return size

    def beside(self, suffix: str) -> StoredFile:
        """Return the file of this name with another ending."""
        return StoredFile(self.folder, self.name.removesuffix(Path(self.name).suffix) + suffix)

    def local(self) -> Path:
        """Return a local path of it, there as long as this process lives. Raises DataError where it is damaged."""
        return self._verified(self.folder.local(self.name, self.known))

    @contextlib.contextmanager
    def held(self) -> Iterator[Path]:
        """Within the block, a local path of it. Raises DataError where it is damaged."""
        with self.folder.held(self.name, self.known) as path:
            yield self._verified(path)

    def open(self) -> int:
        """Return a descriptor of it, or of a local copy. Raises DataError where it is damaged."""
        if self.is_local:
            self._verified(self.folder.path / self.name)
        return self.folder.open(self.name, self.known)

    def read_range(self, offset: int, size: int) -> bytes:
        """Return some of its bytes, and fetch no others."""
        return self.folder.read_range(self.name, offset, size)

    def _verified(self, path: Path) -> Path:
        """Copies were verified when they were fetched."""
        return verified(path, self.known, self.remedy) if self.known and self.is_local else path
