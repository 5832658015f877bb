r"""Diagnose a VAE's latents: which carry information, and how far the prior is from the aggregate posterior.

N examples, L latent dimensions; for a ladder those of all groups in one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.vae.kl import gaussian_kl, gaussian_log_prob
from loglik.vae.ladder import LadderVAE
from loglik.vae.vae import VAE

__all__ = ["Diagnosis", "diagnose"]

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016
ACTIVE_NATS = 0.01
AT_ONCE = 256


@dataclass(frozen=True)
class Diagnosis:
    r"""Statistics of the latents of N examples.

    Attributes:
        kl: mean KL of each latent in nats: $\mathbb E_x \mathrm{KL}(q(z_d \mid x) \,\|\, p(z_d \mid z_{<}))$ where
            it has a closed form, else against the Gaussian that is nearest to the aggregate posterior.
        variance: of the posterior's mean over examples, for each dimension.
        groups: number of dimensions of each group, the top group first; only a ladder has several.
        kl_total: the mean KL(q(z | x) ‖ p(z)), in nats.
        gap: $\mathrm{KL}(q(z) \,\|\, p(z))$ of the aggregate posterior $q(z) = \tfrac1N \sum_n q(z \mid x_n)$ from the
            prior, in nats, of the top group: the part of the KL that a better prior could save.
        z, prior: one draw per example from the posterior and from the prior, of the top group: (N, L1).

    Source of `gap`: Hoffman and Johnson 2016, "ELBO surgery".
    """

    kl: Float[Tensor, " L"]
    variance: Float[Tensor, " L"]
    groups: tuple[int, ...]
    kl_total: Float[Tensor, ""]
    gap: Float[Tensor, ""]
    z: Float[Tensor, "N L1"]
    prior: Float[Tensor, "N L1"]

    @property
    def active(self) -> Bool[Tensor, " L"]:
        """Return which dimensions have a KL above 0.01 nats and a posterior mean with a variance above 0.01.

        Source: Burda et al. 2016, section 5.2.
        """
        return (self.variance > ACTIVE_VARIANCE) & (self.kl > ACTIVE_NATS)

    @property
    def collapse(self) -> str | None:
        """Describe posterior collapse; None if every group has active dimensions."""
        counts = [int(part.sum()) for part in self.active.split(self.groups)]
        advice = "the decoder does without them; try kl_warmup, free_bits, or beta below 1 at first"
        if not any(counts):
            return f"posterior collapse: none of the {len(self.kl)} latent dimensions is active: {advice}"
        if not all(counts):
            dead = ", ".join(str(g + 1) for g, count in enumerate(counts) if count == 0)
            return f"posterior collapse in group {dead} of {len(counts)}, from the top: {advice}"
        return None

    def lines(self) -> list[str]:
        """Return a summary for users, one line per finding."""
        lines = [
            f"latents: {int(self.active.sum())} of {len(self.kl)} dimensions active, KL {self.kl_total:.2f} nats, of "
            f"which a better prior would save up to {self.gap.clamp_min(0):.2f}"
        ]
        return lines + ([self.collapse] if self.collapse else [])


@torch.no_grad()
def diagnose(vae: VAE, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> Diagnosis:
    """Return the statistics of a VAE's latents on examples, with torch's global generator.

    `gap` is estimated from the same N examples, so it is too small: it lies between kl_total - log N and kl_total.
    """
    pieces = []
    for start in range(0, len(x), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        labels = None if context is None else context[rows]
        draw = vae._draw(vae._infer(x[rows], labels), labels)
        mean, log_scale = vae.posterior(x[rows], labels)
        kl = torch.zeros_like(draw.z) if draw.kl is None else draw.kl
        total = -draw.log_ratio if draw.kl is None else draw.kl.sum(1)
        pieces.append((draw.z, mean, log_scale, kl, total))
    z, mean, log_scale, kl, total = (torch.cat(part) for part in zip(*pieces, strict=True))
    groups = tuple(vae.sizes) if isinstance(vae, LadderVAE) else (vae.latent,)
    top = groups[0]
    spread = mean.var(0, unbiased=False)
    if draw.kl is None:
        aggregate = (spread + (2 * log_scale).exp().mean(0)).log() / 2
        kl = gaussian_kl(mean, log_scale, mean.mean(0), aggregate)
    own = z[:, :top]
    log_q: Tensor | float = -math.inf
    if not len(vae.posterior_flow):
        parts = [
            gaussian_log_prob(part[:, None], mean[None, :, :top], log_scale[None, :, :top]).sum(2).logsumexp(1)
            for part in own.split(AT_ONCE)
        ]
        log_q = torch.cat(parts).mean().double() - math.log(len(own))
    gap = log_q - vae.prior.log_prob(own, context).mean().double()
    prior = vae.prior.sample(len(own), context)
    return Diagnosis(kl.mean(0), spread, groups, total.mean().double(), gap, own, prior)
