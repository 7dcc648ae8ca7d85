"""The units of evaluation: features of shards and of reconstructions, bits of token tables, the chance level.

One worker does all kinds, so that a process loads each network once, and only if one of its units needs it.
Every unit writes NAME.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from pipeline.units import Unit
from stages.data.images import to_model_range, to_uint8
from stages.data.map_shelf import MapShelf
from stages.data.shards import ShardReader
from stages.data.tables import read_tokens
from stages.metrics.centres import read_pictures
from stages.metrics.likelihood import condition_for, token_bits
from stages.metrics.map_fidelity import fidelities
from stages.metrics.places import thumbnails, window_place
from stages.metrics.threads import one_thread
from stages.models.efficientnet_lite0 import POOLED_FEATURES, EfficientNetLite0
from stages.models.fidelity import SSIM_WINDOW, picture_l1, picture_mse, picture_ssim, round_to_8_bits
from stages.models.inception import INCEPTION_FEATURES, Inception
from stages.models.losses.perceptual import FeatureDistance
from stages.models.picture_features import picture_features
from stages.models.priors.load import load_prior
from stages.models.priors.prior import Prior
from stages.models.tokenizer import Tokenizer

KEPT_RECONSTRUCTIONS = 24
"""Pictures of a unit whose reconstruction is kept to be shown, evenly spaced over the shard."""

CODE_GRID = 5
"""Rows and columns of equal tokens around one, so that its pixels are not those of an edge."""

PERCEPTUAL_STAGES = (0, 1, 2, 3, 4)
"""Of the feature network, whose features tell how different a reconstruction looks: all it has."""

Arrays = dict[str, NDArray[Any]]


@dataclass
class Measurer:
    """Makes one unit of any kind; `recipe["measure"]` says which."""

    tokenizer_folder: Path
    prior_folder: Path
    device: str
    inception_weights: Path | None = None

    def __call__(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write the unit's arrays; return how many pictures they are of."""
        measure = {
            "features": self.shard_features,
            "reconstruction": self.reconstruction,
            "likelihood": self.likelihood,
            "chance": self.chance,
            "codes": self.codes,
            "obedience": self.obedience,
            "possible": self.possible,
            "windows": self.windows,
            "inception": self.inception,
            "inception_reconstruction": self.inception_reconstruction,
        }[unit.recipe["measure"]]
        with one_thread():
            arrays = measure(unit)
        save_file(
            {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, folder / f"{unit.name}.safetensors"
        )
        return {"pictures": len(next(iter(arrays.values())))}

    def shard_features(self, unit: Unit) -> Arrays:
        """Features and labels of a shard's pictures."""
        pictures_NHWC, labels_N = read_pictures(unit.payload["shard"], unit.recipe)
        batches = _batches(pictures_NHWC, unit.recipe["batch_size"])
        features = [self._features(to_model_range(batch).to(self.device), unit) for batch in batches]
        return {"features": _stack(features), "labels": labels_N}

    def reconstruction(self, unit: Unit) -> Arrays:
        """What the tokenizer makes of a shard's pictures: features, errors of each picture, and some to look at.

        Reconstructions are rounded to 8 bits, as samples are that were stored.
        """
        pictures_NHWC, labels_N = read_pictures(unit.payload["shard"], unit.recipe)
        shown = np.unique(
            np.linspace(0, len(labels_N) - 1, min(KEPT_RECONSTRUCTIONS, len(labels_N))).round().astype(int)
        )
        figures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": picture_mse,
            "l1": picture_l1,
            "perceptual": self._perceptual,
        }
        if min(pictures_NHWC.shape[1:3]) >= SSIM_WINDOW:
            figures["ssim"] = picture_ssim
        # Each list starts with a piece of nothing: tombstones can leave a shard without pictures.
        errors, features, rebuilt = {name: [np.zeros(0)] for name in figures}, [], [pictures_NHWC[:0]]
        for batch in _batches(pictures_NHWC, unit.recipe["batch_size"]):
            x_BCHW = to_model_range(batch).to(self.device)
            with torch.inference_mode():
                x_hat_BCHW = round_to_8_bits(self._tokenizer.reconstruct(x_BCHW))
                for name, figure in figures.items():
                    errors[name].append(figure(x_BCHW, x_hat_BCHW).double().cpu().numpy())
            features.append(self._features(x_hat_BCHW, unit))
            rebuilt.append(to_uint8(x_hat_BCHW))
        pictures = {"originals": pictures_NHWC[shown], "reconstructions": np.concatenate(rebuilt)[shown]}
        measured = {name: np.concatenate(pieces) for name, pieces in errors.items()}
        return {"features": _stack(features), "labels": labels_N, **measured, **pictures}

    def likelihood(self, unit: Unit) -> Arrays:
        """Bits of the unflipped, uncropped pictures of a token table, the first `rows` of them.

        Of each picture the mean over its tokens, of each position the sum over pictures.
        """
        with unit.payload["table"].held() as path:
            table = read_tokens(path)
        chosen = np.flatnonzero(table.variants == 0)[: unit.recipe["rows"]]
        tokens_NT = table.tokens_NT[chosen]
        condition_NC = condition_for(table.condition_NC[chosen], unit.payload["given"], unit.payload["wanted"])
        bits_NT = token_bits(
            self._prior, tokens_NT, condition_NC, batch_size=unit.recipe["batch_size"], device=self.device
        )
        return {
            "bits": bits_NT.mean(axis=1),
            "position_bits": bits_NT.sum(axis=0),
            "labels": table.labels[chosen].astype(np.int64),
        }

    def chance(self, unit: Unit) -> Arrays:
        """Features of decoded random tokens: each drawn by the corpus' frequencies, ignorant of all others."""
        counts_K = np.asarray(unit.payload["code_counts"], np.float64)
        rng = np.random.default_rng(unit.recipe["seed"])
        num_pictures, (height, width) = unit.recipe["num_pictures"], self._tokenizer.grid
        codes_NHW = rng.choice(len(counts_K), size=(num_pictures, height, width), p=counts_K / counts_K.sum())
        features = []
        for codes_BHW in _batches(codes_NHW, unit.recipe["batch_size"]):
            with torch.inference_mode():
                x_BCHW = self._tokenizer.decode(torch.from_numpy(codes_BHW).to(self.device))
            features.append(self._features(x_BCHW, unit))
        return {"features": _stack(features)}

    def codes(self, unit: Unit) -> Arrays:
        """What codes decode to: of a small grid of nothing else, the pixels of the token in its middle."""
        factor, middle = self._tokenizer.config.factor, CODE_GRID // 2 * self._tokenizer.config.factor
        tiles = []
        for codes_B in _batches(np.array(unit.recipe["codes"]), unit.recipe["batch_size"]):
            indices_BHW = torch.from_numpy(codes_B).to(self.device)[:, None, None].expand(-1, CODE_GRID, CODE_GRID)
            with torch.inference_mode():
                pictures_BHWC = to_uint8(self._tokenizer.decode(indices_BHW))
            tiles.append(pictures_BHWC[:, middle : middle + factor, middle : middle + factor])
        return {"tiles": np.concatenate(tiles)}

    def obedience(self, unit: Unit) -> Arrays:
        """How close the maps of samples come to those they were drawn from, and to those that others were."""
        pictures_NHWC, _ = read_pictures(unit.payload["shard"], unit.recipe)
        told = unit.payload
        return {
            name: fidelities(told["condition"], pictures_NHWC, told[name], told["shelf"], told["guess"])
            for name in ("own", "shuffled")
        }

    def possible(self, unit: Unit) -> Arrays:
        """How close the maps of reconstructions come to those of their originals."""
        pictures_NHWC, _ = read_pictures(unit.payload["shard"], unit.recipe)
        told, rebuilt_NHWC = unit.payload, self._rebuilt(pictures_NHWC, unit)
        own = fidelities(told["condition"], rebuilt_NHWC, told["own"], told["shelf"], told["guess"])
        return {"own": own}

    def windows(self, unit: Unit) -> Arrays:
        """A window of each picture of a shard, `rebuilt` by the tokenizer or as it is: thumbnails, and places."""
        size, seed, variant = (unit.recipe[name] for name in ("image_size", "seed", "variant"))
        reader, channels = ShardReader(unit.payload["shard"]), unit.recipe["channels"]
        shelf = MapShelf([unit.payload["shard"]], channels, size, seed)
        pictures = [shelf.read((row["key"], variant)) for row in reader.table]
        pictures_NHWC = np.stack(pictures) if pictures else np.empty((0, size, size, channels), np.uint8)
        if unit.recipe["rebuilt"]:
            pictures_NHWC = self._rebuilt(pictures_NHWC, unit)
        places = [window_place(row, variant, size=size, seed=seed) for row in reader.table]
        return {"thumbnails": thumbnails(pictures_NHWC), "places": np.array(places, np.float64).reshape(-1, 2)}

    def inception(self, unit: Unit) -> Arrays:
        """The standard Inception's features of a shard's pictures."""
        pictures_NHWC, _ = read_pictures(unit.payload["shard"], unit.recipe)
        return self._inception_features(pictures_NHWC, unit)

    def inception_reconstruction(self, unit: Unit) -> Arrays:
        """The standard Inception's features of what the tokenizer makes of a shard's pictures."""
        pictures_NHWC, _ = read_pictures(unit.payload["shard"], unit.recipe)
        return self._inception_features(self._rebuilt(pictures_NHWC, unit), unit)

    def _inception_features(self, pictures_NHWC: NDArray[np.uint8], unit: Unit) -> Arrays:
        batches = _batches(pictures_NHWC, unit.recipe["batch_size"])
        return {"features": _stack([self._inception.features(batch) for batch in batches], INCEPTION_FEATURES)}

    def _rebuilt(self, pictures_NHWC: NDArray[np.uint8], unit: Unit) -> NDArray[np.uint8]:
        """Pictures through the tokenizer and back."""
        rebuilt = [pictures_NHWC[:0]]
        for batch in _batches(pictures_NHWC, unit.recipe["batch_size"]):
            with torch.inference_mode():
                rebuilt.append(to_uint8(self._tokenizer.reconstruct(to_model_range(batch).to(self.device))))
        return np.concatenate(rebuilt)

    def _features(self, x_BCHW: Tensor, unit: Unit) -> NDArray[np.float32]:
        features_BD: NDArray[np.float32]
        features_BD = picture_features(self._network, x_BCHW, unit.recipe["feature_size"]).cpu().numpy()
        return features_BD

    @cached_property
    def _network(self) -> EfficientNetLite0:
        return self._perceptual.network

    @cached_property
    def _perceptual(self) -> FeatureDistance:
        return FeatureDistance(PERCEPTUAL_STAGES).to(self.device)

    @cached_property
    def _inception(self) -> Inception:
        assert self.inception_weights is not None, "its units are cut only where there are weights"
        return Inception(self.inception_weights, self.device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_folder, self.device)

    @cached_property
    def _prior(self) -> Prior:
        return load_prior(self.prior_folder, self.device)


def _batches(array_N: NDArray[Any], size: int) -> list[NDArray[Any]]:
    return [array_N[start : start + size] for start in range(0, len(array_N), size)]


def _stack(features: list[NDArray[np.float32]], num_features: int = POOLED_FEATURES) -> NDArray[np.float32]:
    return np.concatenate(features) if features else np.zeros((0, num_features), np.float32)
