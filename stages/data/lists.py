"""List files as sources: CSV, JSON lines or Parquet with a row for each picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import SourceFile
from pipeline.errors import DataError, shown
from pipeline.storage import content_hash
from stages.data.boxes import parse_boxes
from stages.data.pictures import UNLABELLED, MapFile, Picture
from stages.data.rows import read_rows

MAPS = ("segmentation", "depth", "pose")
"""Columns that name a map of each picture."""
COLUMNS = ("path", "label", "caption", "group", *MAPS, "boxes")
_MAX_LABEL = 100


def list_files(path: Path) -> Iterator[SourceFile]:
    """Yield the list file (stamped with its content's hash) and all files it names. Raises DataError."""
    yield _list_file(path)
    listed: set[str] = set()
    for where, row in _rows(path):
        for what in ("path", *MAPS):
            name = row.get(what)
            if not name or name in listed:  # pictures may share a map
                continue
            listed.add(name)
            try:
                status = (path.parent / name).stat()
            except (OSError, ValueError) as error:  # ValueError: no file system has such a name
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(
                    f"{path}, {where}: {'picture' if what == 'path' else what} {shown(name)} cannot be read at "
                    f"{path.parent / shown(name)[1:-1]} ({reason}): correct the path (relative ones start at the list "
                    "file) or remove the row"
                ) from None
            yield SourceFile(name, status.st_size, str(status.st_mtime_ns))


def list_pictures(path: Path, listing: Iterable[SourceFile]) -> list[Picture]:
    """Join the rows of a list file with a listing of it. Raises DataError where it changed since."""
    files = {file.path: file for file in listing}
    known = files.pop(path.name, None)
    rows = list(_rows(path))
    named = {row[what] for _, row in rows for what in ("path", *MAPS) if row.get(what)}
    if known != _list_file(path) or named != set(files):
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


def _list_file(path: Path) -> SourceFile:
    if not path.is_file():
        raise DataError(f"source list {path} does not exist: set shard.source.path to a .csv, .jsonl or .parquet file")
    return SourceFile(path.name, path.stat().st_size, f"sha256:{content_hash(path)}")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("line 7", checked row). Raises DataError naming line and value of the first mistake."""
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
