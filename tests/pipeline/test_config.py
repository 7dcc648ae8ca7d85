"""Every mistake in a config is named by the key that a user would type, with its remedy."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pipeline.config import StrictModel, load_config
from pipeline.errors import ConfigError


class Disc(StrictModel):
    kind: Literal["disc"] = "disc"
    radius: float


class Box(StrictModel):
    kind: Literal["box"] = "box"
    width: float = 1.0


class Drawing(StrictModel):
    shape: Annotated[Disc | Box, Field(discriminator="kind")] = Box()
    strokes: int = 3
    more: tuple[Annotated[Disc | Box, Field(discriminator="kind")], ...] = ()
    frame: Annotated[Disc | Box, Field(discriminator="kind")] | None = None


class Page(StrictModel):
    drawing: Drawing = Drawing()


def load(tmp_path: Path, *overrides: str) -> Page:
    (tmp_path / "page.yaml").write_text("drawing: {strokes: 4}\n")
    return load_config(Page, tmp_path / "page.yaml", overrides)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    page = load(tmp_path, "drawing.shape.kind=disc", "drawing.shape.radius=2")
    assert page == Page(drawing=Drawing(shape=Disc(radius=2), strokes=4))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["drawing.stroks=1"], "drawing.stroks: unknown key; did you mean strokes?"),
        (["drawing.strokes=many"], "drawing.strokes: "),
        (["drawing.shape.width=2"], "drawing.shape: which one? Set drawing.shape.kind as well, to one of disc, box"),
        (
            ["drawing.more=[{width: 2}]"],
            "drawing.more.0: which one? Set drawing.more.0.kind as well, to one of disc, box",
        ),
        (["drawing.frame={}"], "drawing.frame: which one? Set drawing.frame.kind as well, to one of disc, box"),
        (
            ["drawing.shape.kind=disc"],
            "drawing.shape.radius: missing; set it in the file or with drawing.",
        ),
        (["drawing.shape.kind=box", "drawing.shape.widht=2"], "drawing.shape.widht: unknown key; did you mean width?"),
        (["drawing.strokes.deep=1"], "strokes is a value, not a section"),
        (["drawing"], "not of the form section.key=value"),
    ],
)
def test_mistakes_name_the_key_as_the_user_types_it(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides)
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "drawing.stroks=1", "margin=2")
    assert "drawing.stroks" in str(caught.value)
    assert "margin: unknown key; known here: drawing" in str(caught.value)


def test_smoke_lays_its_section_over_the_rest_and_overrides_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "page.yaml"
    path.write_text(
        "drawing: {strokes: 4, shape: {kind: box, width: 7.5}}\n"
        "smoke: {drawing: {strokes: 1, shape: {kind: disc, radius: 2.0}}}\n"
    )
    assert load_config(Page, path) == Page(drawing=Drawing(shape=Box(width=7.5), strokes=4))
    tiny = load_config(Page, path, smoke=True)
    assert tiny == Page(drawing=Drawing(shape=Disc(radius=2), strokes=1)), "another kind replaces the whole section"
    assert load_config(Page, path, ["drawing.strokes=2"], smoke=True).drawing.strokes == 2


def test_a_file_without_a_smoke_section_says_so(tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text("drawing: {strokes: 4}\n")
    with pytest.raises(ConfigError, match=r"page\.yaml has no section smoke: write one"):
        load_config(Page, tmp_path / "page.yaml", smoke=True)
