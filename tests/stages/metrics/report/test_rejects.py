"""Rejects are counted by reason, the first of each by name."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stages.metrics.report.rejects import Rejects

DATASET = {"num_train": 80, "num_val": 10, "rejects": 5}


def shards(tmp_path: Path, codes: str) -> Any:
    rows = [{"path": f"{place}.png", "code": code, "reason": f"is {code}"} for place, code in enumerate(codes)]
    file = tmp_path / "rejects.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(own_files=[SimpleNamespace(path=file.name)], held=lambda path: nullcontext(file))


def test_the_most_frequent_reason_comes_first_with_its_first_names(tmp_path: Path) -> None:
    found = Rejects.read(shards(tmp_path, "abbbb"), DATASET)
    assert (found.total, found.of) == (5, 95)
    assert [(kind.code, kind.num) for kind in found.kinds] == [("b", 4), ("a", 1)]
    assert [row["path"] for row in found.kinds[0].first] == ["1.png", "2.png", "3.png"]


def test_without_the_list_there_is_the_number(tmp_path: Path) -> None:
    assert Rejects.read(SimpleNamespace(own_files=[]), DATASET) == Rejects(5, 95, [])
