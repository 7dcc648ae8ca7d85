"""Trains a scorer that samples are selected by, from the shards of a run, and says how good it is on held-out pictures.

    python -m stages.scorer classifier runs --out scorers/classes
    python -m stages.scorer two_tower runs --out scorers/words

The run's tokenizer, if it is finished, shows the scorer what pictures look like that come out of it: samples do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.storage import Folder
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    import numpy as np


BATCH = 64
CAPTION_TOKENS, CAPTION_VOCABULARY = 16, 512
"""Of a two_tower scorer of a run whose prior is not told captions."""

app = typer.Typer(no_args_is_help=True, add_completion=False)


@dataclass(frozen=True)
class Seen:
    """Features of some pictures, and what is known of each."""

    features_ND: np.ndarray
    labels_N: np.ndarray
    captions: list[str]


def train_classifier(run: Path, out: Path, *, feature_size: int = 96, seed: int = 0) -> dict[str, float]:
    """Write a classifier of a run's classes into `out`; return its figures.

    Raises DataError for a run without classes or held-out pictures, ConfigError where `out` holds something.
    """
    import torch

    from stages.models.scorers.description import ClassifierDescription
    from stages.sampling.picture_scorers import Classifier
    from stages.training.scorers import fit_classifier

    shards, seen = _look(run, out, feature_size)
    classes = shards.read_json("dataset.json")["classes"]
    if len(classes) < 2:
        raise DataError(
            f"{run}: its pictures have {len(classes)} classes, a classifier needs 2: train two_tower instead"
        )
    train = {name: pictures.labels_N >= 0 for name, pictures in seen.items()}
    features_ND = _joined(seen, "features_ND", "train", train)
    labels_N = _joined(seen, "labels_N", "train", train)
    described = ClassifierDescription(classes=classes, feature_size=feature_size, learnt_from=shards.digest)
    head = fit_classifier(described, torch.from_numpy(features_ND), torch.from_numpy(labels_N), seed=seed)
    figures = {"pictures": float(train["train-originals"].sum())}
    for name in _held_out(seen):
        pictures, known = seen[name], train[name]
        with torch.inference_mode():
            found_N = head(torch.from_numpy(pictures.features_ND[known])).argmax(1).numpy()
        figures[f"accuracy_{name.partition('-')[2]}"] = float((found_N == pictures.labels_N[known]).mean())
    Classifier(described.model_copy(update={"figures": figures}), head).save(out)
    return figures


def train_two_tower(run: Path, out: Path, *, feature_size: int = 96, seed: int = 0) -> dict[str, float]:
    """Write a scorer of a run's captions into `out`; return its figures.

    Raises DataError for a run without captions or held-out pictures, ConfigError where `out` holds something.
    """
    import numpy as np
    import torch

    from stages.data.captions import Captions
    from stages.metrics.retrieval import CANDIDATES, caption_places
    from stages.models.scorers.description import TwoTowerDescription
    from stages.sampling.picture_scorers import TwoTower
    from stages.training.scorers import fit_two_tower

    shards, seen = _look(run, out, feature_size)
    told = {name: np.array([bool(caption) for caption in it.captions], bool) for name, it in seen.items()}
    captions = [str(caption) for caption in _joined(seen, "captions", "train", told)]
    if not captions:
        raise DataError(f"{run}: none of its training pictures has a caption: train a classifier instead")
    byte_pairs, length = _byte_pairs(run, captions)
    cut = Captions(byte_pairs)
    described = TwoTowerDescription(
        vocabulary_size=len(cut), length=length, feature_size=feature_size, learnt_from=shards.digest
    )
    features_ND = torch.from_numpy(_joined(seen, "features_ND", "train", told))
    values_NL = torch.from_numpy(cut.values(captions, length))
    head = fit_two_tower(described, features_ND, values_NL, captions, seed=seed)
    scorer, figures = TwoTower(described, head, byte_pairs), {"pictures": float(told["train-originals"].sum())}
    for name in _held_out(seen):
        features_MD = torch.from_numpy(seen[name].features_ND[told[name]])
        own = [caption for caption in seen[name].captions if caption]
        others = sorted(set(own))
        if len(others) < CANDIDATES:
            continue
        with torch.inference_mode():
            scores_NM = (head.pictures(features_MD) @ head.captions(scorer.values(others)).T).double().numpy()
        own_N = scores_NM[np.arange(len(own)), [others.index(caption) for caption in own]]
        places_N = caption_places(own_N, scores_NM, own, others, np.random.default_rng(seed))
        figures |= {
            f"mean_place_{name.partition('-')[2]}": float(places_N.mean()),
            f"first_{name.partition('-')[2]}": float((places_N == 1).mean()),
        }
    TwoTower(described.model_copy(update={"figures": figures}), head, byte_pairs).save(out)
    return figures


def _look(run: Path, out: Path, feature_size: int) -> tuple[Artifact, dict[str, Seen]]:
    """The run's shards, and features of its pictures, as they are and as the tokenizer gives them back."""
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: name a new folder with --out")
    shards = Workdir(Folder.at(run)).made_last("shard")
    if shards is None:
        raise DataError(f"{run} holds no finished shards: run --stages shard, or name a workdir that has some")
    if not shards.read_json("dataset.json")["num_val"]:
        raise DataError(f"{run}: no pictures are held out to measure the scorer on: raise shard.validation_fraction")
    return shards, _features(shards, Workdir(Folder.at(run)).made_last("tokenizer"), feature_size)


