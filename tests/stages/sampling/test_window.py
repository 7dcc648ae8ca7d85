"""The sliding window against drawing token by token, and against the token loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.errors import ConfigError
from stages.data.condition_values import coordinate_values
from stages.data.windows import Window
from stages.models.priors.configs import GPTConfig, PixelCNNConfig, PriorModelConfig
from stages.models.priors.gpt import GPT
from stages.models.priors.pixelcnn import PixelCNN
from stages.models.priors.prior import Prior
from stages.models.vocabulary import Segment, Vocabulary
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance
from stages.sampling.large_condition import LargeCondition, coordinate_map
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens
from stages.sampling.window import MEMORY, TOKENS_AT_ONCE, draw_window

CODES = 11
SMALL: dict[str, int] = {"num_layers": 2, "num_heads": 2, "width": 16}
CONFIGS: dict[str, PriorModelConfig] = {
    "gpt": GPTConfig(**SMALL),  # type: ignore[arg-type]
    "modern gpt": GPTConfig(**SMALL, form="modern"),  # type: ignore[arg-type]
    "pixelcnn": PixelCNNConfig(num_blocks=3, width=8, head_width=8),
}


def make_prior(
    config: PriorModelConfig = CONFIGS["gpt"], grid: tuple[int, int] = (4, 4), *, codes: int = CODES, finer: int = 1
) -> Prior:
    """A float64 model with class and edges whose logits are far from uniform."""
    torch.manual_seed(0)
    map_grid = (finer * grid[0], finer * grid[1])
    edges = Segment(kind="edges", length=map_grid[0] * map_grid[1], size=5, grid=map_grid)
    vocabulary = Vocabulary(codes, (Segment(kind="class", length=1, size=3), edges))
    kind = GPT if isinstance(config, GPTConfig) else PixelCNN
    model: Prior = kind(config, vocabulary=vocabulary, grid=grid).double()  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def some_condition(model: Prior, size: tuple[int, int], count: int, finer: int = 1) -> LargeCondition:
    torch.manual_seed(1)
    edges_BHW = torch.randint(-1, 5, (count, finer * size[0], finer * size[1]))
    return LargeCondition.of_values(model, size, torch.arange(count) % 3, edges_BHW)


def token_by_token(
    model: Prior,
    condition: LargeCondition,
    noise: GumbelNoise,
    logit_filter: LogitFilter,
    guidance: Guidance,
    known_BHW: Tensor,
) -> tuple[Tensor, Tensor]:
    """The published loop: the whole window through the prior for every token, in raster order."""
    (height, width), (h, w) = condition.size, model.grid
    tokens_BHW, likelihood_B = known_BHW.clamp(min=0), torch.zeros(len(condition), dtype=torch.float64)
    for i, j in ((i, j) for i in range(height) for j in range(width)):
        local_i = i if i <= h // 2 else max(h // 2, h - (height - i))
        local_j = j if j <= w // 2 else max(w // 2, w - (width - j))
        top, left = i - local_i, j - local_j
        window_BT = tokens_BHW[:, top : top + h, left : left + w].flatten(1)
        condition_BC = condition.window(top, left)
        with torch.no_grad():
            conditional_BV = model(condition_BC, window_BT)[:, local_i * w + local_j]
            null_BC = model.vocabulary.null_condition(condition_BC)
            unconditional_BV = model(null_BC, window_BT)[:, local_i * w + local_j]
        scale, place = guidance.at(i * width + j, height * width), i * width + j
        guided_BV = logit_filter((1 - scale) * unconditional_BV + scale * conditional_BV)
        drawn_B = (guided_BV + torch.from_numpy(noise.at(place, model.vocabulary.num_codes))).argmax(-1)
        nats_B = -conditional_BV.log_softmax(-1).gather(1, drawn_B[:, None])[:, 0]
        known_B = known_BHW[:, i, j]
        likelihood_B -= torch.where(known_B < 0, nats_B, 0.0)
        tokens_BHW[:, i, j] = torch.where(known_B < 0, drawn_B, known_B)
    return tokens_BHW, likelihood_B


def some_known(size: tuple[int, int], count: int, share: float) -> Tensor:
    """Some places that all pictures know, and some that one of them does."""
    torch.manual_seed(2)
    tokens_BHW = torch.randint(0, CODES, (count, *size))
    known_BHW = (torch.rand(count, *size) < share / 2) | (torch.rand(size) < share)
    return torch.where(known_BHW, tokens_BHW, -1)


@pytest.mark.parametrize("config", list(CONFIGS.values()), ids=list(CONFIGS))
@pytest.mark.parametrize(
    ("grid", "size"), [((4, 4), (7, 9)), ((3, 5), (6, 6)), ((5, 3), (5, 8)), ((2, 2), (5, 4))], ids=str
)
@pytest.mark.parametrize(
    ("count", "share", "logit_filter", "guidance"),
    [
        (1, 0.0, LogitFilter(), Guidance()),
        (3, 0.0, LogitFilter(0.9, 8, 0.95), Guidance(1.7)),
        (2, 0.4, LogitFilter(top_k=6), Guidance(3.0, "cosine")),
    ],
    ids=["one", "guided and filtered", "with known tokens"],
)
def test_tokens_are_those_drawn_token_by_token(
    config: PriorModelConfig,
    grid: tuple[int, int],
    size: tuple[int, int],
    count: int,
    share: float,
    logit_filter: LogitFilter,
    guidance: Guidance,
) -> None:
    model = make_prior(config, grid)
    condition, noise = some_condition(model, size, count), GumbelNoise(draws_of(3, range(count)))
    known_BHW = some_known(size, count, share)
    expected_BHW, expected_B = token_by_token(model, condition, noise, logit_filter, guidance, known_BHW)
    tokens_BHW, likelihood_B = draw_window(
        model,
        condition,
        noise,
        height=size[0],
        width=size[1],
        logit_filter=logit_filter,
        guidance=guidance,
        known_BHW=known_BHW,
    )
    assert torch.equal(tokens_BHW, expected_BHW)
    assert len(tokens_BHW.unique()) > CODES // 2
    torch.testing.assert_close(likelihood_B, expected_B, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("memory", "tokens_at_once"), [(0, TOKENS_AT_ONCE), (30_000, 100), (MEMORY, 1)])
def test_little_memory_and_small_slices_change_nothing(memory: int, tokens_at_once: int) -> None:
    model = make_prior()
    condition, noise = some_condition(model, (8, 9), 5), GumbelNoise(draws_of(3, range(5)))
    expected_BHW, expected_B = draw_window(model, condition, noise, height=8, width=9, guidance=2.0)
    tokens_BHW, likelihood_B = draw_window(
        model, condition, noise, height=8, width=9, guidance=2.0, memory=memory, tokens_at_once=tokens_at_once
    )
    assert torch.equal(tokens_BHW, expected_BHW)
    torch.testing.assert_close(likelihood_B, expected_B, rtol=0, atol=1e-9)


def test_a_picture_as_large_as_the_grid_is_the_token_loops_bit_for_bit() -> None:
    model = make_prior().float()
    condition, noise = some_condition(model, (4, 4), 6), GumbelNoise(draws_of(3, range(6)))
    one = draw_window(model, condition, noise, height=4, width=4, guidance=2.0)
    other = draw_tokens(model, condition.window(0, 0), noise, guidance=2.0)
    assert one[0].numpy().tobytes() == other[0].numpy().tobytes()
    assert torch.equal(one[1], other[1])


def test_the_top_left_corner_is_the_token_loops_while_its_window_stands_still() -> None:
    """Up to the middle of the grid the window of a larger picture is the first one; only the noise has other places."""
    model = make_prior()
    condition, noise = some_condition(model, (4, 9), 2), GumbelNoise(draws_of(3, range(2)))
    wide_BHW, _ = draw_window(model, condition, noise, height=4, width=9)
    square_BT, _ = draw_tokens(model, condition.window(0, 0), noise)
    assert torch.equal(wide_BHW[:, 0, :3], square_BT.view(2, 4, 4)[:, 0, :3])


def test_a_map_finer_than_the_tokens_is_cut_with_them() -> None:
    model = make_prior(finer=2)
    condition, noise = some_condition(model, (6, 7), 2, finer=2), GumbelNoise(draws_of(3, range(2)))
    unknown_BHW = torch.full((2, 6, 7), -1)
    expected_BHW, _ = token_by_token(model, condition, noise, LogitFilter(), Guidance(), unknown_BHW)
    assert torch.equal(draw_window(model, condition, noise, height=6, width=7)[0], expected_BHW)
    values_BHW = torch.randint(0, 5, (2, 12, 14))
    condition = LargeCondition.of_values(model, (6, 7), torch.tensor([0, -1]), values_BHW)
    window_BC = condition.window(2, 3)
    assert torch.equal(model.vocabulary.values(window_BC, "edges"), values_BHW[:, 4:12, 6:14].flatten(1))
    assert model.vocabulary.values(window_BC, "class")[:, 0].tolist() == [0, -1]


def test_frequencies_of_a_guided_window_are_the_exact_probabilities() -> None:
    """Two tokens of 3 codes beyond a grid of one: the second is drawn from a window that has moved."""
    model = make_prior(grid=(1, 2), codes=3)
    count, scale = 20_000, 1.5
    values_BHW = torch.tensor([[[0, 3, 1]]]).expand(count, 1, 3)
    condition = LargeCondition.of_values(model, (1, 3), torch.zeros(count, dtype=torch.long), values_BHW)
    noise = GumbelNoise(draws_of(0, range(count)))
    tokens_BHW, _ = draw_window(model, condition, noise, height=1, width=3, guidance=scale, tokens_at_once=2**20)
    expected = np.ones(27)
    for number in range(27):
        codes = [number // 9, number // 3 % 3, number % 3]
        for column, left in enumerate((0, 0, 1)):
            window_BT = torch.tensor([codes[left : left + 2]])
            condition_BC = condition.of(slice(1)).window(0, left)
            with torch.no_grad():
                conditional_BTV = model(condition_BC, window_BT)
                unconditional_BTV = model(model.vocabulary.null_condition(condition_BC), window_BT)
            guided_BTV = unconditional_BTV + scale * (conditional_BTV - unconditional_BTV)
            expected[number] *= guided_BTV[0, column - left].softmax(-1)[codes[column]].item()
    assert expected.sum() == pytest.approx(1)
    counts = np.bincount((tokens_BHW[:, 0] * torch.tensor([9, 3, 1])).sum(1).numpy(), minlength=27)
    order = np.argsort(-expected)
    kept = order[expected[order] * count >= 5]
    rest = [count - counts[kept].sum(), count * (1 - expected[kept].sum())]
    observed, wanted = [*counts[kept]], [*(count * expected[kept])]
    observed[-1] += rest[0]
    wanted[-1] += rest[1]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3
    assert expected.max() > 0.05


def test_coordinates_of_a_window_are_those_of_the_window_of_a_stored_picture() -> None:
    values_HW = coordinate_map((6, 9), token_pixels=8, values=1024)
    for top, left in ((0, 0), (1, 4), (2, 5)):
        window = Window(8 * top, 8 * left)
        expected_L = coordinate_values([window], stored=(48, 72), size=32, grid=(4, 4), values=1024)[0]
        assert values_HW[top : top + 4, left : left + 4].flatten().tolist() == expected_L.tolist()


def test_what_cannot_be_drawn_is_refused_with_the_remedy() -> None:
    model, noise = make_prior(), GumbelNoise(draws_of(3, [0]))
    label_B, edges_BHW = torch.zeros(1, dtype=torch.long), torch.zeros(1, 8, 9, dtype=torch.long)
    with pytest.raises(ConfigError, match="edges of 8x9 tokens for a picture of 8x10 tokens: give 8x10"):
        LargeCondition.of_values(model, (8, 10), label_B, edges_BHW)
    condition = LargeCondition.of_values(model, (8, 9), label_B, edges_BHW)
    with pytest.raises(ConfigError, match="the condition is that of 8x9 tokens, not 8x8"):
        draw_window(model, condition, noise, height=8, width=8)
    small = LargeCondition.of_values(model, (3, 9), label_B, edges_BHW[:, :3])
    with pytest.raises(ConfigError, match=r"3x9 tokens is smaller than the prior's 4x4"):
        draw_window(model, small, noise, height=3, width=9)
    z_curve = make_prior(GPTConfig(**SMALL, order="z_curve"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="order z_curve: a window slides in raster order"):
        draw_window(z_curve, condition, noise, height=8, width=9)
    coarse = Segment(kind="edges", length=4, size=5, grid=(2, 2))
    model.vocabulary = Vocabulary(CODES, (model.vocabulary.segments[0], coarse))
    with pytest.raises(ConfigError, match="edges has 2x2 tokens for 4x4 of the picture: windows cut a map only"):
        LargeCondition.of_values(model, (8, 8), label_B, edges_BHW)
