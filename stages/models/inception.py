"""The standard Inception: the network whose features FID, KID and the Inception score are defined on.

Architecture, resizing and input range are torch-fidelity's, which reproduces TensorFlow's graph of 2015-12-05 (Heusel
et al. 2017 used it). Its weights are read here as plain tensors, and nothing is downloaded. Shape suffixes: B batch,
H height, W width, C channels, D features, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError
from stages.models.inception_weights import ADDRESS
from stages.models.interop.checkpoint import read_checkpoint

INCEPTION_FEATURES, INCEPTION_CLASSES = 2048, 1008


class Inception:
    """Pooled features of pictures in 8 bits, which it resizes to 299 pixels of side itself."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Load the weights at `path`. Raises DataError where they are not those of this network."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state, checked = _read_state(path), io.BytesIO()
        torch.save(dict(state), checked)  # torch-fidelity unpickles whatever it is given: it is given plain tensors
        checked.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=checked)
        except RuntimeError as error:
            raise DataError(f"{path} holds other tensors than Inception's ({str(error)[:200]}): {_REMEDY}") from None
        self.network, self.device = network.to(device), device

    def features(self, pictures_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features [B, D] of pictures [B, H, W, C]; grey ones are seen as grey colours."""
        x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).to(self.device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            (features_BD,) = self.network(x_BCHW.expand(-1, 3, -1, -1).contiguous())
        found: NDArray[np.float32] = features_BD.float().cpu().numpy()
        return found


def class_weights(path: Path) -> NDArray[np.float32]:
    """The classifier [K, D] of the weights at `path`, whose logits without bias the Inception score is taken of."""
    weight: NDArray[np.float32] = _read_state(path)["fc.weight"].float().numpy()
    return weight


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """The weights by name. Raises DataError where the file is unreadable or holds another network."""
    state = read_checkpoint(path).weights
    shape = tuple(state["fc.weight"].shape) if "fc.weight" in state else None
    if shape != (INCEPTION_CLASSES, INCEPTION_FEATURES):
        wanted = (INCEPTION_CLASSES, INCEPTION_FEATURES)
        raise DataError(f"{path} holds another network: its fc.weight is {shape}, Inception's {wanted}: {_REMEDY}")
    return state


_REMEDY = f"fetch {ADDRESS}, or set evaluate.inception=none"
