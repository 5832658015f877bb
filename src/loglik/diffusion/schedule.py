r"""Variance-preserving noise.

$q(x_t \mid x) = \mathcal N(\alpha_t x, \sigma_t^2 I)$ with $\alpha_t^2 + \sigma_t^2 = 1$.

t runs from 0 (data) to 1 (noise), and $\lambda(t) = \log(\alpha_t^2 / \sigma_t^2)$, the log-SNR, says everything:
$\alpha_t^2 = \varsigma(\lambda)$ and $\sigma_t^2 = \varsigma(-\lambda)$, with ς the logistic function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["NoiseSchedule", "LinearBeta", "alpha", "sigma"]


def alpha(logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\alpha = \sqrt{\varsigma(\lambda)}$, the factor of the data."""
    return torch.exp(0.5 * F.logsigmoid(logsnr))


def sigma(logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\sigma = \sqrt{\varsigma(-\lambda)}$, the deviation of the noise."""
    return torch.exp(0.5 * F.logsigmoid(-logsnr))


class NoiseSchedule(nn.Module, ABC):
    """The log-SNR as a decreasing function of time, and the views that follow from it."""

    @abstractmethod
    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """λ(t), decreasing in t."""

    @abstractmethod
    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse of `logsnr`."""

    @abstractmethod
    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""β(t) of $dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dW$."""


class LinearBeta(NoiseSchedule):
    r"""The VP-SDE with $\beta(t) = \beta_0 + (\beta_1 - \beta_0)\,t$.

    $B(t) = \int_0^t \beta = \beta_0 t + \tfrac12(\beta_1 - \beta_0) t^2$, $\alpha_t = e^{-B/2}$, and
    $\lambda(t) = -\log(e^{B(t)} - 1)$. At t = 0 there is no noise and λ is infinite, so the chain begins at
    `t_min` > 0: `logsnr(0)` is λ(t_min), and times below it are not used.

    Source: Song et al. 2021, "Score-based generative modeling through SDEs", appendix C; the notes, part B2.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> None:
        super().__init__()
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"β must not fall and start above 0, got {beta_min} to {beta_max}")
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must lie between 0 and 1, got {t_min}")
        self.beta_min, self.beta_max, self.t_min = beta_min, beta_max, t_min

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """B(t), the integral of β from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -torch.log(torch.expm1(self.integral(t.clamp_min(self.t_min))))

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        integral = F.softplus(-logsnr)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))
