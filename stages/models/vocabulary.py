"""Which integers mean what to a prior: the codebook's codes, then the classes, then the null class, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: B batch, C condition tokens.


@dataclass(frozen=True)
class Vocabulary:
    """Token ranges: [0, num_codes) image, [num_codes, num_codes + num_classes) class, and last the null class.

    Image and condition never share a row of the embedding table (in taming-transformers they do), so a class
    can neither be drawn as an image token nor lend its vector to a code.
    """

    num_codes: int
    num_classes: int

    @property
    def condition_length(self) -> int:
        """Condition tokens in front of the image tokens."""
        return 1

    @property
    def null_token(self) -> int:
        """Stands for "no class": the unconditional branch of guidance, unlabelled pictures."""
        return self.num_codes + self.num_classes

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.num_codes + self.num_classes + 1

    def condition(self, labels_B: Tensor) -> Tensor:
        """Condition tokens [B, 1] of class labels [B]; a negative label, or a vocabulary without classes, is null."""
        tokens_B1 = (labels_B.long() + self.num_codes)[:, None]
        return self.drop(tokens_B1, labels_B < 0) if self.num_classes else self.null_condition(tokens_B1)

    def null_condition(self, like_BC: Tensor) -> Tensor:
        """Condition tokens of the null class in the shape of `like_BC`."""
        return like_BC.new_full(like_BC.shape, self.null_token)

    def drop(self, condition_BC: Tensor, dropped_B: Tensor) -> Tensor:
        """`condition_BC` with the rows marked in the boolean `dropped_B` replaced by the null class."""
        return condition_BC.masked_fill(dropped_B[:, None], self.null_token)


class TokenSpace(StrictModel):
    """What a picture's tokens mean: whose codes they are, how many, in which grid, under which classes."""

    tokenizer: str
    """Content digest of the tokenizer artifact that makes and reads the tokens."""
    codebook_size: int = Field(gt=0)
    """Number of codes."""
    grid: tuple[int, int]
    """Token rows and columns of a picture."""
    classes: tuple[str, ...]
    """Class names; a label is a place in this list."""
    image_size: int = Field(gt=0)
    """Side of the square pictures in pixels."""
    channels: int = Field(gt=0)
    """Colour channels of the pictures: 1 or 3."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def vocabulary(self) -> Vocabulary:
        """The prior's token ranges."""
        return Vocabulary(num_codes=self.codebook_size, num_classes=len(self.classes))


class TokenCorpus(TokenSpace):
    """The content of `tokens.json`: the token space of an encoded corpus and its size."""

    num_train: int = Field(ge=0)
    """Token rows of the train split; every variant of a picture counts."""
    num_val: int = Field(ge=0)
    """Token rows of the validation split."""

    @property
    def space(self) -> TokenSpace:
        """The same without the sizes."""
        return TokenSpace(**{name: getattr(self, name) for name in TokenSpace.model_fields})
