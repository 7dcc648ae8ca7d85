"""What each condition says of some pictures, as numbers: the values of its tokens, -1 where it says nothing.

Shapes: N pictures, L condition tokens of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.data.condition_config import ConditionConfig


def condition_values(condition: ConditionConfig, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The values [N, L], int64, that the shard's table gives to some of its pictures."""
    if condition.kind == "class":
        return np.array([row["label"] for row in rows], dtype=np.int64)[:, None]
    return np.full((len(rows), 1), -1, dtype=np.int64)
