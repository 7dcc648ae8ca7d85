"""Parquet tables of tokens and of anything else that has rows. The only file that imports pyarrow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, shown

ROWS_AT_ONCE = 1024
"""Of a table that is read row by row."""
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, MemoryError)
"""What damaged files, and cells that Python has no value for, make pyarrow raise."""


class _NoPandas:
    """A finder of modules, for `_spare_pandas`, to which there is no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ImportError(f"{__name__} does without pandas")


def _spare_pandas() -> None:
    """Let pyarrow do without pandas in this process, unless something has imported it.

    pyarrow asks once, at its first conversion, whether there is a pandas whose objects it has to know: the import takes
    1 to 2 s of each process that reads or writes a table. What asks for pandas itself (`to_pandas`) still gets it.
    """
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([0])
        finally:
            sys.meta_path.remove(_NoPandas)


_spare_pandas()


@dataclass(frozen=True)
class TokenTable:
    """The tokens of one shard: row n is one variant (crop or flip) of the picture `keys[n]`."""

    keys: list[str]
    labels: np.ndarray
    """int64 [N]."""
    captions: list[str]
    variants: np.ndarray
    """int32 [N]; 0 is the picture as it is."""
    tokens_NT: np.ndarray
    """uint16, or int32 for codebooks above 65,536 codes; row-major over the grid."""
    condition_NC: np.ndarray
    """int32: the tokens that stand in front of the picture's in the prior, as `Vocabulary.condition` numbers them."""
    metadata: dict[str, str]

    def __len__(self) -> int:
        return len(self.keys)


def write_tokens(
    path: Path,
    *,
    keys: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    captions: Sequence[str],
    variants: Sequence[int] | np.ndarray,
    tokens_NT: np.ndarray,
    condition_NC: np.ndarray,
    metadata: Mapping[str, str],
) -> None:
    """Write a table of tokens, as uint16 where `metadata["codebook_size"]` (else the largest token) allows it."""
    largest = int(tokens_NT.max()) if tokens_NT.size else 0
    codes = int(metadata.get("codebook_size", largest + 1))
    assert 0 <= largest < codes, f"token {largest} in a codebook of {codes}"
    columns = {
        "key": list(keys),
        "label": np.asarray(labels, dtype=np.int64),
        "caption": list(captions),
        "variant": np.asarray(variants, dtype=np.int32),
        "tokens": tokens_NT.astype(np.uint16 if codes <= 2**16 else np.int32),
        "condition_tokens": condition_NC.astype(np.int32),
    }
    write_table(path, columns, metadata)


def read_tokens(path: Path) -> TokenTable:
    """Read what `write_tokens` wrote. Raises DataError naming the file where it is none."""
    columns = read_table(path)
    missing = {"key", "label", "caption", "variant", "tokens", "condition_tokens"} - set(columns)
    if missing:
        raise DataError(
            f"{path} is no table of tokens: it has no column {', '.join(sorted(missing))}: run --stages encode"
        )
    return TokenTable(
        keys=columns["key"],
        labels=columns["label"],
        captions=columns["caption"],
        variants=columns["variant"],
        tokens_NT=columns["tokens"],
        condition_NC=columns["condition_tokens"],
        metadata=read_metadata(path),
    )


def write_table(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write columns of equal length: lists of strings or numbers, arrays [N], or arrays [N, T] as fixed-size lists.

    Equal columns and metadata give equal bytes (with one version of pyarrow).
    """
    arrays = {name: _to_arrow(values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    assert len(set(lengths.values())) <= 1, f"columns of different lengths: {lengths}"
    table = pa.table(arrays).replace_schema_metadata(dict(sorted((metadata or {}).items())))
    pq.write_table(table, path, compression="zstd", row_group_size=2**16)


def read_table(path: Path) -> dict[str, Any]:
    """Return the columns: strings (and whatever is neither number nor fixed-size list) as lists, the rest as arrays.

    A number column with empty cells is a list with None in them. Raises DataError where the file is no Parquet.
    """
    with _explained(path):
        table = pq.read_table(path)
        return {name: _from_arrow(table.column(name)) for name in table.column_names}


def read_records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows as plain values, those of `columns` that there are; without the first of them, all columns.

    Only some rows are in memory at a time: a few bytes of Parquet can stand for billions of rows. Raises DataError
    where the file is no Parquet.
    """
    with _explained(path):
        file = pq.ParquetFile(path)
    names = [name for name in columns if name in file.schema_arrow.names]
    batches = file.iter_batches(ROWS_AT_ONCE, columns=names if columns[0] in names else None)
    while True:
        with _explained(path):
            batch = next(batches, None)
            rows = batch.to_pylist() if batch is not None else None
        if rows is None:
            return
        yield from rows


def read_metadata(path: Path) -> dict[str, str]:
    """Return the key-value metadata of a table. Raises DataError where the file is no Parquet."""
    with _explained(path):
        metadata = pq.read_schema(path).metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _ARROW_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({shown((str(error).splitlines() or [type(error).__name__])[0])}): "
            "write it again"
        ) from None


def _to_arrow(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    if isinstance(values, list) and not values:
        return pa.array(values, pa.string())
    return pa.array(values)


def _from_arrow(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        flat = np.concatenate(chunks) if chunks else np.empty(0, kind.value_type.to_pandas_dtype())
        return flat.reshape(len(column), kind.list_size)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return column.to_numpy() if is_number and not column.null_count else column.to_pylist()
