"""Screenshots of a report for a person: python -m tests.browser.screenshots REPORT.html OUT_DIR"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tests.browser.chromium import Browser, Look, browser

LOOKS = {
    "light": Look(),
    "dark": Look(dark=True),
    "narrow": Look(width=390, scale=2),
    "narrow-dark": Look(width=390, dark=True, scale=2),
    "print": Look(width=720, medium="print"),
}
PIECE = 2000
"""Pixels of page that one file shows: taller pictures are hard to look at."""


def photograph(page: Browser, report: Path, out: Path, looks: dict[str, Look]) -> list[Path]:
    """Write PNGs of a page in all looks, NAME-00.png from the top on."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, look in looks.items():
        page.open(report, look)
        whole = page.value("document.documentElement.scrollHeight")
        for number, top in enumerate(range(0, whole, PIECE)):
            written.append(out / f"{name}-{number:02d}.png")
            written[-1].write_bytes(page.screenshot(look, top=top, height=PIECE))
    return written


def main(
    report: Annotated[Path, typer.Argument(metavar="REPORT", exists=True, dir_okay=False, help="The page.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for the pictures.")],
) -> None:
    """Write screenshots in light and dark, wide and narrow, and what the printer gets, also as a PDF."""
    with browser() as page:
        written = photograph(page, report, out, LOOKS)
        page.open(report)
        pdf = out / "print.pdf"
        pdf.write_bytes(page.pdf())
    for path in (*written, pdf):
        typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
