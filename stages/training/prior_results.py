"""The files of a trained prior, and the figures that go with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.models.priors.configs import PriorDescription
from stages.models.priors.prior import Prior
from stages.training.states import save_state


def write_result(
    folder: Path,
    *,
    model: Prior,
    description: PriorDescription,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    bits_T: Sequence[float] | None,
    num_pictures: int,
) -> dict[str, float | int | str]:
    """Write the artifact's files; return the metrics.

    - `model.safetensors`, `config.json`: the best weights, and what they need
    - `training.safetensors`, `training.json`: the full state at the last step, to go on from
    - `history.jsonl`: every row
    - `likelihood.json`: bits per token of the validation pictures, for each place of the grid; without pixels' share
      (a tokenizer loses some of the picture), so it is no figure in bits per dimension
    """
    model.save(folder, description)
    save_state(folder, "training", training)
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(row, sort_keys=True)}\n" for row in history))
    metrics: dict[str, float | int | str] = {"parameters": sum(weight.numel() for weight in model.parameters())}
    if bits_T is not None:
        rows, columns = description.grid
        bits_per_token = sum(bits_T) / len(bits_T)
        metrics |= {"bits_per_token": bits_per_token, "bits_per_picture": sum(bits_T)}
        likelihood = {
            "split": "val",
            "num_pictures": num_pictures,
            "bits_per_token": bits_per_token,
            "bits_per_picture": sum(bits_T),
            "bits_per_position": [list(bits_T[row * columns : (row + 1) * columns]) for row in range(rows)],
        }
        (folder / "likelihood.json").write_text(json.dumps(likelihood, indent=1, sort_keys=True) + "\n")
    return metrics
