r"""Conventions: how the networks of other libraries name the noise, and what these networks predict.

Every convention has a Gaussian path $y = a\,w + b\,\epsilon$ from data w to noise, and a label of the noise level that
the network reads. For one log-SNR $\lambda = \log(a^2/b^2)$ the paths differ by a factor only, so a network of any
convention denoises our variance-preserving $x_t = \alpha w + \sigma\epsilon$ after $y = \frac{a}{\alpha} x_t$.

What a network predicts is linear in data and noise, $p\,w + q\,\epsilon$. With its output o and the input y,

$\hat w = \frac{q\,y - b\,o}{q\,a - b\,p}$ and $\hat\epsilon - \epsilon = \frac{a\,(o - p\,w - q\,\epsilon)}{q\,a -
b\,p}$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.diffusion import Discrete, LinearBeta, LinearLogSNR, NoiseSchedule
from loglik.diffusion.schedule import alpha, sigma

__all__ = [
    "EDM",
    "VE",
    "VP",
    "FlowMatching",
    "NoiseLevel",
    "Path",
    "Steps",
    "SubVP",
    "shifted",
    "target",
]

SMALLEST_ALPHA_BAR = 2.0**-24  # where betas are rescaled to an SNR of zero, as diffusers' Euler schedulers have it


class NoiseLevel(NamedTuple):
    """The factors a of the data and b of the noise, and the label that the network reads; one of each per row."""

    a: Float[Tensor, " B"]
    b: Float[Tensor, " B"]
    label: Float[Tensor, " B"]


class Path(nn.Module, ABC):
    """A Gaussian path and its labels, as functions of the log-SNR of the network's data.

    Attributes:
        name: what the user wrote to choose it.
        highest, lowest: the log-SNRs between which the network was trained.
        predictions: what a network of this convention may predict; the first is usual.
    """

    name: str
    highest: float
    lowest: float
    predictions: tuple[str, ...] = ("noise", "data", "score")

    @abstractmethod
    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        """Return the factors and the labels at log-SNRs."""

    def read(self, y: Float[Tensor, "B ..."], level: NoiseLevel) -> Float[Tensor, "B ..."]:
        """Return what the network reads in place of y."""
        return y

    def schedule(self, scale: float) -> NoiseSchedule:
        """Return a schedule between the ends for data v, where the network reads data scale · v + constant."""
        move = 2 * math.log(scale)
        return LinearLogSNR(self.highest + move, self.lowest + move)


def target(path: Path, prediction: str, level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Return (p, q) of what a network predicts, p · data + q · noise, one of each per row."""
    a, b = level.a, level.b
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    if prediction == "data":
        return one, zero
    if prediction == "noise":
        return zero, one
    if prediction == "score":
        return zero, -1 / b
    if prediction == "v":
        return -b, a
    if prediction == "velocity" and isinstance(path, FlowMatching):
        return path.velocity(level)
    if prediction == "network" and isinstance(path, EDM):
        return path.preconditioned(level)
    raise AssertionError(prediction)


class VE(Path):
    """$y = w + s\\epsilon$; the label is s, or the time t of $s = s_0 (s_1/s_0)^t$."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, *, name: str = "ve", times: bool = False):
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigmas must rise from above 0, got {sigma_min} and {sigma_max}")
        self.name, self.times, self.sigma_min, self.sigma_max = name, times, sigma_min, sigma_max
        self.highest, self.lowest = -2 * math.log(sigma_min), -2 * math.log(sigma_max)
        if name == "edm":
            self.predictions = ("data", "noise", "score")

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        s = torch.exp(-0.5 * logsnr)
        label = torch.log(s / self.sigma_min) / math.log(self.sigma_max / self.sigma_min) if self.times else s
        return NoiseLevel(torch.ones_like(s), s, label)


class EDM(VE):
    r"""The network F inside $D(y, s) = c_\text{skip}\,y + c_\text{out} F(c_\text{in}\,y, \tfrac14 \log s)$.

    Reference: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1.
    """

    predictions = ("network",)

    def __init__(self, sigma_min: float, sigma_max: float, sigma_data: float, *, sign: float = 1.0) -> None:
        super().__init__(sigma_min, sigma_max, name="edm with preconditioning")
        self.sigma_data, self.sign = sigma_data, sign

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        a, s, _ = super().at(logsnr)
        return NoiseLevel(a, s, 0.25 * s.log())

    def read(self, y: Float[Tensor, "B ..."], level: NoiseLevel) -> Float[Tensor, "B ..."]:
        c_in = (level.b.square() + self.sigma_data**2).rsqrt()
        return y * c_in.view(-1, *[1] * (y.dim() - 1))

    def preconditioned(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Return (p, q) of F: it is (ŵ - c_skip y) / c_out."""
        total = level.b.square() + self.sigma_data**2
        skip, out = self.sigma_data**2 / total, self.sign * level.b * self.sigma_data * total.rsqrt()
        return (1 - skip) / out, -skip * level.b / out


