"""How often a token depends on the shape of the batch that it is drawn in: a table of precisions.

    python -m tests.flip_rate [--layers 4] [--width 128] [--batches 1 7 64]

A GPT with random weights, 16x16 tokens of 1,024 codes; 4,096 tokens are drawn in batches of 16, and each once more in
batches of other sizes, after the same tokens as the first time, so that one flip does not bring others. The order of
additions in a matrix product depends on its shape, and where two codes are nearly as good, the last bit decides.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.vocabulary import Vocabulary
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens

# Shapes: B pictures, T tokens, V codes.

CODES, CLASSES, GRID, PICTURES, FIRST_BATCH = 1024, 10, (16, 16), 16, 16
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    """Print the flips of each precision and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 64])
    arguments = parser.parse_args()
    print(f"of {PICTURES * GRID[0] * GRID[1]} tokens others than in batches of {FIRST_BATCH}\n")
    print(f"{'':10}" + "".join(f"{f'batch {batch}':>10}" for batch in arguments.batches))
    for name in PRECISIONS:
        found = flips(name, arguments.layers, arguments.width, arguments.batches)
        print(f"{name:10}" + "".join(f"{count:10}" for count in found), flush=True)


def flips(precision: str, layers: int, width: int, batches: list[int]) -> list[int]:
    """How many tokens of all differ in batches of other sizes."""
    model = network(precision, layers, width)
    condition_BC = model.vocabulary.condition(torch.arange(PICTURES) % CLASSES)
    tokens_BT, _ = draw_tokens(model, condition_BC, GumbelNoise(draws_of(0, range(PICTURES))))
    first_BT = drawn_again(model, condition_BC, tokens_BT, FIRST_BATCH)
    assert torch.equal(first_BT, tokens_BT)
    return [int((drawn_again(model, condition_BC, tokens_BT, batch) != tokens_BT).sum()) for batch in batches]


@torch.inference_mode()
def drawn_again(model: GPT, condition_BC: Tensor, tokens_BT: Tensor, batch: int) -> Tensor:
    """What is drawn at every place after the given tokens before it, so many pictures at once."""
    drawn_BT = torch.empty_like(tokens_BT)
    for start in range(0, PICTURES, batch):
        # The last batch is padded, as the Generator does it.
        rows = torch.arange(start, start + batch).clamp(max=PICTURES - 1)
        noise, cache = GumbelNoise(draws_of(0, rows.tolist())), model.new_cache(batch)
        logits_BV = model.prefill(condition_BC[rows], cache)
        for place in range(model.num_tokens):
            drawn_B = (logits_BV + torch.from_numpy(noise.at(place, CODES))).argmax(-1)
            drawn_BT[rows, place] = drawn_B
            if place + 1 < model.num_tokens:
                logits_BV = model.step(tokens_BT[rows, place], place, cache)
    return drawn_BT


def network(precision: str, layers: int, width: int) -> GPT:
    """A network whose logits are far from uniform."""
    torch.manual_seed(0)
    config = GPTConfig(num_layers=layers, num_heads=4, width=width)
    model = GPT(config, vocabulary=Vocabulary.by_class(CODES, CLASSES), grid=GRID).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.double() if precision == "float64" else model.for_drawing(PRECISIONS[precision])


if __name__ == "__main__":
    main()
