"""Data whose score is known: the expected x given x_t of Gaussians and of their mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from loglik.diffusion.schedule import alpha, sigma


class GaussianDenoiser(nn.Module):
    """E[x | x_t] for x ~ N(m, s² I): m + α s² (x_t - α m) / (α² s² + σ²)."""

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None = None) -> Tensor:
        a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
        return self.mean + a * self.scale**2 * (x_t - a * self.mean) / (a**2 * self.scale**2 + s**2)


class CorrelatedDenoiser(nn.Module):
    """E[x | x_t] for x ~ N(m, S), the exact denoiser of Gaussian data."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.mean, self.covariance = mean, covariance

    def forward(self, x_t, logsnr, context=None):
        a, s = alpha(logsnr)[:, None, None], sigma(logsnr)[:, None, None]
        noised = a**2 * self.covariance + s**2 * torch.eye(len(self.mean), dtype=x_t.dtype)
        gap = (x_t - a[:, 0] * self.mean).unsqueeze(-1)
        return self.mean + (a * self.covariance @ torch.linalg.solve(noised, gap)).squeeze(-1)


class Constant(nn.Module):
    """A linear map and, after its outputs, constants."""

    def __init__(self, weight: Tensor, bias: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.constant = weight, bias, constant

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x @ self.weight.T + self.bias, self.constant.expand(len(x), -1)], 1)


class Zero(nn.Module):
    """A network that knows nothing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x, vector):
        return x.new_zeros(len(x), self.outputs)


class MixtureDenoiser(nn.Module):
    """E[x | x_t] for a mixture of N(m_k, s_k² I) with weights w_k; its own density is `truth`."""

    means: Tensor
    scales: Tensor
    weights: Tensor

    def __init__(self, means: list[list[float]], scales: list[float], weights: list[float]) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(means))
        self.register_buffer("scales", torch.tensor(scales))
        self.register_buffer("weights", torch.tensor(weights))

    @property
    def truth(self) -> MixtureSameFamily:
        eye = torch.eye(self.means.shape[1])
        parts = MultivariateNormal(self.means, scale_tril=self.scales[:, None, None] * eye)
        return MixtureSameFamily(Categorical(self.weights), parts)

    def log_marginal(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        """log p_t(x_t)."""
        return self._joint(x_t, logsnr).logsumexp(1)

    def _joint(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        a, s = alpha(logsnr)[:, None, None], sigma(logsnr)[:, None, None]
        deviation = (a**2 * self.scales[:, None] ** 2 + s**2).sqrt()
        return self.weights.log() + Normal(a * self.means, deviation).log_prob(x_t[:, None]).sum(2)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None = None) -> Tensor:
        a, s = alpha(logsnr)[:, None, None], sigma(logsnr)[:, None, None]
        variance = self.scales[:, None] ** 2
        each = self.means + a * variance * (x_t[:, None] - a * self.means) / (a**2 * variance + s**2)
        return (self._joint(x_t, logsnr).softmax(1).unsqueeze(2) * each).sum(1)


def two_moons_like() -> MixtureDenoiser:
    """Three components in two dimensions, of different sizes."""
    return MixtureDenoiser([[-1.0, 0.3], [0.8, 0.9], [0.4, -1.1]], [0.25, 0.5, 0.15], [0.5, 0.3, 0.2])


def gaussian_end(mean: float, scale: float, high: Tensor, low: Tensor, *, flow: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of x̂ at λ₀ when x_1 ~ N(0, 1) is carried there exactly, by the flow or the reverse SDE."""
    (m0, v0), (m1, v1) = ((alpha(end) * mean, alpha(end) ** 2 * scale**2 + sigma(end) ** 2) for end in (high, low))
    gain = (v0 / v1).sqrt() if flow else alpha(low) / alpha(high) * v0 / v1
    spread = v0 if flow else v0 * (1 - gain**2 * v1 / v0) + gain**2 * v1
    centre = m0 - gain * m1
    variance = gain**2 if flow else spread - gain**2 * v1 + gain**2
    last = alpha(high) * scale**2 / v0
    return mean + last * (centre - m0), last**2 * variance


def log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
