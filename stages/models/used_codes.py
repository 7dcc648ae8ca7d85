"""A tokenizer without the codes that a corpus does not use: fewer tokens for a prior to choose from."""

import torch
from torch import Tensor

from pipeline.config import StrictModel
from pipeline.errors import ConfigError
from stages.models.quantizers.configs import FSQQuantizerConfig, LookupFreeQuantizerConfig, UsedCodesConfig
from stages.models.quantizers.used_codes import Unknown, number_used_codes
from stages.models.tokenizer import Tokenizer

QUANTIZE = "quantize."


@torch.no_grad()
def keep_used_codes(tokenizer: Tokenizer, counts_K: Tensor, *, unknown: Unknown = "nearest") -> Tokenizer:
    """A tokenizer whose codes are those with `counts_K` above zero, numbered anew in the old order.

    Pictures of only such codes are reconstructed as before, from the new numbers. `nearest` makes the codebook itself
    smaller, where there is one: other vectors go to the nearest code that is left. Everything else keeps all codes
    behind a table of numbers, in which codes that do not occur stand as `unknown` says.

    Raises DataError or ConfigError for counts or an `unknown` that do not fit, see `number_used_codes`.
    """
    quantizer = tokenizer.config.quantizer
    if isinstance(quantizer, UsedCodesConfig):
        raise ConfigError("this tokenizer's codes are numbered anew already: start from the one that was trained")
    numbering = number_used_codes(tokenizer.quantize, counts_K, unknown)
    num_codes, weights = len(numbering.old_U), dict(tokenizer.state_dict())
    own = {name.removeprefix(QUANTIZE): weights.pop(name) for name in list(weights) if name.startswith(QUANTIZE)}
    if unknown == "nearest" and not isinstance(quantizer, FSQQuantizerConfig | LookupFreeQuantizerConfig):
        smaller: StrictModel = quantizer.model_copy(update={"num_codes": num_codes})
        kept = {name: rows_K[numbering.old_U] for name, rows_K in own.items()}
    else:
        smaller = UsedCodesConfig(quantizer=quantizer, num_codes=num_codes)
        kept = numbering._asdict() | {f"quantizer.{name}": value for name, value in own.items()}
    config = tokenizer.config.model_copy(update={"quantizer": smaller})
    result = Tokenizer(config, image_size=tokenizer.image_size, channels=tokenizer.channels)
    result.to(tokenizer.last_layer_weight.device, tokenizer.last_layer_weight.dtype)
    result.load_state_dict(weights | {QUANTIZE + name: value for name, value in kept.items()})
    return result.eval().requires_grad_(False)
