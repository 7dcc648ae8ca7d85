"""Tokenizers without unused codes: the same pictures from fewer numbers, and what unknown codes become."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from stages.models.quantizers.configs import (
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQQuantizerConfig,
    GradientQuantizerConfig,
    GumbelQuantizerConfig,
    LookupFreeQuantizerConfig,
)
from stages.models.tokenizer import Tokenizer
from stages.models.used_codes import keep_used_codes
from tests import peers
from tests.stages.models.quantizers.test_quantizer import make_tokenizer

CODEBOOKS = {
    config.kind: config
    for config in (
        EMAQuantizerConfig(num_codes=40, dim=4),
        CosineQuantizerConfig(num_codes=40, dim=4),
        GradientQuantizerConfig(num_codes=40, dim=4),
        GumbelQuantizerConfig(num_codes=40, dim=4),
    )
}
LATTICES = {config.kind: config for config in (FSQQuantizerConfig(levels=(8, 5)), LookupFreeQuantizerConfig(bits=6))}
FSQ = LATTICES["fsq"]


def pictures(seed: int = 1, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(config: Any) -> tuple[Tokenizer, Tensor]:
    """A tokenizer, and how often two pictures use its codes."""
    tokenizer = make_tokenizer(config)
    with torch.no_grad():  # spread out, so that two pictures use several codes but not all
        tokenizer.quant_conv.weight.mul_(6)
    return tokenizer, torch.bincount(tokenizer.encode(pictures()).flatten(), minlength=tokenizer.num_codes)


@pytest.mark.parametrize("unknown", ["nearest", "random", "extra", 0])
@pytest.mark.parametrize("config", (CODEBOOKS | LATTICES).values(), ids=CODEBOOKS | LATTICES)
def test_pictures_of_used_codes_come_back_bit_for_bit_from_fewer_numbers(config: Any, unknown: Any) -> None:
    tokenizer, counts_K = make(config)
    smaller = keep_used_codes(tokenizer, counts_K, unknown=unknown)
    used = counts_K.nonzero()[:, 0]

    assert 1 < len(used) < tokenizer.num_codes
    assert smaller.num_codes == smaller.config.quantizer.num_codes == len(used) + (unknown == "extra")
    assert torch.equal(used[smaller.encode(pictures())], tokenizer.encode(pictures()))
    assert torch.equal(smaller.reconstruct(pictures()), tokenizer.reconstruct(pictures()))
    others = smaller.encode(pictures(seed=5, count=6))
    assert int(others.max()) < smaller.num_codes


@pytest.mark.parametrize("config", CODEBOOKS.values(), ids=CODEBOOKS)
def test_a_codebook_itself_becomes_smaller_and_other_vectors_go_to_what_is_left(config: Any) -> None:
    tokenizer, counts_K = make(config)
    smaller = keep_used_codes(tokenizer, counts_K)
    used = counts_K.nonzero()[:, 0]
    assert smaller.config.quantizer == config.model_copy(update={"num_codes": len(used)})
    assert all(len(value) == len(used) for name, value in smaller.state_dict().items() if name.startswith("quantize."))
    x_BCHW = pictures(seed=5, count=6)
    agree = torch.isin(tokenizer.encode(x_BCHW), used)
    assert not agree.all()
    assert torch.equal(used[smaller.encode(x_BCHW)][agree], tokenizer.encode(x_BCHW)[agree])


@pytest.mark.parametrize("unknown", ["extra", 3])
def test_unknown_codes_become_what_taming_transformers_makes_of_them(unknown: Any, tmp_path: Any) -> None:
    import numpy as np

    tokenizer, counts_K = make(CODEBOOKS["gradient"])
    used = counts_K.nonzero()[:, 0]
    np.save(tmp_path / "used.npy", used.numpy())
    theirs = peers.quietly(
        peers.taming("modules.vqvae.quantize").VectorQuantizer2,
        40,
        4,
        0.25,
        remap=str(tmp_path / "used.npy"),
        unknown_index=unknown,
        sane_index_shape=True,
    )
    theirs.embedding.load_state_dict(tokenizer.quantize.embedding.state_dict())
    smaller = keep_used_codes(tokenizer, counts_K, unknown=unknown)
    x_BCHW = pictures(seed=5, count=6)
    with torch.no_grad():
        _, _, (_, _, expected_BHW) = theirs(tokenizer.quant_conv(tokenizer.encoder(x_BCHW)))
        indices_BHW = smaller.encode(x_BCHW)
        assert torch.equal(indices_BHW, expected_BHW)
        assert not torch.isin(tokenizer.encode(x_BCHW), used).all()
        codes_BCHW = theirs.get_codebook_entry(expected_BHW.clone(), tuple(z for z in (6, 4, 4, 4)))
    torch.testing.assert_close(smaller.quantize.embed(indices_BHW), codes_BCHW)


def test_unknown_codes_of_a_lattice_go_to_the_nearest_used_one() -> None:
    tokenizer, counts_K = make(FSQ)
    smaller = keep_used_codes(tokenizer, counts_K)
    used = counts_K.nonzero()[:, 0]
    codes_KC = tokenizer.quantize.embed(torch.arange(40).view(1, 1, -1))[0, :, 0].t()
    distances_KU = torch.cdist(codes_KC, codes_KC[used])
    chosen_K = smaller.quantize.new_K
    torch.testing.assert_close(distances_KU[torch.arange(40), chosen_K], distances_KU.amin(dim=1))


def test_what_random_becomes_is_drawn_once_for_each_code() -> None:
    tokenizer, counts_K = make(FSQ)
    tables = [keep_used_codes(tokenizer, counts_K, unknown="random").quantize.new_K for _ in range(2)]
    assert torch.equal(*tables)
    assert len(tables[0][counts_K == 0].unique()) > 3


def test_a_smaller_tokenizer_still_passes_gradients_and_its_codes_stay() -> None:
    tokenizer, counts_K = make(CODEBOOKS["gradient"])
    smaller = keep_used_codes(tokenizer, counts_K, unknown=0)
    smaller.requires_grad_(True)
    output = smaller(pictures(seed=5))
    torch.testing.assert_close(output.x_hat_BCHW.clamp(-1, 1), smaller.reconstruct(pictures(seed=5)))
    (gradient,) = torch.autograd.grad(output.x_hat_BCHW.square().sum(), smaller.quant_conv.weight)
    assert gradient.abs().max() > 0


def test_counts_and_numbers_that_do_not_fit_are_refused() -> None:
    tokenizer, counts_K = make(FSQ)
    with pytest.raises(DataError, match=r"39 codes were counted, the tokenizer has 40"):
        keep_used_codes(tokenizer, counts_K[:-1])
    with pytest.raises(DataError, match=r"no code occurs"):
        keep_used_codes(tokenizer, torch.zeros(40))
    with pytest.raises(ConfigError, match=r"unknown=40 is no number of \d+ used codes"):
        keep_used_codes(tokenizer, counts_K, unknown=40)
    with pytest.raises(ConfigError, match=r"numbered anew already"):
        keep_used_codes(keep_used_codes(tokenizer, counts_K), counts_K)
