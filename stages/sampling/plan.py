"""Cuts what is to be drawn into units: aligned blocks of ids that do not know how many samples there are in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.units import Unit
from stages.sampling.wanted import Slot, Wanted, plain_slots

if TYPE_CHECKING:
    from stages.sampling.given import Given

Size = tuple[int, int]


def plan_ids(
    drawing: Mapping[str, Any],
    num_samples: int,
    samples_per_unit: int,
    *,
    seed: int,
    keep: int,
    classes: Sequence[str],
    labels: Sequence[int],
    given: Given | None,
    samples_per_condition: int,
) -> list[Unit]:
    """Units of samples by number, of classes (`labels` of their names) or conditions in turn.

    `drawing` is what decides the pictures beside ids and conditions: the recipe's other keys.
    """
    units = []
    for first in range(0, num_samples, samples_per_unit):
        count = min(samples_per_unit, num_samples - first)
        slots = plain_slots(range(first, first + count), seed, keep)
        recipe = {**drawing, "classes": list(classes), "first_id": first, "count": count}
        if given is None:
            chosen = [labels[slot.sample_id // keep % len(labels)] if labels else -1 for slot in slots]
            wanted = Wanted(slots, chosen)
        else:
            own = given.of_samples([slot.sample_id for slot in slots], samples_per_condition)
            recipe["given"] = own.digest
            wanted = Wanted(slots, [], own)
        units.append(Unit(f"sample-{first // samples_per_unit:06d}", recipe, wanted))
    return units


def plan_requests(
    drawing: Mapping[str, Any],
    slots: Sequence[Slot],
    samples_per_unit: int,
    *,
    labels: Sequence[int],
    given: Given | None,
    sizes: Sequence[Size | None],
) -> list[Unit]:
    """Units of requested samples, one size each; `labels`, `given` and `sizes` say what each sample is.

    New rows at the end of the requests leave full units as they are.
    """
    units = []
    for size in sorted(set(sizes), key=lambda it: it or (0, 0)):
        places = [place for place, it in enumerate(sizes) if it == size]
        stem = "sample" if size is None else f"sample-{size[0]}x{size[1]}"
        for number, start in enumerate(range(0, len(places), samples_per_unit)):
            chosen = places[start : start + samples_per_unit]
            own = given.of_rows(chosen) if given else None
            wanted = Wanted([slots[it] for it in chosen], [] if own else [labels[it] for it in chosen], own, size)
            units.append(Unit(f"{stem}-{number:06d}", {**drawing, "wanted": wanted.digest}, wanted))
    return units
