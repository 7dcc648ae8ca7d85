"""Templates to pages: one file each, no script, nothing to load, and a policy that lets the browser load nothing.

Everything that comes from outside (names of classes and files, captions, warnings) is escaped by the templates; the
only markup they are handed is our own drawings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.metrics.report.numbers import duration, number, percent
from stages.metrics.report.provenance import DEVICE_NAMES

if TYPE_CHECKING:
    import jinja2

BODY, END_OF_BODY = "<!-- the evaluation -->", "<!-- end of the evaluation -->"
"""What stands around the sections of an evaluation's page, so that the page of a publication can repeat them. Escaped
text never looks like it."""

_HEADING = re.compile(r'<section id="([a-z-]+)"[^>]*>\s*<h2>(.*?)</h2>')


class Place(NamedTuple):
    """A section of a page."""

    id: str
    title: str


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder."""
    return _environment().get_template(template).render(**values)


def page(title: str, header: str, body: str) -> str:
    """A whole page around markup of our own templates, its contents listed from the sections it has."""
    return render("shell.html.j2", title=title, header=header, body=body, contents=list(sections(header + body)))


def sections(markup: str) -> Iterator[Place]:
    """The sections in markup of our own templates, in order."""
    for found in _HEADING.finditer(markup):
        yield Place(found[1], found[2])


def evaluation_of(page: str) -> str | None:
    """The sections of an evaluation's page; None where it was made before they were marked."""
    _, begin, rest = page.partition(BODY)
    body, end, _ = rest.partition(END_OF_BODY)
    return body if begin and end else None


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "duration": duration}
    environment.globals |= {"device_names": DEVICE_NAMES, "begin": BODY, "end": END_OF_BODY}
    return environment
