"""Records what 20 steps of a tiny tokenizer come to, with every term of the loss on, in tokenizer_losses.json.

    python -m tests.golden.tokenizer_losses

writes the file anew. Do it when a change of the numbers is meant, and say in the commit why they changed. The run is in
float64, where CPUs agree.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pipeline.config import ClusterConfig
from pipeline.storage import Folder
from stages.models.losses.configs import DiscriminatorConfig, LossConfig, PerceptualConfig
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.training.tokenizer import TokenizerJob, train_tokenizer_loop
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig
from tests.stages.tiny import tiny_shards
from tests.stages.training.gangs import RecordingReporter, rank_of

PATH = Path(__file__).with_suffix(".json")

CONFIG = TokenizerConfig(
    model=TokenizerModelConfig(
        backbone=LightBackboneConfig(channels=(8, 16), residual_blocks=(1, 1), norm_groups=4),
        quantizer=EMAQuantizerConfig(num_codes=24, dim=4),
    ),
    losses=LossConfig(
        perceptual=PerceptualConfig(stages=(0, 1)),
        discriminator=DiscriminatorConfig(
            base_channels=8, num_layers=1, start=2, warmup_steps=2, ramp_steps=4, lecam_weight=0.1, clip_gradient=1.0
        ),
    ),
    optimizer=TokenizerOptimizerConfig(warmup_steps=4, schedule_steps=40, weight_decay=0.01, clip_gradient=1.0),
    ema_decay=0.9,
    precision="fp64",
    steps=20,
    batch_size=7,
    record_every=1,
    validate_every=10,
)


def rows() -> list[dict[str, float]]:
    """Train on one rank with one thread; return the history."""
    with tempfile.TemporaryDirectory() as name:
        shards = tiny_shards(Path(name), pictures=(9, 6))
        job = TokenizerJob(CONFIG, shards, Folder.at(Path(name) / "training"), ClusterConfig(checkpoint_every=20))
        reporter = RecordingReporter()
        train_tokenizer_loop(job, rank_of(), reporter)
    return reporter.rows


if __name__ == "__main__":
    PATH.write_text(json.dumps(rows(), indent=1, sort_keys=True) + "\n")
