"""Draws one unit of samples: its pictures as a shard, and a table of what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.units import Unit
from stages.data.images import encode_image
from stages.data.shards import Sample, write_shard
from stages.data.tables import write_table
from stages.models.cpu import prepare_cpu
from stages.sampling.filters import LogitFilter
from stages.sampling.generator import Generator
from stages.sampling.guidance import Guidance
from stages.sampling.noise import Draw
from stages.sampling.overview import UNSELECTED, UNSELECTED_KEPT
from stages.sampling.samples import Samples
from stages.sampling.scorers import Scorer
from stages.sampling.selection import Candidate, Selected, select
from stages.sampling.selection_config import SelectionConfig
from stages.sampling.wanted import Wanted


@dataclass(frozen=True)
class UnitDrawer:
    """Makes units of samples."""

    generator: Generator
    logit_filter: LogitFilter
    guidance: Guidance
    batch_size: int
    threads: int
    selection: SelectionConfig | None = None
    scorer: Scorer | None = None
    """Of the selection, if there is one."""

    def __call__(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write NAME.tar and NAME.parquet; return how many samples there are, and sums over them."""
        prepare_cpu(self.threads)
        wanted: Wanted = unit.payload
        selected = self.draw(wanted)
        samples = selected.samples
        captions = wanted.given.captions if wanted.given else samples.classes
        _write_pictures(folder, unit.name, wanted, selected.kept, captions)
        columns = self._columns(wanted, samples, selected)
        write_table(folder / f"{unit.name}.parquet", columns, {"tokenizer": unit.recipe["tokenizer"]})
        counts = {"samples": len(wanted), "log_likelihood": float(samples.log_likelihood_N.sum())}
        if wanted.size is not None:
            counts["tokens"] = int(samples.tokens_NT.size)
        if self.selection is None:
            return counts
        if wanted.slots[0].sample_id < UNSELECTED_KEPT:
            _write_pictures(folder, f"{UNSELECTED}-{unit.name}", wanted, selected.unselected, captions)
        return counts | _counts(selected, self.selection)

    def draw(self, wanted: Wanted) -> Selected:
        """Draw all candidates and choose among them."""
        generator, given, scorer = self.generator, wanted.given, self.scorer
        conditions_NC = generator.of_classes(wanted.labels) if given is None else given.condition_NC
        texts = given.captions if given else [""] * len(wanted)
        grid = generator.grid_of(wanted.size)
        if wanted.size is not None:
            conditions_NC = generator.conditioner.enlarged(conditions_NC, grid)

        def draw_batch(condition_BC: np.ndarray, draws: Sequence[Draw]) -> Samples:
            return generator.draw(
                condition_BC,
                draws,
                logit_filter=self.logit_filter,
                guidance=self.guidance,
                batch_size=self.batch_size,
                grid=grid,
            )

        def score(samples: Samples, places: Sequence[int]) -> np.ndarray:
            assert scorer is not None
            return scorer(samples, [texts[place] for place in places])

        return select(
            draw_batch,
            wanted.slots,
            conditions_NC,
            candidates=self.selection.candidates if self.selection else 1,
            score=score if scorer else None,
            batch_size=self.batch_size,
        )

    def _columns(self, wanted: Wanted, samples: Samples, selected: Selected) -> dict[str, Any]:
        slots = wanted.slots
        columns = samples.table() | {"id": [it.sample_id for it in slots], "key": [it.key for it in slots]}
        if wanted.given is not None:
            columns |= wanted.given.columns()
        if slots[0].request:
            columns |= {"request": [it.request for it in slots]}
        if wanted.size is not None:
            columns |= {"height": [wanted.size[0]] * len(slots), "width": [wanted.size[1]] * len(slots)}
        if self.selection is not None or slots[0].request:
            columns["noise_id"] = [it.noise_id for it in slots]
        if self.selection is not None:
            columns |= {
                "candidate": [it.number for it in selected.kept],
                "score": np.array([it.score for it in selected.kept]),
                "accepted": [_is_accepted(it.score, self.selection) for it in selected.kept],
                "candidate_scores": selected.scores_NK,
            }
        return columns


def _write_pictures(
    folder: Path, name: str, wanted: Wanted, pictures: Sequence[Candidate], captions: Sequence[str]
) -> None:
    rows = zip(wanted.slots, pictures, captions, strict=True)
    write_shard(
        folder,
        name,
        [
            Sample(slot.key, it.label, caption, slot.key, encode_image(it.picture_HWC, "png"))
            for slot, it, caption in rows
        ],
    )


def _is_accepted(score: float, selection: SelectionConfig) -> bool:
    return selection.min_score is None or score >= selection.min_score


def _counts(selected: Selected, selection: SelectionConfig) -> dict[str, float]:
    """Sums for the stage's figures. The candidates of a group are counted once, with its first slot here."""
    seen: set[int] = set()
    scores = []
    for slot, scores_K in zip(selected.slots, selected.scores_NK, strict=True):
        if slot.group not in seen:
            seen.add(slot.group)
            scores.append(scores_K)
    drawn = np.concatenate(scores)
    kept = np.array([it.score for it in selected.kept])
    return {
        "candidates": len(drawn),
        "score_of_all": float(drawn.sum()),
        "score_of_kept": float(kept.sum()),
        "accepted": int(sum(_is_accepted(score, selection) for score in drawn)),
        "kept_below": int(sum(not _is_accepted(score, selection) for score in kept)),
    }
