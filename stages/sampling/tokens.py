"""The token loop: draws the tokens of a batch of pictures from a prior, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import StageError
from stages.models.priors.cross_entropy import token_nats
from stages.models.priors.prior import Prior
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance, as_guidance, guide
from stages.sampling.noise import GumbelNoise

# Shapes: B batch, C condition tokens, T image tokens, V codes; R rows of the prior: B, or 2B with guidance.


@torch.inference_mode()
def draw_tokens(
    prior: Prior,
    condition_BC: Tensor,
    noise: GumbelNoise,
    *,
    logit_filter: LogitFilter | None = None,
    guidance: Guidance | float = 1.0,
    known_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw image tokens [B, T] and return them with their log-likelihood [B] in nats (float64).

    The likelihood is that under the prior given the condition, without guidance and filters; with a guidance of 0, for
    which the prior is not asked about the condition, that without it. Where `known_BT` is not negative its tokens are
    kept, and the likelihood is that of the others; places that all pictures know are read in one pass, not drawn.
    Raises StageError where the prior's logits are not finite.
    """
    branches = Branches(prior, as_guidance(guidance))
    known_BT = torch.full((len(condition_BC), prior.num_tokens), -1) if known_BT is None else known_BT
    # In the order of drawing from here on.
    order_T = torch.tensor(prior.order)
    tokens_BT = known_BT[:, order_T].to(condition_BC.device)
    log_likelihood_B = torch.zeros(len(condition_BC), dtype=torch.float64, device=condition_BC.device)
    condition_RC = branches.conditions(condition_BC)
    cache = prior.new_cache(len(condition_RC))
    logits_RV, read, feed = prior.prefill(condition_RC, cache), 0, prior.stepper(cache)
    for position in (known_BT[:, order_T] < 0).any(dim=0).nonzero()[:, 0].tolist():
        if read < position:
            logits_RV, read = feed(branches.rows(tokens_BT[:, read:position]), read), position
        noise_BV = torch.from_numpy(noise.at(prior.order[position], prior.vocabulary.num_codes))
        scale = branches.guidance.at(position, prior.num_tokens)
        tokens_BT[:, position], nats_B = branches.draw(
            logits_RV, noise_BV, scale, logit_filter or LogitFilter(), tokens_BT[:, position]
        )
        log_likelihood_B -= nats_B
    check_finite(log_likelihood_B)
    return tokens_BT[:, order_T.argsort()], log_likelihood_B


class Branches:
    """The rows of the prior that a batch takes: the condition's, those without it, or both in one batch."""

    def __init__(self, prior: Prior, guidance: Guidance) -> None:
        self.guidance = guidance
        self.vocabulary = prior.vocabulary
        self.count = 1 if guidance.is_off or guidance.is_unconditional else 2

    def conditions(self, condition_BC: Tensor) -> Tensor:
        """Condition tokens [R, C]."""
        if self.guidance.is_off:
            return condition_BC
        null_BC = self.vocabulary.null_condition(condition_BC)
        return null_BC if self.guidance.is_unconditional else torch.cat([condition_BC, null_BC])

    def rows(self, tokens_BS: Tensor) -> Tensor:
        """Image tokens [R, S]."""
        return tokens_BS.repeat(self.count, 1)

    def draw(
        self, logits_RV: Tensor, noise_BV: Tensor, scale: float, logit_filter: LogitFilter, known_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A token of each picture and its negative log-likelihood, both [B]; known ones (0 nats) where not negative."""
        conditional_BV, unconditional_BV = logits_RV.chunk(self.count)[0], logits_RV.chunk(self.count)[-1]
        drawn_from_BV = guide(conditional_BV, unconditional_BV, scale)
        tokens_B = (logit_filter(drawn_from_BV) + noise_BV.to(logits_RV.device)).argmax(dim=-1)
        nats_B = token_nats(conditional_BV[:, None], tokens_B[:, None])[:, 0]
        return torch.where(known_B < 0, tokens_B, known_B), nats_B.masked_fill(known_B >= 0, 0)


def check_finite(log_likelihood_B: Tensor) -> None:
    """Raise StageError where the prior's logits were not finite."""
    if not log_likelihood_B.isfinite().all():
        raise StageError("the prior's logits are not finite: its training diverged; lower prior.learning_rate")
