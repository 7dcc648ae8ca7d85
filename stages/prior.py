"""Stage prior: trains a prior on the corpus's tokens, the half of the generator that composes pictures."""

from __future__ import annotations

import functools

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.errors import ConfigError, DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from stages.models.vocabulary import TokenCorpus
from stages.training.prior_config import PriorConfig

__all__ = ["PriorConfig", "train_prior"]

VOCABULARIES = ("captions.json", "boxes.json")
"""Files of the tokens that say how conditions are written as tokens."""


def train_prior(
    config: PriorConfig,
    *,
    tokens: Artifact,
    output: Output,
    runtime: BoundRuntime,
    checkpoint: Source | Artifact | None = None,
    parent_tokens: Artifact | None = None,
) -> Metrics:
    """Train on a gang of ranks and keep the weights that predict the validation tokens best.

    `checkpoint` are the files of `config.from_checkpoint`, which training starts from, or the parent's prior, which
    was trained on `parent_tokens`.

    Raising `steps` or `patience` goes on from the last checkpoint; no other key of the config depends on them.
    """
    from stages.training.handover import collect, training_folder
    from stages.training.prior import PriorJob, train_prior_loop
    from stages.training.start import load_prior_start, refuse_own_result

    corpus = TokenCorpus.model_validate(tokens.read_json("tokens.json"))
    if not corpus.num_train:
        raise DataError("there are no training tokens: give the shard stage pictures, then run --stages encode")
    if isinstance(checkpoint, Artifact):
        assert parent_tokens is not None, "a parent's prior comes with its tokens"
        config = _warm(config, checkpoint, parent_tokens, tokens, corpus, output)
    elif checkpoint is None and config.policy == "warm":
        output.warn("prior.policy is warm, but no version is in use yet: it is trained from scratch")
    if isinstance(checkpoint, Source) and config.from_checkpoint is not None:
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


def _warm(
    config: PriorConfig,
    parent: Artifact,
    parent_tokens: Artifact,
    tokens: Artifact,
    corpus: TokenCorpus,
    output: Output,
) -> PriorConfig:
    """The training that starts from the parent's prior; the given one, from scratch, where that one learnt others."""
    from stages.training.start import load_prior_start

    note = {"place": parent.folder.url, "digest": parent.digest}
    started = config.started_from(parent.folder.url)
    refusal = _other_vocabulary(parent, parent_tokens, tokens, corpus)
    try:
        if not refusal:
            load_prior_start(started, corpus)
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        output.warn(f"the prior of the version in use is not taken, a new one is trained: {refusal}")
        output.notes["from_checkpoint"] = {**note, "refused": refusal}
        return config
    output.notes["from_checkpoint"] = note
    return started


def _other_vocabulary(parent: Artifact, parent_tokens: Artifact, tokens: Artifact, corpus: TokenCorpus) -> str:
    """What tokens mean now that they did not mean to the parent's prior; nothing where all mean the same."""
    then = parent.read_json("config.json")
    if then["tokenizer"] != corpus.tokenizer:
        return f"it learnt the tokens of tokenizer {then['tokenizer'][:12]}, these are of {corpus.tokenizer[:12]}"
    if tuple(then["classes"]) != tuple(corpus.classes):
        return f"it knows {len(then['classes'])} classes, here there are {len(corpus.classes)}"
    now, before = (
        {entry.path: entry.sha256 for entry in it.own_files if entry.path in VOCABULARIES}
        for it in (tokens, parent_tokens)
    )
    return "" if now == before else f"{', '.join(sorted({*now, *before}))}: conditions are written otherwise now"
