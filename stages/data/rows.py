"""Rows of a CSV, JSON-lines or Parquet file, each with where it stands, for errors that name it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from pipeline.errors import DataError, shown

LONGEST_FIELD = 2**20
"""Bytes of a field or a line above which a file is refused: a picture pasted into it, not a value."""

Row = dict[str, Any]


def read_rows(path: Path, what: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield ("line 7", row as it stands there); `what` the file is, and the `columns` that a Parquet is read for.

    Raises DataError naming file, line and remedy where it is none of the three kinds, or damaged.
    """
    kind = path.suffix.lower()
    if kind == ".csv":
        return _csv_rows(path, what)
    if kind in (".jsonl", ".ndjson"):
        return _json_rows(path, what, columns[0])
    if kind == ".parquet":
        return _parquet_rows(path, columns)
    raise DataError(f"{what} {path}: its kind is {kind or 'unknown'}: make it a .csv, .jsonl or .parquet file")


def _csv_rows(path: Path, what: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path, what) as file:
        # Line ends stay as they are: the reader knows all kinds, and those inside quotes.
        reader = csv.DictReader(_lines(io.TextIOWrapper(file, "utf-8-sig", newline=""), path, "a field"))
        try:
            names = reader.fieldnames or ()
            if len(set(names)) < len(names):
                repeated = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{path}, line 1: two columns are called {shown(repeated)}: rename or remove one")
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key) + len(row.get(None) or ())
                    told = shown(", ".join(names))[1:-1]
                    raise DataError(f"{path}, {where}: {cells} cells for the {len(names)} columns {told}")
                yield where, row
        except (UnicodeDecodeError, csv.Error) as error:
            if "field limit" in str(error):
                raise DataError(f"{path}, line {reader.line_num + 1}: {_too_long('a field')}") from None
            raise DataError(f"{what} {path} is no UTF-8 CSV ({error}): save it as UTF-8") from None


def _json_rows(path: Path, what: str, first: str) -> Iterator[tuple[str, Row]]:
    with _opened(path, what) as file:
        for number, line in enumerate(_lines(file, path, "it"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                line.decode("utf-8")  # json guesses UTF-16 and UTF-32 as well
                json.dumps(row, ensure_ascii=False).encode()  # an escape can stand for half a character
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: no JSON ({error}): correct or remove the line") from None
            if not isinstance(row, dict):
                raise DataError(
                    f'{path}, line {number}: {shown(row)} is no object: write {{"{first}": ..., "label": ...}}'
                )
            yield f"line {number}", row


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Row]]:
    from stages.data.tables import read_records

    for number, row in enumerate(read_records(path, wanted), start=1):
        if any(isinstance(value, str | bytes) and len(value) > LONGEST_FIELD for value in row.values()):
            raise DataError(f"{path}, row {number}: {_too_long('a value')}")
        yield f"row {number}", row


def _opened(path: Path, what: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read ({error.strerror}): repair or replace it") from None


def _lines(file: IO[AnyStr], path: Path, what: str) -> Iterator[AnyStr]:
    """Lines of bounded length, whatever the file holds."""
    number = 0
    while line := file.readline(LONGEST_FIELD + 1):
        number += 1
        if len(line) > LONGEST_FIELD:
            raise DataError(f"{path}, line {number}: {_too_long(what)}")
        yield line


def _too_long(what: str) -> str:
    return f"{what} has more than {LONGEST_FIELD:,} bytes: name a file, or shorten it"
