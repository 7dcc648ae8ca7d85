"""A place in storage, on a disk or behind a URL: atomic writes, reads, listings and local copies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage import remote
from pipeline.storage.cache import node_cache
from pipeline.storage.content import Known, content_hash
from pipeline.storage.disk import TEMPORARY, explaining, make_folder, sync

PIECE = 32 * 2**20
"""Bytes that are read at once to hash a remote file."""


@dataclass(frozen=True, order=True)
class Folder:
    """A place in storage: an absolute local path, or any URL fsspec knows. Its files appear whole or not at all."""

    url: str

    @classmethod
    def at(cls, place: str | Path) -> Folder:
        """Return the folder at a path (made absolute: workers change their working directory) or URL."""
        text = str(place)
        if "://" in text and not text.startswith("file://"):
            if "@" in text.partition("://")[2].partition("/")[0]:
                raise ConfigError(
                    f"the URL {text.partition('://')[0]}://...@{text.rpartition('@')[2]} holds a name or password, "
                    "which would end in manifests and logs: put credentials into the environment"
                )
            return cls(text.rstrip("/"))
        return cls(os.path.abspath(text.removeprefix("file://")))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine's file systems."""
        return "://" not in self.url

    @property
    def path(self) -> Path:
        """The local path of a local folder."""
        assert self.is_local, self.url
        return Path(self.url)

    def exists(self, name: str) -> bool:
        """Whether a file (or, on a disk, a folder) of this name is there."""
        if self.is_local:
            return (self.path / name).exists()
        return remote.facts(self._url(name)) is not None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        if self.is_local:
            path = self.path / name
            return path.stat().st_size if path.is_file() else None
        found = remote.facts(self._url(name))
        return found.bytes if found else None

    def names(self) -> list[str]:
        """Return the relative names of all committed files below, sorted."""
        if self.is_local:
            found = (
                os.path.relpath(os.path.join(root, file), self.url)
                for root, _, files in os.walk(self.url)
                for file in files
            )
        else:
            found = (name for name, _ in remote.listing(self.url))
        return sorted(name for name in found if TEMPORARY not in name)

    def listing(self) -> Iterator[tuple[str, int, str]]:
        """Yield (relative name, bytes, stamp) of all objects below a URL; a stamp changes when the content does."""
        for name, facts in remote.listing(self.url):
            yield name, facts.bytes, facts.stamp

    def stamp(self, name: str) -> tuple[int, str] | None:
        """Return (bytes, stamp) of an object, None where there is none."""
        found = remote.facts(self._url(name))
        return (found.bytes, found.stamp) if found else None

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all committed files below by their relative names, in one listing."""
        if self.is_local:
            paths = (os.path.join(root, file) for root, _, files in os.walk(self.url) for file in files)
            found = {os.path.relpath(path, self.url): os.lstat(path).st_size for path in paths}
        else:
            found = {name: size for name, size, _ in self.listing()}
        return {name: size for name, size in sorted(found.items()) if TEMPORARY not in name}

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError."""
        if self.is_local:
            return (self.path / name).read_bytes()
        return remote.read(self._url(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file from `offset` on. Raises FileNotFoundError, or StorageError where it is cut."""
        if not self.is_local:
            return remote.read_range(self._url(name), offset, size)
        with (self.path / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def hash_of(self, name: str) -> str:
        """Return the sha256 of what is stored under a name, not of a copy of it. Raises FileNotFoundError."""
        if self.is_local:
            return content_hash(self.path / name)
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self._url(name))
        digest = hashlib.sha256()
        for start in range(0, size, PIECE):
            digest.update(self.read_range(name, start, min(PIECE, size - start)))
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """Return a JSON file's value."""
        return json.loads(self.read(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically and durably. Raises StorageError where the disk refuses."""
        with self.writing(name) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON, atomically, its keys in the order they are in."""
        self.write(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local temporary path; what was written there becomes the file when the block ends well."""
        with self.scratch(name) as scratch:
            path = scratch / Path(name).name
            yield path
            if self.is_local:
                target = self.path / name
                make_folder(target.parent)
                sync(path)
                os.replace(path, target)
                sync(target.parent)
            else:
                remote.upload(path, self._url(name))

    @contextlib.contextmanager
    def scratch(self, name: str = "") -> Iterator[Path]:
        """Yield an empty local folder that is gone afterwards; on a disk it lies here, so that a rename can commit.

        Raises StorageError where the disk refuses; `name` is what the message says could not be written.
        """
        with explaining(f"{self.url}/{name}".rstrip("/")):
            if self.is_local:
                make_folder(self.path)
                scratch = self.path / f"{TEMPORARY}{secrets.token_hex(6)}"
                scratch.mkdir()
            else:
                scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY))
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def adopt(self, scratch: Path, name: str, *, last: str) -> None:
        """Commit a whole scratch folder as `name`; `last` is the file whose existence says that all others are there.

        On a disk one rename commits all. Behind a URL each file is one PUT, `last` the last of them.
        """
        with explaining(f"{self.url}/{name}"):
            files = sorted(path for path in scratch.rglob("*") if path.is_file())
            if not self.is_local:
                self.remove(f"{name}/{last}")  # of an earlier commit: it must not vouch for a mixture
                for path in sorted(files, key=lambda path: path.name == last):
                    remote.upload(path, self._url(f"{name}/{path.relative_to(scratch).as_posix()}"))
                return
            for path in (*files, *(path for path in scratch.rglob("*") if path.is_dir()), scratch):
                sync(path)
            target = self.path / name
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
            sync(self.path)

    def local(self, name: str, known: Known | None = None) -> Path:
        """Return a readable local path of a file, which is there as long as this process lives.

        One behind a URL is copied into the node's cache, and verified if its size and hash are `known`. For many
        files, or large ones, use `held`. Raises FileNotFoundError, and StorageError where it is not what was written.
        """
        return self.path / name if self.is_local else node_cache().pinned(self.url, name, known)

    @contextlib.contextmanager
    def held(self, name: str, known: Known | None = None) -> Iterator[Path]:
        """Yield a readable local path of a file, which is there within the block; see `local`."""
        if self.is_local:
            yield self.path / name
        else:
            with node_cache().held(self.url, name, known) as path:
                yield path

    def open(self, name: str, known: Known | None = None) -> int:
        """Return a descriptor of a file or of a local copy of it; see `local`."""
        if self.is_local:
            return os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        return node_cache().open(self.url, name, known)[1]

    def remove(self, name: str) -> None:
        """Remove a file, for good when this returns, or everything below a folder; where there is none, nothing."""
        if not self.is_local:
            below = f"{self.url}/{name}".rstrip("/")
            itself = [below] if name and self.exists(name) else []
            remote.remove(itself or [f"{below}/{inside}" for inside, _ in remote.listing(below)])
        elif (self.path / name).is_dir() and not (self.path / name).is_symlink():
            shutil.rmtree(self.path / name)
        elif os.path.lexists(path := self.path / name):
            path.unlink(missing_ok=True)
            sync(path.parent)

    def link(self, name: str, target: Path) -> None:
        """Let a local file appear here under a second name, for people; harmless where links are refused."""
        if not self.is_local:
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.samefile(target):
            return
        path.unlink(missing_ok=True)
        try:
            os.link(target, path)
        except OSError:
            path.symlink_to(os.path.relpath(target, path.parent))

    def sweep(self) -> None:
        """Remove what killed runs left uncommitted below. Only the holder of the workdir's lock may call this."""
        if not self.is_local:
            return
        for root, folders, _ in os.walk(self.url):
            for name in [name for name in folders if name.startswith(TEMPORARY)]:
                shutil.rmtree(os.path.join(root, name), ignore_errors=True)
                folders.remove(name)

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"
