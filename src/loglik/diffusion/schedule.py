r"""Variance-preserving noise.

$q(x_t \mid x) = \mathcal N(\alpha_t x, \sigma_t^2 I)$ with $\alpha_t^2 + \sigma_t^2 = 1$.

t runs from 0 (data) to 1 (noise), and $\lambda(t) = \log(\alpha_t^2 / \sigma_t^2)$, the log-SNR, determines the noise:
$\alpha_t^2 = \varsigma(\lambda)$ and $\sigma_t^2 = \varsigma(-\lambda)$, with ς the logistic function. The same noise
is seen as the VP-SDE $dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dW$, whose
$p(x_t \mid x_0) = \mathcal N(x_0 e^{-\frac12 \int \beta}, (1 - e^{-\int \beta}) I)$, and as the DDPM chain with its
$\bar\alpha_t = \alpha_t^2$. Since $e^{-\int\beta} = \alpha_t^2$, $\beta(t) = -\sigma_t^2 \lambda'(t)$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.constants import kept
from loglik.cpu import private

__all__ = [
    "Cosine",
    "FlowMatching",
    "LinearBeta",
    "LinearLogSNR",
    "NoiseSchedule",
    "add_noise",
    "alpha",
    "broadcast_like",
    "check_falling",
    "flow_time",
    "sigma",
]


def alpha(logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $\alpha = \sqrt{\varsigma(\lambda)}$, the factor of the data."""
    return torch.sigmoid(logsnr).sqrt()


