"""What the tables of shards and tokens say of the pictures before any network looks at them: groups, code counts.

Legend: N pictures, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.data.shards import ShardReader
from stages.data.tables import read_tokens
from stages.metrics.codebook import count_codes

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.data.shards import Shard

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """By split, `train` (of the shards that are looked at) and `val`."""

    picture_groups: Mapping[str, Integers]
    """The group of each picture, in the shards' order: pictures of a group are variants of one another."""
    token_groups: Mapping[str, Integers]
    """The group of each unflipped, uncropped row of the token tables that is looked at."""
    codes: Mapping[str, Integers]
    """How often each code occurs in the tokens of the whole corpus: counts_K."""

    @classmethod
    def read(
        cls,
        splits: Mapping[str, Sequence[Shard]],
        tokens: Artifact | None,
        rows: Mapping[str, int | None],
        num_codes: int,
    ) -> Listing:
        """Read all tables; of each token table the first `rows` are looked at (None: all). Without tokens no codes."""
        group_of = {
            row["key"]: row["group"]
            for split in ("train", "val")
            for shard in splits[split]
            for row in ShardReader(shard).table
        }
        looked_at = {shard.name for split in ("train", "val") for shard in splits[split]}
        codes = dict.fromkeys(("train", "val"), count_codes(np.zeros(0, np.int64), num_codes))
        token_groups: dict[str, list[str]] = {"train": [], "val": []}
        tables = (
            [(unit.name, tokens.file(entry.path)) for unit, entry in tokens.unit_files(".parquet")] if tokens else []
        )
        for name, file in tables:
            with file.held() as path:
                split, table = name.partition("-")[0], read_tokens(path)
            codes[split] = codes[split] + count_codes(table.tokens_NT, num_codes)
            if name in looked_at:
                chosen = np.flatnonzero(table.variants == 0)[: rows[split]]
                token_groups[split] += [group_of[table.keys[index]] for index in chosen]
        picture_groups = {
            split: [row["group"] for shard in splits[split] for row in ShardReader(shard).table]
            for split in ("train", "val")
        }
        return cls(_numbered(picture_groups), _numbered(token_groups), codes)


def _numbered(groups: Mapping[str, Sequence[str]]) -> dict[str, Integers]:
    """A number for each name, equal for equal names of a split."""
    return {
        split: np.unique(np.array(names, dtype=str), return_inverse=True)[1].astype(np.int64)
        for split, names in groups.items()
    }
