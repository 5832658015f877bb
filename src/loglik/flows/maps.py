r"""Monotone maps of one number, whose parameters a conditioner gives: what couplings and autoregressive flows move by.

Shapes: M numbers of each of N events, P parameters a number. `x` is (M, *N) and `raw` (M, P, *N), where *N may be
several dimensions (those of an image, say); zeros in `raw` give the identity or close to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.flows.spline import (
    MIN_BIN,
    MIN_DERIVATIVE,
    UNIT_DERIVATIVE,
    parameters_per_dim,
    rational_quadratic_spline,
)
from loglik.networks.soft_bound import soft_bound

__all__ = ["Affine", "Chain", "LogisticMixture", "Map", "Spline"]

PRIOR_ROWS = 30  # of N(0, 1), that a start from few rows is shrunk by


class Map(ABC):
    """A family of increasing maps of the real line; `parameters` says how many numbers choose one."""

    parameters: int

    @abstractmethod
    def encode(
        self, x: Float[Tensor, "M *N"], raw: Float[Tensor, "M P *N"]
    ) -> tuple[Float[Tensor, "M *N"], Float[Tensor, "M *N"]]:
        """Data to noise: (z, log dz/dx)."""

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "M *N"], raw: Float[Tensor, "M P *N"]
    ) -> tuple[Float[Tensor, "M *N"], Float[Tensor, "M *N"]]:
        """Noise to data: (x, log dx/dz)."""

    def start(self, x: Float[Tensor, "M N"]) -> Float[Tensor, "M P"]:
        """The raw parameters of a good start for N events' numbers: near the map that makes each row N(0, 1)."""
        return x.new_zeros(len(x), self.parameters)


class Affine(Map):
    r"""$z = x e^{s} + t$ with $s = r / (1 + \lvert r \rvert / b)$, so $\lvert s \rvert < b$ whatever a network says.

    Args:
        bound: b, of the log-scale.

    Source: Dinh et al. 2017, "Density estimation using Real NVP", section 3.2.
    """

    parameters = 2

    def __init__(self, bound: float = 3.0) -> None:
        self.bound = bound

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.to(x.dtype).unbind(1)
        log_scale = soft_bound(scale, self.bound)
        return x * log_scale.exp() + shift, log_scale

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.to(z.dtype).unbind(1)
        back = -soft_bound(scale, self.bound)
        return (z - shift) * back.exp(), back


