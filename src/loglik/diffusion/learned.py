"""A learned noise schedule, which lowers the variance of the bound's estimate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.diffusion.schedule import NoiseSchedule, _check_ends
from loglik.noise import mean_over_ranks
from loglik.transforms.newton import safeguarded_newton

__all__ = ["Learned"]


class Learned(NoiseSchedule):
    r"""$t = F(u)$, $u = (\lambda_0 - \lambda)/(\lambda_0 - \lambda_1)$, with F a monotone network from [0, 1] onto
    itself.

    The continuous bound is $\tfrac12 \int \mathbb E \lVert \epsilon - \hat\epsilon \rVert^2 d\lambda$ whatever F is; F
    sets the density of the draws, $p(\lambda) = F'(u)/(\lambda_0 - \lambda_1)$, and is trained on `variance`.
    $F(u) = w_0 u + \sum_k w_k S_k(u)$ with positive weights and logistic functions S_k that are scaled to rise from 0
    to 1: one hidden layer.

    Args:
        highest, lowest: λ₀ and λ₁ at the start.
        units: size of the hidden layer.
        ends: whether the bound's gradient moves λ₀ and λ₁ too.

    Source: Kingma et al. 2021, "Variational diffusion models", section 5.1 and appendix H, whose network gives λ(t).
    """

    def __init__(self, highest: float = 13.0, lowest: float = -10.0, *, units: int = 16, ends: bool = False) -> None:
        super().__init__()
        _check_ends(highest, lowest)
        if units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        self.limits = nn.Parameter(torch.tensor([highest, lowest]), requires_grad=ends)
        self.weights = nn.Parameter(torch.zeros(units + 1))
        self.centres = nn.Parameter((torch.arange(units) + 0.5) / units)
        self.steepness = nn.Parameter(torch.full((units,), float(units)).log())

    def _network(self, u: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Return F(u) and its slope F'(u)."""
        w = self.weights.softmax(0).to(u.dtype)
        centres, steepness = self.centres.to(u.dtype), self.steepness.exp().to(u.dtype)
        bottom, top = torch.sigmoid(-steepness * centres), torch.sigmoid(steepness * (1 - centres))
        s = torch.sigmoid(steepness * (u.unsqueeze(-1) - centres))
        value = w[0] * u + (w[1:] * (s - bottom) / (top - bottom)).sum(-1)
        slope = w[0] + (w[1:] * steepness * s * (1 - s) / (top - bottom)).sum(-1)
        return value, slope

    @torch.no_grad()
    def _inverse(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return u with F(u) = t."""

        def residual(u: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self._network(u)
            return value - t, (value - t) / slope

        u = safeguarded_newton(residual, torch.zeros_like(t), torch.ones_like(t), t.clamp(0, 1))
        return torch.where(t <= 0, 0.0, torch.where(t >= 1, 1.0, u))

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        high, low = self.limits.to(t.dtype).unbind()
        return high + (low - high) * self._inverse(t)

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        high, low = self.limits.to(logsnr.dtype).unbind()
        return self._network((high - logsnr) / (high - low))[0]

    def ends(self, like: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        high, low = self.limits.to(like.device, like.dtype).unbind()
        return high, low

    def density(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return p(λ) of λ(t) for uniform t."""
        high, low = self.limits.to(logsnr.dtype).unbind()
        return self._network((high - logsnr) / (high - low))[1] / (high - low)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        logsnr = self.logsnr(t)
        return torch.sigmoid(-logsnr) / self.density(logsnr)

    def draw(self, u: Float[Tensor, " B"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return λ(1 - u) and its density; gradients reach the ends only, since the bound does not depend on F."""
        high, low = self.limits.to(u.dtype).unbind()
        position = self._inverse(1 - u)
        with torch.no_grad():
            slope = self._network(position)[1]
        return high + (low - high) * position, slope / (high - low)

    def variance(self, logsnr: Float[Tensor, " B"], error: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        r"""Return the logarithm of the estimate's second moment, to minimise.

        $\mathbb E[(f/p)^2] = \int f^2/p\,d\lambda$ with $f = \tfrac12\lVert\epsilon - \hat\epsilon\rVert^2$, from λ
        drawn with the present density; smallest where $p \propto \sqrt{\mathbb E f^2}$.
        """
        logsnr, error = logsnr.detach(), error.detach()
        high, low = self.limits.detach().to(logsnr.dtype).unbind()
        p = self._network((high - logsnr) / (high - low))[1] / (high - low)
        moment = (error.square() / (p * p.detach())).mean()
        of_all = mean_over_ranks(moment).clamp_min(1e-30)
        return of_all.log() + (moment - moment.detach()) / of_all
