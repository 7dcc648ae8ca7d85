"""Stage prior: trains a prior on the corpus's tokens, the half of the generator that composes pictures."""

from __future__ import annotations

import functools

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from stages.models.vocabulary import TokenCorpus
from stages.training.prior_config import PriorConfig

__all__ = ["PriorConfig", "train_prior"]


def train_prior(
    config: PriorConfig,
    *,
    tokens: Artifact,
    output: Output,
    runtime: BoundRuntime,
    checkpoint: Source | None = None,
) -> Metrics:
    """Train on a gang of ranks and keep the weights that predict the validation tokens best.

    `checkpoint` are the files of `config.from_checkpoint`, which training starts from.

    Raising `steps` or `patience` goes on from the last checkpoint; no other key of the config depends on them.
    """
    from stages.training.handover import collect, training_folder
    from stages.training.prior import PriorJob, train_prior_loop
    from stages.training.start import load_prior_start, refuse_own_result

    corpus = TokenCorpus.model_validate(tokens.read_json("tokens.json"))
    if not corpus.num_train:
        raise DataError("there are no training tokens: give the shard stage pictures, then run --stages encode")
    if checkpoint is not None and config.from_checkpoint is not None:
        refuse_own_result("prior", config.from_checkpoint, output.workdir)
        _, remarks = load_prior_start(config, corpus)
        for remark in remarks:
            output.warn(remark)
        output.notes["from_checkpoint"] = {"place": config.from_checkpoint, "digest": checkpoint.digest}
    folder = training_folder(output, stop_keys={"steps", "patience"})
    job = PriorJob(config=config, corpus=corpus, tokens=tokens, folder=folder, cluster=runtime.cluster)
    trained = runtime.run_gang(functools.partial(train_prior_loop, job), label="prior")
    collect(folder, trained["result"], output)
    output.notes.update(trained["notes"])
    metrics: Metrics = trained["metrics"]
    return metrics
