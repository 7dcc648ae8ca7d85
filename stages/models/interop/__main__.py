"""The command line of imports and exports: python -m stages.models.interop import|export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt of a VQModel, GumbelVQ or Net2NetTransformer.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer/ and prior/.")],
    config: Annotated[Path | None, typer.Option(help="Its YAML file. Default: the one beside it, if any.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of its pictures, which no tensor tells.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, which no tensor tells.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes, which no tensor tells; 0: no condition.")] = None,
) -> None:
    """Read a checkpoint of taming-transformers; write folders that runs start from (from_checkpoint)."""
    from stages.models.interop.folders import import_checkpoint

    _tell(
        lambda: import_checkpoint(checkpoint, out, config=config, image_size=image_size, heads=heads, classes=classes)
    )


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="A tokenizer's folder; or a run's or an import's, with its prior.")],
    out: Annotated[Path, typer.Option(help="The .ckpt to write; its YAML file goes beside it.")],
    lpips: Annotated[bool, typer.Option("--lpips", help="Add LPIPS, which strict loading asks for.")] = False,
) -> None:
    """Write a checkpoint that taming-transformers loads."""
    from stages.models.interop.folders import export_folder
    from stages.models.interop.perceptual import lpips_weights

    _tell(lambda: export_folder(folder, out, perceptual=lpips_weights() if lpips else None))


def _tell(work: Callable[[], list[str]]) -> None:
    try:
        lines = work()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    app()
