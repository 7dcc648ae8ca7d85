"""An object store in memory, `faulty://`, that fails when told to, and honours conditions on writes like S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import remote, retries


class ServerAnswer(Exception):
    """What botocore raises: the server's answer inside."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class FaultyStore(MemoryFileSystem):
    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[tuple[str, BaseException]]] = []
    """(operation, error): the next such operation fails so, once."""
    calls: ClassVar[list[tuple[str, str]]] = []
    """(operation, object) in the order they came."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("faulty://", "memory://"))

    @classmethod
    def count(cls, operation: str, ending: str = "") -> int:
        return sum(name == operation and path.endswith(ending) for name, path in cls.calls)

    def _note(self, operation: str, path: str) -> None:
        self.calls.append((operation, path))
        for number, (name, error) in enumerate(self.faults):
            if name == operation:
                del self.faults[number]
                raise error

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._note("info", path)
        found = dict(super().info(path))
        if found["type"] == "file":
            data = super().cat_file(path)
            found["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        return found

    def find(self, path: str, *args: Any, detail: bool = False, **options: Any) -> Any:
        self._note("find", path)
        names = super().find(path, *args, **options)
        return {name: self.info(name) for name in names} if detail else names

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._note("range" if start is not None else "cat", path)
        return bytes(super().cat_file(path, start, end))

    def get_file(self, path: str, local: Any, **options: Any) -> None:
        self._note("get", path)
        with open(local, "wb") as file:
            file.write(super().cat_file(path))

    def put_file(self, local: Any, path: str, **options: Any) -> None:
        self._note("put", path)
        with open(local, "rb") as file:
            super().pipe_file(path, file.read())

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite", IfMatch: str = "", **options: Any) -> None:
        self._note("pipe", path)
        there = self.exists(path)
        if (mode == "create" and there) or (IfMatch and not (there and self.info(path)["ETag"] == IfMatch)):
            raise ServerAnswer(412, "PreconditionFailed")
        super().pipe_file(path, data)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[type[FaultyStore]]:
    """The store, empty and without faults; what is tried again is tried again at once."""
    from pipeline.storage import cache

    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    for kept in (FaultyStore.store, FaultyStore.faults, FaultyStore.calls):
        kept.clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(FaultyStore, "pseudo_dirs", ["", "/bucket"])
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(remote, "CONDITIONAL", frozenset({"s3", "s3a", "faulty"}))
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(cache.SIZE, "100MB")
    for remembered in (cache.node_cache, remote._filesystem, remote._has_no_bucket):
        remembered.cache_clear()
    yield FaultyStore
    cache.node_cache.cache_clear()
