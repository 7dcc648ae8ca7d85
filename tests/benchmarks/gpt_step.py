"""One training step of the prior: ours against minGPT of taming-transformers, same weights, same tokens.

    python tests/benchmarks/gpt_step.py [--rounds 5] [--threads 2]

8 layers, 512 wide, 8 heads, 256 tokens in 1,024 codes after one condition token, batch 16, on the CPU. A step is
forward, cross-entropy, backward and AdamW(0.9, 0.95) with a decay of 0.01 on matrices, without clipping. The peer's
optimizer is made by its own code. Logits and losses are compared first (its head has a row for the condition too,
which is left out there), then the two take turns, each in a process of its own (ours keeps freed memory, as its
trainings do), and medians count. The headline has no dropout; the second line has
0.1 everywhere, the peer's on attention weights as well.
bf16 is ours under autocast against the peer as it comes, in float32. A processor without bf16 instructions emulates
them: then both run a single step of a shorter batch, and `bf16_native` is false.
The last line is a JSON object: `ratio_fp32`, `ratio_bf16`, `ratio_fp32_dropout` are our tokens a second over theirs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.models.cpu import prepare_cpu
from stages.models.dropout import sample_keys
from stages.models.interop.net2net import transformer_weights
from stages.models.precision import DrawingPrecision
from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.vocabulary import Vocabulary
from tests.benchmarks.support.contestants import Contestant

# Shapes: B batch, C condition tokens, T image tokens, V codes.

LAYERS, WIDTH, HEADS, GRID, CODES, BATCH = 8, 512, 8, (16, 16), 1024, 16
TOKENS = math.prod(GRID)
LEARNING_RATE, DECAY = 1e-4, 0.01
SHORT_BATCH = 1

Step = Callable[[np.ndarray, np.ndarray], float]


def main() -> None:
    """Compare, time, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    condition_BC, tokens_BT = torch.full((BATCH, 1), CODES), torch.randint(0, CODES, (BATCH, TOKENS))
    check_agreement(condition_BC[:2], tokens_BT[:2])

    print(f"\n{'':22}{'ours':>10}{'minGPT':>10}   tokens/s, median of {arguments.rounds}; {arguments.threads} threads")
    turns = functools.partial(take_turns, threads=arguments.threads)
    fp32 = turns("fp32", 0.0, arguments.rounds, condition_BC, tokens_BT)
    dropped = turns("fp32, dropout 0.1", 0.1, arguments.rounds, condition_BC, tokens_BT)
    native = has_bf16_instructions()
    rows, rounds = (BATCH, arguments.rounds) if native else (SHORT_BATCH, 1)
    bf16 = turns("bf16 against fp32", 0.0, rounds, condition_BC[:rows], tokens_BT[:rows], bf16=True)
    if not native:
        print(f"this processor has no bf16 instructions: that line is one step of a batch of {rows}")
    figures = {
        "benchmark": "gpt_step",
        "ours_fp32": round(fp32[0]),
        "mingpt_fp32": round(fp32[1]),
        "ours_bf16": round(bf16[0]),
        "ratio_fp32": round(fp32[0] / fp32[1], 2),
        "ratio_bf16": round(bf16[0] / bf16[1], 2),
        "ratio_fp32_dropout": round(dropped[0] / dropped[1], 2),
        "bf16_native": native,
    }
    print(json.dumps(figures))


