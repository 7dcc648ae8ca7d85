"""The Generator: loading, fixed batch shapes, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError
from stages.models.layers.packed_linear import PackedLinear
from stages.models.precision import DrawingPrecision
from stages.models.priors.configs import PriorDescription
from stages.models.priors.load import build_prior
from stages.sampling.asking import Ask
from stages.sampling.generator import Generator
from stages.sampling.noise import draws_of
from tests.stages.sampling.bundles import class_bundle
from tests.stages.tiny import tiny_prior, tiny_tokenizer


def folder_of(artifact: Artifact) -> Path:
    return artifact.local("model.safetensors").parent


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    workdir = tmp_path_factory.mktemp("generator")
    tokenizer = tiny_tokenizer(workdir)
    return Generator.of_folders(folder_of(tokenizer), folder_of(tiny_prior(workdir, tokenizer)))


def test_a_sample_has_the_same_bits_in_whatever_company_it_is_drawn(generator: Generator) -> None:
    labels = [n % 3 for n in range(10)]
    whole = generator.draw(generator.of_classes(labels), draws_of(3, range(10)), batch_size=4)
    alone = generator.draw(generator.of_classes([labels[7]]), draws_of(3, [7]), batch_size=4)
    assert np.array_equal(alone.pictures_NHWC[0], whole.pictures_NHWC[7])
    assert np.array_equal(alone.tokens_NT[0], whole.tokens_NT[7])
    assert alone.log_likelihood_N[0] == whole.log_likelihood_N[7]


def test_seeds_and_ids_give_different_pictures(generator: Generator) -> None:
    one = generator.draw(generator.of_classes([0] * 6), draws_of(3, range(6)), batch_size=6)
    other = generator.draw(generator.of_classes([0] * 6), draws_of(4, range(6)), batch_size=6)
    assert len(np.unique(one.tokens_NT, axis=0)) > 3
    assert not np.array_equal(one.tokens_NT, other.tokens_NT)


def test_pictures_have_the_size_and_range_of_the_tokenizers(generator: Generator) -> None:
    drawn = generator.draw(generator.of_classes([0, -1]), draws_of(0, [5, 6]), batch_size=2)
    assert drawn.pictures_NHWC.shape == (2, 16, 16, 3)
    assert drawn.pictures_NHWC.dtype == np.uint8
    assert drawn.classes == ["cats", ""]
    assert drawn.keys == ["s00000005", "s00000006"]
    assert list(drawn.table()) == ["id", "key", "seed", "label", "class", "log_likelihood", "tokens"]


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
def test_the_priors_precision_is_chosen_when_it_is_loaded(tmp_path: Path, precision: DrawingPrecision) -> None:
    generator = Generator.load(class_bundle(tmp_path / "b"), precision=precision, device="cpu")
    linear = generator.prior.blocks[0].attention.qkv  # type: ignore[index,union-attr]
    types = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = linear.matrix_dtype if isinstance(linear, PackedLinear) else linear.weight.dtype  # type: ignore[union-attr]
    assert found == types[precision]
    assert next(generator.tokenizer.parameters()).dtype == torch.float32
    ask = Ask(label="owls", count=6)
    drawn = generator.draw(generator.conditioner.tokens(ask).repeat(6, 0), ask.draws(), batch_size=6)
    exact = Generator.load(tmp_path / "b", precision="fp64")
    nats = exact.nats(generator.conditioner.tokens(ask).repeat(6, 0), drawn.tokens_NT)
    np.testing.assert_allclose(
        drawn.log_likelihood_N, -nats.sum(1), rtol={"bf16": 0.03, "fp16": 1e-3}.get(precision, 1e-5)
    )


def test_pictures_of_one_seed_are_numbered_and_each_has_its_own_noise(tmp_path: Path) -> None:
    generator = Generator.load(class_bundle(tmp_path / "b"), precision="fp64")
    few, many = generator.generate(count=2, seed=9), generator.generate(count=5, seed=9)
    assert [it.info["id"] for it in many] == [0, 1, 2, 3, 4]
    # In another batch last bits differ, which may round a pixel the other way.
    for one, other in zip(few, many, strict=False):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert len({it.tobytes() for it in many}) == 5


def test_an_unknown_label_is_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match=r"labels \[3\] are unknown: use 0 to 2"):
        generator.of_classes([0, 3])


def test_a_tokenizer_that_does_not_fit_the_prior_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    fitting = tiny_prior(tmp_path, tokenizer)
    text = (folder_of(fitting) / "config.json").read_bytes()
    description = PriorDescription.model_validate_json(text).model_copy(update={"codebook_size": 21})
    (tmp_path / "other").mkdir()
    build_prior(description).save(tmp_path / "other", description)
    with pytest.raises(ConfigError, match=r"\(20, \(2, 2\)\), the prior in .* expects \(21, \(2, 2\)\)"):
        Generator.of_folders(folder_of(tokenizer), tmp_path / "other")
