"""Reference statistics: kept from run to run, so that a new prior computes none again, and read from others' files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.errors import DataError
from stages.metrics.moments import Moments

if TYPE_CHECKING:
    from pipeline.output import Output

LARGEST_MEMBER = 2**26
"""Bytes of one array of a file from elsewhere: a covariance of 2,048 features has half as many."""
STATISTICS = "statistics.safetensors"


def kept_moments(output: Output, of: Mapping[str, Any], compute: Callable[[], Moments]) -> Moments:
    """The moments of pictures that `of` (digests of data and features) decides: those of an earlier run, or new ones.

    A damaged file of an earlier run is made again, with a warning.
    """
    folder = output.memory({"statistics": 1, **of})
    if folder.exists(STATISTICS):
        try:
            return _load(folder.local(STATISTICS))
        except (SafetensorError, KeyError, ValueError) as error:
            output.warn(f"{folder}/{STATISTICS} is damaged ({error}): its statistics are computed again")
    moments = compute()
    with folder.writing(STATISTICS) as path:
        weights = np.array([moments.weight, moments.weight_squared])
        save_file({"mean": moments.mean_D, "scatter": moments.scatter_DD, "weights": weights}, path)
    return moments


def _load(path: Path) -> Moments:
    arrays = load_file(path)
    weight, weight_squared = arrays["weights"].tolist()
    return Moments(weight, weight_squared, arrays["mean"], arrays["scatter"])


def read_reference(path: Path, num_features: int) -> Moments:
    """Statistics that another tool wrote: `mu` and `sigma` of an .npz, as pytorch-fid and ADM keep them.

    Nothing in the file is executed. Raises DataError where it holds no mean and covariance of so many features.
    """
    remedy = "evaluate.reference takes an .npz with mu [D] and sigma [D, D] of Inception's features"
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {name: archive.getinfo(f"{name}.npy").file_size for name in ("mu", "sigma")}
        if max(sizes.values()) > LARGEST_MEMBER:
            raise DataError(f"{path}: {max(sizes.values()):,} bytes are too many for such statistics: {remedy}")
        with np.load(path, allow_pickle=False) as arrays:
            mean_D, covariance_DD = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as statistics ({str(error)[:200]}): {remedy}") from None
    if mean_D.shape != (num_features,) or covariance_DD.shape != (num_features, num_features):
        raise DataError(
            f"{path}: mu is {mean_D.shape} and sigma {covariance_DD.shape}, of {num_features} features: {remedy}"
        )
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
        raise DataError(f"{path}: not all of mu and sigma are numbers: {remedy}")
    if not np.allclose(covariance_DD, covariance_DD.T, rtol=1e-5, atol=1e-8):
        raise DataError(f"{path}: sigma is not symmetric, so no covariance: {remedy}")
    return Moments.of_gaussian(mean_D, covariance_DD)