def sigma(logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $\sigma = \sqrt{\varsigma(-\lambda)}$, the standard deviation of the noise."""
    return torch.sigmoid(-logsnr).sqrt()


def flow_time(logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $\tau = \sigma / (\alpha + \sigma) = \varsigma(-\lambda/2)$, the time of the flow-matching path.

    On it $x_\tau = (1 - \tau)\,x + \tau\,\epsilon = x_t / (\alpha + \sigma)$.
    """
    return torch.sigmoid(-0.5 * logsnr)


def broadcast_like(values: Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Return one number per example in a shape that multiplies events."""
    return values.view(-1, *[1] * (like.dim() - 1))


def add_noise(
    x: Float[Tensor, "B ..."], epsilon: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    r"""Return $x_t = \alpha_t x + \sigma_t \epsilon$, a draw of $q(x_t \mid x)$ where ε is one of N(0, I)."""
    return torch.addcmul(broadcast_like(alpha(logsnr), x) * x, broadcast_like(sigma(logsnr), x), epsilon)


class NoiseSchedule(nn.Module, ABC):
    """The log-SNR as a falling function of time, and the views that follow from it.

    `steps` is T if the schedule is a chain of T noise levels, else None.
    """

    steps: int | None = None

    @abstractmethod
    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return λ(t), which falls in t."""

    @abstractmethod
    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return t of a log-SNR, the inverse of `logsnr`."""

    @abstractmethod
    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return β(t) of $dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dW$."""

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return α_t, the factor of the data at time t."""
        return alpha(self.logsnr(t))

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return σ_t, the standard deviation of the noise at time t."""
        return sigma(self.logsnr(t))

    def alpha_bar(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return $\bar\alpha_t = \alpha_t^2 = e^{-\int \beta}$."""
        return torch.sigmoid(self.logsnr(t))

    def integral(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return $\int \beta = -\log \bar\alpha_t$, from the data to time t."""
        return F.softplus(-self.logsnr(t))

    def rate(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return $\lvert dt / d\lambda \rvert = \sigma_t^2 / \beta(t)$, the time per unit of log-SNR."""
        return torch.sigmoid(-self.logsnr(t)) / self.beta(t)

    def ends(self, like: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the log-SNRs at t = 0 (the highest) and t = 1, with the device and dtype of a tensor.

        They are kept unless they have gradients: numbers that are not tensors must not change after the first call.
        """

        def compute() -> tuple[Tensor, Tensor]:
            high, low = self.logsnr(torch.arange(2, device=like.device, dtype=like.dtype)).unbind()
            return high, low

        return kept(self, ("ends", like.dtype, like.device), private.tensors_of(self), compute)

    def draw(self, u: Float[Tensor, " B"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return log-SNRs from uniform draws u, and their density p(λ): uniform between the ends."""
        high, low = self.ends(u)
        width = high - low
        return low + width * u, width.reciprocal().expand_as(u)


def check_falling(schedule: NoiseSchedule, points: int = 1001) -> None:
    """Raise ValueError unless the log-SNR is finite, never rises from t = 0 to 1, and falls over the whole."""
    like = next(schedule.parameters(), torch.empty((), dtype=torch.float64))
    with torch.no_grad():
        t = torch.linspace(0, 1, points, device=like.device, dtype=like.dtype)
        values = schedule.logsnr(t)
    name = type(schedule).__name__
    if not values.isfinite().all():
        raise ValueError(f"{name}: the log-SNR must be finite, got {values[~values.isfinite()][0]:g}")
    rises = (values.diff() > 1e-5 * values.abs().max()).nonzero()
    if len(rises) or not values[0] > values[-1]:
        where = int(rises[0]) if len(rises) else 0
        raise ValueError(
            f"{name}: the log-SNR must fall from t = 0 to 1, but goes from {values[where]:.4g} at t = {t[where]:.4g} "
            f"to {values[where + 1]:.4g} at t = {t[where + 1]:.4g}"
        )


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
        return self.beta_min + (self.beta_max - self.beta_min) * t.clamp_min(self.t_min)

    def integral(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return B(t), the integral of β from 0 to t."""
        t = t.clamp_min(self.t_min)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -torch.log(torch.expm1(self.integral(t)))

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        integral = F.softplus(-logsnr)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


class LinearLogSNR(NoiseSchedule):
    r"""$\lambda(t) = \lambda_0 + (\lambda_1 - \lambda_0)\,t$, which draws every log-SNR equally often.

    Args:
        highest, lowest: λ₀ and λ₁.
    """

    def __init__(self, highest: float = 13.0, lowest: float = -10.0) -> None:
        super().__init__()
        _check_ends(highest, lowest)
        self.highest, self.lowest = highest, lowest

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.highest + (self.lowest - self.highest) * t

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (self.highest - logsnr) / (self.highest - self.lowest)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (self.highest - self.lowest) * torch.sigmoid(-self.logsnr(t))


class Cosine(NoiseSchedule):
    r"""$\alpha_t = \cos \varphi(t)$ with φ linear in t, so $\lambda(t) = -2 \log \tan \varphi(t)$.

    Args:
        highest, lowest: λ at t = 0 and t = 1, where the cosine is cut off.

    Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", eq. 17, whose offset is a
    cut-off at one end; Salimans and Ho 2022, "Progressive distillation", appendix.
    """

    def __init__(self, highest: float = 13.0, lowest: float = -10.0) -> None:
        super().__init__()
        _check_ends(highest, lowest)
        self.first, self.last = math.atan(math.exp(-highest / 2)), math.atan(math.exp(-lowest / 2))

    def _angle(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.first + (self.last - self.first) * t

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -2 * torch.log(torch.tan(self._angle(t)))

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (torch.atan(torch.exp(-logsnr / 2)) - self.first) / (self.last - self.first)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 2 * (self.last - self.first) * torch.tan(self._angle(t))


class FlowMatching(NoiseSchedule):
    r"""The path of flow matching, $x_\tau = (1 - \tau)\,x + \tau\,\epsilon$ with τ linear in t.

    Divided by $\sqrt{(1 - \tau)^2 + \tau^2}$ it preserves variance, with $\lambda = 2 \log((1 - \tau)/\tau)$. At τ = 0
    and 1 the log-SNR is infinite, and at τ = 0 so are the score and the bound's reconstruction of real data. Hence τ
    runs from $\tau_0 = \varsigma(-\lambda_0/2)$ to $\tau_1 = \varsigma(-\lambda_1/2)$, 0.0015 to 0.993 by default.

    Args:
        highest, lowest: λ₀ and λ₁, at t = 0 and t = 1.

    Source: Lipman et al. 2023, "Flow matching for generative modeling", eq. 20-23 with σ_min = 0, in reversed time;
    Albergo and Vanden-Eijnden 2023, "Building normalizing flows with stochastic interpolants"; Gao et al. 2024,
    "Diffusion meets flow matching".
    """

    def __init__(self, highest: float = 13.0, lowest: float = -10.0) -> None:
        super().__init__()
        _check_ends(highest, lowest)
        self.first, self.last = 1 / (1 + math.exp(highest / 2)), 1 / (1 + math.exp(lowest / 2))

    def _tau(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.first + (self.last - self.first) * t

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -2 * torch.logit(self._tau(t))

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (flow_time(logsnr) - self.first) / (self.last - self.first)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        tau = self._tau(t)
        return 2 * (self.last - self.first) * tau / ((1 - tau) * ((1 - tau).square() + tau.square()))


def _check_ends(highest: float, lowest: float) -> None:
    if not -math.inf < lowest < highest < math.inf:
        raise ValueError(f"the log-SNR must fall from `highest` to `lowest`, got {highest} and {lowest}")
