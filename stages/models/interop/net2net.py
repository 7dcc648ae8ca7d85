"""Net2NetTransformer of taming-transformers in our terms: a GPT prior over the codes of the VQGAN inside it.

Theirs has one table for codes and classes: class 3 and code 3 share a row. Ours has a range for each, so a shared row
is copied. Legend: T image tokens, K codes, V rows of their table, W width, P positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import DataError
from stages.models.interop.checkpoint import Checkpoint, Weights
from stages.models.interop.vqgan import VQGAN
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.vocabulary import Segment

FIRST_STAGE, TRANSFORMER, CONDITION_STAGE = "first_stage_model.", "transformer.", "cond_stage_model."
RENAMED = {"attention_norm": "ln1", "mlp_norm": "ln2", "attention.out": "attn.proj", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}
"""The parts of a block, our name and theirs, beside the projections: theirs are three, ours is one."""
JOINED = ("query", "key", "value")
"""Their three projections, in the order in which ours joins them."""


TABLES = ("transformer.tok_emb.weight", "transformer.head.weight")


@dataclass(frozen=True)
class Leftover:
    """What a checkpoint holds beyond our weights, all that is needed to write it again."""

    start: int = 0
    """The token that begins a picture without classes."""
    vocab_size: int = 0
    block_size: int = 0
    names: tuple[str, ...] = ()
    """All names, those of the VQGAN inside too, in their order."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What ours has no place for, whole tensors: tables with more rows than ours too."""


@dataclass(frozen=True)
class Net2Net:
    """A prior in our terms."""

    description: PriorDescription
    weights: dict[str, Tensor]
    """Of `GPT`."""
    leftover: Leftover
    remarks: tuple[str, ...] = ()
    """For people."""


def read_net2net(
    checkpoint: Checkpoint, vqgan: VQGAN, *, tokenizer: str, heads: int | None = None, classes: int | None = None
) -> Net2Net:
    """Take a Net2NetTransformer apart; `vqgan` is the one inside it, `tokenizer` the digest of what it became.

    No tensor tells the number of heads, or of classes (0: none): they are given, or in the configuration.

    Raises DataError where they are neither, or the transformer is one that ours cannot be.
    """
    weights = checkpoint.weights
    num_classes, start = _condition(checkpoint, classes)
    description = _describe(checkpoint, vqgan, tokenizer, heads, num_classes)
    num_codes, num_positions = description.codebook_size, description.num_tokens
    vocab_size, block_size = len(weights["transformer.tok_emb.weight"]), weights["transformer.pos_emb"].shape[1]
    if vocab_size < max(num_codes, num_classes, start + 1) or block_size < num_positions:
        raise DataError(
            f"{checkpoint.path}: {vocab_size} tokens and {block_size} positions are too few for {num_codes} codes, "
            f"{num_classes} classes and {num_positions} image tokens: check --image-size and --classes"
        )
    _check_order(checkpoint, num_positions)
    _check_masks(checkpoint)
    own = _our_weights(checkpoint, description, start)
    made = _their_weights(own, num_codes) | masks(gpt_of(description).num_layers, block_size)
    tensors = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(FIRST_STAGE) and not (name in made and torch.equal(made[name], tensor))
    }
    remarks = (
        "taming-transformers trains no null class: its vector is the mean of the classes', and guidance wants "
        "training with prior.model.condition_dropout first",
    )
    leftover = Leftover(start, vocab_size, block_size, tuple(weights), tensors)
    return Net2Net(description, own, leftover, remarks if num_classes else ())


def net2net_weights(prior: Net2Net, first_stage: Weights) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The transformer's and its VQGAN's weights under their names, and remarks for people; undoes `read_net2net`.

    Classes share rows with codes where these are equal, as they are after an import. Otherwise their table is ours: K
    codes, then the classes, then the null.
    """
    leftover, num_codes = prior.leftover, prior.description.codebook_size
    made, remarks = _their_weights(prior.weights, num_codes), []
    if leftover.vocab_size and _shares_rows(prior):
        for name in TABLES:
            made[name] = _over(leftover.tensors.get(name), made[name])
    else:
        made |= {TRANSFORMER + name: tensor for name, tensor in transformer_weights(prior.weights, num_codes).items()}
        remarks.append(
            f"codes and conditions have rows of their own: class c is token {num_codes} + c, no class is token "
            f"{len(made[TABLES[0]]) - 1} (sos_token), and logits beyond the first {num_codes} mean nothing"
        )
    positions = "transformer.pos_emb"
    stored = leftover.tensors.get(positions)
    made[positions] = _over(None if stored is None else stored[0], made[positions][0])[None]
    made |= masks(gpt_of(prior.description).num_layers, made[positions].shape[1])
    made = {**leftover.tensors, **made, **{FIRST_STAGE + name: tensor for name, tensor in first_stage.items()}}
    order = (*leftover.names, *(name for name in made if name not in leftover.names))
    return {name: made[name] for name in order if name in made}, tuple(remarks)


def transformer_weights(own: Weights, num_codes: int) -> dict[str, Tensor]:
    """A GPT's weights under minGPT's names, with a table of our rows; the head's rows beyond the codes are zero."""
    table_VW, head_KW = own["token_embedding.weight"], own["head.weight"]
    theirs = {name.removeprefix(TRANSFORMER): tensor for name, tensor in _their_weights(own, num_codes).items()}
    return {**theirs, "tok_emb.weight": table_VW, "head.weight": F.pad(head_KW, (0, 0, 0, len(table_VW) - num_codes))}


