"""The prior's data: all tokens of a split in memory, checked against each other, cut into batches by the Order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.errors import DataError
from stages.data.order import Order
from stages.data.tables import TokenTable, read_tokens
from stages.models.vocabulary import TokenCorpus

# Shapes: N rows of a split, B batch, C condition tokens, T image tokens.


@dataclass(frozen=True)
class Batch:
    """Some rows, all int64: `positions_B` are their places in the order."""

    condition_BC: Tensor
    tokens_BT: Tensor
    positions_B: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def split(self, size: int | None) -> list[Batch]:
        """Micro-batches of at most `size` rows; None: the batch as it is."""
        step = size or max(1, len(self))
        return [
            Batch(self.condition_BC[i : i + step], self.tokens_BT[i : i + step], self.positions_B[i : i + step])
            for i in range(0, len(self), step)
        ]

    def on(self, device: torch.device) -> Batch:
        """The batch on a device; the copy to a GPU goes through pinned memory, and nobody waits for it."""
        if device.type != "cuda":
            return self
        condition_BC, tokens_BT, positions_B = (
            values.pin_memory().to(device, non_blocking=True)
            for values in (self.condition_BC, self.tokens_BT, self.positions_B)
        )
        return Batch(condition_BC, tokens_BT, positions_B)


@dataclass(frozen=True)
class TokenData:
    """The rows of one split's tables, one after another; 2 bytes a token up to 65,536 codes."""

    condition_NC: np.ndarray
    tokens_NT: np.ndarray
    counts: tuple[int, ...]
    """Rows of each table."""

    def __len__(self) -> int:
        return len(self.tokens_NT)

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
        columns = (self.condition_NC[rows], self.tokens_NT[rows], positions)
        return Batch(*(torch.from_numpy(column.astype(np.int64)) for column in columns))


def read_split(artifact: Artifact, corpus: TokenCorpus, split: str) -> TokenData:
    """All tokens of the `train` or `val` tables of an encode artifact.

    Raises:
        DataError: a table was made by another tokenizer, or does not hold what `tokens.json` says.
    """
    conditions: list[np.ndarray] = []
    tokens: list[np.ndarray] = []  # of a table no more than this is kept: its keys and captions take more memory
    for unit, entry in artifact.unit_files(".parquet"):
        if unit.name.startswith(f"{split}-"):
            with artifact.held(entry.path) as path:
                table = read_tokens(path)
            _check(table, entry.path, corpus)
            conditions.append(table.condition_NC)
            tokens.append(table.tokens_NT)
    expected = corpus.num_train if split == "train" else corpus.num_val
    counts = tuple(map(len, tokens))
    if sum(counts) != expected:
        raise DataError(
            f"tokens.json promises {expected} {split} rows, the tables hold {sum(counts)}: "
            "run --stages encode --force encode"
        )
    return TokenData(
        condition_NC=_joined(conditions, (0, corpus.vocabulary.condition_length)),
        tokens_NT=_joined(tokens, (0, corpus.num_tokens)),
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
    if corpus.classes:
        limits["label"] = (table.labels, len(corpus.classes))
    for what, (values, limit) in limits.items():
        if values.max() >= limit:
            raise DataError(
                f"{name} holds {what} {values.max()}, tokens.json knows {limit} of them: "
                "run --stages encode --force encode"
            )
    _check_condition(table.condition_NC, name, corpus)


def _check_condition(condition_NC: np.ndarray, name: str, corpus: TokenCorpus) -> None:
    """Every condition token must be of its own segment's range."""
    vocabulary = corpus.vocabulary
    if condition_NC.shape[1] != vocabulary.condition_length:
        raise DataError(
            f"{name} has {condition_NC.shape[1]} condition tokens a picture, tokens.json says "
            f"{vocabulary.condition_length}: run --stages encode --force encode"
        )
    start = 0
    for segment, first in zip(vocabulary.segments, vocabulary.offsets, strict=True):
        part_NL = condition_NC[:, start : start + segment.length]
        strange = part_NL[(part_NL < first) | (part_NL > first + segment.size)]
        if strange.size:
            raise DataError(
                f"{name} holds {segment.kind} token {strange[0]}, tokens.json knows {first} to "
                f"{first + segment.size}: run --stages encode --force encode"
            )
        start += segment.length
