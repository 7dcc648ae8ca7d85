"""Captions as tokens: byte pairs learnt from a corpus. The only file that imports tokenizers.

Shapes: N captions, L tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from pipeline.errors import DataError, shown

PADDING = "[PAD]"


def learn_captions(captions: Sequence[str], *, vocabulary_size: int) -> str:
    """The JSON of byte-pair tokens learnt from some captions: lower case, and no text is unknown."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    text: str = tokenizer.to_str(pretty=True)
    return text + "\n"


class Captions:
    """Turns captions into tokens as `learn_captions` learnt them."""

    def __init__(self, text: str) -> None:
        """Raises DataError where `text` is not what `learn_captions` returned."""
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own
            raise DataError(f"byte pairs of captions cannot be read ({shown(str(error))}): make them again") from None

    def __len__(self) -> int:
        """Values of a token, padding included."""
        return int(self._tokenizer.get_vocab_size())

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """Tokens that each whole caption needs: int64 [N]."""
        return np.array([len(it.ids) for it in self._tokenizer.encode_batch(list(captions))], dtype=np.int64)

    def values(self, captions: Sequence[str], length: int) -> np.ndarray:
        """int64 [N, L]: padded with 0, cut at `length`; an empty caption is -1 throughout, not known."""
        values_NL = np.zeros((len(captions), length), dtype=np.int64)
        for row_L, encoded in zip(values_NL, self._tokenizer.encode_batch(list(captions)), strict=True):
            ids = encoded.ids[:length]
            row_L[: len(ids)] = ids
            if not ids:
                row_L[:] = -1
        return values_NL

    def text(self, values_L: Sequence[int]) -> str:
        """The caption that some values stand for."""
        ids = [value for value in map(int, values_L) if value > 0]
        return str(self._tokenizer.decode(ids)).strip()
