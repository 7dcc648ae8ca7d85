"""Trained models that lie somewhere: which files they are, so that a change of their content is noticed. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.artifacts import Source, SourceFile
from pipeline.errors import ConfigError
from pipeline.manifest import MANIFEST
from pipeline.storage import Folder, content_hash
from pipeline.workdir import LATEST

Part = Literal["tokenizer", "cond_tokenizer", "prior"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
JUDGE = "discriminator.safetensors"
"""The discriminator of an imported tokenizer; that of a trained one is in its training state."""
TRAINING = "training.safetensors"


def absolute(place: str) -> str:
    """The same place for workers, who change their working directory."""
    return Folder.at(Path(place).expanduser() if place.startswith("~") else place).url


def home_of(place: str | Path, part: Part) -> Folder | None:
    """Return the folder that holds a model's files: `place` itself, or where a run, a published bundle or an import
    keeps them below it. None where there is none."""
    top = Folder.at(place)
    places = [top, top / "latest", top / part, top / part / "latest"]
    places += [home / home.read_json(LATEST)["fingerprint"][:12] for home in (top, top / part) if _only_points(home)]
    return next((home for home in places if _is_home(home, part)), None)


def _only_points(home: Folder) -> bool:
    """Whether a stage's folder is behind a URL, where a file instead of a link leads to the latest artifact."""
    return not home.is_local and home.exists(LATEST)


def _is_home(home: Folder, part: Part) -> bool:
    if not (home.exists(CONFIG) and home.exists(WEIGHTS)):
        return False
    # Only a prior's description names the tokenizer whose tokens it is for.
    return (b'"tokenizer"' in home.read(CONFIG)) == (part == "prior")


def fetched(home: Folder) -> Path:
    """The local path of a model's folder, wherever it lies; for the process that loads it."""
    home.local(WEIGHTS)
    return home.local(CONFIG).parent


def is_foreign(place: str) -> bool:
    """Whether this is a checkpoint file of taming-transformers rather than a folder of ours."""
    return place.endswith((".ckpt", ".pt", ".pth"))


def list_pretrained(place: str, part: Part) -> Iterator[SourceFile]:
    """Yield the files that decide what starts from a trained model, stamped with their hashes: wherever they lie.

    Raises ConfigError where there is no such model.
    """
    if is_foreign(place):
        if not Folder.at(place).is_local:
            raise ConfigError(f"{part}.from_checkpoint: {place} lies behind a URL: copy it to this machine")
        path = Folder.at(place).path
        if not path.is_file():
            raise ConfigError(f"{part}.from_checkpoint: there is no file {path}")
        from stages.models.interop.config_file import find_config

        files = {"checkpoint": path, "config": find_config(path)}
        yield from (SourceFile(name, f.stat().st_size, content_hash(f)) for name, f in files.items() if f)
        return
    home = home_of(place, part)
    if home is None:
        raise ConfigError(
            f"{part}.from_checkpoint: {Folder.at(place)} holds no trained {part} ({CONFIG} and {WEIGHTS}): name a "
            "run's or an import's folder, or a .ckpt file of taming-transformers"
        )
    recorded = home.read_json(MANIFEST)["files"] if home.exists(MANIFEST) else []
    known = {row["path"]: row["sha256"] for row in recorded}
    names = (CONFIG, WEIGHTS) if part == "prior" else (CONFIG, WEIGHTS, JUDGE, TRAINING)
    for name in names:
        size = home.size(name)
        if size is not None:
            yield SourceFile(name, size, known.get(name) or content_hash(home.local(name)))


def start_of(part: Part, place: str | None) -> dict[str, Source]:
    """The input `checkpoint` of a stage that starts from the trained model at `place`; none without one."""
    return {"checkpoint": Source(f"{part} checkpoint", partial(list_pretrained, place, part))} if place else {}
