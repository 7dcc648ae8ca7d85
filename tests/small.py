"""The whole pipeline in a minute: a small config over drawn pictures, as tests and benchmarks run it."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "run_pipeline.py")]

SMALL = {
    "shard": {"image_size": 32, "samples_per_shard": 32, "validation_fraction": 0.2},
    "tokenizer": {
        "model": {
            "backbone": {"kind": "light", "channels": [16, 32, 32], "residual_blocks": [0, 1, 1]},
            "quantizer": {"num_codes": 32, "dim": 8},
        },
        "losses": {"discriminator": {"start": 4, "warmup_steps": 2, "ramp_steps": 2, "base_channels": 8}},
        "optimizer": {"warmup_steps": 2, "schedule_steps": 40},
        "steps": 24,
        "batch_size": 8,
        "validate_every": 12,
        "record_every": 2,
    },
    "encode": {"batch_size": 16},
    "prior": {
        "model": {"num_layers": 2, "num_heads": 2, "width": 32},
        "steps": 30,
        "warmup_steps": 5,
        "schedule_steps": 30,
        "batch_size": 16,
        "validate_every": 10,
        "record_every": 5,
    },
    "sample": {"num_samples": 16, "samples_per_unit": 8, "batch_size": 8, "guidance": 1.5},
    "evaluate": {
        "feature_size": 32,
        "train_pictures": 64,
        "chance_pictures": 16,
        "batch_size": 16,
        "inception": "none",
    },
    "cluster": {"checkpoint_every": 5, "threads": 1},
}


def small_config(folder: Path, pictures: Path | None = None, **sections: dict[str, object]) -> Path:
    """Write `folder/small.yaml`, the small config for the pictures in `folder/pictures` or another place."""
    tree: dict[str, dict[str, object]] = {name: dict(section) for name, section in SMALL.items()}
    tree["shard"]["source"] = {"kind": "folder", "path": str(pictures or folder / "pictures")}
    for name, changes in sections.items():
        tree.setdefault(name, {}).update(changes)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