def gpt_of(description: PriorDescription) -> GPTConfig:
    """The architecture of a prior that taming-transformers has too. Raises DataError of any other."""
    model = description.model
    if not isinstance(model, GPTConfig) or model.form != "reference" or model.order != "raster":
        form = f"{model.kind} of form {model.form}" if isinstance(model, GPTConfig) else model.kind
        raise DataError(
            f"a {form} in {model.order} order has no counterpart in taming-transformers: only priors of kind gpt, "
            "form reference and order raster can be exported"
        )
    if set(description.kinds) - {"class"}:
        raise DataError(
            f"a prior conditioned on {', '.join(description.kinds)} has no counterpart in taming-transformers: only "
            "those of classes or of nothing can be exported"
        )
    return model


def masks(num_layers: int, block_size: int) -> dict[str, Tensor]:
    """The buffers that keep their attention causal."""
    mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
    return {f"transformer.blocks.{number}.attn.mask": mask for number in range(num_layers)}


def _describe(
    checkpoint: Checkpoint, vqgan: VQGAN, tokenizer: str, heads: int | None, num_classes: int
) -> PriorDescription:
    settings = checkpoint.params.get("transformer_config", {}).get("params", {})
    heads = heads or settings.get("n_head")
    if heads is None:
        raise DataError(f"no tensor of {checkpoint.path} tells the number of heads: give --heads, or its YAML file")
    side = vqgan.image_size // vqgan.model.factor
    layers = {name.split(".")[2] for name in checkpoint.weights if name.startswith("transformer.blocks.")}
    try:
        model = GPTConfig(
            num_layers=len(layers),
            num_heads=heads,
            width=checkpoint.weights["transformer.tok_emb.weight"].shape[1],
            dropout=settings.get("resid_pdrop", 0.0),
            condition_dropout=0.0,
            pkeep=checkpoint.params.get("pkeep", 1.0),
        )
    except ValidationError as error:
        raise DataError(f"{checkpoint.path} has sizes that ours cannot have: {error}") from None
    return PriorDescription(
        tokenizer=tokenizer,
        codebook_size=vqgan.model.quantizer.num_codes,
        grid=(side, side),
        classes=tuple(f"class {number}" for number in range(num_classes)),
        condition=(Segment(kind="class", length=1, size=num_classes),),
        image_size=vqgan.image_size,
        channels=vqgan.channels,
        model=model,
    )


def _condition(checkpoint: Checkpoint, classes: int | None) -> tuple[int, int]:
    """The number of classes, and the token that begins a picture where there are none."""
    params = checkpoint.params
    start = int(params.get("sos_token", 0))
    if classes is not None:
        return classes, start
    config = params.get("cond_stage_config")
    if params.get("unconditional") or config == "__is_unconditional__":
        return 0, start
    if isinstance(config, Mapping) and str(config.get("target", "")).endswith("Labelator"):
        return int(config["params"]["n_classes"]), start
    if config is not None or any(name.startswith(CONDITION_STAGE) for name in checkpoint.weights):
        raise DataError(
            f"{checkpoint.path} is conditioned on maps or coordinates: only transformers with classes, or without a "
            "condition, can be imported"
        )
    raise DataError(
        f"no tensor of {checkpoint.path} tells the number of classes: give --classes (0: none), or its YAML file"
    )


def _check_order(checkpoint: Checkpoint, num_tokens: int) -> None:
    order_T = checkpoint.weights.get("permuter.forward_shuffle_idx")
    if order_T is not None and not torch.equal(order_T, torch.arange(num_tokens)):
        raise DataError(
            f"{checkpoint.path} takes tokens in an order of its own (permuter): only row by row is imported"
        )


