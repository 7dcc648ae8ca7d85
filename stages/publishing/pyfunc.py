"""A published bundle as MLflow's `python_function`: a table of wishes in, a table of PNGs out.

MLflow imports this module by its name (`loader_module`), from the code that was registered with the bundle, and calls
`_load_pyfunc`; so nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, UserError, shown
from pipeline.versions.checksums import check
from stages.publishing.serving import INPUTS

if TYPE_CHECKING:
    import pandas as pd

    from stages.sampling.generator import Generator

WHOLE, TEXT = ("seed", "top_k"), ("label", "caption", "condition_picture")


class ServedGenerator:
    """Draws a picture for each row of a table."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return columns `png` (a file in base64) and `seed`, a row for each row given.

        Columns are those of `INPUTS`; an empty cell is as if its column were not there. Each row is drawn by itself,
        so its picture is that of `Generator.generate` with the same words, whatever else is in the table. Raises
        MLflow's error for a bad request, which names the row, the value and the remedy.
        """
        import pandas as pd

        rows = model_input.to_dict(orient="records")
        drawn = [
            self._drawn(number, {str(key): value for key, value in row.items()}) for number, row in enumerate(rows)
        ]
        return pd.DataFrame(drawn, columns=["png", "seed"])

    def _drawn(self, number: int, row: Mapping[str, Any]) -> tuple[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            asked = asked_of(row)
            with tempfile.TemporaryDirectory() as folder:
                if "condition_picture" in asked:
                    asked["condition_picture"] = _as_file(asked["condition_picture"], Path(folder))
                (picture,) = self.generator.generate(**asked)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from error
        data = io.BytesIO()
        picture.save(data, "PNG")
        return base64.b64encode(data.getvalue()).decode(), asked["seed"]


def asked_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `Generator.generate` for a row. Raises ConfigError naming a column and its value."""
    known = [column.name for column in INPUTS]
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise ConfigError(f"unknown column {shown(unknown[0])}; known are {', '.join(known)}")
    filled = {name: value for name, value in row.items() if not _is_empty(value)}
    if "seed" not in filled:
        raise ConfigError("no seed: give every row a whole number in the column seed")
    return {name: _checked(name, value) for name, value in filled.items()}


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # noqa: PLR0124  # NaN


def _checked(name: str, value: Any) -> Any:
    if name in TEXT:
        if not isinstance(value, str):
            raise ConfigError(f"{name} is {shown(value)}: write text")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {shown(value)}: write a number") from None
    if name not in WHOLE:
        return number
    if not number.is_integer():
        raise ConfigError(f"{name} is {shown(value)}: write a whole number")
    return int(value)


def _as_file(text: str, folder: Path) -> Path:
    """The picture as a file, whose content passes the same checks as any other before it is decoded."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"condition_picture is {shown(text)}: write a picture file in base64") from None
    path = folder / "condition_picture"
    path.write_bytes(data)
    return path


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> ServedGenerator:
    """What MLflow calls: load the bundle after hashing its files. Raises DataError where one is damaged."""
    from stages.sampling.generator import Generator

    check(Path(data_path))
    return ServedGenerator(Generator.load(data_path))
