"""Drawing tokens: our token loop against `sample_with_past` of taming-transformers, same weights, no top-k on either.

    python tests/benchmarks/sample.py [--rounds 3] [--threads 2] [--batches 64 1]

A GPT of 8 layers, 512 wide, 8 heads, 256 tokens of 1,024 codes after one condition token, on the CPU. Both first give
the probabilities of the next tokens of one sequence, which must agree; then they take turns, each in a process of its
own (ours keeps freed memory, as the sample stage's workers do), and medians count. Ours draws its noise for every
sample and sums likelihoods, as the stage does; theirs draws from `torch.multinomial`.
Half precision is ours in bf16 against the peer as it comes, in float32; a processor without bf16 instructions would
emulate them, so there it is fp16: the matrices in 16 bits, everything else in float32. `half` says which.
The last line is a JSON object: `ratio_*` are our tokens a second over theirs, `peak_mib` is what the largest batch took
beside `weights_mib` and `cache_mib` (keys and values of whole sequences), all in float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.models.cpu import prepare_cpu
from stages.models.precision import DrawingPrecision, drawing_dtype
from stages.models.priors.gpt import GPT
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens
from tests.benchmarks.gpt_step import CODES, HEADS, LAYERS, TOKENS, WIDTH, half_precision, our_model, peer_model
from tests.benchmarks.support.contestants import Contestant

# Shapes: B batch, T tokens, V codes.

Draw = Callable[[int, int], tuple[int, float]]
"""Draws a batch with the noise of a round; the tokens drawn and the process's peak memory in MiB."""


def main() -> None:
    """Compare, time, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    check_agreement()
    half = half_precision()
    figures: dict[str, Any] = {"benchmark": "sample", "half": half}
    print(f"\n{'':20}{'ours':>10}{'taming':>10}   tokens/s, median of {arguments.rounds}; {arguments.threads} threads")
    peaks = []
    for batch in arguments.batches:
        for precision in ("fp32", half):
            ratio, peak, rates = take_turns(precision, batch, arguments.rounds, arguments.threads)
            end = "_fp32" if precision == "fp32" else ""
            figures |= {f"ratio_batch{batch}{end}": ratio, f"ours_batch{batch}{end}": rates[0]}
            figures[f"taming_batch{batch}{end}"] = rates[1]
            if precision == "fp32":
                peaks.append(peak)
    figures |= memory(max(arguments.batches), max(peaks))
    print(json.dumps(figures))


def take_turns(
    precision: DrawingPrecision, batch: int, rounds: int, threads: int
) -> tuple[float, float, tuple[int, int]]:
    """Print the median tokens a second of both; return their ratio, our peak memory and the rates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    peak = 0.0
    with (
        Contestant(our_drawing, threads, precision) as ours,
        Contestant(peer_drawing, threads) as theirs,
    ):
        for number in range(rounds + 1):
            for place, (draw, measured) in enumerate(zip((ours, theirs), seconds, strict=True)):
                taken, (drawn, memory_mib) = draw(batch, number)
                assert drawn == batch * TOKENS
                peak = peak if place else max(peak, memory_mib)
                if number:
                    measured.append(taken)
    rates = [batch * TOKENS / statistics.median(measured) for measured in seconds]
    title = f"{precision}, batch {batch}"
    print(f"{title:20}{rates[0]:10.1f}{rates[1]:10.1f}   ratio {rates[0] / rates[1]:.2f}", flush=True)
    return round(rates[0] / rates[1], 2), peak, (round(rates[0]), round(rates[1]))


def our_drawing(threads: int, precision: DrawingPrecision) -> Draw:
    """The token loop as the sample stage's workers run it."""
    prepare_cpu(threads)
    model = our_model(0.0).eval().for_drawing(drawing_dtype(precision, "cpu"))

    def draw(batch: int, number: int) -> tuple[int, float]:
        noise = GumbelNoise(draws_of(number, range(batch)))
        drawn_BT, likelihood_B = draw_tokens(model, torch.full((batch, 1), CODES), noise)
        assert likelihood_B.isfinite().all()
        return drawn_BT.numel(), peak_mib()

    return draw


def peer_drawing(threads: int) -> Draw:
    """taming's own loop with its keys and values of the past; class labels of its table are condition tokens."""
    torch.set_num_threads(threads)
    model = peer_model(0.0).eval()
    from taming.modules.transformer.mingpt import sample_with_past

    def draw(batch: int, number: int) -> tuple[int, float]:
        torch.manual_seed(number)
        drawn_BT = sample_with_past(torch.full((batch, 1), CODES), model, steps=TOKENS)
        return drawn_BT.numel(), peak_mib()

    return draw


@torch.no_grad()
def check_agreement() -> None:
    """The steps of both give the same logits: one token after the other, with what each remembers."""
    ours, theirs = our_model(0.0).eval().for_drawing(), peer_model(0.0).eval()
    tokens_T = torch.from_numpy(np.random.default_rng(0).integers(0, CODES, 32))
    cache = ours.new_cache(1)
    logits_1V, past, difference = ours.prefill(torch.full((1, 1), CODES), cache), [], 0.0
    given_11 = torch.full((1, 1), CODES)
    for position, token in enumerate(tokens_T):
        expected_1TV, _, present = theirs.forward_with_past(given_11, past=past or None, past_length=position)
        past.append(present)
        difference = max(difference, (logits_1V - expected_1TV[:, -1, :CODES]).abs().max().item())
        given_11 = token.view(1, 1)
        logits_1V = ours.step(given_11[0], position, cache)
    print(f"agreement: logits of {len(tokens_T)} steps within {difference:.1e} (they spread by {logits_1V.std():.2f})")
    assert difference < 1e-4


def memory(batch: int, peak: float) -> dict[str, Any]:
    """What a batch should take, and what it took."""
    model: GPT = our_model(0.0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    cache = batch * model.num_positions * 2 * LAYERS * WIDTH * 4 / 2**20
    assert WIDTH % HEADS == 0
    print(f"batch {batch}: {peak:.0f} MiB at most, python and torch included; weights {weights:.0f}, cache {cache:.0f}")
    return {"peak_mib": round(peak), "weights_mib": round(weights), "cache_mib": round(cache)}


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
