"""Maps of class numbers: one-hot in, the likeliest class out, and the reference's loss."""

import math

import torch

from stages.data.images import to_model_range, to_uint8
from stages.models.label_maps import label_accuracy, label_cross_entropy, most_likely, one_hot
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig

LABELS = 7


def label_map(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, LABELS, (2, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_class_numbers_become_channels_and_come_back() -> None:
    x_B1HW = to_model_range(label_map())
    planes_BKHW = one_hot(x_B1HW, LABELS)
    assert planes_BKHW.shape == (2, LABELS, 8, 8)
    assert torch.equal(planes_BKHW.argmax(1), label_map()[..., 0].long())
    assert torch.equal(torch.from_numpy(to_uint8(most_likely(planes_BKHW))), label_map())


def test_the_loss_is_the_binary_cross_entropy_of_each_class_by_itself() -> None:
    x_B1HW = to_model_range(label_map()).double()
    logits_BKHW = torch.randn(2, LABELS, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for b in range(2):
        total = 0.0
        for k in range(LABELS):
            for y in range(8):
                for x in range(8):
                    likely = 1 / (1 + math.exp(-logits_BKHW[b, k, y, x].item()))
                    total -= math.log(likely if label_map()[b, y, x, 0].item() == k else 1 - likely)
        assert abs(label_cross_entropy(logits_BKHW, x_B1HW)[b].item() - total / (LABELS * 64)) < 1e-9


def test_accuracy_counts_pixels_of_the_right_class() -> None:
    x_B1HW = to_model_range(label_map())
    wrong = x_B1HW.clone()
    wrong[0, 0, :2] = 1.0
    assert label_accuracy(x_B1HW, x_B1HW).tolist() == [1.0, 1.0]
    assert label_accuracy(wrong, x_B1HW).tolist() == [0.75, 1.0]


def test_a_tokenizer_of_label_maps_learns_them() -> None:
    torch.manual_seed(0)
    config = TokenizerModelConfig(
        backbone=LightBackboneConfig(channels=(16, 16), residual_blocks=(0, 0)),
        quantizer=EMAQuantizerConfig(num_codes=16, dim=8),
        labels=LABELS,
    )
    tokenizer = Tokenizer(config, image_size=8, channels=1)
    x_B1HW = to_model_range(
        label_map().repeat_interleave(1, 0)[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    )
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        output = tokenizer(x_B1HW)
        assert output.x_hat_BCHW.shape == (2, LABELS, 8, 8)
        loss = label_cross_entropy(output.x_hat_BCHW, x_B1HW).mean()
        optimizer.zero_grad()
        (loss + output.codebook_loss_B.mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    rebuilt_B1HW = tokenizer.reconstruct(x_B1HW)
    assert rebuilt_B1HW.shape == x_B1HW.shape
    assert label_accuracy(rebuilt_B1HW, x_B1HW).mean() > 0.7
