"""What evaluation measures: the units, each with a recipe of all that its own bytes depend on, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.units import Unit

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.data.shards import Shard
    from stages.models.vocabulary import TokenSpace

CHANCE_UNITS = 2
FEATURES, INCEPTION = "features", "inception"
"""How names of units begin that look at pictures: through the packaged network, and through the standard Inception."""


def spread(shards: Sequence[Shard], wanted: int, available: int) -> list[Shard]:
    """Whole shards, evenly spaced over all of them, with about `wanted` pictures."""
    number = min(len(shards), -(-wanted * len(shards) // max(available, 1)))
    return [shards[index * len(shards) // number] for index in range(number)]


@dataclass(frozen=True)
class Planned:
    """The units of one evaluation; a new prior measures no real picture again."""

    splits: Mapping[str, Sequence[Shard]]
    """`train` (those that are looked at), `val` and `sample`."""
    space: TokenSpace
    """What the tokens of tokenizer and prior mean."""
    tokenizer: str
    """Digest of the tokenizer."""
    feature_size: int
    batch_size: int
    rows: Mapping[str, int | None]
    """How many rows of each token table of a split are looked at (None: all)."""

    @property
    def seeing(self) -> dict[str, Any]:
        """What every look at a picture depends on."""
        return {"image_size": self.space.image_size, "channels": self.space.channels, "batch_size": self.batch_size}

    def features(self) -> Iterator[Unit]:
        """Features of pictures, real and drawn, and all that is measured of reconstructions."""
        seeing = {**self.seeing, "network": "efficientnet-lite0", "feature_size": self.feature_size}
        for split in ("train", "val", "sample"):
            for shard in self.splits[split]:
                recipe = {"measure": "features", "shard": shard.digest, **seeing}
                yield Unit(f"{FEATURES}-{shard.name}", recipe, {"shard": shard})
        for shard in self.splits["val"]:
            recipe = {"measure": "reconstruction", "shard": shard.digest, **seeing, "tokenizer": self.tokenizer}
            yield Unit(f"reconstruction-{shard.name}", recipe, {"shard": shard})

    def inception(self, weights: str) -> Iterator[Unit]:
        """The same pictures and reconstructions as Inception of these weights (their sha256) sees them."""
        seeing = {**self.seeing, "weights": weights}
        for split in ("train", "val", "sample"):
            for shard in self.splits[split]:
                recipe = {"measure": "inception", "shard": shard.digest, **seeing}
                yield Unit(f"{INCEPTION}-{shard.name}", recipe, {"shard": shard})
        for shard in self.splits["val"]:
            recipe = {"measure": "inception_reconstruction", "shard": shard.digest, **seeing}
            recipe["tokenizer"] = self.tokenizer
            yield Unit(f"{INCEPTION}-reconstruction-{shard.name}", recipe, {"shard": shard})

    def chance(self, tokens: Artifact | None, code_counts: Sequence[int], pictures: int, seed: int) -> Iterator[Unit]:
        """Pictures decoded from random tokens: by the corpus' frequencies, or each code alike without a corpus."""
        network = {"network": "efficientnet-lite0", "feature_size": self.feature_size, "tokenizer": self.tokenizer}
        drawn = {"tokens": tokens.digest if tokens else None, **self.seeing, **network}
        counts = list(code_counts) if tokens else [1] * self.space.codebook_size
        for part in range(CHANCE_UNITS):
            count = pictures * (part + 1) // CHANCE_UNITS - pictures * part // CHANCE_UNITS
            recipe = {"measure": "chance", "num_pictures": count, "seed": [seed, part], **drawn}
            yield Unit(f"chance-{part:06d}", recipe, {"code_counts": counts})

    def likelihood(self, tokens: Artifact, prior: str, given: TokenSpace) -> Iterator[Unit]:
        """Bits of the pictures of token tables, whose space is `given`, under the prior of this digest."""
        names = {shard.name for split in ("train", "val") for shard in self.splits[split]}
        spaces = {"given": given, "wanted": self.space}
        same = (given.condition, given.classes) == (self.space.condition, self.space.classes)
        meaning = {} if same else {"classes": list(given.classes)}
        for unit, entry in tokens.unit_files(".parquet"):
            if unit.name in names:
                about = {
                    "prior": prior,
                    "tokens": unit.digest,
                    "rows": self.rows[unit.name.partition("-")[0]],
                    **meaning,
                }
                recipe = {"measure": "likelihood", "batch_size": self.batch_size, **about}
                yield Unit(f"likelihood-{unit.name}", recipe, {"table": tokens.file(entry.path), **spaces})
