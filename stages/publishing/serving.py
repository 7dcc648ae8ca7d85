"""The table that a published model takes and gives: its columns, an example, and the packages it needs. No torch."""

from __future__ import annotations

from typing import Any, NamedTuple

from stages.models.priors.configs import PriorDescription

SERVING = "serving.json"


class Column(NamedTuple):
    """A column of the table, its type in MLflow's words."""

    name: str
    type: str
    required: bool = False


INPUTS = (
    Column("label", "string"),
    Column("caption", "string"),
    Column("condition_picture", "string"),
    Column("seed", "long", required=True),
    Column("temperature", "double"),
    Column("top_k", "long"),
    Column("top_p", "double"),
    Column("guidance", "double"),
)
"""The same of every model: a column that a prior cannot hear is answered with an error, not dropped by MLflow.
`condition_picture` is a picture file in base64, of which the map is made, or the map itself; see `Ask`."""
OUTPUTS = (Column("png", "string", required=True), Column("seed", "long", required=True))
"""`png` is the file in base64, because an answer is JSON."""

PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "torch")
"""Distributions that drawing imports."""
FOR_CAPTIONS, FOR_MAPS = ("tokenizers",), ("scipy", "scikit-image")
NOT_MAPS = ("none", "class", "caption", "boxes", "coordinates")


def serving_description(prior: PriorDescription) -> dict[str, Any]:
    """Return the content of serving.json: `inputs`, `outputs`, one row as `example`, and `packages` by name."""
    example: dict[str, Any] = {"seed": 3}
    if "class" in prior.kinds and prior.classes:
        example["label"] = prior.classes[0]
    if "caption" in prior.kinds:
        example["caption"] = "a red heart"
    packages = {*PACKAGES, *(FOR_CAPTIONS if "caption" in prior.kinds else ())}
    packages |= set(FOR_MAPS if set(prior.kinds) - set(NOT_MAPS) else ())
    return {
        "inputs": [column._asdict() for column in INPUTS],
        "outputs": [column._asdict() for column in OUTPUTS],
        "example": example,
        "packages": sorted(packages),
    }
