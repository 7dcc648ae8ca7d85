"""Drawing a large picture: our sliding window against drawing token by token, same weights, in float32.

    python tests/benchmarks/window.py [--rounds 3] [--threads 2] [--stretch 24] [--counts 1 8]

32x48 tokens through windows of 16x16 with 256 condition tokens (a map), a GPT of 8 layers, 512 wide, 8 heads, random
weights, on the CPU. Token by token is the published way (Esser et al. 2021): the whole window of condition and picture
passes through the network for every token of one picture. It is timed twice: through minGPT of taming-transformers
(the peer as it comes, the headline), and through our own network (`ratio_*_own`). Both take minutes for a picture and
as long for each token, so `--stretch` tokens in the middle are timed and multiplied; `extrapolated` says so.
Ours draws whole pictures, one and then eight at once; the contestants take turns, each in a process of its own, and
medians count. Before that, a smaller picture is drawn in float64 in both ways and must have the same tokens.
Half precision is ours in bf16 against minGPT in float32; on a processor without bf16 instructions it is fp16: the
matrices in 16 bits, everything else in float32. `half` says which.
The last line is a JSON object: `ratio_one` and `ratio_eight` are seconds a picture of theirs over ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.models.cpu import prepare_cpu
from stages.models.interop.net2net import transformer_weights
from stages.models.precision import DrawingPrecision, drawing_dtype
from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.vocabulary import Segment, Vocabulary
from stages.sampling.large_condition import LargeCondition
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.window import draw_window
from stages.sampling.window_plan import plan_windows, window_start
from tests.benchmarks.gpt_step import CODES, HEADS, LAYERS, WIDTH, half_precision, stub_what_taming_imports
from tests.benchmarks.support.contestants import Contestant

# Shapes: B pictures, H W rows and columns of their tokens, C condition tokens and T tokens of a window, V codes.

SIZE, GRID = (32, 48), (16, 16)
MAP_CODES = 256
COUNTS = {1: "one", 8: "eight"}
"""Pictures at once, and their names in the figures."""
SMALL, SMALL_LAYERS, SMALL_WIDTH = (24, 24), 3, 64
"""The picture that both draw in float64, and their network."""

Logits = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, T, V] of a window's tokens, given its condition tokens [B, C] and its tokens [B, T]."""


