"""Redrawing parts of a given picture: the lower rows, a hole, what lies beyond its edges, or tokens here and there.

A prior draws a token from those before it alone. Kept tokens that come later (in raster order those below, and to the
right in the same row) have no say, unless several candidates are drawn: then the one is kept that makes them likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from pipeline.errors import ConfigError, DataError
from stages.sampling.asking import Ask
from stages.sampling.noise import Draw, GumbelNoise
from stages.sampling.pictures import PictureLike, cut_mask, cut_picture
from stages.sampling.sight import what_it_sees

if TYPE_CHECKING:
    from stages.sampling.generator import Generator
    from stages.sampling.samples import Samples

# Shapes: N pictures, M candidates of each, H W C picture; R rows and K columns of tokens, T of them in all.

Facts = dict[str, Any]


@dataclass(frozen=True)
class Finish:
    """How a redrawn hole is chosen and joined to its picture."""

    candidates: int = 1
    """Holes drawn for each picture, of which one is kept, see `choose`."""
    paste: bool = True
    """Put the given picture's own pixels back where nothing was to be redrawn."""
    feather: int | None = None
    """Pixels outside the hole over which drawn and given pixels mix. Default: half a token."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"candidates={self.candidates} must be at least 1")
        if self.feather is not None and self.feather < 0:
            raise ConfigError(f"feather={self.feather} must not be negative")


def complete(generator: Generator, ask: Ask, picture: PictureLike, keep: float) -> list[Image.Image]:
    """Draw the rows of tokens below the upper share `keep` of them."""
    if not 0 <= keep < 1:
        raise ConfigError(f"keep={keep} must be at least 0 and below 1: it is the share of rows that stays")
    picture_HWC, tokens_RK = _encoded(generator, picture)
    redrawn_RK = np.zeros(tokens_RK.shape, bool)
    redrawn_RK[min(round(keep * len(tokens_RK)), len(tokens_RK) - 1) :] = True
    return redraw(generator, ask, picture_HWC, tokens_RK, redrawn_RK, Finish(), edit="complete")


def inpaint(
    generator: Generator, ask: Ask, picture: PictureLike, mask: PictureLike, dilate: int, how: Finish
) -> list[Image.Image]:
    """Draw every token again that has a masked pixel; `dilate` widens the mask by so many pixels on all sides.

    Raises DataError for a mask that marks nothing or does not lie over the picture.
    """
    if dilate < 0:
        raise ConfigError(f"dilate={dilate} must not be negative")
    picture_HWC, tokens_RK = _encoded(generator, picture)
    masked_HW = cut_mask(mask, picture, generator.conditioner.preparation)
    if not masked_HW.any():
        raise DataError("the mask marks nothing: paint white what is to be redrawn")
    if dilate:
        wider = Image.fromarray(masked_HW.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * dilate + 1))
        masked_HW = np.asarray(wider) > 0
    factor = generator.tokenizer.config.factor
    redrawn_RK = np.any(_blocks(masked_HW, factor), axis=(1, 3))
    return redraw(generator, ask, picture_HWC, tokens_RK, redrawn_RK, how, edit="inpaint", masked_HW=masked_HW)


def outpaint(
    generator: Generator, ask: Ask, picture: PictureLike, sides: tuple[int, int, int, int], feather: int | None
) -> list[Image.Image]:
    """Draw so many pixels beyond the left, upper, right and lower edge of a picture, through a sliding window."""
    factor = generator.tokenizer.config.factor
    if min(sides) < 0 or not any(sides) or any(pixels % factor for pixels in sides):
        named = ", ".join(f"{name}={n}" for name, n in zip(("left", "top", "right", "bottom"), sides, strict=True))
        raise ConfigError(f"{named}: give at least one side, all as multiples of {factor}, a token's pixels")
    picture_HWC, tokens_RK = _encoded(generator, picture)
    left, top, right, bottom = sides
    canvas_HWC = np.pad(picture_HWC, ((top, bottom), (left, right), (0, 0)), mode="edge")
    margins = ((top // factor, bottom // factor), (left // factor, right // factor))
    redrawn_RK = np.pad(np.zeros(tokens_RK.shape, bool), margins, constant_values=True)
    how = Finish(feather=feather)
    return redraw(generator, ask, canvas_HWC, np.pad(tokens_RK, margins), redrawn_RK, how, edit="outpaint")


def vary(generator: Generator, ask: Ask, picture: PictureLike, strength: float, candidates: int) -> list[Image.Image]:
    """Draw the share `strength` of the tokens again, each where seed and number choose; a larger one redraws the
    same and more. 0 gives the picture as the tokenizer has it, 1 a picture of its own."""
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength={strength} must be from 0 to 1: it is the share of tokens that is redrawn")
    picture_HWC, tokens_RK = _encoded(generator, picture)
    count, T = round(strength * tokens_RK.size), tokens_RK.size
    redrawn_NT = np.zeros((ask.count, T), bool)
    for row_T, draw in zip(redrawn_NT, ask.draws(), strict=True):
        row_T[np.argsort(-GumbelNoise([draw]).at(T, T)[0], kind="stable")[:count]] = True
    redrawn_NRK = redrawn_NT.reshape(-1, *tokens_RK.shape)
    how = Finish(candidates=candidates, paste=False)
    return redraw(generator, ask, picture_HWC, tokens_RK, redrawn_NRK, how, edit="vary")


def redraw(
    generator: Generator,
    ask: Ask,
    picture_HWC: np.ndarray,
    tokens_RK: np.ndarray,
    redrawn: np.ndarray,
    how: Finish,
    *,
    edit: str,
    masked_HW: np.ndarray | None = None,
) -> list[Image.Image]:
    """Draw the tokens `redrawn` ([R, K], or [N, R, K] where each picture has its own) again, the others stay.

    Pixels outside `masked_HW` (default: of the redrawn tokens) are the given picture's, where that is pasted back.
    """
    grid = tokens_RK.shape
    if how.candidates > 1 and grid != tuple(generator.prior.grid):
        raise ConfigError("candidates: the likelihood of kept tokens is known within the prior's own grid alone: use 1")
    redrawn_NRK = np.broadcast_to(redrawn, (ask.count, *grid))
    known_NRK = np.where(redrawn_NRK, -1, tokens_RK)
    samples, more = _draw_candidates(generator, ask, known_NRK, how.candidates)
    pictures_NHWC = samples.pictures_NHWC
    if how.paste:
        factor = generator.tokenizer.config.factor
        hole_HW = redrawn_NRK[0].repeat(factor, 0).repeat(factor, 1) if masked_HW is None else masked_HW
        feather = factor // 2 if how.feather is None else how.feather
        pictures_NHWC = np.stack([paste(drawn, picture_HWC, hole_HW, feather) for drawn in pictures_NHWC])
    facts = [
        {"edit": edit} | fact | extra | {"sight": str(what_it_sees(generator.prior, redrawn_RK))}
        for fact, extra, redrawn_RK in zip(facts_of(ask, samples), more, redrawn_NRK, strict=True)
    ]
    return to_pictures(pictures_NHWC, facts)


def paste(drawn_HWC: np.ndarray, given_HWC: np.ndarray, hole_HW: np.ndarray, feather: int) -> np.ndarray:
    """Given pixels outside the hole, drawn ones in it; over `feather` pixels outside they mix by their distance."""
    from scipy.ndimage import distance_transform_edt

    distance_HW = distance_transform_edt(~hole_HW)
    drawn_share_HW1 = np.clip(1 - distance_HW / (feather + 1), 0, 1)[:, :, None]
    mixed_HWC = drawn_share_HW1 * drawn_HWC + (1 - drawn_share_HW1) * given_HWC
    return np.asarray(np.round(mixed_HWC).astype(np.uint8))


def choose(log_weights_NM: np.ndarray, draws: Sequence[Draw], place: int) -> np.ndarray:
    """One candidate of each picture [N], with probability in proportion to its weight.

    Where the weight is the likelihood of what comes after the hole, this is sampling importance resampling (Rubin,
    1987): with more and more candidates, holes follow the prior's distribution given all kept tokens. `place` is one
    whose noise nothing else uses.
    """
    noise_NM = GumbelNoise(draws).at(place, log_weights_NM.shape[1])
    chosen_N: np.ndarray = (log_weights_NM + noise_NM).argmax(axis=1)
    return chosen_N


def _draw_candidates(
    generator: Generator, ask: Ask, known_NRK: np.ndarray, candidates: int
) -> tuple[Samples, list[Facts]]:
    """Draw `candidates` of each picture at once; return the chosen ones, and what is known of the choice."""
    draws = [draw._replace(candidate=candidate) for draw in ask.draws() for candidate in range(candidates)]
    grid: tuple[int, int] = known_NRK.shape[1:]
    condition_1C = generator.conditioner.tokens(ask, grid)
    samples = generator.draw(
        condition_1C.repeat(len(draws), axis=0),
        draws,
        logit_filter=ask.logit_filter,
        guidance=ask.guided,
        batch_size=min(len(draws), 64) if ask.batch_size is None else ask.batch_size,
        known_NRK=known_NRK.repeat(candidates, axis=0),
        grid=grid,
    )
    if candidates == 1:
        return samples, [{} for _ in range(ask.count)]
    T = known_NRK[0].size
    nats_NMT = generator.nats(condition_1C.repeat(len(draws), axis=0), samples.tokens_NT).reshape(-1, candidates, T)
    after_NMT = np.broadcast_to(comes_after(known_NRK, generator.prior.order)[:, None], nats_NMT.shape)
    log_weights_NM = -np.where(after_NMT, nats_NMT, 0).sum(axis=2)
    chosen_N = choose(log_weights_NM, ask.draws(), T + 1)
    facts = [
        {"candidate": int(chosen), "kept_log_likelihood": round(float(weights_M[chosen]), 3)}
        for chosen, weights_M in zip(chosen_N, log_weights_NM, strict=True)
    ]
    return samples.of_rows([number * candidates + int(chosen) for number, chosen in enumerate(chosen_N)]), facts


def comes_after(known_NRK: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Which tokens are known and come after the first unknown one: bool [N, T]."""
    known_NT = known_NRK.reshape(len(known_NRK), -1) >= 0
    found_NT = np.zeros_like(known_NT)
    found_NT[:, order] = known_NT[:, order] & (~known_NT[:, order]).cumsum(axis=1).astype(bool)
    return found_NT


