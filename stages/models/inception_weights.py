"""Where the weights of the standard Inception lie, and others' reference statistics: files from outside. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.artifacts import Source, SourceFile
from pipeline.errors import ConfigError
from pipeline.storage import Folder, content_hash

STANDARD = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""sha256 of the weights that "FID" means: TensorFlow's Inception-v3 of 2015-12-05, as a state dict for torch."""
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""The same file as torch-fidelity and as pytorch-fid name it."""
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAMES[0]}"


def weights_cache() -> Path:
    """Where torch's hub, and with it torch-fidelity and pytorch-fid, keeps weights: below `TORCH_HOME`."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(os.path.expanduser(home)).absolute() / "hub" / "checkpoints"  # noqa: PTH111 (a user without a home)


def find_inception(setting: str) -> Path | None:
    """The weights that `evaluate.inception` names: a path, `auto` (the cache of torch's hub) or `none`.

    None where there are none to use. Raises ConfigError where a path leads to no file.
    """
    if setting == "none":
        return None
    if setting == "auto":
        places = [weights_cache() / name for name in NAMES]
        return next((path for path in places if os.access(path, os.R_OK)), None)
    return _file(setting, "evaluate.inception", f"fetch {ADDRESS}, or set evaluate.inception=none")


def how_to_get_it() -> str:
    """What to do where `auto` finds nothing."""
    return (
        f"no readable weights of the standard Inception in {weights_cache()}: FID, Inception score and their like "
        f"are left out, figures on packaged features are not. Fetch {ADDRESS} into that folder, or name the file with "
        "evaluate.inception=PATH; evaluate.inception=none leaves them out without a word"
    )


def inception_inputs(setting: str) -> dict[str, Source]:
    """The input `inception` of a stage that measures with it; none where there is nothing to measure with."""
    path = find_inception(setting)
    return {"inception": Source("Inception weights", partial(_listed, path))} if path else {}


def find_reference(place: str | None) -> Path | None:
    """The statistics that `evaluate.reference` names. Raises ConfigError where that is no file."""
    remedy = "give the path of an .npz with mu and sigma, or leave evaluate.reference out"
    return None if place is None else _file(place, "evaluate.reference", remedy)


def reference_inputs(place: str | None) -> dict[str, Source]:
    """The input `reference` of a stage that compares with others' statistics; none without them."""
    path = find_reference(place)
    return {"reference": Source("reference statistics", partial(_listed, path))} if path else {}


def _file(place: str, key: str, remedy: str) -> Path:
    if not Folder.at(place).is_local:
        raise ConfigError(f"{key}: {place} lies behind a URL: copy it to this machine")
    path = Path(place).expanduser().absolute()
    if not os.access(path, os.F_OK):
        raise ConfigError(f"{key}: there is no file {path}, or this user may not see it: {remedy}")
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ConfigError(f"{key}: {path} may not be read as a file: give this user permission, or {remedy}")
    return path


def _listed(path: Path) -> Iterator[SourceFile]:
    yield SourceFile(path.name, path.stat().st_size, content_hash(path))
