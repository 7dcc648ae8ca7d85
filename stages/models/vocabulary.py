"""Which integers mean what to a prior: the codebook's codes, then a range for each condition, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from pipeline.config import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: B batch, C condition tokens of all segments, L condition tokens of one, G segments.

Side = Annotated[int, Field(gt=0, le=1024)]
"""Tokens along one side of a picture."""


class Segment(StrictModel):
    """One condition as the prior sees it: `length` tokens in front of the picture, from a range of their own."""

    kind: str
    """What it says of the picture: class, caption, edges ...; `none` is a start token that says nothing."""
    length: int = Field(gt=0, le=2**20)
    """Tokens."""
    size: int = Field(ge=0)
    """Values of a token; the range has one more, the learned null that stands for "not given"."""
    grid: tuple[int, int] | None = None
    """Rows and columns, where the tokens lie over the picture."""
    tokenizer: str | None = None
    """Content digest of the tokenizer artifact that made the tokens; null where none did."""

    @model_validator(mode="after")
    def _grid_holds_the_tokens(self) -> Segment:
        if self.grid is not None and self.grid[0] * self.grid[1] != self.length:
            raise ValueError(f"a grid of {self.grid[0]}x{self.grid[1]} does not hold {self.length} tokens")
        return self


@dataclass(frozen=True)
class Vocabulary:
    """Token ranges: [0, num_codes) image, then for each segment its values and its null.

    Image and condition never share a row of the embedding table (in taming-transformers they do), so a condition
    can neither be drawn as an image token nor lend its vector to a code.
    """

    num_codes: int
    segments: tuple[Segment, ...]

    @classmethod
    def by_class(cls, num_codes: int, num_classes: int) -> Vocabulary:
        """The vocabulary of pictures conditioned on their class alone."""
        return cls(num_codes, (Segment(kind="class", length=1, size=num_classes),))

    @property
    def condition_length(self) -> int:
        """Condition tokens in front of the image tokens."""
        return sum(segment.length for segment in self.segments)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each segment's range in the embedding table."""
        sizes = (segment.size + 1 for segment in self.segments)
        return tuple(accumulate(sizes, initial=self.num_codes))[:-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of each segment's first token among the condition tokens."""
        return tuple(accumulate((segment.length for segment in self.segments), initial=0))[:-1]

    @property
    def null_tokens(self) -> tuple[int, ...]:
        """The null of each segment: the unconditional branch of guidance, pictures of which it is not known."""
        return tuple(offset + segment.size for offset, segment in zip(self.offsets, self.segments, strict=True))

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.num_codes + sum(segment.size + 1 for segment in self.segments)

    def condition(self, *values: Tensor) -> Tensor:
        """Condition tokens [B, C] of each segment's values [B, L] (or [B] where L is 1); a negative value is null.

        A segment without values (`size` 0) is null whatever it is given.
        """
        import torch

        pairs = zip(self.segments, values, strict=True)
        tokens = [
            self.tokens_of(number, given.reshape(len(given), segment.length))
            for number, (segment, given) in enumerate(pairs)
        ]
        return torch.cat(tokens, dim=1)

    def tokens_of(self, number: int, values: Tensor) -> Tensor:
        """Table tokens of values of segment `number`, in any shape; negative ones are null."""
        segment, offset = self.segments[number], self.offsets[number]
        unknown = (values < 0) | (segment.size == 0)
        return (values.long() + offset).masked_fill(unknown, offset + segment.size)

    def values(self, condition_BC: Tensor, kind: str) -> Tensor:
        """The values [B, L] of one segment of condition tokens: undoes `condition`, -1 is null."""
        for segment, offset, start in zip(self.segments, self.offsets, self.starts, strict=True):
            if segment.kind == kind:
                values_BL = condition_BC[:, start : start + segment.length] - offset
                return values_BL.masked_fill(values_BL == segment.size, -1)
        raise KeyError(kind)

    def null_condition(self, like_BC: Tensor) -> Tensor:
        """Condition tokens of pictures of which nothing is known, in the shape of `like_BC`."""
        return self._null_row(like_BC).expand_as(like_BC)

    def drop(self, condition_BC: Tensor, dropped_BG: Tensor) -> Tensor:
        """`condition_BC` with the segments marked in the boolean `dropped_BG` replaced by their nulls, as wholes."""
        import torch

        columns = [
            dropped_BG[:, number : number + 1].expand(-1, segment.length)
            for number, segment in enumerate(self.segments)
        ]
        return torch.where(torch.cat(columns, dim=1), self._null_row(condition_BC), condition_BC)

    def _null_row(self, like_BC: Tensor) -> Tensor:
        nulls = zip(self.segments, self.null_tokens, strict=True)
        return like_BC.new_tensor([[null for segment, null in nulls for _ in range(segment.length)]])


class TokenSpace(StrictModel):
    """What a picture's tokens mean: whose codes they are, how many, in which grid, under which conditions."""

    tokenizer: str
    """Content digest of the tokenizer artifact that makes and reads the tokens."""
    codebook_size: int = Field(gt=0)
    """Number of codes."""
    grid: tuple[Side, Side]
    """Token rows and columns of a picture."""
    classes: tuple[str, ...]
    """Class names of the data; a label is a place in this list."""
    condition: tuple[Segment, ...] = Field(min_length=1, max_length=64)
    """The condition tokens in front of a picture's own. Default, and in descriptions older than this key: its class."""
    image_size: int = Field(gt=0)
    """Side of the square pictures in pixels."""
    channels: int = Field(gt=0)
    """Colour channels of the pictures: 1 or 3."""

    @model_validator(mode="before")
    @classmethod
    def _condition_is_the_class(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "condition" not in fields and "classes" in fields:
            return {**fields, "condition": ({"kind": "class", "length": 1, "size": len(fields["classes"])},)}
        return fields

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def vocabulary(self) -> Vocabulary:
        """The prior's token ranges."""
        return Vocabulary(self.codebook_size, self.condition)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the conditions that say something, in their order."""
        return tuple(segment.kind for segment in self.condition if segment.size)


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
