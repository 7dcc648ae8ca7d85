"""Requests: a file that says which pictures to draw, a row for each condition, seed and size."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from pipeline.artifacts import Source, SourceFile
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.storage import content_hash
from stages.data.rows import Row, read_rows

if TYPE_CHECKING:
    from stages.models.priors.configs import PriorDescription

MOST_SAMPLES = 1_000_000
"""Of a file of requests, copies counted."""
LARGEST_SIDE = 8192
SHOWN = 80
"""Characters of a wrong value in an error."""


class Request(StrictModel):
    """One row: what to draw, how often. Empty cells are as if the column were not there."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Names the pictures: ID-0, ID-1... Letters, digits, `-` and `_`."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Decides the noise, the same for every request with this seed. Default: sample.seed and the id decide it."""
    label: str = ""
    """Name of the class."""
    caption: str = Field(default="", max_length=2000)
    """Words to draw from."""
    condition_key: str = ""
    """Key of a held-out picture whose conditions are taken, but for those that the row gives itself."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, written 96x128. Default: the prior's own."""
    count: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    """Pictures to draw. Raising it leaves the earlier ones as they are."""

    @field_validator("size", mode="before")
    @classmethod
    def _size_is_height_and_width(cls, size: Any) -> Any:
        if not isinstance(size, str):
            return size
        found = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", size)
        if not found:
            raise ValueError("write HEIGHTxWIDTH in pixels, e.g. 96x128")
        return int(found[1]), int(found[2])


class Asked(NamedTuple):
    """A request and where it stands."""

    where: str
    request: Request


COLUMNS = tuple(Request.model_fields)


def list_requests(place: str) -> Iterator[SourceFile]:
    """Yield the file, stamped with its content's hash. Raises DataError where it is missing."""
    path = Path(place).expanduser()
    if not path.is_file():
        raise DataError(f"sample.requests: there is no file {path}: name a .csv, .jsonl or .parquet file")
    yield SourceFile(path.name, path.stat().st_size, content_hash(path))


def request_inputs(place: str | None) -> dict[str, Source]:
    """The input `requests` of a stage that draws what a file asks for; none without one."""
    return {} if place is None else {"requests": Source("requests", partial(list_requests, place))}


def read_requests(place: str) -> list[Asked]:
    """Read and check all rows. Raises DataError naming file, line, value and remedy of the first mistake."""
    path = Path(place).expanduser()
    asked, seen, total = [], dict[str, str](), 0
    for line, row in read_rows(path, "requests", COLUMNS):
        where = f"{path}, {line}"
        request = _checked(row, where)
        first = seen.setdefault(request.id, line)
        if first != line:
            raise DataError(f"{where}: id {request.id!r} is taken (before: {first}): ids name pictures; choose another")
        total += request.count
        if total > MOST_SAMPLES:
            raise DataError(
                f"{where}: up to here {total:,} pictures are asked for, a file may ask for {MOST_SAMPLES:,}: lower "
                "count, or split the file"
            )
        asked.append(Asked(where, request))
    if not asked:
        raise DataError(f"requests {path} has no rows: add one for each picture, or leave sample.requests out")
    return asked


def check_requests(asked: Iterable[Asked], prior: PriorDescription, held_out: Sequence[str]) -> None:
    """Raise DataError for the first request that this prior cannot answer; `held_out` are the keys it may name."""
    told, known_keys = ", ".join(prior.kinds) or "nothing", set(held_out)
    side = prior.image_size // prior.grid[0]
    for where, request in asked:
        if request.label and "class" not in prior.kinds:
            raise DataError(f"{where}: label {_shown(request.label)}, but this prior is told {told}: empty the column")
        if request.label and request.label not in prior.classes:
            close = _close(request.label, prior.classes) or f"it knows {', '.join(prior.classes)}"
            raise DataError(f"{where}: the prior knows no class {_shown(request.label)}; {close}")
        if request.caption and "caption" not in prior.kinds:
            raise DataError(
                f"{where}: caption {_shown(request.caption)}, but this prior is told {told}: train it with "
                "condition=caption, or empty the column"
            )
        if request.condition_key and request.condition_key not in known_keys:
            close = _close(request.condition_key, held_out)
            close = close or "keys stand in the column `key` of the tables val-*.parquet of --stages encode"
            raise DataError(
                f"{where}: there is no held-out picture {_shown(request.condition_key)} whose conditions this prior "
                f"knows; {close}"
            )
        if prior.kinds and not (request.label or request.caption or request.condition_key):
            raise DataError(f"{where}: nothing is asked for; this prior is told {told}: fill the column for it")
        if request.size is not None:
            _check_size(request.size, prior.image_size, side, where)
            _check_told_at(request, prior, where)


def _checked(row: Row, where: str) -> Request:
    unknown = [name for name in row if name not in COLUMNS]
    if unknown:
        close = _close(str(unknown[0]), COLUMNS) or f"known are {', '.join(COLUMNS)}"
        raise DataError(f"{where}: unknown column {_shown(unknown[0])}; {close}")
    filled = {name: value for name, value in row.items() if not _is_empty(value)}
    if "id" not in filled:
        raise DataError(f"{where}: no id: give every request a name of its own in the column `id`")
    for name in ("id", "label"):
        value = filled.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, float) and value.is_integer()  # a Parquet column of numbers with gaps
            filled[name] = str(int(value) if whole else value)
    for name, value in filled.items():
        if isinstance(value, bool):
            raise DataError(f"{where}: {name} is {value}: write a number or text")
    try:
        return Request.model_validate(filled)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0]) if wrong["loc"] else "row"
        message = wrong["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{where}: {name} is {_shown(filled.get(name))}: {message}: correct or remove the row"
        ) from None


def _check_size(size: tuple[int, int], own: int, side: int, where: str) -> None:
    height, width = size
    written = f"size {height}x{width}"
    if max(size) > LARGEST_SIDE:
        raise DataError(f"{where}: {written} has more than {LARGEST_SIDE} pixels of side: ask for less")
    if min(size) < own:
        raise DataError(f"{where}: {written} is below the prior's own {own}x{own}: ask for that, and cut the picture")
    if height % side or width % side:
        near = "x".join(str(-(-it // side) * side) for it in size)
        raise DataError(f"{where}: {written} is no multiple of the {side} pixels of a token: ask for {near}")


def _check_told_at(request: Request, prior: PriorDescription, where: str) -> None:
    """A larger picture needs a condition of its size."""
    assert request.size is not None
    if max(request.size) == prior.image_size:
        return
    maps = [segment.kind for segment in prior.condition if segment.grid is not None and segment.kind != "coordinates"]
    if maps or request.condition_key:
        lacking = f"a map ({maps[0]})" if maps else "the condition of a held-out picture"
        raise DataError(
            f"{where}: size {request.size[0]}x{request.size[1]}, but {lacking} is known for {prior.image_size}x"
            f"{prior.image_size} alone: empty the column, or draw it by python -m stages.sampling draw --help"
        )


def _is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
