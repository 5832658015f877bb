"""Inpainting: draw the unknown part of events given the known part."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loglik.diffusion.chain import transition
from loglik.diffusion.denoiser import Denoise
from loglik.diffusion.schedule import NoiseSchedule
from loglik.diffusion.steps import Level, SamplerState, ddpm
from loglik.diffusion.time_grid import time_grid

__all__ = ["inpaint"]


def inpaint(
    x: Float[Tensor, "B ..."],
    known: Bool[Tensor, "B ..."],
    denoise: Denoise,
    schedule: NoiseSchedule,
    *,
    steps: int,
    repeats: int,
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, ""]]:
    r"""Run RePaint: the ancestral chain, with the known part replaced by its noised version at every step.

    After each step from t to s the point is noised back to t and the step is made again, `repeats` times in all, so
    that the unknown part comes to agree with the known one: replacement alone ($r = 1$) makes it agree only roughly.
    Returns z and the log-SNR at the last noise level.

    Source: Lugmayr et al. 2022, "RePaint: inpainting using denoising diffusion probabilistic models", algorithm 1.
    """
    levels = time_grid(schedule, steps, "logsnr", x)
    path = [Level(t, logsnr) for t, logsnr in zip(schedule.time(levels), levels, strict=True)]
    state = SamplerState(denoise, schedule, torch.randn_like)
    z = torch.randn_like(x)
    for t, s in zip(path[:-1], path[1:], strict=True):
        for again in range(repeats, 0, -1):
            z = ddpm(z, t, s, state)
            z = torch.where(known, s.alpha * x + s.sigma * torch.randn_like(x), z)
            if again > 1:
                mean, std = transition(z, s.logsnr, t.logsnr)
                z = mean + std * torch.randn_like(z)
    return z, levels[-1]