def facts_of(ask: Ask, samples: Samples) -> list[Facts]:
    """What a picture's file is to say of how it was drawn."""
    return [
        {
            "seed": draw.seed,
            "id": draw.sample_id,
            **({"class": name} if name else {}),
            **ask.facts(),
            "log_likelihood": round(float(nats), 3),
        }
        for draw, name, nats in zip(samples.draws, samples.classes, samples.log_likelihood_N, strict=True)
    ]


def to_pictures(pictures_NHWC: np.ndarray, facts: Sequence[Facts]) -> list[Image.Image]:
    """PIL pictures that carry their facts as `info`."""
    found = []
    for picture_HWC, fact in zip(pictures_NHWC, facts, strict=True):
        picture = Image.fromarray(picture_HWC[:, :, 0] if picture_HWC.shape[2] == 1 else picture_HWC)
        picture.info.update(fact)
        found.append(picture)
    return found


def _encoded(generator: Generator, picture: PictureLike) -> tuple[np.ndarray, np.ndarray]:
    """The picture as the tokenizer takes it, and its tokens."""
    picture_HWC = cut_picture(picture, generator.conditioner.preparation)
    return picture_HWC, generator.encode(picture_HWC[None])[0]


def _blocks(array_HW: np.ndarray, factor: int) -> np.ndarray:
    """The pixels of each token: [R, factor, K, factor]."""
    height, width = array_HW.shape
    return array_HW.reshape(height // factor, factor, width // factor, factor)
