"""The figures that papers print, as other tools compute them: no weights, all pictures as they come.

Names say which. `g` is of samples (generation), `r` of reconstructions; `_val` is against held-out pictures, `_train`
against training pictures, `_reference` against somebody else's statistics. `fid` is a Frechet distance with the
standard Inception's weights and nothing else: `gfid_train`, `rfid_val`. With other weights of it the name is
`gfd_inception_train`, with the packaged network `gfd_lite0_train`.
Legend: N pictures, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.figures import Figure, Looked, features_digest, figure
from stages.metrics.frechet_distance import frechet, frechet_to_reference
from stages.metrics.inception_score import SPLITS, inception_score
from stages.metrics.kernel_distance import SUBSETS, kid, kid_of_subsets
from stages.metrics.measured import SMALLEST_CLASS
from stages.metrics.moments import Moments
from stages.metrics.neighbours import NEIGHBOURHOOD, overlap
from stages.metrics.picture_set import PictureSet
from stages.metrics.weighting import Estimate, Weighting, bootstrap_share

WORDS = {
    "train": "training pictures",
    "val": "held-out pictures",
    "samples": "samples",
    "reconstructions": "reconstructions of held-out pictures",
}

FEATURES = {"lite0": "EfficientNet features", "inception": "other weights"}
"""What figures are called through networks that are not the field's own."""
TITLES = {"fid": "FID", "fd": "FD", "kid": "KID", "precision": "Precision", "recall": "Recall"}


@dataclass(frozen=True)
class Network:
    """What looks at pictures."""

    name: str
    digest: str
    """sha256 of its weights."""
    distance: str
    """How a Frechet distance through it is called: `fid` through the standard Inception alone."""
    tag: str
    """What tells names of its figures from those of others; empty for the standard Inception."""
    class_weights_KD: NDArray[np.float32]
    """Of its classifier, whose logits the Inception score is taken of."""
    class_bias_K: NDArray[np.float32] | None = None

    @property
    def described(self) -> dict[str, str]:
        """For report.json."""
        return {"name": self.name, "digest": self.digest}


class Seen(NamedTuple):
    """One set of pictures as a network sees them; those of a group resemble one another."""

    features_ND: NDArray[np.float32]
    group_N: NDArray[np.int64] | None = None

    @property
    def pictures(self) -> PictureSet:
        """Every picture counts alike."""
        return PictureSet.plain(self.features_ND, self.group_N)


class Imported(NamedTuple):
    """Statistics that somebody else computed: through the standard Inception, one hopes."""

    moments: Moments
    name: str
    digest: str
    """sha256 of the file."""


