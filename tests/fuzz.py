"""Feeds every reader with real files that were damaged at random, and counts what a reader must not do.

    python -m tests.fuzz [--minutes N] [--reader NAME] [--seed S]

A case is (reader, number): the same number damages the same file in the same way. A reader may return, or raise an
error of its documented kinds; anything else is a crash, no answer within 10 s a hang. Ends with 1 if there was either.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.errors import StageError, UserError
from pipeline.manifest import FileEntry, digest_of
from stages.data.images import Preparation, Rejected, prepare
from stages.data.tables import read_tokens, write_table, write_tokens
from tests.hostile import configs, lists, models, shards
from tests.isolated import Outcome, run_isolated
from tests.stages.data.hostile import encoded

OF_NOTHING = hashlib.sha256(b"{}").hexdigest()
"""Fingerprint of an empty recipe."""

MOST_MB = 400.0
"""Resident memory that no damaged file of a few kilobytes may take."""
DOCUMENTED = (UserError, Rejected)
BATCH = 200


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: a folder of good files, which of them are damaged, and the reader that meets them."""

    make: Callable[[Path], object]
    """Writes the good files into an empty folder."""
    damaged: tuple[str, ...]
    read: Callable[[Path], object]


def mutated(data: bytes, luck: random.Random) -> bytes:
    """Damage some bytes as storage and strangers do."""
    changed = bytearray(data)
    for _ in range(luck.choice((1, 1, 1, 2, 4, 16))):
        at = luck.randrange(len(changed) or 1)
        kind = luck.randrange(8)
        if not changed:
            break
        if kind == 0:
            changed[at] ^= 1 << luck.randrange(8)
        elif kind == 1:
            changed[at] = luck.choice((0, 1, 0x7F, 0x80, 0xFF, luck.randrange(256)))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + luck.randrange(1, 64)]
        elif kind == 4:
            changed[at:at] = changed[at : at + luck.randrange(1, 512)] * luck.choice((1, 2, 50))
        elif kind == 5:
            width = luck.choice((2, 4, 8))
            number = luck.choice((0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1)) % 2 ** (8 * width)
            changed[at : at + width] = number.to_bytes(width, luck.choice(("little", "big")))
        elif kind == 6:
            changed[at : at + luck.randrange(1, 32)] = luck.choice(
                (b"9" * 30, b"-1", b"NaN", b"null", b"[]", b"{}", b'"')
            )
        else:
            other = luck.randrange(len(changed))
            size = luck.randrange(1, 64)
            changed[at : at + size] = changed[other : other + size]
    return bytes(changed)


def _picture(kind: str, **options: object) -> Callable[[Path], object]:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse.repeat(4, 0).repeat(4, 1))
    more = {"save_all": True, "append_images": [picture.rotate(90)]} if kind in ("GIF", "WEBP") else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    return lambda folder: (folder / "picture").write_bytes(encoded(picture, kind, exif=exif, **more, **options))


def _prepared(folder: Path) -> str:
    return str(prepare((folder / "picture").read_bytes(), Preparation(32)).size)


def _tokens(folder: Path) -> None:
    write_tokens(
        folder / "t.parquet",
        keys=[f"k{n}" for n in range(50)],
        labels=list(range(50)),
        captions=["a caption"] * 50,
        variants=[0] * 50,
        tokens_NT=np.arange(800).reshape(50, 16) % 512,
        condition_NC=np.zeros((50, 1), np.int64),
        metadata={"tokenizer": "x", "codebook_size": "512"},
    )


def _rows(kind: str, **row: object) -> Callable[[Path], object]:
    rows = [{name: f"{value}{n}" if name in ("id", "path") else value for name, value in row.items()} for n in range(8)]

    def write(folder: Path) -> None:
        path = folder / f"list.{kind}"
        for row in rows:
            (folder / str(row.get("path", "p"))).touch()
        if kind == "parquet":
            write_table(path, {name: [it[name] for it in rows] for name in row})
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(it) + "\n" for it in rows))
        else:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([list(row), *(list(it.values()) for it in rows)])

    return write


def _manifest(folder: Path) -> None:
    (folder / "dataset.json").write_text("{}")
    entry = FileEntry.of(folder / "dataset.json", "dataset.json")
    told = {
        "stage": "shard",
        "fingerprint": OF_NOTHING,
        "recipe": {},
        "metrics": {"pictures": 3},
        "notes": {},
        "units": [],
    }
    told |= {"files": [entry.model_dump()], "digest": digest_of([entry])}
    (folder / "manifest.json").write_text(json.dumps(told))


def _config(folder: Path) -> None:
    (folder / "c.yaml").write_bytes((Path(__file__).parents[1] / "configs" / "emoji_text.yaml").read_bytes())


def _saved(name: str) -> Callable[[Path], object]:
    from pipeline.storage import Folder
    from stages.training.checkpoints import Checkpoints, save_state

    state = {"model": {"w": torch.arange(12.0).reshape(3, 4)}, "step": 3, "luck": (1, 2.5, None, float("inf"))}
    if name == "state":
        return lambda folder: save_state(folder, "state", state)
    if name == "checkpoint":
        return lambda folder: torch.save({"state_dict": state["model"]}, folder / "last.ckpt")

    def commit(folder: Path) -> None:
        kept = Checkpoints(Folder.at(folder), "a")
        kept.claim()
        name = kept.save(3, state, [{"loss": 1.0}])
        (folder / name).rename(folder / "step-00000003-00")
        (folder / "LATEST").write_text('["step-00000003-00"]')

    return commit


