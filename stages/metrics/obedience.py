"""Whether samples show what the prior was told: one figure a condition, beside its like for shuffled conditions.

Each also stands beside what held-out pictures reach that went through the tokenizer: what a perfect prior would.
Legend: N pictures, D features, K classes or words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.metrics.figures import Better, Figure, figure
from stages.metrics.places import Windows, place_errors
from stages.metrics.retrieval import CANDIDATES, caption_places
from stages.metrics.ridge import Ridge
from stages.metrics.weighting import Estimate, Weighting, bootstrap_mean, bootstrap_share

Values = NDArray[np.float64]
Integers = NDArray[np.int64]

RAREST_WORD = 2
"""Training captions that a word must be in to count."""

WHAT_IS_FOUND = {
    "edges": "F1 of the edges of a picture against those it was drawn from, one pixel apart at most",
    "segmentation": (
        "share of pixels that have the class they were drawn for, by a ridge classifier of the colours around each "
        "pixel, learnt from training pictures"
    ),
    "alpha": (
        "intersection over union of a picture's opaque area with the one it was drawn from, in a picture all but what "
        "can be reached from its border through white, which transparency is laid over"
    ),
}
"""Of maps that are not compared in dB."""


@dataclass(frozen=True)
class Pictures:
    """Some pictures, and what they are said to show."""

    features_ND: NDArray[np.float32]
    labels_N: Integers
    captions: Sequence[str]
    groups_N: Integers
    """Pictures of one group resemble one another, or were drawn from one condition."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def of(self, kept_N: NDArray[np.bool_]) -> Pictures:
        """Some of them."""
        captions = [caption for caption, kept in zip(self.captions, kept_N, strict=True) if kept]
        return Pictures(self.features_ND[kept_N], self.labels_N[kept_N], captions, self.groups_N[kept_N])


def class_obedience(train: Pictures, rebuilt: Pictures, samples: Pictures, seed: int) -> dict[str, Figure]:
    """How often a classifier, learnt from training pictures, takes samples for the class they were drawn of."""
    samples = samples.of(samples.labels_N >= 0)
    num_classes = int(max(train.labels_N.max(initial=-1), samples.labels_N.max(initial=-1), rebuilt.labels_N.max())) + 1
    if not len(samples) or num_classes < 2:
        return {}
    guess = Ridge.fit(train.features_ND, np.eye(num_classes)[train.labels_N])

    def right(pictures: Pictures, labels_N: Integers) -> Values:
        return np.asarray(guess(pictures.features_ND).argmax(1) == labels_N, np.float64)

    shuffled_N = np.random.default_rng(seed).permutation(samples.labels_N)
    values = {
        "": (right(samples, samples.labels_N), samples.groups_N),
        "_shuffled": (right(samples, shuffled_N), samples.groups_N),
        "_possible": (right(rebuilt, rebuilt.labels_N), rebuilt.groups_N),
    }
    what = f"share taken for their own class by a ridge classifier learnt from {len(train):,} training pictures"
    return _figures("class", values, f"{what}, on pooled features of EfficientNet-Lite0", "higher", seed, _share)


def caption_obedience(train: Pictures, rebuilt: Pictures, samples: Pictures, seed: int) -> dict[str, Figure]:
    """At which place among `CANDIDATES` captions the own one comes, by words that features of the picture promise."""
    rng = np.random.default_rng(seed)
    words = _Words.of(train.captions)
    samples = samples.of(np.array([bool(caption) for caption in samples.captions], bool))
    others = sorted({caption for caption in rebuilt.captions if caption})
    if not len(samples) or len(others) < CANDIDATES or not len(words.weight_K):
        return {}
    promise = Ridge.fit(train.features_ND, words.vectors(train.captions))

    def places(pictures: Pictures, captions: Sequence[str]) -> Values:
        promised_NK = _unit(promise(pictures.features_ND))
        own_N = (promised_NK * words.vectors(captions)).sum(1)
        scores_NM = promised_NK @ words.vectors(others).T
        return caption_places(own_N, scores_NM, captions, others, rng)

    mixed = [samples.captions[place] for place in rng.permutation(len(samples))]
    values = {
        "": (places(samples, samples.captions), samples.groups_N),
        "_shuffled": (places(samples, mixed), samples.groups_N),
        "_possible": (places(rebuilt, rebuilt.captions), rebuilt.groups_N),
    }
    what = (
        f"mean place of a picture's own caption among {CANDIDATES} of held-out pictures, 1 is best and "
        f"{(CANDIDATES + 1) / 2:g} is chance: by a ridge regression from pooled features of EfficientNet-Lite0 to the "
        f"words of captions, learnt from {len(train):,} training pictures"
    )
    return _figures("caption", values, what, "lower", seed, bootstrap_mean)


