"""The command: what it writes, what it says, and the exit codes of mistakes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from stages.sampling.__main__ import app
from stages.sampling.generator import Generator
from tests.stages.sampling.bundles import blocks, class_bundle, words_and_boxes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_bundle(tmp_path_factory.mktemp("terminal") / "b")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_draw_writes_what_generate_gives_and_how_it_was_drawn(bundle: Path, tmp_path: Path) -> None:
    done = run("draw", bundle, "--label", "owls", "--seed", 3, "--guidance", 2, "--out", tmp_path / "new" / "one.png")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{tmp_path}/new/one.png: a picture of 32x32, seed 3, ")
    picture = Image.open(tmp_path / "new/one.png")
    (expected,) = Generator.load(bundle).generate(label="owls", seed=3, guidance=2.0)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert {**picture.text} == {name: str(value) for name, value in expected.info.items()}  # type: ignore[attr-defined]
    assert picture.text["class"] == "owls" and picture.text["seed"] == "3"  # type: ignore[attr-defined]


def test_several_pictures_become_a_sheet_or_a_folder(bundle: Path, tmp_path: Path) -> None:
    assert run("draw", bundle, "--count", 5, "--out", tmp_path / "sheet.png").exit_code == 0
    assert run("draw", bundle, "--count", 5, "--out", tmp_path / "folder").exit_code == 0
    files = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in files] == [f"seed0-{n:05d}.png" for n in range(5)]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 + 3 * 36, 4 + 2 * 36, 3)
    assert np.array_equal(sheet[40:72, 40:72], np.asarray(Image.open(files[3])))
    assert (sheet[76:108, 40:72] == 255).all()
    text = Image.open(tmp_path / "sheet.png").text  # type: ignore[attr-defined]
    assert (text["id"], text["seed"]) == ("0, 1, 2, 3, 4", "0")


def test_edits_say_what_the_prior_saw(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(blocks(32)).save(tmp_path / "p.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 16, 16))
    mask.save(tmp_path / "m.png")
    files = ("--out", tmp_path / "o.png")
    done = run("inpaint", bundle, tmp_path / "p.png", tmp_path / "m.png", "--candidates", 3, "--label", 1, *files)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1] == (
        "The redrawn token sees what lies above it and to its left: of 15 kept tokens all see 5, some see 0, none sees "
        "10."
    )
    assert Image.open(tmp_path / "o.png").text["edit"] == "inpaint"  # type: ignore[attr-defined]
    for command in ("complete", "vary"):
        done = run(command, bundle, tmp_path / "p.png", *files)
        assert (done.exit_code, Image.open(tmp_path / "o.png").text["edit"]) == (0, command)  # type: ignore[attr-defined]


def test_larger_pictures_come_with_a_note(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(blocks(32)).save(tmp_path / "p.png")
    for arguments in (("draw", bundle, "--size", "32x48"), ("outpaint", bundle, tmp_path / "p.png", "--right", 16)):
        done = run(*arguments, "--out", tmp_path / "o.png")
        assert (done.exit_code, Image.open(tmp_path / "o.png").size) == (0, (48, 32))
        assert "32x48, seed 0" in done.output
        assert "note: the prior is told class, the same in every window" in done.output


def test_show_says_what_can_be_asked(bundle: Path, tmp_path: Path) -> None:
    shown = run("show", bundle)
    assert shown.exit_code == 0
    for words in ("32x32, 3 channels, 4x4 tokens", "multiples of 8", "--label: 0 cats, 1 dogs, 2 owls", "guidance"):
        assert words in shown.output
    shown = run("show", words_and_boxes(tmp_path / "b", condition_dropout=0))
    for words in ("--caption: 6 tokens at most", "--box: 2 at most, of cat, dog", "1 alone"):
        assert words in shown.output


def test_boxes_are_named_with_their_edges(tmp_path: Path) -> None:
    bundle = words_and_boxes(tmp_path / "b")
    box = ("--box", "dog,0.25,0,1,1", "--box", "cat,0,0,0.5,0.5")
    assert run("draw", bundle, "--caption", "a red dog", *box, "--out", tmp_path / "o.png").exit_code == 0
    text = Image.open(tmp_path / "o.png").text  # type: ignore[attr-defined]
    assert text["boxes"] == "[('dog', 0.25, 0.0, 1.0, 1.0), ('cat', 0.0, 0.0, 0.5, 0.5)]"
    assert text["caption"] == "a red dog"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("draw", "{bundle}", "--label", "owl"), 2, "error: label 'owl' is unknown; did you mean 'owls'?"),
        (("draw", "{bundle}", "--size", "big"), 2, "error: --size big: write height x width in pixels"),
        (("draw", "{bundle}", "--box", "dog,1"), 2, "error: --box dog,1: write NAME,LEFT,TOP,RIGHT,BOTTOM"),
        (("draw", "{bundle}", "--precision", "fp8"), 2, "error: precision 'fp8': choose auto, fp32, bf16, fp16, fp64"),
        (("draw", "{bundle}", "--device", "abacus"), 2, "error: device 'abacus' cannot be used here"),
        (("draw", "/nowhere"), 2, "error: there is no folder /nowhere"),
        (("complete", "{bundle}", "/nowhere.png"), 3, "error: picture /nowhere.png cannot be read"),
        (("show", "/nowhere"), 2, "error: there is no folder /nowhere"),
    ],
)
def test_mistakes_are_a_line_and_a_code(
    bundle: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    out = () if arguments[0] == "show" else ("--out", tmp_path / "o.png")
    done = run(*(argument.format(bundle=bundle) for argument in arguments), *out)
    assert done.exit_code == code
    assert done.output.startswith(message)
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("draw", bundle, "--out", tmp_path / "file" / "o.png")
    assert done.exit_code == 1
    assert f"error: {tmp_path}/file/o.png cannot be written" in done.output
