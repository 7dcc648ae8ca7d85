"""List files as sources: CSV, JSON lines or Parquet with a row for each picture."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.artifacts import SourceFile
from pipeline.errors import DataError, shown
from pipeline.storage import Folder, content_hash
from stages.data.boxes import parse_boxes
from stages.data.pictures import UNLABELLED, MapFile, Picture
from stages.data.places import find_object, list_folder, split_place
from stages.data.rows import read_rows

MAPS = ("segmentation", "depth", "pose")
"""Columns that name a map of each picture."""
COLUMNS = ("path", "label", "caption", "group", *MAPS, "boxes")
_MAX_LABEL = 100


@dataclass(frozen=True)
class _Place:
    """A list file and those beside it, on a disk or behind a URL."""

    folder: Folder
    name: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    @contextmanager
    def read(self) -> Iterator[Path]:
        """Yield a local path of the list file; what a DataError says of that is said of the place."""
        with self.folder.held(self.name) as path:
            try:
                yield path
            except DataError as error:
                raise DataError(str(error).replace(str(path), str(self))) from None

    def itself(self) -> SourceFile:
        """The list file, stamped with its content's hash. Raises DataError where there is none."""
        missing = f"source list {self} does not exist: set shard.source.path to a .csv, .jsonl or .parquet file"
        if self.folder.is_local and not (self.folder.path / self.name).is_file():
            raise DataError(missing)
        try:
            with self.folder.held(self.name) as path:
                return SourceFile(self.name, path.stat().st_size, f"sha256:{content_hash(path)}")
        except FileNotFoundError:
            raise DataError(missing) from None

    def named(self, name: str) -> SourceFile:
        """A file that the list names. Raises OSError where there is none."""
        if self.folder.is_local and "://" not in name:
            status = (self.folder.path / name).stat()
            return SourceFile(name, status.st_size, str(status.st_mtime_ns))
        found = self._beside.get(name) or find_object(self.folder, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object")
        return found

    @cached_property
    def _beside(self) -> dict[str, SourceFile]:
        """All that lies beside a list behind a URL: one listing is much less to ask for than each file."""
        return {} if self.folder.is_local else {file.path: file for file in list_folder(self.folder)}


def list_files(place: str | Path) -> Iterator[SourceFile]:
    """Yield the list file (stamped with its content's hash) and all files it names. Raises DataError."""
    path = _Place(*split_place(place))
    yield path.itself()
    listed: set[str] = set()
    for where, row in _rows(path):
        for what in ("path", *MAPS):
            name = row.get(what)
            if not name or name in listed:  # pictures may share a map
                continue
            listed.add(name)
            try:
                yield path.named(name)
            except (OSError, ValueError) as error:  # ValueError: no file system has such a name
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(
                    f"{path}, {where}: {'picture' if what == 'path' else what} {shown(name)} cannot be read at "
                    f"{_shown(path.folder, name)} ({reason}): correct the path (relative ones start at the list file) "
                    "or remove the row"
                ) from None


def list_pictures(place: str | Path, listing: Iterable[SourceFile]) -> list[Picture]:
    """Join the rows of a list file with a listing of it. Raises DataError where it changed since."""
    path = _Place(*split_place(place))
    files = {file.path: file for file in listing}
    known = files.pop(path.name, None)
    rows = list(_rows(path))
    named = {row[what] for _, row in rows for what in ("path", *MAPS) if row.get(what)}
    if known != path.itself() or named != set(files):
        raise DataError(f"{path} changed while the run was reading it: run the same command again")
    pictures = []
    for _, row in rows:
        file = files[row["path"]]
        label, caption, group = row.get("label", UNLABELLED), row.get("caption", ""), row.get("group", "")
        maps = tuple(_map_file(kind, files[row[kind]]) for kind in MAPS if row.get(kind))
        pictures.append(
            Picture(file.path, file.bytes, file.stamp, label, caption, group or file.path, maps, row.get("boxes"))
        )
    return pictures


def _map_file(kind: str, file: SourceFile) -> MapFile:
    return MapFile(kind, file.path, file.bytes, file.stamp)


def _shown(folder: Folder, name: str) -> str:
    return str(folder.path / name) if folder.is_local and "://" not in name else f"{folder}/{name}"


def _rows(place: _Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("line 7", checked row). Raises DataError naming line and value of the first mistake."""
    with place.read() as path:
        yield from _checked_rows(path)


def _checked_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: dict[str, str] = {path.name: "the list itself"}
    rows = read_rows(path, "source list", COLUMNS)
    for where, raw in rows:
        row = {name: raw[name] for name in COLUMNS if name in raw}
        if "path" not in row:
            names = shown(", ".join(map(str, raw)) or "none")[1:-1]
            raise DataError(f"{path}, {where}: no column 'path' (there are: {names}): name the pictures' column so")
        checked: dict[str, Any] = {
            name: (
                parse_boxes(value, f"{path}, {where}") if name == "boxes" else _text(value, name, f"{path}, {where}")
            )
            for name, value in row.items()
        }
        first = seen.setdefault(checked["path"], where)
        if first != where:
            raise DataError(
                f"{path}, {where}: {shown(checked['path'])} is listed again (before: {first}): keep one of them"
            )
        yield where, checked
    if len(seen) == 1:
        raise DataError(f"source list {path} has no rows: add one for each picture")


def _text(value: Any, name: str, where: str) -> str:
    """Return a cell as text. Paths and labels must not be empty; a whole number may be a label."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # a Parquet column of numbers with gaps is read as floats
    required = name in ("path", "label")
    empty = value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""
    if empty and not required:
        return ""
    good = isinstance(value, str | int) and not isinstance(value, bool)
    if name == "label" and good:
        good = len(str(value)) <= _MAX_LABEL and str(value).isprintable()
    if empty or not good:
        what = "is empty" if empty else f"is {shown(value)}"
        need = f"a name of at most {_MAX_LABEL} printable characters, or a whole number" if name == "label" else "text"
        raise DataError(f"{where}: {name} {what}, but must be {need}: correct or remove the row")
    return str(value).strip() if required else str(value)
