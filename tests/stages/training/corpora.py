"""Small token corpora whose entropy is known, as finished encode artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import run_stage
from pipeline.runtime import BoundRuntime, LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.tables import write_tokens

CODES, GRID, CLASSES = 8, (3, 4), ("falling", "rising")
TOKENIZER = "3fa9" * 16


class CorpusConfig(StrictModel):
    """A corpus that can be wrong in one way or another."""

    train_tables: tuple[int, ...] = (50, 30, 40)
    val_tables: tuple[int, ...] = (24, 16)
    table_tokenizer: str = TOKENIZER
    promised: dict[str, Any] = Field(default_factory=dict)
    """Entries of tokens.json that differ from the truth."""


def make_corpus(workdir: Path, **settings: Any) -> Artifact:
    """A finished encode artifact of pictures that rise or fall by 1 or 2 codes a token: 1 bit each after the first."""
    stage = Stage("encode", _work, CorpusConfig(**settings), {})
    return run_stage(stage, {}, str(workdir), LocalRuntime())


def _work(config: CorpusConfig, *, output: Output, runtime: BoundRuntime) -> dict[str, Any]:
    units = [
        Unit(name=f"{split}-{number:06d}", recipe={"rows": rows, "tokenizer": config.table_tokenizer})
        for split, sizes in (("train", config.train_tables), ("val", config.val_tables))
        for number, rows in enumerate(sizes)
    ]
    output.map_units(partial(_worker), units, runtime, label="encode")
    corpus: Mapping[str, Any] = {
        "tokenizer": TOKENIZER,
        "codebook_size": CODES,
        "grid": list(GRID),
        "classes": list(CLASSES),
        "image_size": 16,
        "channels": 3,
        "num_train": sum(config.train_tables),
        "num_val": sum(config.val_tables),
        **config.promised,
    }
    output.write("tokens.json", json.dumps(corpus).encode())
    return {}


def _worker(device: str) -> Any:
    return _write_table


def _write_table(unit: Unit, folder: Path) -> dict[str, Any]:
    rows = unit.recipe["rows"]
    random = np.random.default_rng([ord(letter) for letter in unit.name])
    labels = random.integers(0, 2, rows)
    moves = random.integers(1, 3, (rows, GRID[0] * GRID[1])) * (2 * labels[:, None] - 1)
    moves[:, 0] = random.integers(0, CODES, rows)
    write_tokens(
        folder / f"{unit.name}.parquet",
        keys=[f"{unit.name}-{row}" for row in range(rows)],
        labels=labels,
        captions=[""] * rows,
        variants=np.zeros(rows, np.int32),
        tokens_NT=(np.cumsum(moves, axis=1) % CODES).astype(np.uint16),
        condition_NC=CODES + labels[:, None],
        metadata={"tokenizer": unit.recipe["tokenizer"], "codebook_size": str(CODES)},
    )
    return {"rows": rows}