def main() -> None:
    """Compare, time, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stretch", type=int, default=24, help="tokens that are drawn one by one in a round")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8], choices=COUNTS, help="pictures at once")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plan, half = plan_windows(SIZE, GRID, condition_length=GRID[0] * GRID[1]), half_precision()
    figures: dict[str, Any] = {
        "benchmark": "window",
        "tokens_identical_float64": same_tokens_in_float64(),
        "sequential_steps": len(plan.levels),
        "tokens": SIZE[0] * SIZE[1],
        "half": half,
        "extrapolated": f"token by token from {arguments.stretch} of {SIZE[0] * SIZE[1]} tokens",
    }
    print(f"agreement: {SMALL[0]}x{SMALL[1]} tokens are the same in float64: {figures['tokens_identical_float64']}")
    assert figures["tokens_identical_float64"]
    print(f"{SIZE[0]}x{SIZE[1]} tokens in {len(plan.levels)} steps\n\nseconds a picture, median of {arguments.rounds}")
    for precision, end in (("fp32", "_fp32"), (half, "")):
        found = take_turns(arguments.counts, arguments.rounds, arguments.threads, arguments.stretch, precision)
        figures |= {f"{name}{end}": value for name, value in found.items()}
    print(json.dumps(figures))


def take_turns(
    counts: list[int], rounds: int, threads: int, stretch: int, precision: DrawingPrecision
) -> dict[str, float]:
    """Print and return the median seconds a picture of all, and the ratios, ours in this precision."""
    seconds: dict[str, list[float]] = {"peer": [], "own": []} | {COUNTS[count]: [] for count in counts}
    share = stretch / (SIZE[0] * SIZE[1])
    with (
        Contestant(our_drawing, threads, precision) as ours,
        Contestant(peer_drawing, threads) as theirs,
        Contestant(own_drawing, threads) as own,
    ):
        for number in range(rounds):
            seconds["peer"].append(theirs(stretch, number)[0] / share)
            seconds["own"].append(own(stretch, number)[0] / share)
            for count in counts:
                seconds[COUNTS[count]].append(ours(count, number)[0] / count)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    titles = {COUNTS[count]: f"ours, {COUNTS[count]}, {precision}" for count in counts}
    for name, title in ({"peer": "token by token, minGPT", "own": "the same, our network"} | titles).items():
        print(f"{title:24}{medians[name]:10.1f}   {medians['peer'] / medians[name]:.2f} times", flush=True)
    figures = {f"seconds_{name}": round(value, 1) for name, value in medians.items()}
    for name in titles:
        figures[f"ratio_{name}"] = round(medians["peer"] / medians[name], 2)
        figures[f"ratio_{name}_own"] = round(medians["own"] / medians[name], 2)
    return figures


def our_drawing(threads: int, precision: DrawingPrecision) -> Callable[[int, int], int]:
    """What draws some pictures with the noise of a round."""
    prepare_cpu(threads)
    model = network().eval().for_drawing(drawing_dtype(precision, "cpu"))

    def draw(count: int, number: int) -> int:
        noise = GumbelNoise(draws_of(number, range(count)))
        tokens_BHW, likelihood_B = draw_window(model, some_condition(model, SIZE, count), noise, **sides(SIZE))
        assert likelihood_B.isfinite().all()
        return tokens_BHW.numel()

    return draw


def own_drawing(threads: int) -> Callable[[int, int], int]:
    """What draws a stretch of tokens one by one through our network."""
    prepare_cpu(threads)
    model = network().eval()
    return one_by_one(model, model)


def peer_drawing(threads: int) -> Callable[[int, int], int]:
    """The same through minGPT."""
    torch.set_num_threads(threads)
    return one_by_one(network(), peer_logits())


def one_by_one(model: GPT, logits: Logits) -> Callable[[int, int], int]:
    """What draws a stretch of tokens in the middle of a picture with the noise of a round."""

    def draw(stretch: int, number: int) -> int:
        first = (SIZE[0] // 2) * SIZE[1] + (SIZE[1] - stretch) // 2
        condition, noise = some_condition(model, SIZE, 1), GumbelNoise(draws_of(number, [0]))
        tokens_BHW = torch.randint(0, CODES, (1, *SIZE))
        draw_token_by_token(logits, condition, noise, tokens_BHW, range(first, first + stretch))
        return stretch

    return draw


@torch.no_grad()
def draw_token_by_token(
    logits: Logits, condition: LargeCondition, noise: GumbelNoise, tokens_BHW: Tensor, places: range
) -> None:
    """Draw tokens at some places in raster order into `tokens_BHW`, the whole window through the network for each."""
    height, width = condition.size
    for place in places:
        row, column = divmod(place, width)
        top, left = window_start(row, height, GRID[0]), window_start(column, width, GRID[1])
        window_BT = tokens_BHW[:, top : top + GRID[0], left : left + GRID[1]].flatten(1)
        logits_BTV = logits(condition.window(top, left), window_BT)
        logits_BV = logits_BTV[:, (row - top) * GRID[1] + column - left, :CODES]
        tokens_BHW[:, row, column] = (logits_BV + torch.from_numpy(noise.at(place, CODES))).argmax(-1)


def same_tokens_in_float64() -> bool:
    """Whether both ways draw the same small picture; the peer's logits must be those of our network."""
    model = network(SMALL_LAYERS, SMALL_WIDTH).double().eval()
    condition, noise = some_condition(model, SMALL, 1), GumbelNoise(draws_of(0, [0]))
    expected_BHW = torch.zeros(1, *SMALL, dtype=torch.long)
    draw_token_by_token(model, condition, noise, expected_BHW, range(SMALL[0] * SMALL[1]))
    tokens_BHW, _ = draw_window(model.for_drawing(), condition, noise, **sides(SMALL))
    window_BT = tokens_BHW[:, : GRID[0], : GRID[1]].flatten(1)
    with torch.no_grad():
        ours_BTV = network().eval()(condition.window(0, 0), window_BT)
        theirs_BTV = peer_logits()(condition.window(0, 0), window_BT)[..., :CODES]
    assert (ours_BTV - theirs_BTV).abs().max() < 1e-4
    return torch.equal(tokens_BHW, expected_BHW)


def network(layers: int = LAYERS, width: int = WIDTH) -> GPT:
    """Ours from seed 0, with positions that are not zero."""
    torch.manual_seed(0)
    tokens = GRID[0] * GRID[1]
    vocabulary = Vocabulary(CODES, (Segment(kind="edges", length=tokens, size=MAP_CODES, grid=GRID),))
    config = GPTConfig(num_layers=layers, num_heads=HEADS, width=width, dropout=0.0, condition_dropout=0.0)
    model = GPT(config, vocabulary=vocabulary, grid=GRID)
    nn.init.normal_(model.position_embedding_PW, std=0.02)
    return model


def peer_logits() -> Logits:
    """Theirs with the weights of ours; its head has rows for the condition as well."""
    stub_what_taming_imports()
    from taming.modules.transformer.mingpt import GPT as PeerGPT

    ours = network()
    model = PeerGPT(ours.vocabulary.size, ours.num_positions, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
    weights = model.state_dict() | transformer_weights(ours.state_dict(), CODES)
    model.load_state_dict(weights)
    model.eval()

    def logits(condition_BC: Tensor, tokens_BT: Tensor) -> Tensor:
        logits_BSV: Tensor = model(torch.cat([condition_BC, tokens_BT], dim=1)[:, :-1])[0]
        return logits_BSV[:, condition_BC.shape[1] - 1 :]

    return logits


def some_condition(model: GPT, size: tuple[int, int], count: int) -> LargeCondition:
    """Random maps."""
    draw = torch.Generator().manual_seed(0)
    return LargeCondition.of_values(model, size, torch.randint(0, MAP_CODES, (count, *size), generator=draw))


def sides(size: tuple[int, int]) -> dict[str, int]:
    """As arguments of `draw_window`."""
    return {"height": size[0], "width": size[1]}


if __name__ == "__main__":
    main()
