"""Pictures at the terminal: python -m stages.sampling draw|complete|inpaint|outpaint|vary|show."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError, StorageError, UserError

if TYPE_CHECKING:
    from PIL import Image

Act = Callable[..., Any]
"""Asks a loaded generator, its first argument, for pictures."""

app = typer.Typer(no_args_is_help=True, add_completion=False)

Place = Annotated[str, typer.Argument(metavar="PLACE", help="A run's workdir, e.g. runs, or a bundle.")]
Picture = Annotated[Path, typer.Argument(help="The picture to start from, cut and resized as training pictures were.")]
Candidates = Annotated[
    int, typer.Option(help="Draw so many holes a picture and keep one under which the kept tokens after it are likely.")
]
Feather = Annotated[int | None, typer.Option(help="Pixels over which old and new mix. Default: half a token.")]


def _shared(
    out: Annotated[Path, typer.Option(help="NAME.png (a sheet, if there are several), or a folder.")],
    label: Annotated[str | None, typer.Option(help="The class, by name or number.")] = None,
    caption: Annotated[str | None, typer.Option(help="Words that say what is to be seen.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,L,T,R,B", help="A thing and its edges in shares of the side; repeatable."),
    ] = None,
    condition_picture: Annotated[
        Path | None, typer.Option(help="A picture; its edges, sketch, low resolution or opacity are the condition.")
    ] = None,
    condition_map: Annotated[Path | None, typer.Option(help="The map itself, of any kind.")] = None,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed, the same pictures.")] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier and more alike. Above 1: wilder.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw every token from the k likeliest alone.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that together exceed this.")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1 the condition shows more, and variety shrinks.")] = 1.0,
    guidance_schedule: Annotated[
        str, typer.Option(help="How guidance grows from 1: constant (it does not), linear, cosine or interval.")
    ] = "constant",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")] = None,
    precision: Annotated[str, typer.Option(help="Arithmetic of the prior: fp32, bf16, fp16, fp64 or auto.")] = "fp32",
) -> None:
    """The options of all commands that draw."""


def _drawing(act: Act) -> Act:
    """Make a command of an act: the place, its own arguments, and the options that all share."""

    @functools.wraps(act)
    def command(*, place: str, **given: Any) -> None:
        asked = {name: given.pop(name) for name in inspect.signature(_shared).parameters}
        _telling(lambda: _draw(act, place, asked, given))

    own = list(inspect.signature(act, eval_str=True).parameters.values())[1:-1]
    parameters = [
        inspect.Parameter("place", inspect.Parameter.KEYWORD_ONLY, annotation=Place),
        *own,
        *inspect.signature(_shared, eval_str=True).parameters.values(),
    ]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    app.command(act.__name__)(command)
    return act


@_drawing
def draw(
    generator: Any,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Height and width in pixels, if larger.")] = None,
    **asked: Any,
) -> Any:
    """Draw pictures from what is said of them."""
    return generator.generate(size=_size(size), **asked)


@_drawing
def complete(
    generator: Any,
    picture: Picture,
    keep: Annotated[float, typer.Option(help="Share of rows that stays, from the top.")] = 0.5,
    **asked: Any,
) -> Any:
    """Keep the upper rows of a picture and draw the rest."""
    return generator.complete(picture, keep=keep, **asked)


@_drawing
def inpaint(
    generator: Any,
    picture: Picture,
    mask: Annotated[Path, typer.Argument(help="A picture of the same shape: what is white is redrawn.")],
    dilate: Annotated[int, typer.Option(help="Widen the mask by so many pixels.")] = 0,
    candidates: Candidates = 1,
    paste: Annotated[bool, typer.Option(help="Put the picture's own pixels back outside the mask.")] = True,
    feather: Feather = None,
    **asked: Any,
) -> Any:
    """Redraw what is white in a mask."""
    how = {"dilate": dilate, "candidates": candidates, "paste": paste, "feather": feather}
    return generator.inpaint(picture, mask, **how, **asked)


@_drawing
def outpaint(
    generator: Any,
    picture: Picture,
    left: Annotated[int, typer.Option(help="Pixels to add on the left.")] = 0,
    top: Annotated[int, typer.Option(help="Pixels to add above.")] = 0,
    right: Annotated[int, typer.Option(help="Pixels to add on the right.")] = 0,
    bottom: Annotated[int, typer.Option(help="Pixels to add below.")] = 0,
    feather: Feather = None,
    **asked: Any,
) -> Any:
    """Draw what lies beyond the edges of a picture."""
    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    return generator.outpaint(picture, **sides, feather=feather, **asked)


@_drawing
def vary(
    generator: Any,
    picture: Picture,
    strength: Annotated[float, typer.Option(help="Share of tokens to redraw, here and there: 0 to 1.")] = 0.5,
    candidates: Candidates = 1,
    **asked: Any,
) -> Any:
    """Draw variations of a picture."""
    return generator.vary(picture, strength=strength, candidates=candidates, **asked)


@app.command()
def show(place: Place) -> None:
    """Say what a prior can be asked for: classes, conditions, sizes."""

    def work() -> None:
        from rich.console import Console

        from stages.sampling.bundle import Parts
        from stages.sampling.summary import summary

        Console().print(summary(Parts.find(place)))

    _telling(work)


def _draw(act: Act, place: str, asked: dict[str, Any], own: dict[str, Any]) -> None:
    """Load, draw, write, and say so."""
    out, boxes = asked.pop("out"), asked.pop("box")
    asked["boxes"] = [_box(text) for text in boxes] if boxes else None
    device, precision = asked.pop("device"), asked.pop("precision")
    from stages.sampling.generator import Generator

    generator = Generator.load(place, device=device, precision=precision)
    if generator.parts.version is not None:
        typer.echo(f"version {generator.parts.version}, which is in use in {place}")
    started = time.monotonic()
    pictures = act(generator, **own, **asked)
    seconds = time.monotonic() - started
    _write(pictures, out)
    width, height = pictures[0].size
    many = f"{len(pictures)} pictures" if len(pictures) > 1 else "a picture"
    typer.echo(f"{out}: {many} of {height}x{width}, seed {asked['seed']}, {seconds:.1f} s")
    if max(width, height) > generator.tokenizer.image_size:
        from stages.sampling.canvas import size_warning

        if (warning := size_warning(generator.prior)) is not None:
            typer.echo(f"note: {warning}", err=True)
    if "sight" in pictures[0].info:
        typer.echo(pictures[0].info["sight"])


def _write(pictures: Sequence[Image.Image], out: Path) -> None:
    from stages.sampling.pictures import save_png, sheet

    try:
        if out.suffix.lower() == ".png":
            out.parent.mkdir(parents=True, exist_ok=True)
            save_png(sheet(pictures) if len(pictures) > 1 else pictures[0], out)
            return
        out.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            save_png(picture, out / f"seed{picture.info['seed']}-{picture.info['id']:05d}.png")
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}") from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size {text}: write height x width in pixels, e.g. 256x512")
    return int(height), int(width)


def _box(text: str) -> list[str | float]:
    try:
        name, left, top, right, bottom = text.rsplit(",", 4)
        return [name, *map(float, (left, top, right, bottom))]
    except ValueError:
        raise ConfigError(f"--box {text}: write NAME,LEFT,TOP,RIGHT,BOTTOM with shares such as 0.25") from None


def _telling(work: Callable[[], None]) -> None:
    """Do it; a user's mistake becomes a line and an exit code."""
    try:
        work()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
