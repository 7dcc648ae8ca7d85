"""Parquet tables: what goes in comes back, for us and for plain pyarrow and pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from stages.data.tables import read_metadata, read_table, read_tokens, write_table, write_tokens

TOKENS = np.arange(12).reshape(3, 4) * 40


def write(path: Path, codebook_size: int = 512) -> None:
    write_tokens(
        path,
        keys=["a", "b", "b"],
        labels=[0, 2, 2],
        captions=["", "naïve", "naïve"],
        variants=[0, 0, 1],
        tokens_NT=TOKENS,
        condition_NC=np.array([[512], [514], [70_000]]),
        metadata={"tokenizer": "3fa9", "grid": "[2, 2]", "codebook_size": str(codebook_size)},
    )


def test_tokens_come_back(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    table = read_tokens(tmp_path / "t.parquet")
    assert (table.keys, table.captions, len(table)) == (["a", "b", "b"], ["", "naïve", "naïve"], 3)
    assert (table.labels.tolist(), table.variants.tolist()) == ([0, 2, 2], [0, 0, 1])
    assert table.tokens_NT.dtype == np.uint16
    assert (table.condition_NC.dtype, table.condition_NC.tolist()) == (np.int32, [[512], [514], [70_000]])
    np.testing.assert_array_equal(table.tokens_NT, TOKENS)
    assert table.metadata == {"tokenizer": "3fa9", "grid": "[2, 2]", "codebook_size": "512"}


def test_plain_pyarrow_and_pandas_read_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(path)
    table = pq.read_table(path)
    assert table.schema.field("tokens").type == pa.list_(pa.uint16(), 4)
    assert table.schema.metadata[b"tokenizer"] == b"3fa9"
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["key", "label", "caption", "variant", "tokens", "condition_tokens"]
    np.testing.assert_array_equal(np.stack(frame["tokens"].to_list()), TOKENS)
    assert frame["label"].tolist() == [0, 2, 2]


def test_tables_cost_no_import_of_pandas_and_leave_it_usable(tmp_path: Path) -> None:
    write(tmp_path / "before.parquet")
    code = f"""
import sys
from stages.data.tables import read_table, read_tokens, write_table
read_tokens({str(tmp_path / "before.parquet")!r})
write_table({str(tmp_path / "after.parquet")!r}, {{"a": ["x", "y"]}})
read_table({str(tmp_path / "after.parquet")!r})
print("pandas" in sys.modules)
import pyarrow as pa, pyarrow.parquet as pq
frame = pq.read_table({str(tmp_path / "after.parquet")!r}).to_pandas()
print(frame.a.tolist(), pa.Table.from_pandas(frame).num_rows, pa.array(frame.a).to_pylist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "['x', 'y'] 2 ['x', 'y']"]


def test_large_codebooks_are_stored_as_int32(tmp_path: Path) -> None:
    write(tmp_path / "small.parquet", 2**16)
    write(tmp_path / "large.parquet", 2**16 + 1)
    assert read_tokens(tmp_path / "small.parquet").tokens_NT.dtype == np.uint16
    assert read_tokens(tmp_path / "large.parquet").tokens_NT.dtype == np.int32


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one.parquet")
    write(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_any_columns_come_back_with_their_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"id": np.arange(3), "text": ["x", "y", "z"], "score": np.array([0.5, -1.0, 2.0], dtype=np.float32)}
    write_table(path, {**columns, "features": np.ones((3, 2), dtype=np.float32)}, {"b": "2", "a": "1"})
    back = read_table(path)
    assert back["text"] == ["x", "y", "z"]
    assert (back["score"].dtype, back["features"].shape) == (np.float32, (3, 2))
    np.testing.assert_array_equal(back["id"], [0, 1, 2])
    assert read_metadata(path) == {"a": "1", "b": "2"}


def test_empty_tables_keep_their_width(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    tokens_NT, condition_NC = np.empty((0, 64), dtype=np.uint16), np.empty((0, 3), dtype=np.int32)
    none: dict[str, list[str]] = {"keys": [], "captions": []}
    write_tokens(path, **none, labels=[], variants=[], tokens_NT=tokens_NT, condition_NC=condition_NC, metadata={})
    assert read_tokens(path).condition_NC.shape == (0, 3)
    assert read_tokens(path).tokens_NT.shape == (0, 64)
    assert read_tokens(path).keys == []


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"no\.parquet cannot be read as Parquet"):
        read_table(tmp_path / "no.parquet")
    write_table(tmp_path / "other.parquet", {"key": ["a"]})
    with pytest.raises(
        DataError, match=r"other\.parquet is no table of tokens: it has no column caption, condition_tokens, label"
    ):
        read_tokens(tmp_path / "other.parquet")
