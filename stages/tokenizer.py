"""The tokenizer stage: trains a VQGAN on the shards of the training split, judged on the held-out one."""

from __future__ import annotations

from functools import partial

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.errors import ConfigError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from stages.training.tokenizer_config import MapTokenizerConfig, TokenizerConfig

__all__ = ["STOP_KEYS", "MapTokenizerConfig", "TokenizerConfig", "train_tokenizer"]

STOP_KEYS = frozenset({"steps"})


def train_tokenizer(
    config: TokenizerConfig,
    *,
    shards: Artifact,
    output: Output,
    runtime: BoundRuntime,
    checkpoint: Source | Artifact | None = None,
) -> Metrics:
    """Trains to `config.steps`, going on from the last checkpoint of a run that differs in nothing else.

    `checkpoint` are the files of `config.from_checkpoint`, which training starts from, or a parent's tokenizer to be
    fine-tuned.

    Leaves `model.safetensors` and `config.json` (the tokenizer), `training.*` (the whole state, for fine-tuning),
    `history.jsonl` and `reconstructions.png`.

    Raises ConfigError if the pictures do not divide into tokens or the checkpoint is another model's, DataError if a
    split is empty, StageError if training diverges.
    """
    from stages.training.handover import collect, training_folder
    from stages.training.start import load_tokenizer_start, refuse_own_result
    from stages.training.tokenizer import TokenizerJob, train_tokenizer_loop
    from stages.training.tokenizer_data import check_data

    check_data(config, shards)
    if isinstance(checkpoint, Artifact):
        config = _finetuning(config, checkpoint, shards, output)
    elif checkpoint is None and config.policy == "finetune":
        output.warn(f"{config.section}.policy is finetune, but no version is in use yet: it is trained from scratch")
    for doubt in doubts(config):
        output.warn(doubt)
    if isinstance(checkpoint, Source) and config.from_checkpoint is not None:
        refuse_own_result(config.section, config.from_checkpoint, output.workdir)
        start, remarks = load_tokenizer_start(config, shards.read_json("dataset.json"))
        for remark in remarks:
            output.warn(remark)
        output.notes["from_checkpoint"] = {
            "place": config.from_checkpoint,
            "digest": checkpoint.digest,
            "discriminator": bool(start.judge_weights),
        }
    folder = training_folder(output, stop_keys=STOP_KEYS)
    job = TokenizerJob(config=config, shards=shards, folder=folder, cluster=runtime.cluster)
    trained = runtime.run_gang(partial(train_tokenizer_loop, job), label=config.section)
    collect(folder, trained["result"], output)
    output.notes.update(trained["notes"])
    metrics: Metrics = trained["metrics"]
    return metrics


def _finetuning(config: TokenizerConfig, parent: Artifact, shards: Artifact, output: Output) -> TokenizerConfig:
    """The training that starts from the parent's tokenizer; the given one, from scratch, where that one is another."""
    from stages.training.start import load_tokenizer_start

    note = {"place": parent.folder.url, "digest": parent.digest}
    started = config.started_from(parent.folder.url)
    try:
        start, remarks = load_tokenizer_start(started, shards.read_json("dataset.json"))
    except ConfigError as error:
        output.warn(f"the {config.section} of the version in use is not fine-tuned, a new one is trained: {error}")
        output.notes["from_checkpoint"] = {**note, "refused": str(error)}
        return config
    for remark in remarks:
        output.warn(remark)
    output.notes["from_checkpoint"] = {**note, "discriminator": bool(start.judge_weights)}
    return started


def doubts(config: TokenizerConfig) -> list[str]:
    """What looks like a mistake in a config that can be trained."""
    if config.steps == 0:
        return []
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