class Spline(Map):
    r"""The rational-quadratic spline: K bins on [-interval, interval], the identity outside.

    Source: Durkan et al. 2019, "Neural Spline Flows".
    """

    def __init__(self, bins: int = 8, interval: float = 5.0) -> None:
        if bins < 2:
            raise ValueError(f"a spline needs at least 2 bins, got {bins}")
        self.bins, self.interval = bins, interval
        self.parameters = parameters_per_dim(bins)

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._spline(x, raw, inverse=False)

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._spline(z, raw, inverse=True)

    def start(self, x: Float[Tensor, "M N"]) -> Float[Tensor, "M P"]:
        """Knots at the quantiles: heights are even in units of the normal, widths what the data take for them."""
        rows = x.double()
        reach = min(2.5, 0.9 * self.interval)
        inner = torch.linspace(-reach, reach, self.bins - 1, dtype=rows.dtype, device=x.device)
        place = (torch.special.ndtr(inner) * (rows.shape[1] - 1)).round().long()
        found = rows.sort(1).values[:, place]
        found = (found * rows.shape[1] + PRIOR_ROWS * inner) / (rows.shape[1] + PRIOR_ROWS)
        gap = 2 * self.interval * MIN_BIN
        room = gap * torch.arange(1, self.bins, device=x.device)  # so many smallest bins fit below each knot
        found = (found - room).cummax(1).values + room  # knots rise by at least the smallest bin
        found = torch.minimum(torch.maximum(found, room - self.interval), self.interval - room.flip(0))
        edge = torch.full_like(found[:, :1], self.interval)
        widths = torch.cat([-edge, found, edge], 1).diff(dim=1)
        heights = torch.cat([-edge, inner.expand_as(found), edge], 1).diff(dim=1)
        slopes = (heights / widths).log()
        derivatives = ((slopes[:, 1:] + slopes[:, :-1]) / 2).exp().clamp_min(2 * MIN_DERIVATIVE) - MIN_DERIVATIVE
        shares = [((size - gap) / (2 * self.interval)).clamp_min(1e-6).log() for size in (widths, heights)]
        centred = [share - share.mean(1, keepdim=True) for share in shares]
        return torch.cat([*centred, derivatives + (-torch.expm1(-derivatives)).log() - UNIT_DERIVATIVE], 1).to(x.dtype)

    def _spline(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_slope = rational_quadratic_spline(x.flatten(1), raw.flatten(2), bound=self.interval, inverse=inverse)
        return y.view(x.shape), log_slope.view(x.shape)


class Chain(Map):
    """Maps one after the other, each with parameters of its own: affine, then a spline, say.

    The first can follow where a conditional distribution lies and how wide it is, the second its shape.
    """

    def __init__(self, *maps: Map) -> None:
        if not maps:
            raise ValueError("a chain needs at least one map")
        self.maps = maps
        self.sizes = [map.parameters for map in maps]
        self.parameters = sum(self.sizes)

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for map, part in zip(self.maps, raw.split(self.sizes, dim=1), strict=True):
            x, log_slope = map.encode(x, part)
            total = total + log_slope
        return x, total

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(z)
        for map, part in reversed(list(zip(self.maps, raw.split(self.sizes, dim=1), strict=True))):
            z, log_slope = map.decode(z, part)
            total = total + log_slope
        return z, total


class LogisticMixture(Map):
    r"""The CDF of a mixture of K logistics, back to the real line by the logit, then affine:

    $z = \big((1 - \delta) \operatorname{logit} \sum_k \pi_k \sigma((x - \mu_k) e^{-s_k}) + \delta x\big) e^{a} + b$.

    The logit is taken of the two tails' logarithms, which are finite everywhere; δ keeps the slope between components
    that lie far apart above δ. The inverse is found by Newton's method between bounds that every component gives.

    Args:
        components: K.
        bound: of the log-scales a and s.

    Source: Ho et al. 2019, "Flow++", section 3.2.
    """

    FLOOR = 0.01  # δ
    STEPS = 40  # of Newton's method or bisection

    def __init__(self, components: int = 8, bound: float = 3.0) -> None:
        self.components, self.bound = components, bound
        self.parameters = 2 + 3 * components

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale, mixture = self._parts(raw.to(x.dtype))
        y, log_slope = self._curve(x, *mixture)
        return y * log_scale.exp() + shift, log_slope + log_scale

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale, mixture = self._parts(raw.to(z.dtype))
        y = (z - shift) * (-log_scale).exp()
        x = self._root(y.detach(), *(part.detach() for part in mixture))
        value, log_slope = self._curve(x, *mixture)
        x = (
            x - (value - y) * (-log_slope.detach()).exp()
        )  # no change but in the gradient, which this makes the inverse's
        return x, -self._curve(x, *mixture)[1] - log_scale

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        weights, means, scales = raw[:, 2:].unflatten(1, (3, self.components)).unbind(1)
        # components start apart, so that they can specialise
        apart = torch.linspace(-2, 2, self.components, dtype=raw.dtype, device=raw.device)
        means = means + apart.view(-1, *[1] * (raw.dim() - 2))
        log_scale = soft_bound(raw[:, 1], self.bound)
        return raw[:, 0], log_scale, (weights.log_softmax(1), means, soft_bound(scales, self.bound))

    def _curve(self, x: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The map before its affine part, and its log-slope."""
        t = (x.unsqueeze(1) - means) * (-scales).exp()
        lower, upper = F.logsigmoid(t), F.logsigmoid(-t)
        below, above = (log_weights + lower).logsumexp(1), (log_weights + upper).logsumexp(1)
        slope = (log_weights + lower + upper - scales).logsumexp(1) - below - above
        kept = math.log1p(-self.FLOOR)
        floor = torch.full_like(slope, math.log(self.FLOOR))
        return (1 - self.FLOOR) * (below - above) + self.FLOOR * x, torch.logaddexp(slope + kept, floor)

    @torch.no_grad()
    def _root(self, y: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        alone = means + scales.exp() * y.unsqueeze(1)  # where each component by itself would have the value y
        low, high = torch.minimum(alone.amin(1), y), torch.maximum(alone.amax(1), y)
        x = (low + high) / 2
        for _ in range(self.STEPS):
            value, log_slope = self._curve(x, log_weights, means, scales)
            low, high = torch.where(value < y, x, low), torch.where(value < y, high, x)
            newton = x - (value - y) * (-log_slope).exp()
            x = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        return x
