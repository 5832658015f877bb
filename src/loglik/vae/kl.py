r"""The KL term of the ELBO: its closed form for Gaussians, and its weight in training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["KLWeighting", "gaussian_kl", "gaussian_log_prob"]


@dataclass(frozen=True, kw_only=True)
class KLWeighting:
    r"""How training weighs the KL term of the ELBO; `log_prob` does not depend on it.

    `loss` is $-\mathbb E_q[\log p(x \mid z)] + w \sum_d \max(\lambda, \mathrm{KL}_d)$, with
    $w = \beta \min(1, \max(n / \text{warmup}, 4 t))$ at step n, after the fraction t of a `fit`.

    Attributes:
        beta: β (Higgins et al. 2017).
        free_bits: λ in nats per latent dimension, compared with the mean KL of the batch (Kingma et al. 2016,
            section 4). Where the KL is sampled, only its sum is known, and the bound on the sum is λL.
        warmup: training steps in which the KL's weight rises from 0 (Sønderby et al. 2016), at most a quarter of a
            `fit`.

    Raises ValueError for a negative number.
    """

    beta: float = 1.0
    free_bits: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name in ("beta", "free_bits", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def gaussian_kl(
    mean: Float[Tensor, "..."],
    log_scale: Float[Tensor, "..."],
    prior_mean: Float[Tensor, "..."] | float = 0.0,
    prior_log_scale: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "..."]:
    r"""Return $\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(\mu_p, \sigma_p^2))$ in each dimension.

    It is $\log \frac{\sigma_p}{\sigma} + \frac{\sigma^2 + (\mu - \mu_p)^2}{2 \sigma_p^2} - \tfrac12$, and
    $\tfrac12 (\mu^2 + \sigma^2 - 1) - \log \sigma$ for the prior N(0, 1).
    """
    if isinstance(prior_mean, float) and isinstance(prior_log_scale, float) and prior_mean == prior_log_scale == 0:
        return 0.5 * ((2 * log_scale).exp() + mean.square() - 1) - log_scale
    gap = torch.as_tensor(prior_log_scale) - log_scale
    inverse = torch.as_tensor(-2 * prior_log_scale).exp()
    return gap + 0.5 * ((-2 * gap).exp() + (mean - prior_mean).square() * inverse - 1)


def gaussian_log_prob(
    z: Float[Tensor, "..."], mean: Float[Tensor, "..."], log_scale: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the log-density of a Gaussian in each dimension."""
    return -0.5 * ((z - mean) * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
