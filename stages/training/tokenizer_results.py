"""The files of a trained tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.models.tokenizer import Tokenizer
from stages.training.states import save_state


def write_result(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    reconstructions: bytes,
) -> None:
    """Write the artifact's files.

    - `model.safetensors`, `config.json`: the tokenizer, loadable by `Tokenizer.load`
    - `training.safetensors`, `training.json`: the full state, discriminator and optimizers too, to go on from
    - `history.jsonl`: every row
    - `reconstructions.png`: held-out pictures above their reconstructions
    """
    tokenizer.save(folder)
    save_state(folder, "training", training)
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(row, sort_keys=True)}\n" for row in history))
    (folder / "reconstructions.png").write_bytes(reconstructions)
