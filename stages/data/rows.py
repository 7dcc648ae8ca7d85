"""Rows of a CSV, JSON-lines or Parquet file, each with where it stands, for errors that name it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

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
        return _json_rows(path, columns[0])
    if kind == ".parquet":
        return _parquet_rows(path, columns)
    raise DataError(f"{what} {path}: its kind is {kind or 'unknown'}: make it a .csv, .jsonl or .parquet file")


def _csv_rows(path: Path, what: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key) + len(row.get(None) or ())
                    names = reader.fieldnames or ()
                    raise DataError(f"{path}, {where}: {cells} cells for the {len(names)} columns {', '.join(names)}")
                yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        if "field limit" in str(error):
            raise DataError(f"{path}, line {reader.line_num + 1}: {_too_long('a field')}") from None
        raise DataError(f"{what} {path} is no UTF-8 CSV ({error}): save it as UTF-8") from None


def _json_rows(path: Path, first: str) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_FIELD + 1):
            number += 1
            if len(line) > LONGEST_FIELD:
                raise DataError(f"{path}, line {number}: {_too_long('it')}")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: no JSON ({error}): correct or remove the line") from None
            if not isinstance(row, dict):
                raise DataError(f'{path}, line {number}: {row!r} is no object: write {{"{first}": ..., "label": ...}}')
            yield f"line {number}", row


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Row]]:
    from stages.data.tables import read_table

    columns = {name: list(values) for name, values in read_table(path).items() if name in wanted}
    if wanted[0] not in columns:
        columns = {name: list(values) for name, values in read_table(path).items()}
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        plain = (cell.item() if hasattr(cell, "item") else cell for cell in cells)
        yield f"row {number}", dict(zip(columns, plain, strict=True))


def _too_long(what: str) -> str:
    return f"{what} has more than {LONGEST_FIELD:,} bytes: name a file, or shorten it"