def _features(shards: Artifact, tokenizer: Artifact | None, feature_size: int) -> dict[str, Seen]:
    """By `train-originals`, `val-originals`, and the same of reconstructions."""
    import numpy as np
    import torch

    from stages.data.images import to_model_range
    from stages.data.shards import ShardReader, open_split
    from stages.metrics.centres import read_pictures
    from stages.models.efficientnet_lite0 import load_efficientnet_lite0
    from stages.models.fidelity import round_to_8_bits
    from stages.models.picture_features import picture_features
    from stages.models.tokenizer import Tokenizer

    network, dataset = load_efficientnet_lite0(), shards.read_json("dataset.json")
    model = Tokenizer.load(tokenizer.local("model.safetensors").parent) if tokenizer else None
    size = tokenizer.read_json("config.json")["image_size"] if tokenizer else dataset["image_size"]
    seen: dict[str, Seen] = {}
    for split in ("train", "val"):
        labels: list[np.ndarray] = []
        captions: list[str] = []
        kinds = ("originals", "reconstructions") if model else ("originals",)
        features: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        for shard in open_split(shards, split):
            pictures_NHWC, labels_N = read_pictures(shard, {"image_size": size, "channels": dataset["channels"]})
            labels.append(labels_N)
            captions += [row["caption"] for row in ShardReader(shard).table]
            for start in range(0, len(pictures_NHWC), BATCH):
                with torch.inference_mode():
                    x_BCHW = to_model_range(pictures_NHWC[start : start + BATCH])
                    features["originals"].append(picture_features(network, x_BCHW, feature_size).numpy())
                    if model is not None:
                        x_hat_BCHW = round_to_8_bits(model.reconstruct(x_BCHW))
                        features["reconstructions"].append(picture_features(network, x_hat_BCHW, feature_size).numpy())
        for what, pieces in features.items():
            seen[f"{split}-{what}"] = Seen(np.concatenate(pieces), np.concatenate(labels), captions)
    return seen


def _byte_pairs(run: Path, captions: list[str]) -> tuple[str, int]:
    """The run's byte pairs and the length it reads, or such as are learnt from its captions."""
    from stages.data.captions import learn_captions

    tokens = Workdir(Folder.at(run)).made_last("encode")
    if tokens is not None and any(entry.path == "captions.json" for entry in tokens.own_files):
        segments: list[dict[str, Any]] = tokens.read_json("tokens.json")["condition"]
        length = next(segment["length"] for segment in segments if segment["kind"] == "caption")
        return tokens.local("captions.json").read_text(), length
    return learn_captions(captions, vocabulary_size=CAPTION_VOCABULARY), CAPTION_TOKENS


def _held_out(seen: dict[str, Seen]) -> list[str]:
    return [name for name in seen if name.startswith("val-")]


def _joined(seen: dict[str, Seen], what: str, split: str, kept: dict[str, np.ndarray]) -> np.ndarray:
    import numpy as np

    parts = [np.asarray(getattr(it, what))[kept[name]] for name, it in seen.items() if name.startswith(f"{split}-")]
    joined: np.ndarray = np.concatenate(parts)
    return joined


Run = Annotated[Path, typer.Argument(help="The workdir of a run with finished shards, e.g. runs.")]
Out = Annotated[Path, typer.Option(help="A new folder for the scorer.")]
FeatureSize = Annotated[int, typer.Option(help="Side in pixels at which pictures are looked at.")]
Seed = Annotated[int, typer.Option(help="Of the training.")]


@app.command("classifier")
def classifier(run: Run, out: Out, feature_size: FeatureSize = 96, seed: Seed = 0) -> None:
    """Train a classifier of the run's classes."""
    _tell(train_classifier, run, out, feature_size=feature_size, seed=seed)


@app.command("two_tower")
def two_tower(run: Run, out: Out, feature_size: FeatureSize = 96, seed: Seed = 0) -> None:
    """Train a scorer of the run's captions."""
    _tell(train_two_tower, run, out, feature_size=feature_size, seed=seed)


def _tell(train: Any, run: Path, out: Path, **options: int) -> None:
    try:
        figures = train(run, out, **options)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(f"{out}: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    app()
