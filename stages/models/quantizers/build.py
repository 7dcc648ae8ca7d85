"""The quantizer that a configuration describes."""

from collections.abc import Callable, Mapping
from typing import Any

from stages.models.quantizers.configs import (
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQQuantizerConfig,
    GradientQuantizerConfig,
    GumbelQuantizerConfig,
    LookupFreeQuantizerConfig,
    TrainedQuantizerConfig,
    UsedCodesConfig,
)
from stages.models.quantizers.cosine import CosineQuantizer
from stages.models.quantizers.ema import EMAQuantizer
from stages.models.quantizers.fsq import FSQQuantizer
from stages.models.quantizers.gradient import GradientQuantizer
from stages.models.quantizers.gumbel import GumbelQuantizer
from stages.models.quantizers.lookup_free import LookupFreeQuantizer
from stages.models.quantizers.quantizer import Quantizer
from stages.models.quantizers.used_codes import UsedCodes

QUANTIZERS: Mapping[type, Callable[[Any], Quantizer]] = {
    EMAQuantizerConfig: EMAQuantizer,
    CosineQuantizerConfig: CosineQuantizer,
    GradientQuantizerConfig: GradientQuantizer,
    GumbelQuantizerConfig: GumbelQuantizer,
    FSQQuantizerConfig: FSQQuantizer,
    LookupFreeQuantizerConfig: LookupFreeQuantizer,
}


def build_quantizer(config: TrainedQuantizerConfig | UsedCodesConfig) -> Quantizer:
    """A quantizer as it is before its first update."""
    if isinstance(config, UsedCodesConfig):
        return UsedCodes(build_quantizer(config.quantizer), num_codes=config.num_codes)
    return QUANTIZERS[type(config)](config)
