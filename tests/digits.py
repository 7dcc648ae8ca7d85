"""Digits from end to end: whether samples show the digit that was asked for, and which prior predicts digits better.

    python -m tests.digits [--workdir DIR] [--threads N] [KEY=VALUE ...]

Runs configs/mnist_pixelcnn.yaml (VQ-VAE, PixelCNN by class) without patience to its samples. A small convolutional
network that learnt the training digits says what each sample shows: `accuracy` is the share in which that is the class
asked for, beside the share among held-out digits and among their reconstructions, which is the most to hope for.
Then a GPT learns the same tokens, once for as many steps as the PixelCNN and once for as many seconds; held-out bits
of the best weights are compared (lower is better). Work that is finished in DIR is not done again. The
exit code is 1 where fewer than 90% of samples show their class. Overrides go to all runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.artifacts import Artifact
from pipeline.config import load_config
from run_pipeline import Config
from stages.data.images import to_model_range, to_uint8
from stages.models.priors.configs import GPTConfig
from stages.models.tokenizer import Tokenizer
from stages.training.prior_config import PriorConfig
from tests.smoke import CONFIGS
from tests.stages_of import pictures_of, print_table, run_stages

GOAL = 0.9
EPOCHS, BATCH = 12, 64
GPT = GPTConfig(num_layers=4, num_heads=4, width=128)
"""0.8 million weights, as the demo's is made for seconds of training on a CPU."""
NUM_SAMPLES = 1000


def main() -> int:
    """Run, judge, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="default: one that is removed")
    parser.add_argument("--threads", type=int, help="of training and judging; default: the machine's cores")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    threads = [f"cluster.threads={arguments.threads}"] if arguments.threads else []
    overrides = [f"sample.num_samples={NUM_SAMPLES}", "prior.patience=null", *threads, *arguments.overrides]
    config = load_config(Config, CONFIGS["mnist_pixelcnn"], overrides)
    with tempfile.TemporaryDirectory(prefix="smalti-digits-") as name:
        place = arguments.workdir or Path(name)
        encoded = run_stages(config, "encode", place)
        samples = run_stages(config, "sample", place)["sample"]
        accuracy = judge_samples(encoded, samples, config.tokenizer.seed)
        compare_priors(config, place)
    return int(accuracy < GOAL)


def judge_samples(encoded: dict[str, Artifact], samples: Artifact, seed: int) -> float:
    """Print how many held-out digits, their reconstructions and samples the classifier recognises; return the last."""
    classifier = train_classifier(*pictures_of(encoded["shard"], "train", 1), seed=seed)
    held_out_NHWC, labels_N = pictures_of(encoded["shard"], "val", 1)
    sets = {
        "held-out digits": (held_out_NHWC, labels_N),
        "reconstructions": (reconstruct(encoded["tokenizer"], held_out_NHWC), labels_N),
        "samples": pictures_of(samples, "sample", 1),
    }
    rows = {}
    for name, (pictures_NHWC, wanted_N) in sets.items():
        right_N = classify(classifier, pictures_NHWC) == wanted_N
        accuracy, n = float(right_N.mean()), len(right_N)
        error = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
        worst = min(np.unique(wanted_N), key=lambda digit: right_N[wanted_N == digit].mean())
        rows[name] = {"digits": f"{n}", "recognised": f"{accuracy:.1%}", "+-": f"{error:.1%}"}
        rows[name]["worst"] = f"{worst} ({right_N[wanted_N == worst].mean():.0%})"
    print_table(rows)
    print(json.dumps({"accuracy": round(accuracy, 4), "goal": GOAL}), flush=True)
    return accuracy


def train_classifier(pictures_NHWC: np.ndarray, labels_N: np.ndarray, *, seed: int) -> nn.Module:
    """Two convolutions and two matrices that learn digits uint8 [N, 28, 28, 1] for some epochs, by Adam."""
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    classifier = nn.Sequential(
        *convolutions, nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    x_NCHW, target_N = to_model_range(pictures_NHWC), torch.from_numpy(labels_N)
    for _ in range(EPOCHS):
        for rows_B in torch.randperm(len(x_NCHW)).split(BATCH):
            loss = F.cross_entropy(classifier(x_NCHW[rows_B]), target_N[rows_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval()


@torch.inference_mode()
def classify(classifier: nn.Module, pictures_NHWC: np.ndarray) -> np.ndarray:
    """The likeliest digit [N] of each picture."""
    logits: list[Tensor] = [classifier(x_BCHW) for x_BCHW in to_model_range(pictures_NHWC).split(256)]
    return torch.cat(logits).argmax(dim=1).numpy()


@torch.inference_mode()
def reconstruct(tokenizer: Artifact, pictures_NHWC: np.ndarray) -> np.ndarray:
    """Pictures through the tokenizer and back, uint8."""
    tokenizer.local("config.json")
    model = Tokenizer.load(tokenizer.local("model.safetensors").parent)
    return np.concatenate([to_uint8(model.reconstruct(x)) for x in to_model_range(pictures_NHWC).split(64)])


def compare_priors(config: Config, place: Path) -> None:
    """Print held-out bits of the config's prior and of a GPT after the same steps and the same seconds."""
    rows: dict[str, dict[str, str]] = {}
    rows[config.prior.model.kind], seconds = measured(config, config.prior, place)
    prior = with_gpt(config.prior, config.prior.steps)
    rows["gpt, same steps"], taken = measured(config, prior, place)
    steps_that_fill = max(1, round(seconds * prior.steps / taken))
    rows["gpt, same seconds"], _ = measured(config, with_gpt(config.prior, steps_that_fill), place)
    print_table(rows)


def with_gpt(prior: PriorConfig, steps: int) -> PriorConfig:
    """The same training of a GPT, for so many steps and at its own learning rate."""
    warmup = min(prior.warmup_steps, max(0, steps - 1))
    changes = {"model": GPT, "learning_rate": PriorConfig().learning_rate}
    return prior.model_copy(update={**changes, "steps": steps, "schedule_steps": steps, "warmup_steps": warmup})


def measured(config: Config, prior: PriorConfig, place: Path) -> tuple[dict[str, str], float]:
    """A row of the table, and the seconds that the stage took when it ran."""
    trained = run_stages(config.model_copy(update={"prior": prior}), "prior", place)["prior"]
    cells: Sequence[tuple[str, str, str]] = (
        ("weights", "parameters", "{:,}"),
        ("steps", "steps", "{}"),
        ("best step", "best_step", "{}"),
        ("bits a token", "bits_per_token", "{:.3f}"),
    )
    row = {column: form.format(trained.metrics[key]) for column, key, form in cells}
    return row | {"seconds": f"{trained.notes['seconds']:.0f}"}, float(trained.notes["seconds"])


if __name__ == "__main__":
    sys.exit(main())
