"""The only file that imports fsspec: single operations on remote objects, tried again where that helps.

Credentials and endpoints come from the environment, as the store's client reads it (for S3: AWS_ACCESS_KEY_ID and the
like, AWS_ENDPOINT_URL, or fsspec's own FSSPEC_S3_...); they are never part of a URL, a config or a manifest.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import ConfigError, StorageError, UserError
from pipeline.storage.disk import is_local_refusal
from pipeline.storage.retries import answer_of, brief, causes_of, persist

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONDITIONAL = frozenset({"s3", "s3a"})
"""Protocols whose writes can depend on what is there. Whether a server honours that, it has to show."""
FENCES: dict[str, Callable[[], None]] = {}
"""By URL of a workdir that this process holds by a lease: raises where the lease is lost. Asked before each write."""
FEW = 8
"""Objects that are removed one by one, with an error for each; more go in bulk and are looked for afterwards."""

T = TypeVar("T")


class Conflict(Exception):
    """A conditional write was refused: something else is there."""


@dataclass(frozen=True)
class Facts:
    """What a store says of an object: `stamp` (an entity tag or a time) changes when its content does."""

    bytes: int
    stamp: str


def facts(url: str) -> Facts | None:
    """Return what is known of an object, None where there is none."""
    try:
        info = _ask("look at", url, lambda store: store.info(url))
    except FileNotFoundError:
        return None
    return _facts(info) if info["type"] == "file" else None


def read(url: str) -> bytes:
    """Return an object's bytes. Raises FileNotFoundError."""
    alone = {"max_concurrency": 1} if protocol_of(url) in CONDITIONAL else {}  # spares asking for the size before
    return bytes(_ask("read", url, lambda store: store.cat_file(url, **alone)))


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on. Raises StorageError where the object ends before, FileNotFoundError."""
    if size == 0:
        return b""
    what = f"read bytes {offset} to {offset + size} of"
    data = bytes(_ask(what, url, lambda store: store.cat_file(url, start=offset, end=offset + size)))
    if len(data) != size:
        raise StorageError(f"cannot {what} {url}: it ends before: run with --verify to see what else is damaged")
    return data


def download(url: str, path: Path) -> None:
    """Copy an object to a local file. Raises FileNotFoundError."""
    _ask("read", url, lambda store: store.get_file(url, str(path)))


def upload(path: Path, url: str) -> None:
    """Copy a local file to an object, which appears whole or not at all."""
    _ask("write", url, lambda store: store.put_file(str(path), url), fenced=True)


def write(url: str, data: bytes, *, fenced: bool = True, **conditions: str) -> None:
    """Write an object, which appears whole or not at all. Raises Conflict where its conditions do not hold.

    `mode="create"`: only where there is none. `IfMatch='"STAMP"'`: only over the one of that stamp. Only stores of
    CONDITIONAL protocols take these.
    """
    _ask("write", url, lambda store: store.pipe_file(url, data, **conditions), fenced=fenced)


def remove(urls: Sequence[str]) -> None:
    """Remove objects; nothing happens where there are none."""
    if len(urls) > FEW:
        with contextlib.suppress(FileNotFoundError):
            above = urls[0].rpartition("/")[0]
            _ask("remove objects below", above, lambda store: store.rm(list(urls)), fenced=True)
        urls = [url for url in urls if facts(url) is not None]  # in bulk, a refusal is not reported
    for url in urls:
        try:
            _ask("remove", url, lambda store, url=url: store.rm_file(url), fenced=True)  # type: ignore[misc]
        except FileNotFoundError:
            continue


def listing(url: str) -> Iterator[tuple[str, Facts]]:
    """Yield (name relative to `url`, facts) of all objects below it."""

    def find(store: AbstractFileSystem) -> tuple[str, dict[str, Any]]:
        base = store._strip_protocol(url)
        return base, store.find(base, detail=True)

    try:
        base, found = _ask("list", url, find)
    except FileNotFoundError:
        return
    for name, info in found.items():
        relative = str(name).removeprefix(f"{base}/")
        if info["type"] == "file" and str(name) != base and not relative.endswith("/"):
            yield relative, _facts(info)


def protocol_of(url: str) -> str:
    """Return what stands before `://`."""
    return url.partition("://")[0]


def _ask(what: str, url: str, act: Callable[[AbstractFileSystem], T], *, fenced: bool = False) -> T:
    """Do one operation. Raises FileNotFoundError, Conflict, and StorageError naming operation, object and remedy."""

    def once() -> T:
        if fenced:
            for place, check in FENCES.items():
                if url == place or url.startswith(f"{place}/"):
                    check()
        return act(_filesystem(protocol_of(url), os.getpid()))

    try:
        return persist(f"{what} {url}", once)
    except UserError:
        raise
    except Exception as error:
        if is_local_refusal(error):
            raise
        if _is_conflict(error):
            raise Conflict(url) from error
        if isinstance(error, FileNotFoundError) and not _lacks_bucket(url):
            raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
        raise StorageError(f"cannot {what} {url}: {_remedy(url, error)}") from error


def _is_conflict(error: Exception) -> bool:
    answers = [answer_of(cause) for cause in causes_of(error)]
    return isinstance(error, FileExistsError) or any(
        status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict") for status, code in answers
    )


def _remedy(url: str, error: Exception) -> str:
    """Say what a person can do about a failure that does not pass."""
    environment = "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE) " if url.startswith("s3") else ""
    statuses = {status for status, _ in map(answer_of, causes_of(error))}
    kinds = {type(cause).__name__ for cause in causes_of(error)}
    if _lacks_bucket(url):
        return f"there is no bucket {_bucket(url)}: create it, or correct the URL"
    if isinstance(error, PermissionError) or statuses & {401, 403}:
        return f"permission was denied: see to the credentials {environment}in the environment and what they may do"
    if "NoCredentialsError" in kinds or "PartialCredentialsError" in kinds:
        return f"there are no credentials {environment}in the environment: set them"
    if "gaierror" in kinds or "Invalid endpoint" in str(error):
        return f"there is no such server ({brief(error)}): correct the endpoint (for S3: AWS_ENDPOINT_URL)"
    return f"{brief(error)}; the log says more"


def _bucket(url: str) -> str:
    return url.partition("://")[2].split("/", 1)[0]


def _lacks_bucket(url: str) -> bool:
    """Whether what is missing is the bucket itself."""
    if protocol_of(url) not in CONDITIONAL:
        return False
    return _has_no_bucket(protocol_of(url), _bucket(url))


@functools.lru_cache(maxsize=64)
def _has_no_bucket(protocol: str, bucket: str) -> bool:
    try:
        _filesystem(protocol, os.getpid()).info(bucket)
    except FileNotFoundError:
        return True
    except Exception:  # it may not be looked at, or not now: then the first error tells more
        return False
    return False


def _facts(info: dict[str, Any]) -> Facts:
    stamps = ("ETag", "etag", "md5", "LastModified", "last_modified", "mtime", "created")
    stamp = next((str(info[name]).strip('"') for name in stamps if info.get(name)), "")
    return Facts(int(info["size"] or 0), stamp)


@functools.cache
def _filesystem(protocol: str, process: int) -> AbstractFileSystem:
    """Return the client of a protocol; one for each process, as a fork leaves its parent's without a thread."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in CONDITIONAL:  # our own retries are the only ones
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
    try:
        store = fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{protocol}:// cannot be used here: {error}") from None
    if protocol in CONDITIONAL:
        store.retries = 1
    return store