def _check_masks(checkpoint: Checkpoint) -> None:
    """Attention must be causal. `n_unmasked` up to the first position changes nothing."""
    for name, mask in checkpoint.weights.items():
        if name.endswith(".attn.mask") and not torch.equal(mask, torch.tril(torch.ones_like(mask))):
            raise DataError(f"{checkpoint.path}: {name} is not causal (n_unmasked): ours would attend to less")


def _our_weights(checkpoint: Checkpoint, description: PriorDescription, start: int) -> dict[str, Tensor]:
    theirs = {name: tensor.float() for name, tensor in checkpoint.below(TRANSFORMER, {}).weights.items()}
    num_codes, num_classes = description.codebook_size, len(description.classes)
    table_VW = theirs["tok_emb.weight"]
    classes_KW = table_VW[:num_classes]
    null_1W = classes_KW.mean(dim=0, keepdim=True) if num_classes else table_VW[start : start + 1]
    own = {
        "token_embedding.weight": torch.cat([table_VW[:num_codes], classes_KW, null_1W]),
        "position_embedding_PW": theirs["pos_emb"][0, : description.num_tokens].clone(),
        "norm.weight": theirs["ln_f.weight"],
        "norm.bias": theirs["ln_f.bias"],
        "head.weight": theirs["head.weight"][:num_codes].clone(),
    }
    for number in range(gpt_of(description).num_layers):
        for kind in ("weight", "bias"):
            block, their_block = f"blocks.{number}.", f"blocks.{number}."
            own[f"{block}attention.qkv.{kind}"] = torch.cat([theirs[f"{their_block}attn.{n}.{kind}"] for n in JOINED])
            for ours, their in RENAMED.items():
                own[f"{block}{ours}.{kind}"] = theirs[f"{their_block}{their}.{kind}"]
    return own


def _their_weights(own: Weights, num_codes: int) -> dict[str, Tensor]:
    """Our weights under their names; of the table only the codes."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in own.items():
        found = re.fullmatch(r"(blocks\.\d+\.)(.+)\.(weight|bias)", name)
        if found is None:
            continue
        block, part, kind = found.groups()
        if part == "attention.qkv":
            pieces = zip(JOINED, tensor.chunk(3), strict=True)
            theirs |= {f"{block}attn.{piece}.{kind}": value.clone() for piece, value in pieces}
        else:
            theirs[f"{block}{RENAMED[part]}.{kind}"] = tensor
    theirs |= {
        "tok_emb.weight": own["token_embedding.weight"][:num_codes].clone(),
        "pos_emb": own["position_embedding_PW"][None],
        "ln_f.weight": own["norm.weight"],
        "ln_f.bias": own["norm.bias"],
        "head.weight": own["head.weight"],
    }
    return {TRANSFORMER + name: tensor for name, tensor in theirs.items()}


def _shares_rows(prior: Net2Net) -> bool:
    """Whether every class, or the start, still has the row in the table that it had in the checkpoint."""
    num_codes, num_classes = prior.description.codebook_size, len(prior.description.classes)
    table_VW = prior.weights["token_embedding.weight"]
    stored_VW = _over(prior.leftover.tensors.get("transformer.tok_emb.weight"), table_VW[:num_codes])
    rows = list(range(num_classes)) or [prior.leftover.start]
    return torch.equal(table_VW[num_codes : num_codes + len(rows)], stored_VW[rows])


def _over(whole: Tensor | None, rows: Tensor) -> Tensor:
    """`rows` in place of the first ones of `whole`."""
    return rows if whole is None else torch.cat([rows.to(whole.dtype), whole[len(rows) :]])


def net2net_params(prior: Net2Net, vqgan_config: Mapping[str, Any]) -> dict[str, Any]:
    """`model.params` of a configuration that builds the transformer again."""
    model, num_classes = gpt_of(prior.description), len(prior.description.classes)
    block_size = prior.leftover.block_size or prior.description.num_tokens
    shared = bool(prior.leftover.vocab_size) and _shares_rows(prior)
    vocab_size = prior.leftover.vocab_size if shared else len(prior.weights["token_embedding.weight"])
    condition: Any = "__is_unconditional__"
    if num_classes:
        target = "taming.modules.util.Labelator"
        condition = {"target": target, "params": {"n_classes": num_classes}}
    return {
        "sos_token": prior.leftover.start if shared else vocab_size - 1,
        "unconditional": not num_classes,
        "pkeep": model.pkeep,
        "first_stage_config": dict(vqgan_config),
        "cond_stage_config": condition,
        "transformer_config": {
            "target": "taming.modules.transformer.mingpt.GPT",
            "params": {
                "vocab_size": vocab_size,
                "block_size": block_size,
                "n_layer": model.num_layers,
                "n_head": model.num_heads,
                "n_embd": model.width,
                "resid_pdrop": model.dropout,
                "embd_pdrop": model.dropout,
            },
        },
    }
