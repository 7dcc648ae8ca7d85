"""What a generator is made of and where it lies: a finished run, a bundle, or an import. Imports no torch.

A bundle is a folder of plain files that needs nothing of the run it came from:

    tokenizer/model.safetensors, config.json
    prior/model.safetensors, config.json
    cond_tokenizer/model.safetensors, config.json    where the prior is told a map
    captions.json                                    where it is told captions: their byte pairs
    boxes.json                                       where it is told boxes: their classes and places
    bundle.json                                      how pictures become squares and maps; written last
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.config import StrictModel
from pipeline.errors import ConfigError, DataError, shown
from pipeline.manifest import MANIFEST
from pipeline.storage import Folder
from pipeline.versions.registry import Registry
from stages.data.box_codes import BOXES, BoxCodes
from stages.data.condition_config import Conditions, MapCondition, map_condition
from stages.models.pretrained import CONFIG, WEIGHTS, home_of
from stages.models.priors.configs import PriorDescription
from stages.models.tokenizer_config import TokenizerDescription

BUNDLE, CAPTIONS = "bundle.json", "captions.json"
TOKENIZER: Literal["tokenizer"] = "tokenizer"
PRIOR: Literal["prior"] = "prior"
MAP_TOKENIZER, ENCODE = "cond_tokenizer", "encode"
FORMAT: Literal[1] = 1


class BundleDescription(StrictModel):
    """The content of `bundle.json`: what neither a tokenizer nor a prior knows of the pictures it learnt."""

    format: Literal[1] = FORMAT
    """Of the folder; another number is another layout."""
    condition: Conditions
    """What the prior is told, with the numbers that maps are computed with."""
    crop: Literal["center", "pad"] = "center"
    """How pictures that are no squares become squares, see `Preparation`."""

    @classmethod
    def of(cls, encoding: Mapping[str, Any], cutting: Mapping[str, Any]) -> BundleDescription:
        """That of a run, by the configs of its stages encode and shard."""
        return cls(condition=encoding.get("condition", ("class",)), crop=cutting.get("crop", "center"))


@dataclass(frozen=True)
class Parts:
    """Where the parts of a generator lie, and what is known of them without loading a weight."""

    place: str
    """What the user named, for messages."""
    tokenizer: Folder
    prior: Folder
    map_tokenizer: Folder | None = None
    beside: Folder | None = None
    """Holds captions.json and boxes.json."""
    described: BundleDescription | None = None
    """None of bare folders, where the defaults of every kind of condition are meant."""
    version: int | None = None
    """Number of the version in use, where that is what was found."""

    @classmethod
    def find(cls, place: str | Path) -> Parts:
        """The parts of a bundle, of an import, or of a run in a workdir: those of the version in use, of what was made
        last where none was published. Raises ConfigError naming what is missing."""
        top = Folder.at(Path(place).expanduser())
        if not top.exists("."):
            raise ConfigError(f"there is no folder {top}: name a run's workdir or a bundle")
        champion = Registry.read(top).in_use
        if champion is not None:
            used = top / PRIOR / champion.artifacts.get(PRIOR, "none")[:12]
            if not used.exists(MANIFEST):
                raise ConfigError(
                    f"version {champion.number}, which is in use in {top}, was removed: put another into use with "
                    "python run_pipeline.py --rollback VERSION; --versions lists them"
                )
            return replace(_of_run(top, used), version=champion.number)
        prior = home_of(top.url, PRIOR) or _latest(top / PRIOR)
        if prior is None:
            raise ConfigError(f"no prior in {top}: run --stages prior, or name a workdir or bundle that holds one")
        if prior.exists(MANIFEST):
            return _of_run(top, prior)
        tokenizer = home_of(top.url, TOKENIZER)
        if tokenizer is None:
            raise ConfigError(f"no tokenizer in {top}: a bundle has it in {TOKENIZER}/, beside {PRIOR}/")
        maps = top / MAP_TOKENIZER
        described = _read_description(top) if top.exists(BUNDLE) else None
        return cls(str(top), tokenizer, prior, maps if maps.exists(CONFIG) else None, top, described)

    @cached_property
    def description(self) -> PriorDescription:
        """What the prior is. Raises DataError where its config.json describes none."""
        try:
            return PriorDescription.model_validate_json(self.prior.read(CONFIG))
        except ValidationError as error:
            raise DataError(f"{self.prior}/{CONFIG} describes no prior of this version: {shown(str(error))}") from None

    @cached_property
    def told(self) -> BundleDescription:
        """What the prior is told and how pictures are prepared; of bare folders, as far as its description says."""
        if self.described is not None:
            return self.described
        kinds: list[dict[str, Any]] = []
        for segment in self.description.condition:
            more: dict[str, Any] = {}
            if segment.kind == "segmentation" and self.map_tokenizer is not None:
                more["num_classes"] = _described(self.map_tokenizer).model.labels
            kinds.append({"kind": segment.kind, **more})
        return BundleDescription.model_validate({"condition": kinds})

    @property
    def map_condition(self) -> MapCondition | None:
        """The spatial map that the prior is told, if there is one."""
        return map_condition(self.told.condition)

    @property
    def factor(self) -> int:
        """Pixels along one side of a token."""
        return _described(self.tokenizer).model.factor

    @cached_property
    def captions(self) -> str | None:
        """The JSON of the byte pairs of captions."""
        known = self.beside is not None and self.beside.exists(CAPTIONS)
        return self.beside.read(CAPTIONS).decode("utf-8", "replace") if known and self.beside is not None else None

    @cached_property
    def box_codes(self) -> BoxCodes | None:
        """The numbers of boxes."""
        known = self.beside is not None and self.beside.exists(BOXES)
        if not known or self.beside is None:
            return None
        try:
            return BoxCodes.model_validate_json(self.beside.read(BOXES))
        except ValidationError as error:
            raise DataError(f"{self.beside}/{BOXES} numbers no boxes: {shown(str(error))}") from None

    def files(self) -> Iterator[tuple[str, Folder, str]]:
        """Yield (name in a bundle, where it lies, its name there) of all files but bundle.json."""
        for name, home in ((TOKENIZER, self.tokenizer), (PRIOR, self.prior), (MAP_TOKENIZER, self.map_tokenizer)):
            if home is not None:
                yield from ((f"{name}/{file}", home, file) for file in (CONFIG, WEIGHTS))
        if self.beside is not None:
            yield from ((name, self.beside, name) for name in (CAPTIONS, BOXES) if self.beside.exists(name))

    def write(self, folder: str | Path) -> None:
        """Copy all parts into a new bundle, byte for byte. Raises ConfigError where something else lies there."""
        target = Folder.at(Path(folder).expanduser())
        if target.names() and not target.exists(BUNDLE):
            raise ConfigError(f"{target} is not empty and no bundle: name a new folder")
        target.remove(BUNDLE)
        for name, home, file in self.files():
            target.write(name, home.read(file))
        target.write_json(BUNDLE, self.told.model_dump(mode="json"))


def _described(tokenizer: Folder) -> TokenizerDescription:
    try:
        return TokenizerDescription.model_validate_json(tokenizer.read(CONFIG))
    except ValidationError as error:
        raise DataError(f"{tokenizer}/{CONFIG} describes no tokenizer of this version: {shown(str(error))}") from None


def _of_run(top: Folder, prior: Folder) -> Parts:
    """Follow the digests from the prior to the very artifacts it was trained with, not to the latest ones."""
    if not top.exists(PRIOR):
        raise ConfigError(f"{top} holds a prior alone: name the workdir above it, which holds its tokenizer too")
    bare = Parts(str(top), prior, prior)
    tokenizer = _made(top / TOKENIZER, bare.description.tokenizer)
    digest = next((segment.tokenizer for segment in bare.description.condition if segment.tokenizer), None)
    maps = _made(top / MAP_TOKENIZER, digest) if digest else None
    tokens = _find(top / ENCODE, prior.read_json(MANIFEST)["recipe"]["inputs"].get("tokens"))
    if tokens is None:
        if {"caption", "boxes"} & set(bare.description.kinds):
            raise ConfigError(f"{top / ENCODE} no longer holds the tokens of this prior: run --stages encode..prior")
        return Parts(str(top), tokenizer, prior, maps)
    recipe = tokens.read_json(MANIFEST)["recipe"]
    shards = _find(top / "shard", recipe["inputs"].get("shards"))
    cutting = shards.read_json(MANIFEST)["recipe"]["config"] if shards else {}
    return Parts(str(top), tokenizer, prior, maps, tokens, BundleDescription.of(recipe["config"], cutting))


def _latest(stage: Folder) -> Folder | None:
    """What a stage finished last, where no link leads there: behind a URL."""
    if not stage.exists("latest.json"):
        return None
    home = stage / stage.read_json("latest.json")["fingerprint"][:12]
    return home if home.exists(MANIFEST) else None


def _made(stage: Folder, digest: str) -> Folder:
    home = _find(stage, digest)
    if home is None:
        raise ConfigError(
            f"{stage} does not hold tokenizer {digest[:12]}, which this prior was trained with: run --stages "
            "encode..prior for a prior of the present tokenizer"
        )
    return home


def _find(stage: Folder, digest: str | None) -> Folder | None:
    """The finished artifact of this digest among all that a stage made."""
    if not stage.exists("."):
        return None
    # On a disk `latest` is a link: names() does not follow it.
    names = sorted({name.split("/")[0] for name in stage.names() if name.endswith(f"/{MANIFEST}")})
    homes = (stage / name for name in names)
    return next((home for home in homes if home.read_json(MANIFEST)["digest"] == digest), None)


def _read_description(top: Folder) -> BundleDescription:
    try:
        fields = top.read_json(BUNDLE)
        if fields.get("format") != FORMAT:
            raise DataError(f"{top}/{BUNDLE} is of format {fields.get('format')}, this version reads {FORMAT}")
        return BundleDescription.model_validate(fields)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{top}/{BUNDLE} is damaged ({shown(str(error))}): write the bundle again") from None
