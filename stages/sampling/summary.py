"""What a prior can be asked for, as a table for people. Imports no torch."""

from __future__ import annotations

from rich.table import Table

from stages.models.vocabulary import Segment
from stages.sampling.bundle import Parts

HOW: dict[str, str] = {
    "coordinates": "coordinates, in a script; default: the picture is all there is",
    "segmentation": "--condition-map",
    "depth": "--condition-map",
    "pose": "--condition-map",
}


def summary(parts: Parts) -> Table:
    """A row for each thing that can be asked for."""
    prior = parts.description
    version = f", version {parts.version} (in use)" if parts.version is not None else ""
    table = Table(title=f"{parts.place}{version}: {prior.model.kind} of {prior.num_tokens} tokens", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows, columns = prior.grid
    table.add_row("size", f"{prior.image_size}x{prior.image_size}, {prior.channels} channels, {rows}x{columns} tokens")
    larger = (
        f"--size HxW: multiples of {parts.factor}" if prior.model.order == "raster" else "none: it draws no windows"
    )
    table.add_row("larger sizes", larger)
    for segment in prior.condition:
        if segment.size:
            table.add_row(segment.kind, _told(segment, parts))
    if not prior.kinds:
        table.add_row("condition", "none")
    can = prior.kinds and prior.model.condition_dropout
    table.add_row("guidance", "any" if can else "1 alone: it never learned to go without its condition")
    return table


def _told(segment: Segment, parts: Parts) -> str:
    if segment.kind == "class":
        names = parts.description.classes
        return "--label: " + ", ".join(f"{number} {name}" for number, name in enumerate(names))
    if segment.kind == "caption":
        return f"--caption: {segment.length} tokens at most"
    if segment.kind == "boxes":
        names = parts.box_codes.classes if parts.box_codes else ()
        return f"--box: {segment.length // 3} at most, of {', '.join(names)}"
    return HOW.get(segment.kind, "--condition-picture, or --condition-map for one that is finished")
