"""What samples were drawn from, beside them: the first conditions, each with its words, maps, boxes and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.data.condition_pictures import ConditionPictures
from stages.data.images import decode_image
from stages.data.shards import Shard, ShardReader
from stages.data.tables import read_table
from stages.metrics.report.pictures import picture_uri

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

CONDITIONS, SAMPLES_OF_EACH = 8, 4
"""That are shown, at most."""
BOXES_SIDE = 160
"""Pixels that boxes are drawn on, to be shown on fewer."""


class ToldAndDrawn(NamedTuple):
    """One condition, and samples of it; pictures are data URIs."""

    words: str
    told: list[str]
    drawn: list[str]


def told_and_drawn(
    samples: Artifact, shards: Sequence[Shard], tokens: Artifact | None, maps: Artifact | None, classes: Sequence[str]
) -> list[ToldAndDrawn]:
    """The first conditions that samples were drawn from; none where they were drawn of classes, or without tokens."""
    if tokens is None:
        return []
    tables = {}
    for unit, entry in samples.unit_files(".parquet"):
        if unit.name in {shard.name for shard in shards}:
            with samples.held(entry.path) as path:
                tables[unit.name] = read_table(path)
    pictures, found = ConditionPictures.of(tokens, maps), dict[tuple[Any, ...], ToldAndDrawn]()
    for shard in shards:
        columns, reader = tables.get(shard.name, {}), ShardReader(shard, few=True)
        if "condition_key" not in columns:
            return []
        boxes = _box_values(columns, tokens)
        for place, row in enumerate(reader.table):
            target = columns["condition_key"][place], int(columns["condition_variant"][place])
            condition = (*target, row["caption"], row["label"])
            if condition not in found and len(found) == CONDITIONS:
                return list(found.values())
            if condition not in found:
                drawings = pictures.draw(target, None if boxes is None else boxes[place].tolist(), BOXES_SIDE)
                found[condition] = ToldAndDrawn(_words(row, classes), list(map(picture_uri, drawings)), [])
            if len(found[condition].drawn) < SAMPLES_OF_EACH:
                found[condition].drawn.append(picture_uri(decode_image(reader.read_image(place), 3)))
    return list(found.values())


def _words(row: Mapping[str, Any], classes: Sequence[str]) -> str:
    label = classes[row["label"]] if 0 <= row["label"] < len(classes) else ""
    return str(row["caption"] or label)


def _box_values(columns: Mapping[str, Any], tokens: Artifact) -> np.ndarray | None:
    """The values [N, L] of boxes among the condition tokens of a table of samples; None without them."""
    import torch

    from stages.models.vocabulary import TokenCorpus

    corpus = TokenCorpus.model_validate(tokens.read_json("tokens.json"))
    if "boxes" not in corpus.kinds:
        return None
    values_NL: np.ndarray = corpus.vocabulary.values(torch.from_numpy(columns["condition_tokens"]), "boxes").numpy()
    return values_NL
