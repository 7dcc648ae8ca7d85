"""A trained tokenizer and prior as one thing that draws pictures, for the sample stage and for anyone's own script.

generator = Generator.load("runs")
generator.generate(label="flags", seed=3)[0].save("flag.png")
generator.inpaint("flag.png", "mask.png", label="flags", candidates=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, get_args

import numpy as np
import torch
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.storage import Folder
from stages.data.images import to_model_range, to_uint8
from stages.models.precision import DrawingPrecision, drawing_dtype
from stages.models.pretrained import fetched
from stages.models.priors.load import load_prior
from stages.models.priors.prior import Prior
from stages.models.tokenizer import Tokenizer
from stages.sampling import editing
from stages.sampling.asking import Ask, Asked
from stages.sampling.bundle import Parts
from stages.sampling.canvas import Grid, draw_on_grid
from stages.sampling.conditioning import Conditioner
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance
from stages.sampling.noise import Draw, GumbelNoise
from stages.sampling.pictures import PictureLike
from stages.sampling.samples import Samples
from stages.sampling.sight import Sight, what_it_sees

# Shapes: N samples, B batch, C condition tokens (of a picture: channels), T image tokens, H W picture; tokens on their
# grid: R rows, K columns.


class Generator:
    """Draws pictures; what (draw, condition) give depends on the batch's shape, not on the others in it."""

    def __init__(
        self, tokenizer: Tokenizer, prior: Prior, parts: Parts, map_tokenizer: Tokenizer | None = None
    ) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.parts = parts
        self.classes = parts.description.classes
        self.conditioner = Conditioner(parts, map_tokenizer)
        self.device = next(prior.parameters()).device
        # That of a half-precision prior's matrices; the rest of it stays in float32.
        halves = {weights.dtype for weights in prior.parameters()} & {torch.bfloat16, torch.float16}
        self.half = halves.pop() if halves else None

    @classmethod
    def load(cls, place: str | Path, *, device: str | None = None, precision: DrawingPrecision = "fp32") -> Generator:
        """Load a finished run by its workdir, a bundle that `save` wrote, or an import; nothing there is executed.

        Of a run it is the version in use (`parts.version`), or what was made last where none was published, with the
        tokenizer that its prior was trained with. `device` defaults to a GPU if there is one; `precision` is the
        prior's arithmetic, the tokenizer's is fp32. Raises ConfigError naming what is missing, and
        DataError for files that are damaged.
        """
        device = _usable(device)
        if precision not in (known := get_args(DrawingPrecision)):
            raise ConfigError(f"precision {precision!r}: choose {', '.join(known)}")
        return cls._of_parts(Parts.find(place), device, precision)

    @classmethod
    def of_folders(
        cls,
        tokenizer_folder: Folder | Path,
        prior_folder: Folder | Path,
        *,
        device: str = "cpu",
        precision: DrawingPrecision = "fp32",
    ) -> Generator:
        """Load both from their own folders. Raises ConfigError where they do not fit each other."""
        parts = Parts(str(prior_folder), Folder.at(str(tokenizer_folder)), Folder.at(str(prior_folder)))
        return cls._of_parts(parts, device, precision)

    @classmethod
    def _of_parts(cls, parts: Parts, device: str, precision: DrawingPrecision) -> Generator:
        tokenizer, prior = Tokenizer.load(fetched(parts.tokenizer), device), parts.description
        ours, theirs = (tokenizer.num_codes, tuple(tokenizer.grid)), (prior.codebook_size, prior.grid)
        if ours != theirs:
            raise ConfigError(
                f"the tokenizer in {parts.tokenizer} has codebook size and grid {ours}, the prior in {parts.prior} "
                f"expects {theirs}: load the tokenizer that the prior was trained with, {prior.tokenizer[:12]}"
            )
        maps = Tokenizer.load(fetched(parts.map_tokenizer), device) if parts.map_tokenizer else None
        network = load_prior(fetched(parts.prior), device).for_drawing(drawing_dtype(precision, device))
        return cls(tokenizer, network, parts, maps)

    def save(self, folder: str | Path) -> None:
        """Write a bundle: plain files that `load` takes anywhere, and that draw the same pictures, bit for bit."""
        self.parts.write(folder)

    def generate(self, *, size: tuple[int, int] | None = None, **asked: Unpack[Asked]) -> list[Image.Image]:
        """Draw `count` pictures of what is asked; the keywords are the fields of `Ask`.

        `size` is (height, width) in pixels, above the prior's own through a sliding window. A picture's `info` says
        how it was drawn. Raises ConfigError where this prior cannot be asked so.
        """
        ask = Ask(**asked)
        grid = self.grid_of(size)
        samples = self.draw(
            self.conditioner.tokens(ask, grid).repeat(ask.count, axis=0),
            ask.draws(),
            logit_filter=ask.logit_filter,
            guidance=ask.guided,
            batch_size=ask.rows,
            grid=grid,
        )
        return editing.to_pictures(samples.pictures_NHWC, editing.facts_of(ask, samples))

    def complete(self, picture: PictureLike, *, keep: float = 0.5, **asked: Unpack[Asked]) -> list[Image.Image]:
        """Keep the upper share `keep` of a picture's rows of tokens and draw the rest."""
        return editing.complete(self, Ask(**asked), picture, keep)

    def inpaint(
        self,
        picture: PictureLike,
        mask: PictureLike,
        *,
        dilate: int = 0,
        candidates: int = 1,
        paste: bool = True,
        feather: int | None = None,
        **asked: Unpack[Asked],
    ) -> list[Image.Image]:
        """Redraw what is white in the mask: every token that has a masked pixel; see `editing.inpaint`."""
        how = editing.Finish(candidates=candidates, paste=paste, feather=feather)
        return editing.inpaint(self, Ask(**asked), picture, mask, dilate, how)

    def outpaint(
        self,
        picture: PictureLike,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        feather: int | None = None,
        **asked: Unpack[Asked],
    ) -> list[Image.Image]:
        """Draw so many pixels beyond each side of a picture, through a sliding window; multiples of a token's side."""
        return editing.outpaint(self, Ask(**asked), picture, (left, top, right, bottom), feather)

    def vary(
        self, picture: PictureLike, *, strength: float = 0.5, candidates: int = 1, **asked: Unpack[Asked]
    ) -> list[Image.Image]:
        """Redraw the share `strength` of a picture's tokens, at places that seed and number choose."""
        return editing.vary(self, Ask(**asked), picture, strength, candidates)

    def what_it_sees(self, redrawn_RK: np.ndarray) -> Sight:
        """What a prior knows of the kept tokens while it draws the others (true in a grid of any size)."""
        return what_it_sees(self.prior, redrawn_RK)

    def encode(self, pictures_NHWC: np.ndarray) -> np.ndarray:
        """uint8 pictures to their tokens on the grid [N, R, K]."""
        with torch.inference_mode():
            tokens_NRK: np.ndarray = self.tokenizer.encode(to_model_range(pictures_NHWC).to(self.device)).cpu().numpy()
        return tokens_NRK

    def nats(self, condition_NC: np.ndarray, tokens_NT: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Negative log-likelihood of each token given those before it: [N, T], float64."""
        parts = []
        for start in range(0, len(tokens_NT), batch_size):
            rows = slice(start, start + batch_size)
            condition_BC, tokens_BT = (
                torch.from_numpy(array[rows]).long().to(self.device) for array in (condition_NC, tokens_NT)
            )
            with torch.inference_mode(), torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                parts.append(self.prior.loss(condition_BC, tokens_BT)[1].double().cpu().numpy())
        return np.concatenate(parts)

    def of_classes(self, labels: Sequence[int]) -> np.ndarray:
        """Condition tokens [N, C] of pictures of which only the class is given; label -1: not even that."""
        vocabulary = self.prior.vocabulary
        unknown = sorted({label for label in labels if not -1 <= label < len(self.classes)})
        if unknown:
            raise ConfigError(f"labels {unknown} are unknown: use 0 to {len(self.classes) - 1}, or -1 for no class")
        given_N = torch.tensor(labels, dtype=torch.long)
        unknown_N = torch.full_like(given_N, -1)
        values = [
            given_N if segment.kind == "class" else unknown_N[:, None].expand(-1, segment.length)
            for segment in vocabulary.segments
        ]
        return vocabulary.condition(*values).numpy()

    def draw(
        self,
        condition_NC: np.ndarray,
        draws: Sequence[Draw],
        *,
        logit_filter: LogitFilter | None = None,
        guidance: Guidance | float = 1.0,
        batch_size: int = 64,
        known_NRK: np.ndarray | None = None,
        grid: Grid | None = None,
    ) -> Samples:
        """Draw one picture for each (condition, draw); conditions as `of_classes` or a table of tokens has them.

        Tokens of `known_NRK` that are not negative stay. A `grid` (rows, columns) of tokens larger than the prior's is
        drawn through a sliding window.
        Every batch has exactly `batch_size` rows, the last one padded: the order of additions in a matrix product
        depends on its shape, so only a fixed shape gives the same bits wherever a sample lands.
        """
        grid = grid or self.prior.grid
        conditions_NC = torch.from_numpy(condition_NC).long()
        pictures, likelihoods, tokens = [], [], []
        for start in range(0, len(draws), batch_size):
            count = min(batch_size, len(draws) - start)
            rows = [min(start + row, len(draws) - 1) for row in range(batch_size)]
            tokens_BRK, log_likelihood_B = draw_on_grid(
                self.prior,
                conditions_NC[rows].to(self.device),
                GumbelNoise([draws[row] for row in rows]),
                grid,
                logit_filter=logit_filter,
                guidance=guidance,
                known_BRK=None if known_NRK is None else torch.from_numpy(known_NRK[rows]).long().to(self.device),
            )
            with torch.inference_mode():
                x_BCHW = self.tokenizer.decode(tokens_BRK)
            pictures.append(to_uint8(x_BCHW)[:count])
            likelihoods.append(log_likelihood_B[:count].cpu().numpy())
            tokens.append(tokens_BRK[:count].flatten(1).cpu().numpy())
        labels = self._labels(conditions_NC, grid)
        return Samples(
            pictures_NHWC=np.concatenate(pictures),
            draws=list(draws),
            labels=labels,
            classes=[self.classes[label] if label >= 0 else "" for label in labels],
            log_likelihood_N=np.concatenate(likelihoods),
            tokens_NT=np.concatenate(tokens),
        )

    def _labels(self, conditions_NC: torch.Tensor, grid: Grid) -> list[int]:
        vocabulary = self.conditioner.vocabulary(grid)
        if "class" not in (segment.kind for segment in vocabulary.segments):
            return [-1] * len(conditions_NC)
        labels: list[int] = vocabulary.values(conditions_NC, "class")[:, 0].tolist()
        return labels

    def grid_of(self, size: tuple[int, int] | None) -> Grid:
        """Token rows and columns of a picture of (height, width) pixels. Raises ConfigError where there are none."""
        factor, side = self.tokenizer.config.factor, self.tokenizer.image_size
        height, width = size or (side, side)
        if height % factor or width % factor or min(height, width) < side:
            fitting = tuple(max(side, -(-pixels // factor) * factor) for pixels in (height, width))
            raise ConfigError(
                f"size {height}x{width}: height and width must be multiples of {factor} and at least {side}: try "
                f"{fitting[0]}x{fitting[1]}"
            )
        return height // factor, width // factor


def _usable(device: str | None) -> str:
    """The device of this name, by default a GPU if there is one. Raises ConfigError where it cannot be used."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from None
    return device