@dataclass(frozen=True)
class Standard:
    """The figures through one network."""

    network: Network
    sets: Mapping[str, Seen]
    """`train`, `val`, `samples`, `reconstructions`."""
    statistics: Mapping[str, Moments]
    """Of the sets of real pictures that figures are taken against: `train`, `val`, or one of them."""
    seed: int

    def figures(self, imported: Imported | None = None) -> dict[str, Figure]:
        """All of them by name."""
        return {name: {**it, "title": _title(name)} for name, it in self._all(imported)}

    def _all(self, imported: Imported | None) -> Iterator[tuple[str, Figure]]:
        tag, distance = self.network.tag, self.network.distance
        if min(len(seen.features_ND) for seen in self.sets.values()) < SMALLEST_CLASS:
            return
        for split in self.statistics:
            yield f"g{distance}{tag}_{split}", self._frechet("samples", split)
            yield f"gkid{tag}_{split}", self._kid("samples", split)
            yield from self._overlap(split)
        if "val" in self.statistics:
            yield f"r{distance}{tag}_val", self._frechet("reconstructions", "val", paired=True)
            yield f"rkid{tag}_val", self._kid("reconstructions", "val", paired=True)
        for name in ("samples", "val"):
            if len(self.sets[name].features_ND) >= SPLITS:
                yield f"is{tag}_{name}", self._score(name)
        if imported is not None:
            looked = {"what": imported.name, "pictures": None, "digest": imported.digest}
            value = frechet_to_reference(self._pictures["samples"], imported.moments)
            yield f"g{distance}{tag}_reference", self._figure("samples", value, self._distance_words, "lower", looked)

    @cached_property
    def _pictures(self) -> dict[str, PictureSet]:
        return {name: seen.pictures for name, seen in self.sets.items()}

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: features_digest(self.sets[name].features_ND) for name in self.statistics}

    @property
    def _distance_words(self) -> str:
        name = "FID" if self.network.distance == "fid" else "squared Fr\u00e9chet distance"
        return f"{name}; the fewer pictures, the higher it comes out"

    def _frechet(self, name: str, split: str, *, paired: bool = False) -> Figure:
        pictures = self._pictures[name]
        if split == "train":  # the reference of all runs on these data: taken as it is
            value = frechet_to_reference(pictures, self.statistics[split])
        else:
            value = frechet(pictures, self._pictures[split], paired=paired)
        return self._figure(name, value, self._distance_words, "lower", self._against(split, moments=True))

    def _kid(self, name: str, split: str, *, paired: bool = False) -> Figure:
        x, y = self._pictures[name], self._pictures[split]
        over = kid_of_subsets(x.features_ND, y.features_ND)
        what = (
            f"KID over all pairs, unbiased; `subset_mean` is the mean over {SUBSETS} random subsets of {over.size:,}, "
            "as papers print it"
        )
        made = self._figure(name, kid(x, y, paired=paired), what, "lower", self._against(split))
        subsets = {"subset_mean": over.mean, "subset_std": over.std, "subset_size": over.size, "subsets": SUBSETS}
        return {**made, **subsets}

    def _overlap(self, split: str) -> Iterator[tuple[str, Figure]]:
        x, y = self.sets["samples"], self.sets[split]
        if min(len(x.features_ND), len(y.features_ND)) <= NEIGHBOURHOOD:
            return
        found, tag = overlap(x.features_ND, y.features_ND), self.network.tag
        reach = "a picture reaches to its third neighbour in its own set; interval for this reach"
        precision = f"share of samples within reach of one of the {WORDS[split]}; {reach}"
        recall = f"share of {WORDS[split]} within reach of a sample; {reach}"
        for name, values_N, seen, what in (
            (f"gprecision{tag}_{split}", found.inside_N, x, precision),
            (f"grecall{tag}_{split}", found.reached_M, y, recall),
        ):
            share = self._share(values_N, Weighting.plain(len(values_N), seen.group_N))
            yield name, self._figure("samples", share, what, "higher", self._against(split))

    def _share(self, values_N: NDArray[np.float64], weighting: Weighting) -> Estimate:
        return bootstrap_share(lambda weight_N: float(weight_N @ values_N), weighting, seed=self.seed)

    def _score(self, name: str) -> Figure:
        logits_NK = self.sets[name].features_ND @ self.network.class_weights_KD.T
        if self.network.class_bias_K is not None:
            logits_NK = logits_NK + self.network.class_bias_K
        what = f"Inception score of {WORDS[name]}, averaged over {SPLITS} parts; the fewer pictures, the lower"
        looked = {"what": "nothing", "pictures": None, "digest": None}
        return self._figure(name, inception_score(logits_NK), what, "higher", looked)

    def _against(self, split: str, *, moments: bool = False) -> dict[str, Any]:
        digest = self.statistics[split].digest if moments else self._digests[split]
        return {"what": WORDS[split], "pictures": len(self.sets[split].features_ND), "digest": digest}

    def _figure(self, name: str, value: Estimate, what: str, better: Any, reference: dict[str, Any]) -> Figure:
        against = "" if reference["what"] == "nothing" else f" against {reference['what']}"
        on = f"{WORDS[name]}{against}, unweighted; {self.network.name}"
        looked = Looked(self.network.described, reference)
        sizes = {"samples": len(self.sets[name].features_ND), "against": reference["pictures"]}
        return figure(value, what, on, better, looked=looked, **sizes)


def _title(name: str) -> str:
    """`gfid_train` as people write it, gFID (train), with the features where they are not those of the field."""
    kind, *between, against = name.split("_")
    through = f", {FEATURES[between[0]]}" if between else ""
    if kind == "is":
        return f"Inception score ({against})" if not between else f"Score of classes ({against}{through})"
    return f"{kind[0]}{TITLES[kind[1:]]} ({against}{through})"
