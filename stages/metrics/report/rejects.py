"""The pictures of the source that could not be used: how many, why, and the first of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

REJECTS = "rejects.jsonl"
FIRST = 3
"""Of each reason, shown by name."""


class Kind(NamedTuple):
    """Rejects of one reason."""

    code: str
    num: int
    first: list[Mapping[str, str]]
    """`path` and `reason` of the first."""


class Rejects(NamedTuple):
    """All of them; `of` so many pictures."""

    total: int
    of: int
    kinds: list[Kind]
    """The most frequent first."""

    @classmethod
    def read(cls, shards: Artifact, dataset: Mapping[str, Any]) -> Rejects:
        """Read them; without the list itself (shards from elsewhere) there is only their number."""
        by_code: dict[str, list[Mapping[str, str]]] = {}
        if any(entry.path == REJECTS for entry in shards.own_files):
            with shards.held(REJECTS) as path:
                for line in path.read_text().splitlines():
                    row = json.loads(line)
                    by_code.setdefault(row["code"], []).append(row)
        kinds = [Kind(code, len(rows), rows[:FIRST]) for code, rows in by_code.items()]
        total = int(dataset["rejects"])
        pictures = dataset["num_train"] + dataset["num_val"] + total
        return cls(total, pictures, sorted(kinds, key=lambda kind: (-kind.num, kind.code)))
