"""Samplers: from noise to data, each one update rule applied along a grid of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.denoiser import to_score
from loglik.diffusion.schedule import NoiseSchedule, alpha, sigma

__all__ = ["ancestral_step", "euler_maruyama_step", "integrate", "SAMPLERS"]

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t, logsnr of shape (B,)) -> the expected data


def ancestral_step(
    x_t: Float[Tensor, "B ..."], t: Tensor, s: Tensor, denoise: Denoise, schedule: NoiseSchedule
) -> Float[Tensor, "B ..."]:
    r"""One step of the DDPM chain from time t to s < t: draw from $q(x_s \mid x_t, \hat x)$.

    With $c = 1 - e^{\lambda_t - \lambda_s}$, the mean is $\frac{\alpha_s}{\alpha_t}(1 - c)\,x_t + \alpha_s c\,\hat x$
    and the variance $\sigma_s^2 c$. Source: Ho et al. 2020, eq. 6-7; Kingma et al. 2021, appendix A.4.
    """
    logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
    x_hat = denoise(x_t, logsnr_t.expand(len(x_t)))
    c = -torch.expm1(logsnr_t - logsnr_s)
    mean = alpha(logsnr_s) * ((1 - c) * x_t / alpha(logsnr_t) + c * x_hat)
    return mean + sigma(logsnr_s) * c.sqrt() * torch.randn_like(x_t)


def euler_maruyama_step(
    x_t: Float[Tensor, "B ..."], t: Tensor, s: Tensor, denoise: Denoise, schedule: NoiseSchedule
) -> Float[Tensor, "B ..."]:
    r"""One Euler step of the reverse-time SDE.

    $dx = [-\tfrac12 \beta x - \beta \nabla \log p_t(x)]\,dt + \sqrt\beta\,d\bar W$, backwards in time.
    Source: Anderson 1982; Song et al. 2021, eq. 6; the notes, part B2 of spring 2025, question a.
    """
    logsnr = schedule.logsnr(t).expand(len(x_t))
    score = to_score(denoise(x_t, logsnr), x_t, logsnr)
    beta, step = schedule.beta(t), t - s
    return x_t + step * beta * (0.5 * x_t + score) + (step * beta).sqrt() * torch.randn_like(x_t)


SAMPLERS = {"ddpm": ancestral_step, "sde": euler_maruyama_step}


def integrate(
    x_1: Float[Tensor, "B ..."], denoise: Denoise, schedule: NoiseSchedule, *, method: str, steps: int
) -> Float[Tensor, "B ..."]:
    """From noise at time 1 to the least noisy variable at time 0, in `steps` steps.

    The grid is even in the log-SNR for the DDPM chain and even in the square root of time for the SDE, whose
    Euler step must stay below σ² as the noise goes to zero.
    """
    if method not in SAMPLERS:
        raise ValueError(f"unknown sampler {method!r}: use {' or '.join(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ends = torch.tensor([1.0, 0.0], device=x_1.device, dtype=x_1.dtype)
    high, low = schedule.logsnr(ends)
    if method == "ddpm":
        times = schedule.time(torch.linspace(0, 1, steps + 1, device=x_1.device) * (low - high) + high)
    else:
        first, last = schedule.time(high), schedule.time(low)
        root = torch.linspace(0, 1, steps + 1, device=x_1.device)
        times = (first.sqrt() + root * (last.sqrt() - first.sqrt())).square()
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_1 = SAMPLERS[method](x_1, t, s, denoise, schedule)
    return x_1
