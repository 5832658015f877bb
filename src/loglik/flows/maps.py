r"""Monotone maps of single numbers, with parameters from a network: the maps of coupling and autoregressive flows.

M dimensions of each of N events, P parameters for each dimension. `x` is (M, *N) and `raw` (M, P, *N); *N may be
several axes, such as those of an image. Zeros in `raw` give the identity, or a map close to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.flows.spline import parameters_per_dim, rational_quadratic_spline
from loglik.flows.spline_bins import MIN_BIN, MIN_DERIVATIVE, UNIT_DERIVATIVE
from loglik.networks.soft_bound import soft_bound
from loglik.transforms.newton import safeguarded_newton

__all__ = ["Affine", "Chain", "LogisticMixture", "Map", "Spline"]

PRIOR_ROWS = 30  # weight of N(0, 1), in rows, in the quantiles of a spline's start


class Map(ABC):
    """A family of increasing maps of the real line with P = `parameters` parameters."""

    parameters: int

    @abstractmethod
    def encode(
        self, x: Float[Tensor, "M *N"], raw: Float[Tensor, "M P *N"]
    ) -> tuple[Float[Tensor, "M *N"], Float[Tensor, "M *N"]]:
        """Map data to noise: (z, log dz/dx)."""

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "M *N"], raw: Float[Tensor, "M P *N"]
    ) -> tuple[Float[Tensor, "M *N"], Float[Tensor, "M *N"]]:
        """Map noise to data: (x, log dx/dz)."""

    def start(self, x: Float[Tensor, "M N"]) -> Float[Tensor, "M P"]:
        """Return raw parameters of a map that brings each of the M rows close to N(0, 1)."""
        return x.new_zeros(len(x), self.parameters)


class Affine(Map):
    r"""Map $z = x e^{s} + t$ with $s = r / (1 + \lvert r \rvert / b)$, so that $\lvert s \rvert < b$.

    Args:
        bound: b, the bound on the log-scale.

    Reference: Dinh et al. 2017, "Density estimation using Real NVP", section 3.2.
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
        log_scale = -soft_bound(scale, self.bound)
        return (z - shift) * log_scale.exp(), log_scale


class Spline(Map):
    r"""Rational-quadratic spline with K bins on [-interval, interval], and the identity outside.

    Args:
        bins: K.
        interval: half the width of the interval.

    Raises:
        ValueError: fewer than 2 bins.

    Reference: Durkan et al. 2019, "Neural Spline Flows".
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
        """Return parameters whose knots map quantiles of the data to those of N(0, 1)."""
        rows = x.double()
        reach = min(2.5, 0.9 * self.interval)
        inner = torch.linspace(-reach, reach, self.bins - 1, dtype=rows.dtype, device=x.device)
        ranks = (torch.special.ndtr(inner) * (rows.shape[1] - 1)).round().long()
        knots = rows.sort(1).values[:, ranks]
        knots = (knots * rows.shape[1] + PRIOR_ROWS * inner) / (rows.shape[1] + PRIOR_ROWS)
        gap = 2 * self.interval * MIN_BIN
        room = gap * torch.arange(1, self.bins, device=x.device)  # total width of the minimal bins below each knot
        knots = (knots - room).cummax(1).values + room  # knots rise by at least the minimal bin
        knots = torch.minimum(torch.maximum(knots, room - self.interval), self.interval - room.flip(0))
        edge = torch.full_like(knots[:, :1], self.interval)
        widths = torch.cat([-edge, knots, edge], 1).diff(dim=1)
        heights = torch.cat([-edge, inner.expand_as(knots), edge], 1).diff(dim=1)
        slopes = (heights / widths).log()
        derivatives = ((slopes[:, 1:] + slopes[:, :-1]) / 2).exp().clamp_min(2 * MIN_DERIVATIVE) - MIN_DERIVATIVE
        shares = [((size - gap) / (2 * self.interval)).clamp_min(1e-6).log() for size in (widths, heights)]
        centred = [share - share.mean(1, keepdim=True) for share in shares]
        return torch.cat([*centred, derivatives + (-torch.expm1(-derivatives)).log() - UNIT_DERIVATIVE], 1).to(x.dtype)

    def _spline(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_slope = rational_quadratic_spline(x.flatten(1), raw.flatten(2), bound=self.interval, inverse=inverse)
        return y.view(x.shape), log_slope.view(x.shape)


class Chain(Map):
    """Composition of maps, each with its own parameters, such as an affine map and a spline.

    The affine map can follow the location and scale of a conditional distribution, the spline its shape.
    """

    def __init__(self, *maps: Map) -> None:
        if not maps:
            raise ValueError("a chain needs at least one map, got none")
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
    r"""The CDF of a mixture of K logistics, then the logit, then an affine map:

    $z = \big((1 - \delta) \operatorname{logit} \sum_k \pi_k \sigma((x - \mu_k) e^{-s_k}) + \delta x\big) e^{a} + b$.

    The logit is computed from log CDF and log survival function, which are finite everywhere. δ bounds the slope from
    below between components that lie far apart. Newton's method computes the inverse, between the inverses of the
    single components.

    Args:
        components: K.
        bound: the bound on the log-scales a and s.

    Reference: Ho et al. 2019, "Flow++", section 3.2.
    """

    MIN_SLOPE = 0.01  # δ

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
        x = x - (value - y) * (-log_slope.detach()).exp()  # keeps the value, and gives it the inverse's gradient
        return x, -self._curve(x, *mixture)[1] - log_scale

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        weights, means, scales = raw[:, 2:].unflatten(1, (3, self.components)).unbind(1)
        # different initial means, so that the components can specialise
        initial = torch.linspace(-2, 2, self.components, dtype=raw.dtype, device=raw.device)
        means = means + initial.view(-1, *[1] * (raw.dim() - 2))
        log_scale = soft_bound(raw[:, 1], self.bound)
        return raw[:, 0], log_scale, (weights.log_softmax(1), means, soft_bound(scales, self.bound))

    def _curve(self, x: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map before its affine part, and its log-slope."""
        t = (x.unsqueeze(1) - means) * (-scales).exp()
        lower, upper = F.logsigmoid(t), F.logsigmoid(-t)
        below, above = (log_weights + lower).logsumexp(1), (log_weights + upper).logsumexp(1)
        slope = (log_weights + lower + upper - scales).logsumexp(1) - below - above
        log_share = math.log1p(-self.MIN_SLOPE)
        log_floor = torch.full_like(slope, math.log(self.MIN_SLOPE))
        value = (1 - self.MIN_SLOPE) * (below - above) + self.MIN_SLOPE * x
        return value, torch.logaddexp(slope + log_share, log_floor)

    def _root(self, y: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        """Return x with `_curve(x)` = y, between the roots of the single components."""

        def residual(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self._curve(x, log_weights, means, scales)
            return value - y, (value - y) * (-log_slope).exp()

        roots = means + scales.exp() * y.unsqueeze(1)
        low, high = torch.minimum(roots.amin(1), y), torch.maximum(roots.amax(1), y)
        return safeguarded_newton(residual, low, high, (low + high) / 2)
