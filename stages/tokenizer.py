"""The tokenizer stage: trains a VQGAN on the shards of the training split, judged on the held-out one."""

from __future__ import annotations

from functools import partial

from pipeline.artifacts import Artifact, Metrics
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from stages.training.tokenizer_config import MapTokenizerConfig, TokenizerConfig

__all__ = ["STOP_KEYS", "MapTokenizerConfig", "TokenizerConfig", "train_tokenizer"]

STOP_KEYS = frozenset({"steps"})


def train_tokenizer(config: TokenizerConfig, *, shards: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """Trains to `config.steps`, going on from the last checkpoint of a run that differs in nothing else.

    Leaves `model.safetensors` and `config.json` (the tokenizer), `training.*` (the whole state, for fine-tuning),
    `history.jsonl` and `reconstructions.png`.

    Raises ConfigError if the pictures do not divide into tokens, DataError if a split is empty, StageError if training
    diverges.
    """
    from stages.training.handover import collect, training_folder
    from stages.training.tokenizer import TokenizerJob, train_tokenizer_loop
    from stages.training.tokenizer_data import check_data

    check_data(config, shards)
    for doubt in doubts(config):
        output.warn(doubt)
    folder = training_folder(output, stop_keys=STOP_KEYS)
    job = TokenizerJob(config=config, shards=shards, folder=folder, cluster=runtime.cluster)
    trained = runtime.run_gang(partial(train_tokenizer_loop, job), label="tokenizer")
    collect(folder, trained["result"], output)
    output.notes.update(trained["notes"])
    metrics: Metrics = trained["metrics"]
    return metrics


def doubts(config: TokenizerConfig) -> list[str]:
    """What looks like a mistake in a config that can be trained."""
    adversary = config.losses.discriminator
    found = []
    if adversary.weight > 0 and adversary.generator_start >= config.steps:
        found.append(
            f"the generator feels the discriminator from step {adversary.generator_start} on, and training ends at "
            f"step {config.steps}: this tokenizer is trained without an adversarial loss"
        )
    if adversary.weight > 1:
        found.append(
            f"losses.discriminator.weight={adversary.weight} makes the discriminator's gradient {adversary.weight:g} "
            "times that of the reconstruction, which no warm-up makes good; published tokenizers have 0.8 or less"
        )
    return found
