"""A small graph of stages without torch: numbers are cut into units, doubled, and added up."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Source, SourceFile
from pipeline.config import ClusterConfig, StrictModel, TrackingConfig
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.stage import Stage
from pipeline.telling.notify import NotifyConfig
from pipeline.units import Unit


class CutConfig(StrictModel):
    size: int = 2
    """Files in a unit."""


class TotalConfig(StrictModel):
    factor: float = 2.0
    steps: int = 3


class ToyConfig(StrictModel):
    folder: str = ""
    cut: CutConfig = CutConfig()
    total: TotalConfig = TotalConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    notify: NotifyConfig = NotifyConfig()


def list_folder(folder: str) -> list[SourceFile]:
    if not Path(folder).is_dir():
        raise DataError(f"folder {folder} does not exist")
    return [SourceFile(path.name, path.stat().st_size, "") for path in Path(folder).iterdir()]


def make_reader(device: str, folder: str, die_file: str | None = None) -> Any:
    def read(unit: Unit, scratch: Path) -> dict[str, Any]:
        if die_file and Path(die_file).exists() and unit.name == "cut-000001":
            Path(die_file).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = [int((Path(folder) / name).read_text()) for name in unit.payload]
        (scratch / f"{unit.name}.txt").write_text("\n".join(map(str, numbers)))
        return {"numbers": len(numbers)}

    return read


def cut(
    config: CutConfig, *, source: Source, output: Output, runtime: BoundRuntime, folder: str = ""
) -> dict[str, Any]:
    names = [file.path for file in source.listing]
    units = [
        Unit(
            f"cut-{i:06d}",
            {"files": names[i * config.size : (i + 1) * config.size]},
            names[i * config.size : (i + 1) * config.size],
        )
        for i in range((len(names) + config.size - 1) // config.size)
    ]
    records = output.map_units(
        functools.partial(make_reader, folder=os.environ["TOY_FOLDER"]), units, runtime, label="cut"
    )
    return {"numbers": sum(record.counts["numbers"] for record in records)}


def total(config: TotalConfig, *, cut: Artifact, output: Output, runtime: BoundRuntime) -> dict[str, Any]:
    numbers = [int(line) for _, entry in cut.unit_files(".txt") for line in cut.local(entry.path).read_text().split()]
    value = sum(numbers) * config.factor
    output.write("total.txt", str(value).encode())
    output.write("speed.txt", os.urandom(4).hex().encode(), content=False)
    if os.environ.get("TOY_FAIL"):
        raise RuntimeError("a bug in the toy")
    return {"total": value}


def build(config: ToyConfig) -> list[Stage]:
    source = Source("numbers", functools.partial(list_folder, config.folder))
    first = Stage("cut", cut, config.cut, {"source": source})
    return [first, Stage("total", total, config.total, {"cut": first})]