def coordinate_obedience(
    train: Windows, rebuilt: Windows, samples: Windows, shuffled_N2: Values, seed: int
) -> dict[str, Figure]:
    """How far from the place they were drawn for samples seem to lie in a picture."""
    if not len(train.places_N2) or not len(samples.places_N2) or not np.ptp(train.places_N2, axis=0).any():
        return {}
    own_N, others_N, possible_N = place_errors(
        train,
        (samples.features_ND, samples.places_N2),
        (samples.features_ND, shuffled_N2),
        (rebuilt.features_ND, rebuilt.places_N2),
    )
    values = {
        "": (own_N, samples.groups_N),
        "_shuffled": (others_N, samples.groups_N),
        "_possible": (possible_N, rebuilt.groups_N),
    }
    what = (
        "mean distance, in shares of the picture's side, between the middle of the window that was asked for and where "
        f"a ridge regression from thumbnails sees it, learnt from windows of {len(train.places_N2):,} training pictures"
    )
    return _figures("coordinates", values, what, "lower", seed, bootstrap_mean)


def map_obedience(
    kind: str, samples_N: Values, shuffled_N: Values, rebuilt_N: Values, groups: Mapping[str, Integers], seed: int
) -> dict[str, Figure]:
    """How close the maps of samples come to those they were drawn from; `groups` of "samples" and "rebuilt"."""
    values = {
        "": (samples_N, groups["samples"]),
        "_shuffled": (shuffled_N, groups["samples"]),
        "_possible": (rebuilt_N, groups["rebuilt"]),
    }
    psnr = f"PSNR in dB of the {kind.replace('_', ' ')} map of a picture against the one it was drawn from"
    return _figures(kind, values, WHAT_IS_FOUND.get(kind, psnr), "higher", seed, bootstrap_mean)


def _share(values_N: Values, weighting: Weighting, *, seed: int) -> Estimate:
    return bootstrap_share(lambda weight_N: float(weight_N @ values_N), weighting, seed=seed)


def _figures(
    kind: str,
    values: Mapping[str, tuple[Values, Integers]],
    what: str,
    better: Better,
    seed: int,
    estimate: Callable[..., Estimate],
) -> dict[str, Figure]:
    on = {
        "": "samples and what each was drawn from",
        "_shuffled": "samples and what others were drawn from: obeying nothing",
        "_possible": "held-out pictures through the tokenizer and back, and what is true of them: as well as can be",
    }
    return {
        f"obedience_{kind}{suffix}": figure(
            estimate(values_N, Weighting.plain(len(values_N), groups_N), seed=seed),
            what,
            on[suffix],
            better,
            samples=len(values_N),
        )
        for suffix, (values_N, groups_N) in values.items()
    }


@dataclass(frozen=True)
class _Words:
    """Captions as vectors of their words, rare ones weighing more (inverse document frequency, Sparck Jones 1972)."""

    number: Mapping[str, int]
    weight_K: Values

    @classmethod
    def of(cls, captions: Sequence[str]) -> _Words:
        counts = Counter(word for caption in captions for word in _split(caption))
        kept = sorted(word for word, count in counts.items() if count >= RAREST_WORD)
        weights = np.log(len(captions) / np.array([counts[word] for word in kept], np.float64))
        return cls({word: number for number, word in enumerate(kept)}, weights)

    def vectors(self, captions: Sequence[str]) -> Values:
        """Vectors [N, K] of length 1; of captions without a known word, 0."""
        vectors_NK = np.zeros((len(captions), len(self.weight_K)))
        for vector_K, caption in zip(vectors_NK, captions, strict=True):
            numbers = [self.number[word] for word in _split(caption) if word in self.number]
            vector_K[numbers] = self.weight_K[numbers]
        return _unit(vectors_NK)


def _split(caption: str) -> set[str]:
    return set(re.findall(r"\w+", caption.lower()))


def _unit(vectors_NK: Values) -> Values:
    lengths_N1 = np.linalg.norm(vectors_NK, axis=1, keepdims=True)
    unit_NK: Values = vectors_NK / np.maximum(lengths_N1, 1e-12)
    return unit_NK
