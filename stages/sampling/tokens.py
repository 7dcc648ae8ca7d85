"""The token loop: draws the tokens of a batch of pictures from a prior, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import StageError
from stages.models.priors.cross_entropy import token_nats
from stages.models.priors.prior import Prior
from stages.sampling.filters import LogitFilter
from stages.sampling.noise import GumbelNoise

# Shapes: B batch, C condition tokens, T image tokens, V codes; R rows of the prior: B, or 2B with guidance.


@torch.inference_mode()
def draw_tokens(
    prior: Prior,
    condition_BC: Tensor,
    noise: GumbelNoise,
    *,
    logit_filter: LogitFilter | None = None,
    guidance: float = 1.0,
    known_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw image tokens [B, T] and return them with their log-likelihood [B] in nats (float64).

    The likelihood is that under the prior given the condition, without guidance and filters. `guidance` s draws
    from uncond + s * (cond - uncond) (classifier-free guidance; Ho and Salimans, 2022), both in one batch; 1 runs
    the conditional branch alone. Where `known_BT` is not negative its tokens are kept, and the likelihood is that of
    the others. Raises StageError where the prior's logits are not finite.
    """
    logit_filter = logit_filter or LogitFilter()
    B = len(condition_BC)
    guided = guidance != 1
    if guided:
        condition_BC = torch.cat([condition_BC, prior.vocabulary.null_condition(condition_BC)])
    cache = prior.new_cache(len(condition_BC))
    logits_RV = prior.prefill(condition_BC, cache)
    tokens_BT = torch.empty(B, prior.num_tokens, dtype=torch.long, device=condition_BC.device)
    log_likelihood_B = torch.zeros(B, dtype=torch.float64, device=condition_BC.device)
    for position, place in enumerate(prior.order):
        conditional_BV = logits_RV[:B]
        drawn_from_BV = _guide(conditional_BV, logits_RV[B:], guidance) if guided else conditional_BV
        noise_BV = torch.from_numpy(noise.at(place, prior.vocabulary.num_codes)).to(condition_BC.device)
        tokens_B = (logit_filter(drawn_from_BV) + noise_BV).argmax(dim=-1)
        nats_B = token_nats(conditional_BV[:, None], tokens_B[:, None])[:, 0]
        if known_BT is not None:
            known_B = known_BT[:, place]
            tokens_B = torch.where(known_B < 0, tokens_B, known_B)
            nats_B = nats_B.masked_fill(known_B >= 0, 0)
        tokens_BT[:, place] = tokens_B
        log_likelihood_B -= nats_B
        if position + 1 < prior.num_tokens:
            logits_RV = prior.step(tokens_B.repeat(2) if guided else tokens_B, position, cache)
    if not log_likelihood_B.isfinite().all():
        raise StageError("the prior's logits are not finite: its training diverged; lower prior.learning_rate")
    return tokens_BT, log_likelihood_B


def _guide(conditional_BV: Tensor, unconditional_BV: Tensor, scale: float) -> Tensor:
    return unconditional_BV + scale * (conditional_BV - unconditional_BV)
