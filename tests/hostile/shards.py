"""Shards whose tar, index or table were written by someone else, manifests that lead out of the workdir, and words."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.manifest import digest_of
from pipeline.progress import Screen
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore
from stages.data.shards import Sample, ShardReader, write_shard
from tests.hostile.case import Hostile, pickled
from tests.stages.data.hostile import encoded

OF_NOTHING = hashlib.sha256(b"{}").hexdigest()
"""Fingerprint of an empty recipe."""

NAME = "train-000000"
REFUSED = "refused DataError: "


def opened(folder: Path) -> str:
    """What a stage does with a shard: reads every picture."""
    reader = ShardReader(folder / f"{NAME}.tar")
    return f"{[len(reader.read_image(place)) for place in range(len(reader))]} bytes"


def _shard(folder: Path) -> Any:
    from PIL import Image

    picture = encoded(Image.new("RGB", (16, 16)), "PNG")
    write_shard(folder, NAME, [Sample("a", 0, "", "a", picture), Sample("b", 0, "", "b", picture)])
    return json.loads((folder / f"{NAME}.json").read_text())


def _table(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A good shard whose table was changed."""

    def write(folder: Path) -> None:
        rows = _shard(folder)
        rows = change(rows) or rows
        (folder / f"{NAME}.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))

    return write


def _tar(*members: tuple[str, bytes | None, bytes]) -> Callable[[Path], None]:
    """A good table and index over a tar of (name, content or None, type)."""

    def write(folder: Path) -> None:
        _shard(folder)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content, kind in members:
                member = tarfile.TarInfo(name)
                data = pickled(folder) if content is None else content
                member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
                tar.addfile(member, io.BytesIO(data))
        (folder / f"{NAME}.tar").write_bytes(buffer.getvalue().ljust(20480, b"\0"))

    return write


def _sparse(folder: Path) -> None:
    rows = _shard(folder)
    rows[0]["members"]["png"] = [0, 2**38]
    (folder / f"{NAME}.json").write_text(json.dumps(rows))
    with (folder / f"{NAME}.tar").open("r+b") as file:
        file.truncate(10240 * 2**26)


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        files = [{"path": "dataset.json", "bytes": 2, "sha256": "0" * 64}]
        manifest = {"stage": "shard", "fingerprint": OF_NOTHING, "recipe": {}, "metrics": {}, "notes": {}, "units": []}
        manifest |= {"files": files, "digest": digest_of([])}
        changed = change(manifest) or manifest
        (folder / "manifest.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
        (folder / "dataset.json").write_text("{}")

    return write


def artifact(folder: Path) -> str:
    """What a stage reads of its input."""
    home = Folder.at(folder)
    return str(Artifact.load(home, UnitStore(home, "shard", 1)).read_json("dataset.json"))


def _unit(path: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        store = UnitStore(Folder.at(folder), "s", 1)
        home = folder / store.key(Unit("u", {}))[:32]
        home.mkdir()
        entry = {"path": path, "bytes": 0, "sha256": ""}
        record = {"name": "u", "key": store.key(Unit("u", {})), "digest": "", "counts": {}, "files": [entry]}
        (home / "unit.json").write_text(json.dumps(record))

    return write


def unit(folder: Path) -> str:
    """Whether the store takes a unit for finished."""
    return f"found {UnitStore(Folder.at(folder), 's', 1).find(Unit('u', {}))}"


def _nothing(folder: Path) -> None:
    pass


def printed(folder: Path) -> str:
    """What a terminal is sent."""
    from rich.console import Console

    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=200))
    screen.line("\x1b[2Jline\x07 \u202egnp [bold]")
    screen.table("\x1b[2Jtitle", ("stage",), [("[/red]cell\x1b]0;x\x07",)])
    return ascii(screen.console.file.getvalue())  # type: ignore[attr-defined]


def _row(**changes: Any) -> Callable[[Path], None]:
    return _table(lambda rows: rows[0].update(changes))


def _member(*place: Any) -> Callable[[Path], None]:
    return _table(lambda rows: rows[0]["members"].update(png=place))


LONG = "x" * 5_000_000
CASES = [
    Hostile(
        "pickle as .pyd, .pkl, .pth.tar",
        _tar(*((f"a.{kind}", None, tarfile.REGTYPE) for kind in ("pyd", "pkl", "pth"))),
        opened,
        REFUSED + ".*damaged|" + REFUSED + ".*cut short",
    ),
    Hostile(
        "names that climb out.tar",
        _tar(("../../escape.png", None, tarfile.REGTYPE), ("/tmp/canary.png", None, tarfile.REGTYPE)),
        opened,
        REFUSED,
    ),
    Hostile(
        "links and devices.tar",
        _tar(("a.png", b"", tarfile.SYMTYPE), ("b.png", b"", tarfile.LNKTYPE), ("c.png", b"", tarfile.CHRTYPE)),
        opened,
        REFUSED,
    ),
    Hostile(
        "a tar in a tar.tar",
        _tar(("a.tar", b"\0" * 10240, tarfile.REGTYPE), ("a.b.c.png", b"x", tarfile.REGTYPE)),
        opened,
        REFUSED,
    ),
    Hostile("PAX header of 5 MB.tar", _tar((LONG, b"x", tarfile.REGTYPE)), opened, REFUSED),
    Hostile(
        "the same key twice.tar",
        _tar(("a.png", b"x", tarfile.REGTYPE), ("a.png", b"y", tarfile.REGTYPE)),
        opened,
        REFUSED,
    ),
    Hostile("member of 2^38 bytes in a sparse tar", _sparse, opened, REFUSED + "|crash MemoryError"),
    Hostile("member below zero", _member(-5, 10), opened, REFUSED + ".*places its members"),
    Hostile("member of 2^70 bytes", _member(0, 2**70), opened, REFUSED + ".*places its members"),
    Hostile("member that is a word", _member("0", "1"), opened, REFUSED + ".*places its members"),
    Hostile(
        "row without a picture",
        _table(lambda rows: rows[0]["members"].pop("png") and None),
        opened,
        REFUSED + ".*has no picture",
    ),
    Hostile("row that is a number", _table(lambda rows: [1, 2]), opened, REFUSED),
    Hostile("caption that is a list", _row(caption=[1]), opened, REFUSED + ".*another kind"),
    Hostile("label that is true", _row(label=True), opened, REFUSED + ".*another kind"),
    Hostile("boxes that are words", _row(boxes=["x"]), opened, REFUSED),
    Hostile("table of 200,000 brackets", _table(lambda rows: "[" * 200_000), opened, REFUSED),
    Hostile(
        "manifest of a file outside",
        _manifest(lambda it: it["files"][0].update(path="../../etc/passwd")),
        artifact,
        "refused DamagedManifest: .*leads out of its folder",
    ),
    Hostile(
        "manifest of an absolute file",
        _manifest(lambda it: it["files"][0].update(path="/etc/passwd")),
        artifact,
        "refused DamagedManifest: .*leads out of its folder",
    ),
    Hostile(
        "manifest of another digest",
        _manifest(lambda it: None),
        artifact,
        "refused DamagedManifest: .*contradicts itself",
    ),
    Hostile("manifest that is a list", _manifest(lambda it: "[1]"), artifact, "refused DamagedManifest: .*is damaged"),
    Hostile(
        "manifest of 200,000 brackets",
        _manifest(lambda it: "[" * 200_000),
        artifact,
        "refused DamagedManifest: .*is damaged",
    ),
    Hostile(
        "manifest without files",
        _manifest(lambda it: it.pop("files") and None),
        artifact,
        "refused DamagedManifest: .*is damaged",
    ),
    Hostile("unit whose file lies outside", _unit("../../../escape"), unit, "accepted found None"),
    Hostile(
        "words that steer a terminal",
        _nothing,
        printed,
        r"accepted '\\\\x1b[^J]*2Jline\\\\x07 \\\\u202egnp .*bold.*/red",
    ),
]
