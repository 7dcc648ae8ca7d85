"""The gated PixelCNN against masked convolutions, its field of view, its conditions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.priors.configs import PixelCNNConfig
from stages.models.priors.gated_block import GatedBlock
from stages.models.priors.pixelcnn import PixelCNN
from stages.models.vocabulary import Segment, Vocabulary

CODES, CLASSES, GRID = 7, 3, (5, 6)


VOCABULARY = Vocabulary(
    CODES, (Segment(kind="class", length=1, size=CLASSES), Segment(kind="edges", length=9, size=5, grid=(3, 3)))
)


def make_pixelcnn(dtype: torch.dtype = torch.float64, kernel_size: int = 3, num_blocks: int = 6) -> PixelCNN:
    """A model with a map and logits far from uniform."""
    torch.manual_seed(0)
    config = PixelCNNConfig(num_blocks=num_blocks, width=8, head_width=9, kernel_size=kernel_size, dropout=0)
    model = PixelCNN(config, vocabulary=VOCABULARY, grid=GRID)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.to(dtype).eval()


def some_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(CODES, CODES + CLASSES + 1, (2, 10)), torch.randint(0, CODES, (2, 30))


class MaskedPixelCNN:
    """The same network with square kernels of random values, of which masks hide what is not to be seen."""

    def __init__(self, model: PixelCNN) -> None:
        self.model, self.side = model, model.config.kernel_size
        middle = self.side // 2
        self.kernels = []
        for number, block in enumerate(model.blocks):
            vertical, horizontal = torch.randn(2, *self.square(block.out.weight), dtype=block.out.weight.dtype) / 8
            vertical_mask, horizontal_mask = torch.zeros(2, self.side, self.side, dtype=vertical.dtype)
            vertical_mask[: middle + 1] = 1
            horizontal_mask[middle, : middle + (number > 0)] = 1
            with torch.no_grad():
                block.vertical.weight.copy_(vertical[:, :, : middle + 1])
                block.horizontal.weight.copy_(horizontal[:, :, middle : middle + 1, : middle + (number > 0)])
            self.kernels.append((vertical * vertical_mask, horizontal * horizontal_mask))

    def square(self, out_weight: Tensor) -> tuple[int, int, int, int]:
        return 2 * len(out_weight), len(out_weight), self.side, self.side

    def __call__(self, condition_BC: Tensor, tokens_BT: Tensor) -> Tensor:
        model, (rows, columns) = self.model, GRID
        table, projection = model.token_embedding.weight, model.condition_projection
        x = table[tokens_BT].view(2, rows, columns, -1).permute(0, 3, 1, 2)
        nearest = [[3 * ((2 * row + 1) * 3 // (2 * rows)) + (2 * column + 1) * 3 // (2 * columns)
                    for column in range(columns)] for row in range(rows)]  # fmt: skip
        s_BHPW = table[condition_BC[:, 1:]][:, torch.tensor(nearest)]
        s_BHPW = s_BHPW + (table[condition_BC[:, 0]] @ projection.weight.T + projection.bias)[:, None, None]
        v = h = x
        for block, (vertical, horizontal) in zip(model.blocks, self.kernels, strict=True):
            v, h = self.block(block, vertical, horizontal, v, h, s_BHPW)
        features = (h.permute(0, 2, 3, 1).relu() @ model.hidden.weight.T + model.hidden.bias).relu()
        return (features @ model.head.weight.T).flatten(1, 2)

    def block(
        self, block: GatedBlock, vertical: Tensor, horizontal: Tensor, v: Tensor, h: Tensor, s_BHPW: Tensor
    ) -> tuple[Tensor, Tensor]:
        width = len(block.out.weight)
        condition = (s_BHPW @ block.condition.weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
        middle = self.side // 2
        seen = F.conv2d(v, vertical, block.vertical.bias, padding=middle)
        seen = self.norm(seen, block.vertical_norm) + condition[:, : 2 * width]
        lower = torch.cat([torch.zeros_like(seen[:, :, :1]), seen[:, :, :-1]], dim=2)
        link, out = block.vertical_to_horizontal, block.out
        from_above = F.conv2d(lower, link.weight, link.bias)
        beside = F.conv2d(h, horizontal, block.horizontal.bias, padding=middle) + from_above
        beside = self.norm(beside, block.horizontal_norm) + condition[:, 2 * width :]
        gated = torch.tanh(beside[:, :width]) * torch.sigmoid(beside[:, width:])
        change = F.conv2d(gated, out.weight, out.bias)
        next_v = torch.tanh(seen[:, :width]) * torch.sigmoid(seen[:, width:])
        return next_v, change if block is self.model.blocks[0] else h + change

    @staticmethod
    def norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        deviation = x - x.mean(1, keepdim=True)
        scaled = deviation / (deviation.square().mean(1, keepdim=True) + norm.eps).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_it_equals_masked_convolutions(dtype: torch.dtype, tolerance: float, kernel_size: int) -> None:
    model = make_pixelcnn(dtype, kernel_size)
    masked = MaskedPixelCNN(model)
    logits_BTV, expected_BTV = model(*some_batch()), masked(*some_batch())
    assert expected_BTV.std() > 0.1
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=0, atol=tolerance)


def test_gradients_come_from_all_earlier_tokens_and_no_later_ones() -> None:
    """No blind spot: 7 layers of 3x3 windows reach 6 rows up and as many columns to either side."""
    model = make_pixelcnn()
    embedded = []

    def remember(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.token_embedding.register_forward_hook(remember)
    condition_BC, tokens_BT = some_batch()
    logits_BTV = model(condition_BC, tokens_BT)
    (x_BTW,) = [output for output in embedded if output.shape[1] == 30]
    weights_V = torch.randn(CODES, dtype=torch.float64)
    for place in range(30):
        (gradient_BTW,) = torch.autograd.grad((logits_BTV[:, place] @ weights_V).sum(), x_BTW, retain_graph=True)
        reached_T = gradient_BTW.abs().sum(dim=(0, 2)) > 0
        assert reached_T.tolist() == [earlier < place for earlier in range(30)]


def test_a_view_of_few_blocks_is_a_widening_triangle() -> None:
    """With two layers of 3x3 windows: two places to the left, three rows up, two columns to either side."""
    model = make_pixelcnn(num_blocks=1)
    condition_BC, tokens_BT = some_batch()
    place, seen = 4 * 6 + 3, set()
    for other in range(30):
        changed_BT = tokens_BT.clone()
        changed_BT[:, other] = (changed_BT[:, other] + 1) % CODES
        if not torch.equal(model(condition_BC, changed_BT)[:, place], model(condition_BC, tokens_BT)[:, place]):
            seen.add(divmod(other, 6))
    assert seen == {(4, 1), (4, 2)} | {(row, column) for row in (1, 2, 3) for column in range(1, 6)}


@torch.inference_mode()
def test_cached_steps_see_the_map() -> None:
    model, (condition_BC, tokens_BT) = make_pixelcnn(), some_batch()
    cache = model.new_cache(2)
    found = [model.prefill(condition_BC, cache)]
    found += [model.step(tokens_BT[:, t], t, cache) for t in range(29)]
    torch.testing.assert_close(torch.stack(found, dim=1), model(condition_BC, tokens_BT), rtol=0, atol=1e-11)


@torch.inference_mode()
def test_a_map_is_seen_from_the_first_place_below_it_on() -> None:
    """The map's last token lies over rows 3 and 4, columns 4 and 5; the one above it over row 2; a class over all."""
    model, (condition_BC, tokens_BT) = make_pixelcnn(), some_batch()
    for changed, first in ((9, 22), (6, 16), (0, 0)):
        other_BC = condition_BC.clone()
        other_BC[:, changed] = torch.where(other_BC[:, changed] == CODES, CODES + 1, CODES)
        moved_T = (model(other_BC, tokens_BT) != model(condition_BC, tokens_BT)).any(dim=-1).any(dim=0)
        assert moved_T.tolist() == [place >= first for place in range(30)]


def test_a_condition_that_is_only_a_map_needs_no_projection() -> None:
    config = PixelCNNConfig(num_blocks=1, width=8, head_width=9)
    only_map = Vocabulary(CODES, (Segment(kind="depth", length=4, size=5, grid=(2, 2)),))
    model = PixelCNN(config, vocabulary=only_map, grid=(2, 4))
    logits_BTV = model(torch.tensor([[7, 8, 9, 10], [7, 7, 7, 7]]), torch.zeros(2, 8, dtype=torch.long))
    assert logits_BTV.shape == (2, 8, CODES)
    assert torch.equal(logits_BTV[0, 0], logits_BTV[1, 0])
    assert not torch.equal(logits_BTV[0, 2], logits_BTV[1, 2])