def _state(folder: Path) -> object:
    from stages.training.checkpoints import _NO_STATE, load_state

    try:
        return load_state(folder, "state")
    except _NO_STATE as error:  # those that `Checkpoints` turns into a complaint
        raise StageError(str(error)) from None


def _latest(folder: Path) -> object:
    from pipeline.storage import Folder
    from stages.training.checkpoints import Checkpoints

    return Checkpoints(Folder.at(folder), "b").latest()


def _readers() -> dict[str, Reader]:
    step = "step-00000003-00"
    pictures = {
        kind: Reader(_picture(kind), ("picture",), _prepared) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
    }
    request = {"id": "a", "label": "cat", "seed": 3, "size": "64x64"}
    listed = {"path": "p", "label": "cat", "caption": "words", "boxes": '[["x", 0, 0, 9, 9]]'}
    kinds = ("csv", "jsonl", "parquet")
    return {
        **{kind.lower(): reader for kind, reader in pictures.items()},
        "progressive": Reader(_picture("JPEG", progressive=True), ("picture",), _prepared),
        **{f"list-{kind}": Reader(_rows(kind, **listed), (f"list.{kind}",), lists.listed) for kind in kinds},
        **{f"requests-{kind}": Reader(_rows(kind, **request), (f"list.{kind}",), lists.asked) for kind in kinds},
        "shard": Reader(
            shards._shard, tuple(f"{shards.NAME}.{kind}" for kind in ("tar", "idx", "json")), shards.opened
        ),
        "tokens": Reader(_tokens, ("t.parquet",), lambda folder: len(read_tokens(folder / "t.parquet"))),
        "config": Reader(_config, ("c.yaml",), configs.loaded),
        "manifest": Reader(_manifest, ("manifest.json",), shards.artifact),
        "weights": Reader(models._described(), ("model.safetensors", "config.json"), models.tokenizer),
        "foreign": Reader(_saved("checkpoint"), ("last.ckpt",), models.checkpoint),
        "state": Reader(_saved("state"), ("state.json", "state.safetensors"), _state),
        "training": Reader(
            _saved("commit"), ("LATEST", *(f"{step}/{it}" for it in ("manifest.json", "state.json"))), _latest
        ),
    }


READERS = _readers()


def fuzz(name: str, numbers: Sequence[int], seed: int, seconds: float = 10.0) -> list[Outcome]:
    """What a reader makes of some cases."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "good"
        folder.mkdir()
        reader.make(folder)
        good = {file: (folder / file).read_bytes() for file in reader.damaged}
        (whole,) = run_isolated([partial(reader.read, folder)], DOCUMENTED, seconds=60)
        assert whole.verdict == "accepted", f"{name} refuses what is not damaged: {whole.message}"

        def case(number: int) -> object:
            luck = random.Random(f"{seed}/{name}/{number}")
            chosen = luck.choice(reader.damaged)
            for file, data in good.items():
                (folder / file).write_bytes(mutated(data, luck) if file == chosen else data)
            return reader.read(folder)

        return list(run_isolated([partial(case, number) for number in numbers], DOCUMENTED, seconds=seconds))


def bad(outcome: Outcome) -> bool:
    """Whether a reader did what it must not."""
    return outcome.verdict in ("crash", "hang", "died") or outcome.peak_mb > MOST_MB


def main() -> int:
    """Fuzz all readers in turn until the time is over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--reader", choices=sorted(READERS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=BATCH, help="of a reader in its turn; the first turn is whole")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no threads but its own
    names = options.reader or list(READERS)
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    until, start = time.monotonic() + 60 * options.minutes, 0
    while not start or time.monotonic() < until:
        for name in names:
            outcomes = fuzz(name, range(start, start + options.cases), options.seed)
            for number, outcome in enumerate(outcomes, start):
                if bad(outcome):
                    print(
                        f"{name} case {number}: {outcome.verdict} {outcome.message} {outcome.peak_mb:.0f} MB",
                        flush=True,
                    )
            found[name] += outcomes
            if time.monotonic() > until and start:
                break
        start += options.cases
    print(
        f"{'reader':18}{'cases':>8}{'accepted':>10}{'refused':>9}{'crashes':>9}{'hangs':>7}{'most MB':>9}{'most s':>8}"
    )
    for name, outcomes in [*found.items(), ("all", [it for some in found.values() for it in some])]:
        count = {verdict: sum(it.verdict == verdict for it in outcomes) for verdict in ("accepted", "refused", "hang")}
        crashes = sum(it.verdict in ("crash", "died") for it in outcomes)
        print(
            f"{name:18}{len(outcomes):8}{count['accepted']:10}{count['refused']:9}{crashes:9}{count['hang']:7}"
            f"{max((it.peak_mb for it in outcomes), default=0):9.0f}"
            f"{max((it.seconds for it in outcomes), default=0):8.2f}"
        )
    return int(any(bad(it) for some in found.values() for it in some))


if __name__ == "__main__":
    sys.exit(main())
