"""What a tokenizer learns from where stored pictures are larger than it wants: windows, held out the middle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from stages.data.loader import load_all
from stages.data.shards import open_split
from stages.models.label_maps import one_hot
from stages.models.losses.configs import MapLossConfig
from stages.models.tokenizer_config import LightBackboneConfig, TokenizerModelConfig
from stages.training.adversarial import picture_gradient
from stages.training.reconstruction import HeldOut
from stages.training.tokenizer_config import MapTokenizerConfig, TokenizerConfig
from stages.training.tokenizer_data import check_data, training_stream
from tests.stages.tiny import tiny_shards
from tests.stages.training.gangs import rank_of

MODEL = TokenizerModelConfig(backbone=LightBackboneConfig(channels=(16, 16), residual_blocks=(0, 0)))


def test_training_sees_windows_and_validation_the_middle(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path)
    config = TokenizerConfig(model=MODEL, image_size=8, batch_size=4)
    check_data(config, shards)
    batch_BCHW = next(iter(training_stream(config, shards, ClusterConfig(), rank_of(0, 1), start_step=0)))
    assert batch_BCHW.shape == (4, 3, 8, 8)
    val = open_split(shards, "val")
    held_out = HeldOut.load(val, image_size=8, channels=3, limit=2, rank=0, world=1)
    assert np.array_equal(held_out.slice_NHWC, load_all(val, 3)[0][:, 4:12, 4:12])


def test_a_picture_size_above_the_stored_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size 32 is larger than the stored pictures of 16: lower it"):
        check_data(TokenizerConfig(model=MODEL, image_size=32), tiny_shards(tmp_path))


def test_maps_are_learnt_without_perceptual_and_adversarial_loss_unless_asked_for() -> None:
    losses = MapTokenizerConfig.model_validate({"losses": {"l1_weight": 2.0, "discriminator": {"start": 5}}}).losses
    assert (losses.perceptual_weight, losses.discriminator.weight, losses.discriminator.start) == (0.0, 0.0, 5)
    asked = MapTokenizerConfig.model_validate({"losses": {"discriminator": {"weight": 0.5}}}).losses
    assert asked.discriminator.weight == 0.5


def test_label_maps_need_their_own_loss_alone() -> None:
    assert MapTokenizerConfig().of_labels(9).model.labels == 9
    with pytest.raises(ConfigError, match=r"perceptual_weight=0\.1 and discriminator\.weight=0.*set both to 0"):
        MapTokenizerConfig.model_validate({"losses": {"perceptual_weight": 0.1}}).of_labels(9)


def test_logits_of_a_label_map_get_the_gradient_of_their_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    x_B1HW = torch.randint(0, 5, (3, 1, 4, 4), generator=generator).double() / 127.5 - 1
    logits_BKHW = torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=generator)
    gradient = picture_gradient(
        x_B1HW,
        logits_BKHW,
        losses=MapLossConfig(),
        perceptual=None,
        discriminator=None,
        batch_size=6,  # type: ignore[arg-type]
    )
    expected = (logits_BKHW.sigmoid() - one_hot(x_B1HW, 5)) / (5 * 16) / 6
    torch.testing.assert_close(gradient.reconstruction_BCHW, expected, rtol=0, atol=1e-12)
    assert list(gradient.terms) == ["reconstruction"]
