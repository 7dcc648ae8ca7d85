"""Where a generator's parts are found: by lineage in a run, by name in a bundle; and that nothing heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, DataError
from stages.sampling.bundle import Parts
from stages.sampling.generator import Generator
from tests.stages.sampling.bundles import class_bundle, tiny_run

ASK = {"label": "dogs", "caption": "picture 1", "seed": 3, "count": 3, "guidance": 2.0, "top_k": 9}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle") / "runs"


@pytest.fixture(scope="module")
def run(workdir: Path) -> dict[str, Artifact]:
    return tiny_run(workdir)


def pixels(generator: Generator, **asked: object) -> np.ndarray:
    return np.stack([np.asarray(it) for it in generator.generate(**(asked or ASK))])  # type: ignore[arg-type]


def test_a_saved_bundle_draws_the_same_pictures_bit_for_bit(
    run: dict[str, Artifact], workdir: Path, tmp_path: Path
) -> None:
    generator = Generator.load(str(workdir))
    generator.save(tmp_path / "bundle")
    names = sorted(str(path.relative_to(tmp_path / "bundle")) for path in (tmp_path / "bundle").rglob("*.*"))
    assert names == [
        "bundle.json",
        "captions.json",
        "prior/config.json",
        "prior/model.safetensors",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
    ]
    again = Generator.load(tmp_path / "bundle")
    assert np.array_equal(pixels(again), pixels(generator))
    assert not np.array_equal(pixels(again), pixels(generator, **ASK | {"seed": 4}))
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy/bundle.json").read_bytes() == (tmp_path / "bundle/bundle.json").read_bytes()


def test_a_run_remembers_how_its_pictures_were_prepared(run: dict[str, Artifact], workdir: Path) -> None:
    parts = Parts.find(workdir)
    assert [condition.kind for condition in parts.told.condition] == ["class", "caption"]
    assert parts.told.condition[1].vocabulary_size == 1024  # type: ignore[union-attr]
    assert parts.told.crop == "center"


def test_the_tokenizer_is_the_one_the_prior_was_trained_with_not_the_latest(tmp_path: Path) -> None:
    made = tiny_run(tmp_path)
    before = pixels(Generator.load(tmp_path))
    from tests.stages.tiny import tiny_tokenizer

    newer = tiny_tokenizer(tmp_path, seed=5)
    assert newer.digest != made["tokenizer"].digest
    assert json.loads((tmp_path / "tokenizer/latest/manifest.json").read_text())["digest"] == newer.digest
    assert np.array_equal(pixels(Generator.load(tmp_path)), before)


def test_without_its_tokenizer_a_prior_is_refused(tmp_path: Path) -> None:
    made = tiny_run(tmp_path)
    home = tmp_path / "tokenizer" / made["tokenizer"].fingerprint[:12]
    (home / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=f"tokenizer {made['tokenizer'].digest[:12]}, which this prior was trained"):
        Generator.load(tmp_path)


def test_what_is_missing_is_said(tmp_path: Path, run: dict[str, Artifact]) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder {tmp_path}/nowhere"):
        Generator.load(f"{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match=f"no prior in {tmp_path}: run --stages prior"):
        Generator.load(tmp_path)
    with pytest.raises(ConfigError, match="name the workdir above it"):
        Generator.load(run["prior"].local("config.json").parent)
    bundle = class_bundle(tmp_path / "bundle")
    (bundle / "tokenizer/config.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer in .*bundle"):
        Generator.load(bundle)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    generator = Generator.load(class_bundle(tmp_path / "bundle"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("words")
    with pytest.raises(ConfigError, match="thesis is not empty and no bundle"):
        generator.save(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ['{"format": 2}', "[]", "{", '{"format": 1, "condition": "moods"}'])
def test_a_damaged_bundle_is_refused(tmp_path: Path, text: str) -> None:
    bundle = class_bundle(tmp_path / "bundle")
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(DataError, match=r"bundle\.json is (damaged|of format 2)"):
        Generator.load(bundle)


@pytest.mark.slow
def test_a_fresh_process_draws_without_the_pipeline(run: dict[str, Artifact], workdir: Path) -> None:
    script = f"""
import sys
from stages.sampling.generator import Generator
picture, = Generator.load({str(workdir)!r}).generate(label="dogs", caption="picture 1", seed=3)
heavy = {{"ray", "mlflow", "webdataset", "pyarrow", "lightning_fabric", "torchvision", "scipy", "fsspec", "lpips"}}
assert picture.size == (16, 16)
print(sorted(heavy & set(sys.modules)))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
