"""What samples are drawn from where it is more than a class: conditions of held-out pictures, or captions.

Shapes: N conditions, C condition tokens, L tokens of a caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from stages.data.captions import Captions
from stages.data.tables import read_tokens

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.models.priors.configs import PriorDescription
    from stages.models.vocabulary import Vocabulary
    from stages.sampling.requests import Request


@dataclass(frozen=True)
class Given:
    """Some conditions, and what is known of each."""

    condition_NC: np.ndarray
    keys: list[str]
    """Of the held-out pictures that they were taken from; empty for others."""
    captions: list[str]
    variants: list[int]
    """Of the held-out pictures: which window of each."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def held_out(cls, tokens: Artifact) -> Given:
        """The conditions of all held-out rows of an encode artifact, in their order. Raises DataError without any."""
        tables = []
        for unit, entry in tokens.unit_files(".parquet"):
            if unit.name.startswith("val-"):
                with tokens.held(entry.path) as path:
                    tables.append(read_tokens(path))
        if not sum(map(len, tables)):
            raise DataError(
                "samples are drawn from the conditions of held-out pictures, and there are none: "
                "raise shard.validation_fraction"
            )
        return cls(
            np.concatenate([table.condition_NC for table in tables if len(table)]),
            [key for table in tables for key in table.keys],
            [caption for table in tables for caption in table.captions],
            [int(variant) for table in tables for variant in table.variants],
        )

    @classmethod
    def of_captions(cls, texts: Sequence[str], vocabulary: Vocabulary, captions: Captions) -> Given:
        """Conditions of which only the caption is given."""
        import torch

        values = [
            torch.from_numpy(captions.values(texts, segment.length))
            if segment.kind == "caption"
            else torch.full((len(texts), segment.length), -1)
            for segment in vocabulary.segments
        ]
        nothing = [""] * len(texts)
        return cls(vocabulary.condition(*values).numpy(), nothing, list(texts), [0] * len(texts))

    @classmethod
    def of_requests(
        cls, requests: Sequence[Request], prior: PriorDescription, held_out: Given | None, captions: Captions | None
    ) -> Given:
        """Conditions of checked requests: those of the held-out picture that each names, then what it says itself."""
        import torch

        vocabulary, keys = prior.vocabulary, held_out.keys if held_out else []
        places = {key: row for row, key in reversed(list(enumerate(keys)))}  # the first of several windows
        rows = [places.get(request.condition_key, -1) for request in requests]
        values = []
        for segment in vocabulary.segments:
            values_NL = np.full((len(requests), segment.length), -1, np.int64)
            if held_out is not None and max(rows) >= 0:
                theirs_ML = held_out.values(vocabulary, segment.kind)
                assert theirs_ML is not None
                values_NL = np.where(np.array(rows)[:, None] >= 0, theirs_ML[rows], values_NL)
            for row, request in enumerate(requests):
                if segment.kind == "class" and request.label:
                    values_NL[row] = prior.classes.index(request.label)
                if segment.kind == "caption" and request.caption:
                    assert captions is not None, "a prior that is told captions has their byte pairs"
                    values_NL[row] = captions.values([request.caption], segment.length)[0]
            values.append(torch.from_numpy(values_NL))
        theirs = held_out.captions if held_out else []
        return cls(
            vocabulary.condition(*values).numpy(),
            [request.condition_key for request in requests],
            [request.caption or (theirs[row] if row >= 0 else "") for request, row in zip(requests, rows, strict=True)],
            [held_out.variants[row] if held_out and row >= 0 else 0 for row in rows],
        )

    def of_samples(self, ids: Sequence[int], samples_per_condition: int) -> Given:
        """The conditions of some samples: each is that of `samples_per_condition` in a row, all are taken in turn."""
        return self.of_rows([sample_id // samples_per_condition % len(self) for sample_id in ids])

    def of_rows(self, rows: Sequence[int]) -> Given:
        """Some of the conditions, by number, perhaps several times."""
        return Given(
            self.condition_NC[list(rows)],
            *([values[row] for row in rows] for values in (self.keys, self.captions, self.variants)),  # type: ignore[arg-type]
        )

    def values(self, vocabulary: Vocabulary, kind: str) -> np.ndarray | None:
        """What one kind of condition says of each [N, L], -1 where it is not given; None where it is none of them."""
        import torch

        if kind not in [segment.kind for segment in vocabulary.segments]:
            return None
        values_NL: np.ndarray = vocabulary.values(torch.from_numpy(self.condition_NC), kind).numpy()
        return values_NL

    @property
    def digest(self) -> str:
        """Changes when a condition does."""
        known = hashlib.sha256(np.ascontiguousarray(self.condition_NC, dtype=np.int64).tobytes())
        known.update(repr((self.keys, self.captions, self.variants)).encode())
        return known.hexdigest()

    def columns(self) -> dict[str, Any]:
        """What the table of samples says of their conditions."""
        return {
            "caption": self.captions,
            "condition_key": self.keys,
            "condition_variant": self.variants,
            "condition_tokens": self.condition_NC.astype(np.int32),
        }
