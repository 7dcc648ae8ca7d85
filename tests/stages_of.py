"""Runs a config's stages in this process, one after the other, for measurements: no screen, no tracker, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from run_pipeline import Config, build
from stages.data.images import to_model_range
from stages.data.loader import load_all
from stages.data.shards import open_split
from stages.metrics.picture_set import PictureSet
from stages.models.efficientnet_lite0 import load_efficientnet_lite0

FEATURE_SIZE = 96


def run_stages(config: Config, last: str, workdir: Path) -> dict[str, Artifact]:
    """Finish all stages up to `last`; what lies finished in `workdir` is taken as it is. The artifacts by name."""
    runtime, done = LocalRuntime(cluster=config.cluster), dict[str, Artifact]()
    for stage in build(config):
        inputs = {name: done[given.name] if isinstance(given, Stage) else given for name, given in stage.inputs.items()}
        done[stage.name] = run_stage(stage, inputs, str(workdir), runtime)
        if stage.name == last:
            return done
    raise ValueError(f"the config has no stage {last}")


def pictures_of(artifact: Artifact, split: str, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a split (train, val, sample), uint8 [N, H, W, C], and their labels [N]."""
    pictures_NHWC, labels_N, _ = load_all(open_split(artifact, split), channels)
    return pictures_NHWC, labels_N


@torch.inference_mode()
def features_of(pictures_NHWC: np.ndarray) -> PictureSet:
    """What distances between sets of colour pictures are computed on, for pictures of any size."""
    network, features = load_efficientnet_lite0(), []
    for start in range(0, len(pictures_NHWC), 64):
        x_BCHW = to_model_range(pictures_NHWC[start : start + 64])
        x_BCHW = F.interpolate(x_BCHW, (FEATURE_SIZE,) * 2, mode="bicubic", antialias=True, align_corners=False)
        features.append(network.pooled(x_BCHW.clamp(-1, 1)).numpy())
    return PictureSet.plain(np.concatenate(features))


def print_table(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print rows of equal columns, the first column their names."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, rows))
    print(f"\n{'':{width}}" + "".join(f"{column:>18}" for column in columns))
    for name, row in rows.items():
        print(f"{name:{width}}" + "".join(f"{row.get(column, '-'):>18}" for column in columns), flush=True)
