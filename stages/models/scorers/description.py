"""What lies beside a scorer's weights, and which files they are. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.artifacts import Source, SourceFile
from pipeline.config import StrictModel
from pipeline.errors import ConfigError
from pipeline.storage import Folder, content_hash

DESCRIPTION, WEIGHTS, CAPTIONS = "config.json", "model.safetensors", "captions.json"


class SharedDescription(StrictModel):
    """What every scorer's description says."""

    network: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    """The frozen network whose pooled features the scorer looks at."""
    feature_size: int = Field(default=96, ge=32, le=1024)
    """Side in pixels that pictures are resized to for it."""
    learnt_from: str = ""
    """Digest of the shards that it was trained on."""
    figures: dict[str, float] = Field(default={})
    """How good it is on held-out pictures, as the command that trained it measured."""


class ClassifierDescription(SharedDescription):
    """A softmax over classes."""

    kind: Literal["classifier"] = "classifier"
    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the classes, in the order of the weights' rows."""


class TwoTowerDescription(SharedDescription):
    """A tower for pictures and one for captions, into one space where cosines are compared (CLIP's form)."""

    kind: Literal["two_tower"] = "two_tower"
    vocabulary_size: int = Field(ge=2)
    """Byte pairs of `captions.json`, padding included."""
    length: int = Field(ge=1)
    """Tokens of a caption that are read."""
    width: int = Field(default=128, ge=1)
    """Numbers of the common space."""


ScorerDescription = Annotated[ClassifierDescription | TwoTowerDescription, Field(discriminator="kind")]
DESCRIPTIONS: TypeAdapter[ClassifierDescription | TwoTowerDescription] = TypeAdapter(ScorerDescription)


def read_description(folder: Folder) -> ClassifierDescription | TwoTowerDescription:
    """Read `config.json`. Raises ConfigError where the folder holds no scorer."""
    if not (folder.exists(DESCRIPTION) and folder.exists(WEIGHTS)):
        raise ConfigError(
            f"{folder} holds no scorer ({DESCRIPTION} and {WEIGHTS}): train one with `python -m stages.scorer`, or "
            "correct sample.select.path"
        )
    try:
        return DESCRIPTIONS.validate_json(folder.read(DESCRIPTION))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise ConfigError(f"{folder}/{DESCRIPTION} describes no scorer: {where}: {first['msg']}") from None


def list_scorer(place: str) -> Iterator[SourceFile]:
    """Yield the files of a scorer, stamped with their hashes. Raises ConfigError where there is none."""
    folder = Folder.at(place)
    read_description(folder)
    for name in (DESCRIPTION, WEIGHTS, CAPTIONS):
        size = folder.size(name)
        if size is not None:
            yield SourceFile(name, size, content_hash(folder.local(name)))


def scorer_source(place: str) -> Source:
    """A scorer as an input of a stage."""
    return Source("scorer", partial(list_scorer, place))
