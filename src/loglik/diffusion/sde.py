r"""The VP-SDE: the forward SDE, and from a score the reverse-time SDE and the probability-flow ODE.

Forward, $dx = -\tfrac12\beta x\,dt + \sqrt\beta\,dW$. With the score $s = \nabla \log p_t(x)$, time runs backwards in
$dx = [-\tfrac12\beta x - \beta s]\,dt + \sqrt\beta\,d\bar W$ (Anderson 1982), and the ODE
$dx/dt = -\tfrac12\beta x - \tfrac12\beta s$ has the same marginals p_t as both (Song et al. 2021, "Score-based
generative modeling through SDEs", eq. 6 and 13; the notes, part B2 of spring 2025, question a).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.schedule import NoiseSchedule, alpha, broadcast_like

__all__ = ["diffusion", "flow_in_logsnr", "forward_drift", "probability_flow", "reverse_drift"]


def _beta(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> Tensor:
    beta = schedule.beta(t)
    return broadcast_like(beta, x) if beta.dim() else beta


def diffusion(schedule: NoiseSchedule, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $g(t) = \sqrt{\beta(t)}$, the diffusion coefficient of both SDEs."""
    return torch.sqrt(schedule.beta(t))


def forward_drift(
    schedule: NoiseSchedule, x: Float[Tensor, "B ..."], t: Float[Tensor, "..."]
) -> Float[Tensor, "B ..."]:
    r"""Return the drift $-\tfrac12 \beta x$; t is one time, or one per example."""
    return -0.5 * _beta(schedule, t, x) * x


def reverse_drift(
    schedule: NoiseSchedule, x: Float[Tensor, "B ..."], t: Float[Tensor, "..."], score: Float[Tensor, "B ..."]
) -> Float[Tensor, "B ..."]:
    r"""Return the drift $-\tfrac12 \beta x - \beta s$ of the reverse-time SDE, where dt < 0."""
    return -_beta(schedule, t, x) * (0.5 * x + score)


def probability_flow(
    schedule: NoiseSchedule, x: Float[Tensor, "B ..."], t: Float[Tensor, "..."], score: Float[Tensor, "B ..."]
) -> Float[Tensor, "B ..."]:
    r"""Return $dx/dt = -\tfrac12 \beta (x + s)$ of the ODE."""
    return -0.5 * _beta(schedule, t, x) * (x + score)


def flow_in_logsnr(
    x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    r"""Return the probability-flow ODE in the log-SNR, $dx/d\lambda = \tfrac12 \alpha (\hat x - \alpha x)$.

    It is `probability_flow` over $\lambda'(t) = -\beta/\sigma^2$, with $s = (\alpha\hat x - x)/\sigma^2$. It stays
    bounded towards both ends, and is the same for every schedule.
    """
    a = broadcast_like(alpha(logsnr), x)
    return 0.5 * a * (x_hat - a * x)