class VP(Path):
    r"""$y = \alpha w + \sigma\epsilon$ with $\alpha^2 + \sigma^2 = 1$; the label is the schedule's time, scaled."""

    predictions = ("noise", "data", "v", "score")

    def __init__(self, schedule: NoiseSchedule | None = None, *, time_scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.time_scale, self.noise = "vp", time_scale, schedule or LinearBeta()
        high, low = self.noise.logsnr(torch.arange(2, dtype=torch.float64)).tolist()
        self.highest, self.lowest = high, low

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        return NoiseLevel(alpha(logsnr), sigma(logsnr), self.noise.time(logsnr) * self.time_scale)


class Steps(Path):
    r"""DDPM's chain: $y = \sqrt{\bar\alpha_t}\,w + \sqrt{1 - \bar\alpha_t}\,\epsilon$, the label is t = 0 ... T-1.

    Between trained timesteps the label is interpolated so that $-\log\bar\alpha$ is linear, or rounded to the nearest.

    Raises ValueError unless the ᾱ fall between 0 and 1.
    """

    predictions = ("noise", "data", "v", "score")

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor | None = None, *, interpolate: bool = True) -> None:
        super().__init__()
        values = torch.as_tensor(_ddpm() if alphas_cumprod is None else alphas_cumprod).double().cpu().flatten().clone()
        if len(values) > 1 and values[-1] == 0:
            values[-1] = min(SMALLEST_ALPHA_BAR, values[-2].item() / 4)
        if len(values) < 2 or not (values.diff() < 0).all() or not 0 < values[-1] <= values[0] < 1:
            raise ValueError(
                f"alphas_cumprod must have 2 values or more that fall between 1 and 0, got {values[:3].tolist()} ..."
            )
        self.name, self.interpolate = "vp", interpolate
        self.alpha_bar = values  # of the chain's formulas, in float64 on the CPU
        self.levels = torch.logit(values)
        self.highest, self.lowest = self.levels[0].item(), self.levels[-1].item()
        self.grid = self.schedule(1.0)

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        index = self.grid.time(logsnr) * (len(self.levels) - 1)
        whole = index.round()
        if not self.interpolate:
            return NoiseLevel(alpha(logsnr), sigma(logsnr), whole.long())
        return NoiseLevel(alpha(logsnr), sigma(logsnr), torch.where((index - whole).abs() < 1e-3, whole, index))

    def schedule(self, scale: float) -> Discrete:
        alpha_bar = torch.sigmoid(self.levels + 2 * math.log(scale))
        return Discrete((1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])).tolist())


class SubVP(Path):
    r"""The sub-VP SDE: $a = e^{-B/2}$ and $b = 1 - e^{-B}$ with $B = \int\beta$; the label is the time, scaled.

    $a/b = e^{\lambda/2} = 1 / (2 \sinh(B/2))$. Reference: Song et al. 2021, "Score-based generative modeling through
    SDEs", eq. 29.
    """

    def __init__(self, schedule: LinearBeta | None = None, *, time_scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.time_scale, self.noise = "subvp", time_scale, schedule or LinearBeta()
        integral = self.noise.integral(torch.arange(2, dtype=torch.float64))
        self.highest, self.lowest = (-2 * torch.log(2 * torch.sinh(integral / 2))).tolist()

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        integral = 2 * torch.asinh(0.5 * torch.exp(-0.5 * logsnr))
        vp = -torch.log(torch.expm1(integral))  # the log-SNR that the VP SDE has at this time
        return NoiseLevel(torch.exp(-0.5 * integral), -torch.expm1(-integral), self.noise.time(vp) * self.time_scale)


class FlowMatching(Path):
    r"""$y = t\,w + b\,\epsilon$ of a velocity field $dy/dt$, with the data at t = 1, or at t = 0 in reverse.

    $b = 1 - (1 - s)\,t$ with s = `sigma_min` (Lipman et al. 2023, "Flow matching", eq. 20), or $b^2 = (1 - t)^2 + s^2$
    with s = `sigma` (Tong et al. 2024, "Improving and generalizing flow-based generative models", eq. 14), where the
    network predicts the data minus the noise $x_0$.
    """

    predictions = ("velocity", "data", "noise")

    def __init__(
        self, data_at: int = 1, *, sigma_min: float = 0.0, sigma: float = 0.0, time_scale: float = 1.0
    ) -> None:
        super().__init__()
        if data_at not in (0, 1):
            raise ValueError(f"data_at must be 0 or 1, the time of the data, got {data_at}")
        if not (0 <= sigma_min < 1 and 0 <= sigma < 1) or (sigma_min and sigma):
            raise ValueError(f"pass sigma_min or sigma, each from 0 to below 1, got {sigma_min} and {sigma}")
        self.name, self.data_at, self.time_scale = "flow", data_at, time_scale
        self.sigma_min, self.sigma = sigma_min, sigma
        least = sigma_min or sigma
        self.highest, self.lowest = min(13.0, -2 * math.log(least)) if least else 13.0, -12.0

    def at(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        r = torch.exp(0.5 * logsnr)  # a / b
        if self.sigma:
            # t² = r² ((1 - t)² + s²), solved for 1/t, which keeps its digits
            t = self._with_sigma(r)
        else:
            t = r / (1 + (1 - self.sigma_min) * r)
        label = t if self.data_at == 1 else 1 - t
        return NoiseLevel(t, t / r, label * self.time_scale)

    def _with_sigma(self, r: Tensor) -> Tensor:
        s = 1 + self.sigma**2
        return s * r / (r + (r.square() * (1 - s) + s).clamp_min(0).sqrt())

    def velocity(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Return (p, q) of the velocity."""
        t, sign = level.a, 1.0 if self.data_at == 1 else -1.0
        noise = (1 - t) / level.b if self.sigma else torch.full_like(t, 1 - self.sigma_min)
        return torch.full_like(t, sign), -sign * noise


def shifted(logsnr: Float[Tensor, " B"], scale: float) -> Float[Tensor, " B"]:
    """Return the log-SNR of data w = scale · v + constant, from that of v."""
    return logsnr - 2 * math.log(scale)


def _ddpm() -> Tensor:
    """Return ᾱ of DDPM's 1000 steps. Source: Ho et al. 2020, section 4."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
