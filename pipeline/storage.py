"""The only file that touches fsspec: atomic writes, reads, listings and local copies, on a disk or behind a URL."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TEMPORARY = ".tmp-"
"""Prefix of everything not yet committed. Listings leave it out; a run sweeps what a killed one left behind."""

_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "no space is left there: make room, then run the same command again",
    errno.EDQUOT: "the quota is used up: make room, then run the same command again",
    errno.EROFS: "it is read-only: choose another --workdir or remount it",
    errno.EACCES: "permission was denied: make it writable for this user, then run the same command again",
}


def content_hash(path: Path) -> str:
    """Return the sha256 of a local file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN. Fingerprints hash this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


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


def _error_number(error: Exception) -> int | None:
    """Return the system's error number; a library may have kept nothing of it but its words (safetensors does)."""
    if isinstance(error, OSError):
        return error.errno
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else None


@dataclass(frozen=True, order=True)
class Folder:
    """A place in storage: an absolute local path, or any URL fsspec knows. Its files appear whole or not at all."""

    url: str

    @classmethod
    def at(cls, place: str | Path) -> Folder:
        """Return the folder at a path (made absolute: workers change their working directory) or URL."""
        text = str(place)
        if "://" in text and not text.startswith("file://"):
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
        return bool(_remote(self.url).exists(f"{self.url}/{name}"))

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        if self.is_local:
            path = self.path / name
            return path.stat().st_size if path.is_file() else None
        remote = _remote(self.url)
        return int(remote.size(f"{self.url}/{name}")) if self.exists(name) else None

    def names(self) -> list[str]:
        """Return the relative names of all committed files below, sorted."""
        if self.is_local:
            found = (
                os.path.relpath(os.path.join(root, file), self.url)
                for root, _, files in os.walk(self.url)
                for file in files
            )
        else:
            remote = _remote(self.url)
            base = remote._strip_protocol(self.url)
            found = (str(name).removeprefix(f"{base}/") for name in remote.find(base))
        return sorted(name for name in found if TEMPORARY not in name)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all committed files below by their relative names, in one listing."""
        if self.is_local:
            paths = (os.path.join(root, file) for root, _, files in os.walk(self.url) for file in files)
            found = {os.path.relpath(path, self.url): os.lstat(path).st_size for path in paths}
        else:
            remote = _remote(self.url)
            base = remote._strip_protocol(self.url)
            listed = remote.find(base, detail=True).items()
            found = {str(name).removeprefix(f"{base}/"): int(about["size"]) for name, about in listed}
        return {name: size for name, size in sorted(found.items()) if TEMPORARY not in name}

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError."""
        if self.is_local:
            return (self.path / name).read_bytes()
        return bytes(_remote(self.url).cat_file(f"{self.url}/{name}"))

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
                target.parent.mkdir(parents=True, exist_ok=True)
                _sync(path)
                os.replace(path, target)
                _sync(target.parent)
            else:
                _remote(self.url).put_file(str(path), f"{self.url}/{name}")

    @contextlib.contextmanager
    def scratch(self, name: str = "") -> Iterator[Path]:
        """Yield an empty local folder that is gone afterwards; on a disk it lies here, so that a rename can commit.

        Raises StorageError where the disk refuses; `name` is what the message says could not be written.
        """
        with explaining(f"{self.url}/{name}".rstrip("/")):
            if self.is_local:
                self.path.mkdir(parents=True, exist_ok=True)
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
                for path in sorted(files, key=lambda path: path.name == last):
                    relative = path.relative_to(scratch)
                    _remote(self.url).put_file(str(path), f"{self.url}/{name}/{relative}")
                return
            for path in files:
                _sync(path)
            _sync(scratch)
            target = self.path / name
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
            _sync(self.path)

    def local(self, name: str) -> Path:
        """Return a readable local path of a file; one behind a URL is fetched once for this process."""
        if self.is_local:
            return self.path / name
        copy = _cache() / hashlib.sha256(self.url.encode()).hexdigest()[:16] / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
            _remote(self.url).get_file(f"{self.url}/{name}", str(partial))
            os.replace(partial, copy)
        return copy

    def remove(self, name: str) -> None:
        """Remove a file or everything below a folder; nothing happens where there is none."""
        if not self.is_local:
            if self.exists(name):
                _remote(self.url).rm(f"{self.url}/{name}", recursive=True)
        elif (self.path / name).is_dir() and not (self.path / name).is_symlink():
            shutil.rmtree(self.path / name)
        else:
            (self.path / name).unlink(missing_ok=True)

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


def _remote(url: str) -> AbstractFileSystem:
    return _filesystem(url.partition("://")[0])


@functools.cache
def _filesystem(protocol: str) -> AbstractFileSystem:
    import fsspec

    return fsspec.filesystem(protocol)


@functools.cache
def _cache() -> Path:
    return Path(tempfile.mkdtemp(prefix="smalti-cache-"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
