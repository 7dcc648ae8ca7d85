"""Inception as torch-fidelity builds it, with random weights: features for tests, where nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from torch_fidelity import feature_extractor_inceptionv3 as theirs


def save_random_inception(path: Path, seed: int = 0) -> Path:
    """Write a state dict whose activations neither vanish nor explode; equal seeds give equal tensors."""
    torch.manual_seed(seed)
    network = theirs.FeatureExtractorInceptionV3
    with mock.patch.object(network, "load_state_dict"), mock.patch.object(theirs, "load_state_dict_from_url"):
        made = network("random", ["2048"])
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(made.state_dict(), path)
    return path
