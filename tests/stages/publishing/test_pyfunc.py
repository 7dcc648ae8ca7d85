"""A table of wishes in, a table of PNGs out: the same pictures as the generator's, whatever else is in the table."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.errors import DataError
from pipeline.versions import model_registry
from stages.models.priors.configs import PriorDescription
from stages.publishing import pyfunc, serving
from stages.publishing.pyfunc import ServedGenerator, _load_pyfunc
from stages.sampling.generator import Generator
from tests.stages.sampling.bundles import blocks, map_bundle, words_and_boxes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(bundle: Path) -> ServedGenerator:
    return _load_pyfunc(str(bundle))


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]))


def drawn(model: ServedGenerator, *rows: dict) -> list[np.ndarray]:
    return [pixels(text) for text in model.predict(pd.DataFrame(list(rows)))["png"]]


def test_each_row_is_the_generators_picture_whatever_the_batch(served, bundle):
    generator = Generator.load(bundle)
    rows = [
        {"label": "squares", "seed": 3},
        {"label": "discs", "seed": 2**62 + 1, "guidance": 2.0, "temperature": 0.7},
        {"seed": 5, "top_k": 4, "top_p": 0.9},
        {"label": " ", "seed": 5},
    ]
    together = drawn(served, *[dict.fromkeys(serving_names()) | row for row in rows])
    for row, picture in zip(rows, together, strict=True):
        asked = {key: value for key, value in row.items() if value != " "}
        assert np.array_equal(picture, np.asarray(generator.generate(**asked)[0]))
        assert np.array_equal(picture, drawn(served, row)[0])
    assert not np.array_equal(together[0], drawn(served, {"label": "squares", "seed": 4})[0])


def serving_names() -> list[str]:
    return [column.name for column in serving.INPUTS]


def test_seeds_come_back_beside_the_pictures_even_large_ones(served):
    seeds = [2**62 + 1, 7]
    table = served.predict(pd.DataFrame({"label": ["discs", "discs"], "seed": seeds}))
    assert list(table.columns) == [column.name for column in serving.OUTPUTS]
    assert table["seed"].tolist() == seeds
    assert served.predict(pd.DataFrame({"label": [], "seed": []})).shape == (0, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"label": "sqares", "seed": 1},
            "row 1: label 'sqares' is unknown; did you mean 'squares'.*knows discs, squar",
        ),
        ({"caption": "a red heart", "seed": 1}, "row 1: caption: this prior is told class"),
        ({"label": "discs"}, "row 1: no seed: give every row a whole number"),
        ({"label": "discs", "seed": 1.5}, "row 1: seed is 1.5: write a whole number"),
        ({"label": "discs", "seed": -1}, "row 1: seed=-1 must not be negative"),
        ({"label": "discs", "seed": 1, "temperature": "warm"}, "row 1: temperature is 'warm': write a number"),
        ({"label": 2, "seed": 1}, "row 1: label is 2: write text"),
        ({"label": "discs", "seed": 1, "tempo": 2}, "unknown column 'tempo'; known are label, caption"),
    ],
)
def test_a_bad_row_is_a_bad_request_that_names_row_value_and_remedy(served, row, message):
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(pd.DataFrame([{"label": "discs", "seed": 1}, row], dtype=object))
    assert caught.value.get_http_status_code() == 400


def test_a_damaged_bundle_is_not_served(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    with (tmp_path / "bundle/prior/model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01")
    with pytest.raises(DataError, match=r"prior/model\.safetensors has sha256"):
        _load_pyfunc(str(tmp_path / "bundle"))


def test_captions_and_map_pictures_are_asked_for_too(tmp_path):
    words = Generator.load(words_and_boxes(tmp_path / "words"))
    picture = drawn(ServedGenerator(words), {"caption": "a red cat", "seed": 3})[0]
    assert np.array_equal(picture, np.asarray(words.generate(caption="a red cat", seed=3)[0]))
    maps = Generator.load(map_bundle(tmp_path / "maps", "edges"))
    file = io.BytesIO()
    Image.fromarray(blocks()).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    picture = drawn(ServedGenerator(maps), {"condition_picture": text, "seed": 3})[0]
    assert np.array_equal(picture, np.asarray(maps.generate(condition_picture=blocks(), seed=3)[0]))
    for wrong, message in (("%%%", "write a picture file in base64"), ("QUJD", "cannot be used")):
        with pytest.raises(MlflowException, match=message):
            drawn(ServedGenerator(maps), {"condition_picture": wrong, "seed": 3})


def test_what_is_served_names_its_packages_and_an_example():
    space = {"tokenizer": "", "codebook_size": 8, "grid": (2, 2), "image_size": 8, "channels": 3}
    caption = {"kind": "caption", "length": 4, "size": 300}
    edges = {"kind": "edges", "length": 4, "size": 8, "grid": (2, 2), "tokenizer": "x"}
    prior = PriorDescription.model_validate(space | {"classes": (), "condition": (caption, edges), "model": {}})
    told = serving.serving_description(prior)
    assert told["example"] == {"seed": 3, "caption": "a red heart"}
    assert {"tokenizers", "scipy", "scikit-image", "torch", "mlflow"} <= set(told["packages"])
    plain = PriorDescription.model_validate(
        space | {"classes": (), "condition": [{"kind": "none", "length": 1, "size": 0}], "model": {}}
    )
    assert not {"tokenizers", "scipy"} & set(serving.serving_description(plain)["packages"])


def test_the_registry_knows_the_module_and_the_file_by_their_names():
    assert pyfunc.__name__ == model_registry.LOADER
    assert model_registry.SERVING == serving.SERVING
