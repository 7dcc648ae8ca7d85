"""The prior's data: all tokens of a split in memory, checked against each other, cut into batches by the Order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.errors import DataError
from stages.data.order import Order
from stages.data.tables import TokenTable, read_tokens
from stages.models.vocabulary import TokenCorpus

# Shapes: N rows of a split, B batch, T image tokens.


@dataclass(frozen=True)
class Batch:
    """Some rows: `labels_B` and `tokens_BT` are int64, `positions_B` their places in the order."""

    labels_B: Tensor
    tokens_BT: Tensor
    positions_B: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_B)

    def split(self, size: int | None) -> list[Batch]:
        """Micro-batches of at most `size` rows; None: the batch as it is."""
        step = size or max(1, len(self))
        return [
            Batch(self.labels_B[i : i + step], self.tokens_BT[i : i + step], self.positions_B[i : i + step])
            for i in range(0, len(self), step)
        ]


@dataclass(frozen=True)
class TokenData:
    """The rows of one split's tables, one after another; 2 bytes a token up to 65,536 codes."""

    labels_N: np.ndarray
    tokens_NT: np.ndarray
    counts: tuple[int, ...]
    """Rows of each table."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def batch(self, order: Order, step: int, batch_size: int, rank: int, world: int) -> Batch:
        """This rank's slice of the global batch at `step`: the same global batch whatever the world."""
        slots = np.asarray(order.batch(step, batch_size, rank, world), dtype=np.int64).reshape(-1, 3)
        return self._rows(self._first_rows[slots[:, 1]] + slots[:, 2], slots[:, 0])

    def sweep(self, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        """Every row once over all ranks, in their order."""
        own = np.arange(rank, len(self), world)
        for start in range(0, len(own), batch_size):
            yield self._rows(own[start : start + batch_size], own[start : start + batch_size])

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def _rows(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        tokens = torch.from_numpy(self.tokens_NT[rows].astype(np.int64))
        return Batch(torch.from_numpy(self.labels_N[rows].astype(np.int64)), tokens, positions)


def read_split(artifact: Artifact, corpus: TokenCorpus, split: str) -> TokenData:
    """All tokens of the `train` or `val` tables of an encode artifact.

    Raises:
        DataError: a table was made by another tokenizer, or does not hold what `tokens.json` says.
    """
    tables: list[TokenTable] = []
    for unit, entry in artifact.unit_files(".parquet"):
        if unit.name.startswith(f"{split}-"):
            table = read_tokens(artifact.local(entry.path))
            _check(table, entry.path, corpus)
            tables.append(table)
    expected = corpus.num_train if split == "train" else corpus.num_val
    counts = tuple(len(table) for table in tables)
    if sum(counts) != expected:
        raise DataError(
            f"tokens.json promises {expected} {split} rows, the tables hold {sum(counts)}: "
            "run --stages encode --force encode"
        )
    return TokenData(
        labels_N=_joined([table.labels for table in tables], (0,)),
        tokens_NT=_joined([table.tokens_NT for table in tables], (0, corpus.num_tokens)),
        counts=counts,
    )


def _joined(parts: Sequence[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(empty, np.uint16)


def _check(table: TokenTable, name: str, corpus: TokenCorpus) -> None:
    maker = table.metadata.get("tokenizer", "unknown")
    if maker != corpus.tokenizer:
        raise DataError(
            f"the tokens in {name} were made by tokenizer {maker[:12]}, this prior expects "
            f"{corpus.tokenizer[:12]}: run --stages encode"
        )
    if not len(table):
        return
    if table.tokens_NT.shape[1] != corpus.num_tokens:
        rows, columns = corpus.grid
        raise DataError(
            f"{name} has {table.tokens_NT.shape[1]} tokens a picture, tokens.json says {rows}x{columns}: "
            "run --stages encode --force encode"
        )
    limits = {"token": (table.tokens_NT, corpus.codebook_size)}
    if corpus.classes:  # without classes every condition is null, whatever the labels
        limits["label"] = (table.labels, len(corpus.classes))
    for what, (values, limit) in limits.items():
        if values.max() >= limit:
            raise DataError(
                f"{name} holds {what} {values.max()}, tokens.json knows {limit} of them: "
                "run --stages encode --force encode"
            )


def drawn_below(share: float, seed: int, positions_B: np.ndarray) -> np.ndarray:
    """Whether each position's uniform number, a pure function of (seed, position), lies below `share`; bool [B].

    The numbers are splitmix64 (Steele, Lea & Flood 2014), as a counter-based generator.
    """
    with np.errstate(over="ignore"):
        state = positions_B.astype(np.uint64) + np.uint64(1) + _mixed(np.uint64(seed % 2**64) ^ np.uint64(0x5EED))
        bits = _mixed(state * np.uint64(0x9E3779B97F4A7C15))
    drawn: np.ndarray = (bits >> np.uint64(11)) * 2.0**-53 < share
    return drawn


def _mixed(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
