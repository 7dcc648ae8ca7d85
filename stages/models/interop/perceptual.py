"""taming-transformers saves its perceptual network with every VQGAN; this makes those tensors anew."""

from __future__ import annotations

from torch import Tensor

from stages.models.losses.perceptual import LPIPSDistance

SLICES = (4, 9, 16, 23, 30)
"""Where each of the network's five parts ends, counted in layers."""


def lpips_weights() -> dict[str, Tensor]:
    """The weights of LPIPS over VGG16 under taming-transformers' names.

    Raises ConfigError where VGG16's weights can neither be found nor downloaded.
    """
    distance = LPIPSDistance("vgg")
    weights = {"scaling_layer.shift": distance.mean, "scaling_layer.scale": distance.std}
    for name, tensor in distance.layers.state_dict().items():
        part = next(number for number, end in enumerate(SLICES, 1) if int(name.split(".")[0]) < end)
        weights[f"net.slice{part}.{name}"] = tensor
    for number in range(len(SLICES)):
        weights[f"lin{number}.model.1.weight"] = distance.get_buffer(f"head_{number}").view(1, -1, 1, 1)
    return {name: tensor.contiguous() for name, tensor in weights.items()}
