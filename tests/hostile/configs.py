"""Configurations: YAML that executes, grows, nests, or is something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.config import load_config
from run_pipeline import Config
from stages.models.interop.config_file import read_params
from tests.hostile.case import CANARY, Hostile

REFUSED = "refused ConfigError: "


def loaded(folder: Path) -> str:
    """What the command line makes of a config file."""
    return f"seed {load_config(Config, folder / 'c.yaml').shard.seed}"


def _yaml(text: str | bytes | Callable[[Path], str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        data = text(folder) if callable(text) else text
        (folder / "c.yaml").write_bytes(data.encode() if isinstance(data, str) else data)

    return write


def _laughs(depth: int = 30) -> str:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, depth))]
    return "\n".join([*lines, f"shard: *a{depth - 1}"])


def _merging_laughs(depth: int = 30) -> str:
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, depth))]
    return "\n".join(lines)


def _endless(folder: Path) -> None:
    (folder / "c.yaml").symlink_to("/dev/zero")


def _folder(folder: Path) -> None:
    (folder / "c.yaml").mkdir()


CASES = [
    Hostile(
        "!!python/object/apply",
        _yaml(lambda folder: f"shard: !!python/object/apply:os.system ['touch {folder.parent / CANARY}']"),
        loaded,
        REFUSED + ".*could not determine a constructor",
    ),
    Hostile(
        "!!python/name",
        _yaml("shard: !!python/name:os.system"),
        loaded,
        REFUSED + ".*could not determine a constructor",
    ),
    Hostile("billion laughs", _yaml(_laughs()), loaded, REFUSED + ".*aliases stand for more than 100,000 values"),
    Hostile("billion laughs by merging", _yaml(_merging_laughs()), loaded, REFUSED + ".*aliases stand for more"),
    Hostile("thousand laughs in a message", _yaml(_laughs(15)), loaded, REFUSED + "(?s:.{0,1500})$"),
    Hostile("alias of itself", _yaml("shard: &a [*a]"), loaded, REFUSED + ".*holds itself"),
    Hostile("scalar of 10 MB", _yaml("shard: " + "x" * 10**7), loaded, REFUSED + ".*more than 1,048,576 bytes"),
    Hostile("100,000 brackets", _yaml("shard: " + "[" * 10**5), loaded, REFUSED + ".*nested too deeply"),
    Hostile(
        "key that stands twice",
        _yaml("shard: {seed: 1}\nshard: {seed: 2}"),
        loaded,
        REFUSED + ".*'shard' stands here twice",
    ),
    Hostile(
        "number of 10,000 digits", _yaml("shard: {seed: " + "9" * 10**4 + "}"), loaded, REFUSED + ".*no such value"
    ),
    Hostile("date that never was", _yaml("shard: {seed: 2001-99-99}"), loaded, REFUSED + ".*no such value"),
    Hostile("!!int of a word", _yaml("shard: {seed: !!int x}"), loaded, REFUSED + ".*no such value"),
    Hostile("!!bool of a word", _yaml("shard: {alpha: !!bool x}"), loaded, REFUSED + ".*no such value"),
    Hostile("!!timestamp of a word", _yaml("shard: {alpha: !!timestamp x}"), loaded, REFUSED + ".*no such value"),
    Hostile("seed that is not a number", _yaml("shard: {seed: .nan}"), loaded, REFUSED + ".*shard.seed"),
    Hostile("keys that are numbers and dates", _yaml("1: 2\n2001-01-01: 3\nnull: 4"), loaded, REFUSED),
    Hostile(
        "10,000 unknown keys",
        _yaml("\n".join(f"k{n}: 1" for n in range(10_000))),
        loaded,
        REFUSED + "(?s:.*)and 9980 more mistakes",
    ),
    Hostile("NUL bytes and escapes", _yaml(b"shard: \x00\x1b[2J"), loaded, REFUSED + "[^\x1b]*not readable YAML"),
    Hostile("key that clears the terminal", _yaml('"\\e[2J": 1'), loaded, REFUSED + r"[^\x1b]*\\x1b"),
    Hostile("no UTF-8", _yaml(b"shard: \xff\xfe\xfa"), loaded, REFUSED + ".*not readable YAML"),
    Hostile("/dev/zero", _endless, loaded, REFUSED + ".*more than 1,048,576 bytes"),
    Hostile("a folder", _folder, loaded, REFUSED + ".*cannot be read"),
    Hostile(
        "laughs beside a checkpoint",
        _yaml(_laughs()),
        lambda folder: read_params(folder / "c.yaml"),
        "refused DataError: .*no model.params",
    ),
]

assert os.sep == "/", "the corpus is written for POSIX"
