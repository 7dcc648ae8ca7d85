"""Files from strangers and files that were damaged: nothing executes, nothing passes for what it is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.artifacts import Artifact, Source
from pipeline.errors import DataError, UserError, visible
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.shards import ShardReader, open_split
from stages.data.sources import FolderSource, list_source
from stages.shard import VERSION, ShardConfig, shard
from tests.isolated import run_isolated
from tests.pictures import draw_pictures

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: pytest's has threads, which a forked child would wait for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_hostile_file_ends_as_it_must_and_executes_nothing() -> None:
    done = command("tests.hostile_corpus", "--fast", "--seconds", "300")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = re.search(r"^(\d+) files, 0 with an outcome that must not be", done.stdout, re.MULTILINE)
    assert found and int(found[1]) >= 130


@pytest.mark.slow
def test_readers_of_damaged_files_neither_crash_nor_hang() -> None:
    done = command("tests.fuzz", "--minutes", "0", "--cases", "12")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    total = re.search(r"^all +(\d+) +(\d+) +(\d+) +0 +0 ", done.stdout, re.MULTILINE)
    assert total and int(total[1]) >= 200 and int(total[2]) > 0 and int(total[3]) > 0, "some pass, some are refused"


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (lambda: 1, "accepted"),
        (lambda: (_ for _ in ()).throw(DataError("no")), "refused"),
        (lambda: 1 // 0, "crash"),
        (os.abort, "died"),
        (lambda: __import__("time").sleep(9), "hang"),
        (lambda: bytearray(2**40), "crash"),
    ],
)
def test_the_judge_sees_what_readers_must_not_do(case: object, verdict: str) -> None:
    outcomes = list(run_isolated([case, lambda: 2], (UserError,), seconds=2))  # type: ignore[list-item]
    assert [it.verdict for it in outcomes] == [verdict, "accepted"], "and goes on after it"


def made(folder: Path) -> Artifact:
    config = ShardConfig(
        source=FolderSource(path=str(folder / "pictures")),
        image_size=16,
        samples_per_shard=8,
        validation_fraction=0.0,
    )
    source = Source("pictures", partial(list_source, config.source))
    stage = Stage("shard", shard, config, {"source": source}, VERSION)
    return run_stage(stage, {"source": source}, str(folder / "runs"), LocalRuntime())


@pytest.mark.parametrize("suffix", [".tar", ".idx", ".json"])
def test_a_bit_that_flipped_after_the_stage_is_found_by_the_next_and_its_remedy_makes_that_part_alone(
    tmp_path: Path, suffix: str
) -> None:
    draw_pictures(tmp_path / "pictures", 24)
    before = made(tmp_path)
    (place,) = (tmp_path / "runs" / "units").rglob(f"train-000001{suffix}")
    data = bytearray(place.read_bytes())
    data[-1] ^= 1  # of a tar: the padding at its end, which no reader looks at
    place.write_bytes(data)
    reader = ShardReader(open_split(before, "train")[1])
    with pytest.raises(DataError, match="is damaged") as error:
        reader.read_image(0)
    found = re.search(r"remove (\S+) and (\S+) and run --stages shard", str(error.value))
    assert found
    Path(found[1]).unlink()
    shutil.rmtree(found[2])
    after = made(tmp_path)
    assert after.digest == before.digest and after.notes["units_reused"] == 2
    assert ShardReader(open_split(after, "train")[1]).read_image(0)


def test_a_damaged_file_of_the_artifact_itself_is_found_when_it_is_read(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 8)
    artifact = made(tmp_path)
    place = artifact.folder.path / "dataset.json"
    place.write_text(place.read_text().replace('"channels": 3', '"channels": 1'))
    with pytest.raises(DataError, match=r"dataset.json is damaged .*: remove .*/manifest.json and run --stages shard"):
        artifact.read_json("dataset.json")
    place.unlink()
    with pytest.raises(DataError, match=r"dataset.json cannot be read"):
        artifact.read_json("dataset.json")


def test_messages_cannot_steer_a_terminal() -> None:
    assert str(DataError("a\x1b[2Jb\u202ec\rd\n\te 絵")) == "a\\x1b[2Jb\\u202ec\\rd\n\te 絵"
    assert visible("\ud800\x9b") == "\\ud800\\x9b"
