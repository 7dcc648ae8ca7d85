"""The evaluate stage with an Inception: standard names for the standard weights alone, statistics kept, digests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import content_hash
from stages.evaluate import EvaluateConfig, evaluate, evaluate_inputs
from tests.random_inception import save_random_inception
from tests.stages.made_up import World, make

FIDS = {"gfid_train", "gfid_val", "rfid_val"}


@pytest.mark.thorough
def test_figures_by_inception_are_named_after_its_weights_and_never_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(tmp_path / "world", World(train=(7,), val=(4,), samples=(5,), history=False))
    weights = save_random_inception(tmp_path / "random.pth")
    np.savez(tmp_path / "others.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    digest = content_hash(weights)

    def run(**keys: str) -> Artifact:
        config = EvaluateConfig(feature_size=32, chance_pictures=8, batch_size=4, **keys)  # type: ignore[arg-type]
        inputs = {**world, **evaluate_inputs(config)}
        stage = Stage("evaluate", evaluate, config, inputs)  # type: ignore[arg-type]
        return run_stage(stage, inputs, str(tmp_path / "report"), LocalRuntime())

    other = run(inception=str(weights))
    figures = other.read_json("report.json")["figures"]
    assert {"gfd_inception_train", "gfd_inception_val", "rfd_inception_val"} <= set(figures)
    assert not any("fid" in name for name in figures)
    assert figures["gfd_inception_train"]["features"]["digest"] == digest
    assert any("other weights" in line for line in other.notes["warnings"])
    kept = sorted(path.stat().st_mtime_ns for path in (tmp_path / "report").rglob("statistics.safetensors"))

    # As if these were the standard weights: nothing is measured again, and the names say FID.
    for place in ("stages.evaluate.STANDARD", "stages.metrics.networks.STANDARD"):
        monkeypatch.setattr(place, digest)
    standard = run(inception=str(weights), reference=str(tmp_path / "others.npz"))
    found = standard.read_json("report.json")["figures"]
    assert FIDS | {"gfid_reference"} <= set(found) and "gfd_inception_train" not in found
    assert found["gfid_train"]["value"] == figures["gfd_inception_train"]["value"] > 0
    assert found["rfid_val"]["value"] == figures["rfd_inception_val"]["value"]
    assert found["gfid_reference"]["reference"]["digest"] == content_hash(tmp_path / "others.npz")
    assert standard.notes["units_reused"] == len(standard.units) and not standard.notes["warnings"][1:]
    again = sorted(path.stat().st_mtime_ns for path in (tmp_path / "report").rglob("statistics.safetensors"))
    assert len(kept) == 3 and again == kept, "train and val by Inception, train by the packaged network"
    assert standard.metrics["gfid_train"] == found["gfid_train"]["value"]
    assert "gFID (train)" in standard.folder.read("report.html").decode()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    absent = run(inception="auto")
    assert not any("inception" in name or "fid" in name for name in absent.read_json("report.json")["figures"])
    assert any("evaluate.inception=PATH" in line and str(tmp_path) in line for line in absent.notes["warnings"])
