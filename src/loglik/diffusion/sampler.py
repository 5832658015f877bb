"""Samplers: from noise to data along a time grid, by an update rule, or by an adaptive ODE solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.denoiser import Denoise
from loglik.diffusion.ode import solve
from loglik.diffusion.schedule import NoiseSchedule
from loglik.diffusion.sde import flow_in_logsnr
from loglik.diffusion.steps import RULES, Level, SamplerState
from loglik.diffusion.time_grid import SPACINGS, time_grid

__all__ = ["METHODS", "Drawn", "Sampler", "integrate"]

METHODS = (*RULES, "adaptive")
BEST_SPACING = {
    "euler-maruyama": "quadratic",
    "heun": "karras",
    "ipndm": "karras",
    "midpoint": "time",
    "euler": "flow",
}  # the others: logsnr


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Settings of how a diffusion samples.

    Args:
        method: `ddpm`, `ddim`, `euler`, `euler-maruyama`, `predictor-corrector`, `heun`, `midpoint`, `dpm++2m`,
            `dpm++3m`, `dpm++2m-sde`, `unipc`, `ipndm` or `adaptive`; see `loglik.diffusion.steps`.
        steps: number of noise levels. It is the number of network evaluations, but for `heun`,
            `midpoint` and `predictor-corrector`, with 2N - 1, and `adaptive`, whose tolerance sets it.
        spacing: of the time grid: `logsnr`, `time`, `quadratic`, `karras` or `flow`, see `time_grid`; the
            method's own if None.
        until: the log-SNR at which sampling ends with x̂; the schedule's highest if None. The x̂ of an image settles
            earlier, so with 10 to 20 steps 3 or 4 is better.
        eta: of `ddim`, from 0 (deterministic) to 1 (the ancestral chain).
        tolerance: of `adaptive`, the error of a step in units of the data's standard deviation.
        guidance: w of $\\hat x_\\emptyset + w\\,(\\hat x_c - \\hat x_\\emptyset)$: 1 is the conditional density itself.
        classifier: from (x_t, log-SNR, labels) to log p(label | x_t), whose gradient guides instead.

    Raises ValueError for a setting outside its range.
    """

    method: str = "ddpm"
    steps: int = 200
    spacing: str | None = None
    until: float | None = None
    eta: float = 0.0
    tolerance: float = 1e-3
    guidance: float = 1.0
    classifier: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown sampler {self.method!r}: use {', '.join(METHODS)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {self.spacing!r}: use {', '.join(SPACINGS)}")
        if not 0 <= self.eta <= 1 or (self.eta and self.method != "ddim"):
            raise ValueError(f"eta lies from 0 to 1 and is ddim's, got {self.eta} for {self.method}")
        if self.until is not None and (self.method == "adaptive" or not math.isfinite(self.until)):
            raise ValueError(f"until is the last log-SNR of a method with steps, got {self.until} for {self.method}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")


@dataclass(frozen=True)
class Drawn:
    """x at the last noise level, and the number of network evaluations."""

    x: Tensor
    logsnr: Tensor
    evaluations: int


def integrate(
    x_1: Float[Tensor, "B ..."],
    denoise: Denoise,
    schedule: NoiseSchedule,
    sampler: Sampler,
    *,
    levels: Float[Tensor, " N"] | None = None,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Drawn:
    """Integrate from noise at t = 1 to the last noise level, whose x̂ is the data.

    Args:
        levels: the time grid, as rising log-SNRs; the sampler's if None.
        noise: from a tensor to N(0, I) of its shape, which a rule adds.
        watch: called with (log-SNR, x) at every noise level.
    """
    if levels is None:
        spacing = sampler.spacing or BEST_SPACING.get(sampler.method, "logsnr")
        levels = time_grid(schedule, sampler.steps, spacing, x_1, sampler.until)
    if sampler.method == "adaptive":
        return _adaptive(x_1, denoise, schedule, sampler)
    state = SamplerState(denoise, schedule, noise, sampler.eta)
    path = [Level(t, logsnr) for t, logsnr in zip(schedule.time(levels), levels, strict=True)]
    rule, x = RULES[sampler.method], x_1
    for t, s in zip(path[:-1], path[1:], strict=True):
        if watch is not None:
            watch(t.logsnr, x)
        x = rule(x, t, s, state)
    if watch is not None:
        watch(path[-1].logsnr, x)
    return Drawn(x, path[-1].logsnr, state.evaluations)


def _adaptive(x_1: Tensor, denoise: Denoise, schedule: NoiseSchedule, sampler: Sampler) -> Drawn:
    high, low = schedule.ends(x_1)
    found = solve(
        lambda x, logsnr: flow_in_logsnr(x, denoise(x, logsnr), logsnr), x_1, low, high, tolerance=sampler.tolerance
    )
    return Drawn(found.x, high, found.evaluations)
