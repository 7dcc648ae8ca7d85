"""Drawing tokens from the gated PixelCNN: with its cache against computing the whole grid again for every token.

    python tests/benchmarks/pixelcnn.py [--rounds 3] [--batches 1 4] [--threads 1]

16 blocks, 128 wide, on 16x16 tokens of 512 codes, random weights, float32, on the CPU, with the loop of the sample
stage, and one thread, as its workers have. The two take turns, each in a process of its own, and medians count. Tokens
must be the same, and in float64 the logits of every step as well (to 1e-9), or it fails.
The last line is a JSON object: `ratio` is tokens a second with the cache over those without, at the smallest batch.
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
from stages.models.priors.configs import PixelCNNConfig
from stages.models.priors.pixelcnn import PixelCNN
from stages.models.vocabulary import Vocabulary
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens
from tests.benchmarks.support.contestants import Contestant

# Shapes: B batch, C condition tokens, T image tokens, V codes.

GRID, CODES, CLASSES = (16, 16), 512, 10
AGREEMENT = 1e-9


class Uncached(PixelCNN):
    """The same network without a cache: each step runs it over the whole grid and keeps one place."""

    def new_cache(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """The condition and the tokens so far."""
        return {"tokens_BT": torch.zeros(batch, self.num_tokens, dtype=torch.long)}

    def prefill(self, condition_BC: Tensor, cache: Any) -> Tensor:
        """Logits [B, V] of the first token."""
        cache["condition_BC"] = condition_BC
        return self._logits(0, cache)

    def step(self, tokens_B: Tensor, position: int, cache: Any) -> Tensor:
        """Logits [B, V] of the token after `position`."""
        cache["tokens_BT"][:, position] = tokens_B
        return self._logits(position + 1, cache)

    def _logits(self, position: int, cache: Any) -> Tensor:
        logits_BV: Tensor = self.head(self.features(cache["condition_BC"], cache["tokens_BT"])[:, position])
        return logits_BV


def main() -> None:
    """Compare, time, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    difference = largest_difference(batch=2)
    print(f"agreement: logits of all steps within {difference:.1e} of the whole pass, in float64")
    assert difference < AGREEMENT

    print(f"\n{'':12}{'cached':>10}{'whole grid':>12}   tokens/s, median of {arguments.rounds} rounds")
    figures: dict[str, Any] = {"benchmark": "pixelcnn", "logit_difference": difference, "tokens_identical": True}
    for batch in sorted(arguments.batches):
        cached, whole = take_turns(batch, arguments.rounds, arguments.threads)
        figures.setdefault("ratio", round(cached / whole, 1))
        figures |= {f"cached_{batch}": round(cached), f"whole_{batch}": round(whole, 1)}
    print(json.dumps(figures))


def take_turns(batch: int, rounds: int, threads: int) -> tuple[float, float]:
    """Print and return the median tokens a second with and without the cache; whole grids, the same tokens."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with Contestant(drawing, PixelCNN, threads) as cached, Contestant(drawing, Uncached, threads) as whole:
        cached(batch, -1)
        for number in range(rounds):
            drawn = []
            for draw, measured in zip((cached, whole), seconds, strict=True):
                taken, tokens = draw(batch, number)
                measured.append(taken)
                drawn.append(tokens)
            assert drawn[0] == drawn[1], f"round {number} of batch {batch}: other tokens with the cache than without"
    rates = [batch * GRID[0] * GRID[1] / statistics.median(measured) for measured in seconds]
    print(f"batch {batch:<6}{rates[0]:10.0f}{rates[1]:12.1f}   ratio {rates[0] / rates[1]:.1f}", flush=True)
    return rates[0], rates[1]


def drawing(kind: type[PixelCNN], threads: int) -> Callable[[int, int], list[list[int]]]:
    """What draws a batch of grids of tokens, and in which round."""
    prepare_cpu(threads)
    model = network(kind)

    def draw(batch: int, number: int) -> list[list[int]]:
        condition_BC = model.vocabulary.condition(torch.arange(batch) % CLASSES)
        tokens_BT, _ = draw_tokens(model, condition_BC, GumbelNoise(draws_of(number + 1, range(batch))))
        drawn: list[list[int]] = tokens_BT.tolist()
        return drawn

    return draw


def network(kind: type[PixelCNN]) -> PixelCNN:
    """A network whose next tokens are neither certain nor all alike."""
    torch.manual_seed(0)
    model = kind(PixelCNNConfig(), vocabulary=Vocabulary.by_class(CODES, CLASSES), grid=GRID)
    nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


@torch.inference_mode()
def largest_difference(batch: int) -> float:
    """Between the logits of cached steps and those of the whole pass."""
    model = network(PixelCNN).double()
    tokens_BT = torch.randint(0, CODES, (batch, model.num_tokens))
    condition_BC = model.vocabulary.condition(torch.arange(batch))
    cache = model.new_cache(batch)
    logits = [model.prefill(condition_BC, cache)]
    logits += [model.step(tokens_BT[:, t], t, cache) for t in range(model.num_tokens - 1)]
    return (torch.stack(logits, dim=1) - model(condition_BC, tokens_BT)).abs().max().item()


if __name__ == "__main__":
    main()
