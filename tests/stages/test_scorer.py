"""The command that trains scorers from a run's shards."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import ConfigError, DataError
from stages.sampling.picture_scorers import Classifier, TwoTower, load_scorer
from stages.scorer import app, train_classifier, train_two_tower
from tests.stages.made_up import make
from tests.stages.tiny import tiny_shards


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with shards of coloured pictures of three classes, and a tokenizer."""
    workdir = tmp_path_factory.mktemp("world")
    make(workdir)
    return workdir


def test_a_classifier_of_a_run_tells_its_classes_apart(world: Path, tmp_path: Path) -> None:
    figures = train_classifier(world, tmp_path / "scorer", feature_size=32)
    scorer = load_scorer(tmp_path / "scorer")
    assert isinstance(scorer, Classifier)
    assert scorer.description.figures == figures
    assert scorer.description.learnt_from == json.loads((world / "shard/latest/manifest.json").read_text())["digest"]
    assert figures["accuracy_originals"] > 0.6 > 1 / 3
    assert set(figures) == {"pictures", "accuracy_originals", "accuracy_reconstructions"}


def test_the_command_says_what_it_made_and_what_is_wrong(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "words"
    done = CliRunner().invoke(app, ["two_tower", str(tmp_path / "nowhere"), "--out", str(out)])
    assert done.exit_code == 3
    assert "holds no finished shards: run --stages shard" in done.output
    (out).mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty: name a new folder"):
        train_two_tower(world, out)


def test_two_towers_take_the_captions_of_the_shards(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "run", pictures=(12, 8))
    figures = train_two_tower(tmp_path / "run", tmp_path / "words", feature_size=32)
    assert figures == {"pictures": 20.0}, "two held-out captions are too few to look among"
    assert isinstance(load_scorer(tmp_path / "words"), TwoTower)
    tiny_shards(tmp_path / "mute", captions=False)
    with pytest.raises(DataError, match="none of its training pictures has a caption"):
        train_two_tower(tmp_path / "mute", tmp_path / "other", feature_size=32)
