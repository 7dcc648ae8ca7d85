"""From what people say to condition tokens: each kind against its own source, and every refusal with its remedy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, DataError
from stages.data.captions import Captions
from stages.data.condition_values import coordinate_values
from stages.data.conditions import edges
from stages.data.images import to_model_range
from stages.data.windows import Window
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import Segment
from stages.sampling.asking import Ask, Asked
from stages.sampling.conditioning import number_of
from stages.sampling.generator import Generator
from tests.stages.sampling.bundles import (
    blocks,
    class_bundle,
    map_bundle,
    random_prior,
    random_tokenizer,
    words_and_boxes,
)


def values(generator: Generator, kind: str, grid: tuple[int, int] | None = None, **asked: object) -> list[int]:
    """What the prior is told of one kind."""
    conditioner = generator.conditioner
    condition_1C = torch.from_numpy(conditioner.tokens(Ask(**asked), grid))  # type: ignore[arg-type]
    found: list[int] = conditioner.vocabulary(grid or generator.prior.grid).values(condition_1C, kind)[0].tolist()
    return found


@pytest.mark.parametrize(("name", "number"), [("owls", 2), ("OWLS", 2), (2, 2), ("2", 2), ("cats", 0)])
def test_classes_have_names_and_numbers(tmp_path: Path, name: str | int, number: int) -> None:
    assert values(Generator.load(class_bundle(tmp_path / "b")), "class", label=name) == [number]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dog", r"label 'dog' is unknown; did you mean 'dogs'\? This prior knows cats, dogs, owls"),
        ("OLWS", r"label 'OLWS' is unknown; did you mean 'owls'\?"),
        ("zebra", r"label 'zebra' is unknown\. This prior knows cats, dogs, owls$"),
        (3, "label 3: this prior knows 3 classes, 0 to 2"),
        (-1, "label '?-1'? is unknown"),
    ],
)
def test_an_unknown_class_is_told_what_was_perhaps_meant(name: str | int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        number_of(name, ("cats", "dogs", "owls"), "label")


def test_a_class_named_by_a_number_is_that_class() -> None:
    assert number_of("7", ("9", "7"), "label") == 1


def test_words_and_boxes_are_said_as_the_corpus_says_them(tmp_path: Path) -> None:
    generator = Generator.load(words_and_boxes(tmp_path / "b"))
    text = (tmp_path / "b/captions.json").read_text()
    assert values(generator, "caption", caption="A red dog") == Captions(text).values(["a red dog"], 6)[0].tolist()
    # Two classes, then 4x4 places, then nothing: 2 * 0.25 * 3 rounds to 1.
    assert values(generator, "boxes", boxes=[("Dog", 0.3, 0, 1, 1)]) == [1, 2 + 1, 2 + 15, 18, 18, 18]
    assert values(generator, "boxes", boxes=[]) == [18] * 6
    assert values(generator, "boxes", caption="a cat") == [-1] * 6
    with pytest.raises(ConfigError, match="box 'dgo' is unknown; did you mean 'dog'"):
        values(generator, "boxes", boxes=[("dgo", 0, 0, 1, 1)])
    with pytest.raises(ConfigError, match="3 boxes: this prior was trained with at most 2"):
        values(generator, "boxes", boxes=[("dog", 0, 0, 1, 1)] * 3)
    for box in (("dog", 0, 0, 1), ("dog", 0, 0, 20, 20)):
        with pytest.raises(ConfigError, match=r"write \(class, left, top, right, bottom\), edges in shares"):
            values(generator, "boxes", boxes=[box])
    with pytest.raises(ConfigError, match="is empty"):
        values(generator, "boxes", boxes=[("dog", 0.5, 0, 0.5, 1)])


@pytest.mark.parametrize("name", ["captions.json", "boxes.json"])
def test_a_bundle_without_its_words_is_refused(tmp_path: Path, name: str) -> None:
    bundle = words_and_boxes(tmp_path / "b")
    (bundle / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        Generator.load(bundle).generate(caption="x", boxes=[])


def test_computed_maps_are_made_of_the_picture_and_encoded_by_their_own_tokenizer(tmp_path: Path) -> None:
    generator = Generator.load(map_bundle(tmp_path / "b", "edges"))
    picture_HWC = blocks(16)
    maps = Tokenizer.load(tmp_path / "b/cond_tokenizer")
    map_1HWC = edges(picture_HWC, 2.0)[None]
    expected = maps.encode(to_model_range(map_1HWC)).flatten().tolist()
    assert values(generator, "edges", condition_picture=picture_HWC) == expected
    assert values(generator, "edges", condition_map=map_1HWC[0]) == expected
    assert values(generator, "edges", condition_picture=255 - 0 * picture_HWC) != expected
    assert values(generator, "edges") == [-1] * 4


def test_a_map_of_a_larger_picture_has_as_many_more_tokens(tmp_path: Path) -> None:
    generator = Generator.load(map_bundle(tmp_path / "b", "edges"))
    picture_HWC = blocks(32)
    maps = Tokenizer.load(tmp_path / "b/cond_tokenizer")
    expected = maps.encode(to_model_range(edges(picture_HWC, 2.0)[None])).flatten().tolist()
    assert values(generator, "edges", (4, 4), condition_picture=picture_HWC) == expected
    assert len(expected) == 16


def test_segmentations_are_class_numbers_and_checked(tmp_path: Path) -> None:
    generator = Generator.load(map_bundle(tmp_path / "b", "segmentation", labels=5))
    labels_HW = blocks(16)[:, :, 0] % 5
    maps = Tokenizer.load(tmp_path / "b/cond_tokenizer")
    expected = maps.encode(to_model_range(labels_HW[None, :, :, None])).flatten().tolist()
    assert values(generator, "segmentation", condition_map=labels_HW) == expected
    assert values(generator, "segmentation", condition_picture=Image.fromarray(labels_HW)) == expected
    with pytest.raises(DataError, match="the segmentation has class 5, this prior knows 5"):
        values(generator, "segmentation", condition_map=np.full((16, 16), 5, np.uint8))
    with pytest.raises(DataError, match="save class numbers as grey or palette"):
        values(generator, "segmentation", condition_map=blocks(16))


def test_alpha_is_the_opacity_of_a_picture_or_a_map(tmp_path: Path) -> None:
    generator = Generator.load(map_bundle(tmp_path / "b", "alpha"))
    opacity_HW = blocks(16)[:, :, 0]
    picture = Image.fromarray(blocks(16, seed=2))
    picture.putalpha(Image.fromarray(opacity_HW))
    assert values(generator, "alpha", condition_picture=picture) == values(generator, "alpha", condition_map=opacity_HW)
    assert values(generator, "alpha", condition_map=opacity_HW) != values(
        generator, "alpha", condition_map=0 * opacity_HW
    )


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (4, 3)])
def test_a_map_of_another_shape_is_the_middle_of_what_is_given(tmp_path: Path, rows: int, columns: int) -> None:
    generator = Generator.load(map_bundle(tmp_path / "b", "segmentation", labels=5))
    labels_HW = blocks(80)[: 8 * rows, : 8 * columns, 0] % 5
    maps = Tokenizer.load(tmp_path / "b/cond_tokenizer")
    expected = maps.encode(to_model_range(labels_HW[None, :, :, None])).flatten().tolist()
    assert values(generator, "segmentation", (rows, columns), condition_map=labels_HW) == expected
    wider = np.pad(labels_HW, ((0, 0), (20, 20)), constant_values=4)
    assert values(generator, "segmentation", (rows, columns), condition_map=wider) == expected
    twice = labels_HW.repeat(2, 0).repeat(2, 1)
    assert values(generator, "segmentation", (rows, columns), condition_map=twice) == expected


@pytest.mark.parametrize(("grid", "size"), [(None, 16), ((3, 3), 24)])
def test_coordinates_are_those_of_windows_in_stored_pictures(
    tmp_path: Path, grid: tuple[int, int] | None, size: int
) -> None:
    random_tokenizer(tmp_path / "tokenizer")
    random_prior(tmp_path / "prior", (Segment(kind="coordinates", length=4, size=1025, grid=(2, 2)),))
    generator = Generator.load(tmp_path)
    how = {"size": size, "grid": grid or (2, 2), "values": 1024}
    expected = coordinate_values([Window(8, 3)], stored=(48, 40), **how)[0].tolist()
    assert values(generator, "coordinates", grid, coordinates=(8, 3, 48, 40)) == expected
    expected = coordinate_values([Window(0, 0)], stored=(size, size), **how)[0].tolist()
    assert values(generator, "coordinates", grid) == expected
    with pytest.raises(ConfigError, match="at row 30, column 0 do not lie in 40x40 pixels"):
        values(generator, "coordinates", grid, coordinates=(30, 0, 40, 40))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"caption": "x"}, "caption: this prior is told class; it was trained without a condition caption"),
        ({"condition_map": "m.png"}, "condition_map: this prior is told class"),
        ({"coordinates": (0, 0, 32, 32)}, "without a condition coordinates"),
        ({"guidance": 2}, "guidance=2: this prior was trained with condition_dropout=0"),
        ({}, "say the class too: this prior was trained with condition_dropout=0"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
    ],
)
def test_what_a_prior_was_not_trained_for_is_refused(tmp_path: Path, asked: dict[str, object], message: str) -> None:
    generator = Generator.load(class_bundle(tmp_path / "b", condition_dropout=0))
    with pytest.raises(ConfigError, match=message):
        generator.generate(**asked)  # type: ignore[arg-type]


def test_the_keywords_are_the_fields_of_ask() -> None:
    assert list(Asked.__annotations__) == list(Ask.__dataclass_fields__)
