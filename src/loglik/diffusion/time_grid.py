r"""Time grids: the noise levels that a likelihood sums over and that a sampler passes through.

A grid is a list of log-SNRs $\lambda_1 < \dots < \lambda_N$, from pure noise (t = 1) to the data (t = 0), where
$\lambda(t) = \log(\alpha_t^2 / \sigma_t^2)$ is the schedule's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.schedule import NoiseSchedule, flow_time

__all__ = ["SPACINGS", "sinh_grid", "time_grid"]

SPACINGS = ("logsnr", "time", "quadratic", "karras", "flow")


def time_grid(
    schedule: NoiseSchedule, steps: int, spacing: str, like: Float[Tensor, "..."], until: float | None = None
) -> Float[Tensor, " N"]:
    r"""Return the log-SNRs of N steps, evenly spaced in a function of the noise level.

    Args:
        steps: N.
        spacing: what is evenly spaced: `logsnr`, λ; `time`, t; `quadratic`, $\sqrt t$ (Song et al. 2021, "Denoising
            diffusion implicit models", appendix D.2); `karras`, $(\sigma/\alpha)^{1/7}$ (Karras et al. 2022, eq. 5);
            `flow`, the time of flow matching $\tau = \sigma/(\alpha + \sigma)$, where one more step would reach τ = 0.
        like: a tensor with the device and dtype of the result.
        until: the last log-SNR, if it is below the schedule's highest.
    """
    high, low = schedule.ends(like)
    if until is not None:
        high = high.clamp(max=until)
    even = torch.linspace(0, 1, steps, device=like.device, dtype=like.dtype)
    if spacing == "logsnr":
        return low + (high - low) * even
    if spacing == "karras":
        first, last = (torch.exp(-end / 14) for end in (low, high))
        return -14 * torch.log(first + (last - first) * even)
    if spacing == "flow":
        return (-2 * torch.logit(flow_time(low) * (1 - even * ((steps - 1) / steps)))).clamp(max=high)
    first, last = (schedule.time(end) for end in (low, high))
    if spacing == "quadratic":
        times = (first.sqrt() + (last.sqrt() - first.sqrt()) * even).square()
    else:
        times = first + (last - first) * even
    return schedule.logsnr(times)


def sinh_grid(high: Float[Tensor, ""], low: Float[Tensor, ""], steps: int) -> Float[Tensor, " N"]:
    r"""Return falling log-SNRs $\lambda = 2 + 4 \sinh u$ with u evenly spaced, for the likelihood's ODE.

    The grid is densest near λ = 2, where the denoiser's output changes fastest for most data.
    """
    ends = [torch.asinh((end.double() - 2) / 4) for end in (high, low)]
    even = torch.linspace(0, 1, steps, dtype=torch.float64, device=high.device)
    return (2 + 4 * torch.sinh(ends[0] + (ends[1] - ends[0]) * even)).to(high.dtype)