def take_turns(
    title: str,
    dropout: float,
    rounds: int,
    condition_BC: Tensor,
    tokens_BT: Tensor,
    *,
    threads: int,
    bf16: bool = False,
) -> tuple[float, float]:
    """Print and return the median tokens a second of ours and theirs; each warms up with a step before."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with Contestant(our_step, threads, dropout, bf16) as ours, Contestant(peer_step, threads, dropout) as theirs:
        for number in range(rounds + 1):
            for step, measured in zip((ours, theirs), seconds, strict=True):
                taken, _ = step(condition_BC.numpy(), tokens_BT.numpy())
                if number:
                    measured.append(taken)
    our_rate, their_rate = (tokens_BT.numel() / statistics.median(measured) for measured in seconds)
    print(f"{title:22}{our_rate:10.0f}{their_rate:10.0f}   ratio {our_rate / their_rate:.2f}", flush=True)
    return our_rate, their_rate


def our_step(threads: int, dropout: float, bf16: bool) -> Step:
    """A step as `PriorStep.take` makes it."""
    prepare_cpu(threads)
    model = our_model(dropout)
    optimizer = torch.optim.AdamW(model.optimizer_groups(DECAY), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    seen = 0

    def step(conditions: np.ndarray, tokens: np.ndarray) -> float:
        nonlocal seen
        condition_BC, tokens_BT = torch.from_numpy(conditions), torch.from_numpy(tokens)
        keys_B = sample_keys(0, torch.arange(seen, seen + len(tokens_BT)))
        seen += len(tokens_BT)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, _ = model.loss(condition_BC, tokens_BT, keys_B)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peer_step(threads: int, dropout: float) -> Step:
    """A step as taming's `Net2NetTransformer` makes it, of whose forward this is the part after the tokenizer."""
    torch.set_num_threads(threads)
    model = peer_model(dropout)
    from taming.models.cond_transformer import Net2NetTransformer

    network = types.SimpleNamespace(transformer=model, learning_rate=LEARNING_RATE)
    optimizer = Net2NetTransformer.configure_optimizers(network)

    def step(conditions: np.ndarray, tokens: np.ndarray) -> float:
        condition_BC, tokens_BT = torch.from_numpy(conditions), torch.from_numpy(tokens)
        optimizer.zero_grad()
        logits_BTV = peer_logits(model, condition_BC, tokens_BT)
        loss = F.cross_entropy(logits_BTV.reshape(-1, logits_BTV.size(-1)), tokens_BT.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_model(dropout: float) -> GPT:
    """Ours from seed 0, with positions that are not zero."""
    torch.manual_seed(0)
    config = GPTConfig(num_layers=LAYERS, num_heads=HEADS, width=WIDTH, dropout=dropout, condition_dropout=0.0)
    model = GPT(config, vocabulary=Vocabulary.by_class(CODES, 0), grid=GRID)
    nn.init.normal_(model.position_embedding_PW, std=0.02)
    return model


def peer_model(dropout: float) -> Any:
    """Theirs with the weights of ours."""
    stub_what_taming_imports()
    from taming.modules.transformer.mingpt import GPT as PeerGPT

    rates = {"embd_pdrop": dropout, "resid_pdrop": dropout, "attn_pdrop": dropout}
    model = PeerGPT(CODES + 1, TOKENS, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, **rates)
    weights = model.state_dict() | transformer_weights(our_model(dropout).state_dict(), CODES)
    assert len(weights) == len(model.state_dict())
    model.load_state_dict(weights)
    return model


def peer_logits(model: Any, condition_BC: Tensor, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V + 1] of the image tokens, as in `Net2NetTransformer.forward`."""
    logits_BSV: Tensor = model(torch.cat([condition_BC, tokens_BT], dim=1)[:, :-1])[0]
    return logits_BSV[:, condition_BC.shape[1] - 1 :]


def check_agreement(condition_BC: Tensor, tokens_BT: Tensor) -> None:
    """Both give the same logits, loss and gradient of the embeddings before anything is timed."""
    ours, theirs = our_model(0.0), peer_model(0.0)
    our_logits_BTV = ours(condition_BC, tokens_BT)
    their_logits_BTV = peer_logits(theirs, condition_BC, tokens_BT)[..., :CODES]
    our_loss, _ = ours.loss(condition_BC, tokens_BT)
    their_loss = F.cross_entropy(their_logits_BTV.reshape(-1, CODES), tokens_BT.reshape(-1))
    our_loss.backward()
    their_loss.backward()
    difference = (our_logits_BTV - their_logits_BTV).abs().max().item()
    our_gradient, their_gradient = ours.token_embedding.weight.grad, theirs.tok_emb.weight.grad
    assert our_gradient is not None
    strayed = ((our_gradient - their_gradient).norm() / their_gradient.norm()).item()
    print(
        f"agreement: logits within {difference:.1e} (they spread by {our_logits_BTV.std().item():.2f}), losses "
        f"{our_loss.item():.6f} and {their_loss.item():.6f}, gradients within {strayed:.1e} of their length"
    )
    assert difference < 1e-4
    assert abs(our_loss.item() - their_loss.item()) < 1e-5
    assert strayed < 1e-4


def stub_what_taming_imports() -> None:
    """Stand in for packages as old as taming itself; nothing of them is used here."""
    stubs: dict[str, dict[str, Any]] = {
        "pytorch_lightning": {"LightningModule": nn.Module},
        "transformers": {"top_k_top_p_filtering": None},
        "taming.main": {"instantiate_from_config": None},
    }
    for name, attributes in stubs.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules.setdefault(name, module)


def has_bf16_instructions() -> bool:
    """Whether the processor multiplies bf16 (AMX or AVX512-BF16) rather than emulates it."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def half_precision() -> DrawingPrecision:
    """What this processor draws in where 16 bits are enough."""
    return "bf16" if has_bf16_instructions() else "fp16"


if __name__ == "__main__":
    main()
