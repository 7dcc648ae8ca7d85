"""Local copies of remote files: one folder for all processes of a node, of a limited size, kept from run to run.

A copy is fetched into `partial/`, verified, renamed into `files/`, and described in `facts/`. Whoever reads one holds
a shared lock (flock) on it, which ends with the process at the latest; a copy is removed under an exclusive lock only,
so never under a reader. The folder must be on a disk whose locks all its users see: a local one, best.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import remote
from pipeline.storage.content import Known, content_hash
from pipeline.storage.disk import explaining, is_local_refusal, sync

log = logging.getLogger(__name__)

FOLDER = "SMALTI_CACHE_DIR"
"""Environment variable: where copies of remote files lie. Default: `smalti` in XDG_CACHE_HOME or ~/.cache."""
SIZE = "SMALTI_CACHE_SIZE"
"""Environment variable: how much they may take, e.g. 20GB. Default: half of what is free there, at most 50 GB."""
DEFAULT_SIZE = 50 * 10**9
LOCKS = 64
"""Files whose locks keep two processes from fetching the same object; objects share them by hash."""
COUNTED_FOR = 30.0
"""Seconds for which a process relies on what it counted; others fetch too, meanwhile."""


@dataclass
class Cache:
    """Copies in `root`, together at most `limit` bytes; a file that is larger, or in use, is kept beyond that."""

    root: Path
    limit: int
    _bytes: int = 0
    _counted: float = field(default=-COUNTED_FOR)
    _pins: dict[Path, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def held(self, folder: str, name: str, known: Known | None = None) -> Iterator[Path]:
        """Yield the path of a copy of `folder/name`, which stays there meanwhile; see `open`."""
        path, descriptor = self.open(folder, name, known)
        try:
            yield path
        finally:
            os.close(descriptor)

    def pinned(self, folder: str, name: str, known: Known | None = None) -> Path:
        """Return the path of a copy that stays there as long as this process lives; see `open`."""
        path, descriptor = self.open(folder, name, known)
        before = self._pins.get(path)
        self._pins[path] = descriptor
        if before is not None:
            os.close(before)
        return path

    def open(self, folder: str, name: str, known: Known | None = None) -> tuple[Path, int]:
        """Return (path, descriptor) of a copy; until the descriptor is closed, no process removes the copy.

        With `known` size and hash it is verified when fetched, and not asked for again; without, the store is asked
        each time whether the object has changed.

        Raises:
            FileNotFoundError: there is no such object; if it is `known`, StorageError.
            StorageError: it is not what was written.
        """
        url = f"{folder}/{name}"
        facts = None if known else remote.facts(url)
        if not known and facts is None:
            raise FileNotFoundError(2, "there is no such object", url)
        wanted = {"bytes": known.bytes, "sha256": known.sha256} if known else vars(facts)
        place = f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}/{name}"
        with explaining(f"{self.root}, which keeps copies of remote files,"):
            found = self._hold(place, wanted)
            if found is not None:
                return found
            with self._alone(place):
                return self._hold(place, wanted) or self._fetch(url, place, wanted)

    def _hold(self, place: str, wanted: dict[str, object]) -> tuple[Path, int] | None:
        """Open a copy if it is there and what is wanted, and note that it was used."""
        path = self.root / "files" / place
        with contextlib.suppress(FileNotFoundError, ValueError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                facts = json.loads((self.root / "facts" / place).read_bytes())
                status = os.fstat(descriptor)
                same = status.st_ino == path.stat().st_ino and status.st_size == facts["bytes"]
                if same and all(facts.get(key) == value for key, value in wanted.items()):
                    os.utime(descriptor)
                    kept, descriptor = descriptor, -1
                    return path, kept
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return None

    def _fetch(self, url: str, place: str, wanted: dict[str, object]) -> tuple[Path, int]:
        """Get a copy. Whoever calls holds the lock of the place; the answer is held before it can be removed."""
        size = int(str(wanted["bytes"]))
        self._make_room(size)
        path, facts = self.root / "files" / place, self.root / "facts" / place
        partial = self.root / "partial" / secrets.token_hex(8)
        for folder in (path.parent, facts.parent, partial.parent):
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # of the file, whatever its name is
        try:
            sha256 = self._download(url, partial, wanted)
            facts.unlink(missing_ok=True)
            os.replace(partial, path)
            written = partial.with_suffix(".json")
            written.write_text(json.dumps({**wanted, "sha256": sha256}))
            os.replace(written, facts)
        except BaseException:
            partial.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._bytes += size
        return path, descriptor

    def _download(self, url: str, partial: Path, wanted: dict[str, object]) -> str:
        """Fetch and verify, twice if need be; return the hash."""
        for last in (False, True):
            try:
                remote.download(url, partial)
            except FileNotFoundError:
                if "sha256" not in wanted:
                    raise
                raise StorageError(
                    f"cannot read {url}: it is listed by a manifest, but it is gone: run with --verify to see what "
                    "else is missing, and redo the stage with --force"
                ) from None
            except OSError as error:
                if last or not is_local_refusal(error):
                    raise
                self._make_room(self.limit)  # the disk is fuller than it was thought to be
                continue
            size, sha256 = partial.stat().st_size, content_hash(partial)
            if size == wanted["bytes"] and sha256 == wanted.get("sha256", sha256):
                sync(partial)
                return sha256
            log.warning("%s: %d bytes with sha256 %s came, wanted: %s", url, size, sha256[:12], wanted)
        raise StorageError(
            f"{url} differs from what was written ({size} bytes, sha256 {sha256[:12]}): run with --verify to see what "
            "else is damaged, and redo the stage with --force"
        )

    @contextlib.contextmanager
    def _alone(self, place: str) -> Iterator[None]:
        """Wait until no other process fetches this object."""
        number = int(hashlib.sha256(place.encode()).hexdigest()[:8], 16) % LOCKS
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "locks" / f"{number:02d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago, and is not in use, until `size` more bytes keep within the limit."""
        now = time.monotonic()
        if now - self._counted < COUNTED_FOR and self._bytes + size <= self.limit:
            return
        found = [(path, status) for folder in ("files", "partial") for path, status in _files(self.root / folder)]
        self._bytes, self._counted = sum(status.st_size for _, status in found), now
        for path, status in sorted(found, key=lambda item: item[1].st_mtime_ns):
            abandoned = path.parent.name == "partial"
            if (abandoned or self._bytes + size > self.limit) and _remove_unused(path):
                self._bytes -= status.st_size
                if not abandoned:
                    (self.root / "facts" / path.relative_to(self.root / "files")).unlink(missing_ok=True)
        if self._bytes + size > self.limit:
            log.warning("%s exceeds %s: %d bytes are in use, %d more are needed", self.root, SIZE, self._bytes, size)


@functools.cache
def node_cache() -> Cache:
    """Return this node's cache, as the environment says."""
    root = Path(os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "smalti").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        root = Path(tempfile.mkdtemp(prefix="smalti-cache-"))
        log.warning("copies of remote files are kept in %s, for this process alone (%s): set %s", root, error, FOLDER)
    return Cache(root.absolute(), _limit(root))


def _limit(root: Path) -> int:
    text = os.environ.get(SIZE)
    if text is None:
        held = sum(status.st_size for _, status in _files(root / "files"))
        return min(DEFAULT_SIZE, (shutil.disk_usage(root).free + held) // 2)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?", text.strip())
    if match is None:
        raise ConfigError(f"{SIZE}={text}: must be a size such as 500MB or 20GB")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                yield path, path.stat()


def _remove_unused(path: Path) -> bool:
    """Remove a file unless someone holds its lock."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                path.unlink()
                return True
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return False
