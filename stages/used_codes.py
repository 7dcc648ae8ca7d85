"""Writes a tokenizer without the codes that a corpus does not use.

    python -m stages.used_codes --tokenizer runs/tokenizer/latest --tokens runs/encode/latest --out used

The result is a tokenizer's folder like any other; tokens of the old one mean nothing to it, so encode anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError, DataError, UserError
from pipeline.manifest import MANIFEST

if TYPE_CHECKING:
    import numpy as np

    from stages.models.quantizers.used_codes import Unknown

NAMED: dict[str, Unknown] = {"nearest": "nearest", "random": "random", "extra": "extra"}


def write_used_codes(tokenizer_folder: Path, tokens_folder: Path, out: Path, unknown: Unknown = "nearest") -> int:
    """Write the smaller tokenizer into `out`, a new folder; return how many codes it has.

    Raises DataError for folders that hold no tokenizer or no tokens of it, ConfigError where `out` holds something.
    """
    import torch

    from stages.models.tokenizer import Tokenizer
    from stages.models.used_codes import keep_used_codes

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: name a new folder with --out")
    tokenizer = Tokenizer.load(tokenizer_folder)
    counts_K = torch.from_numpy(count_tokens(tokens_folder, tokenizer.num_codes, made_by=_digest(tokenizer_folder)))
    smaller = keep_used_codes(tokenizer, counts_K, unknown=unknown)
    out.mkdir(parents=True, exist_ok=True)
    smaller.save(out)
    return smaller.num_codes


def count_tokens(folder: Path, num_codes: int, *, made_by: str | None) -> np.ndarray:
    """How often each code occurs in all tables of tokens of a folder: counts_K.

    Raises DataError if there are none, or if another tokenizer than the one with the digest `made_by` made them.
    """
    import numpy as np

    from stages.data.tables import read_tokens
    from stages.metrics.codebook import count_codes

    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise DataError(f"no tables of tokens (*.parquet) in {folder}: run --stages encode, or name its folder")
    tables = [read_tokens(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        maker = table.metadata.get("tokenizer")
        if made_by is not None and maker != made_by:
            raise DataError(f"{path} was made by tokenizer {str(maker)[:12]}, not {made_by[:12]}: run --stages encode")
    return count_codes(np.concatenate([table.tokens_NT.ravel() for table in tables]), num_codes)


def _digest(tokenizer_folder: Path) -> str | None:
    """The digest of a tokenizer that is an artifact; None of a bare folder."""
    manifest = tokenizer_folder / MANIFEST
    return str(json.loads(manifest.read_text())["digest"]) if manifest.is_file() else None


def main(
    tokenizer: Annotated[Path, typer.Option(help="The trained tokenizer's folder.")],
    tokens: Annotated[Path, typer.Option(help="The folder of the corpus as its tokens.")],
    out: Annotated[Path, typer.Option(help="A new folder for the result.")],
    unknown: Annotated[
        str, typer.Option(help="What becomes of unused codes: nearest | random | extra | NUMBER")
    ] = "nearest",
) -> None:
    """Write a tokenizer whose codes are those that occur in the tokens, numbered anew."""
    try:
        num_codes = write_used_codes(tokenizer, tokens, out, _parse(unknown))
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(f"{out}: {num_codes} codes")


def _parse(unknown: str) -> Unknown:
    if unknown.isdecimal():
        return int(unknown)
    if unknown in NAMED:
        return NAMED[unknown]
    raise ConfigError(f"--unknown {unknown}: choose nearest, random, extra or the number of a code")


if __name__ == "__main__":
    typer.run(main)
