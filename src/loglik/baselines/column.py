"""One column of independent columns: probabilities of ranges, and draws within them."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

__all__ = ["HistogramColumn"]


class HistogramColumn:
    """A histogram with exponential tails; integers x are the floor of a number with that density.

    Args:
        edges: of M bins.
        mass: of the lower tail, the bins and the upper tail.
        scale: of the lower and the upper tail.
        integer: the column holds integers.
    """

    def __init__(
        self,
        edges: Float64[Tensor, " Edges"],
        mass: Float64[Tensor, " Parts"],
        scale: Float64[Tensor, " 2"],
        integer: bool,
    ) -> None:
        self.edges, self.mass, self.scale, self.integer = edges, mass, scale, integer
        self.below = mass.cumsum(0)[:-1]  # each edge

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Return the log-density of values; of integers, the log-probability."""
        if self.integer:
            return self.probability(x, x).log()
        v = x.double()
        k = torch.searchsorted(self.edges, v, right=True)  # 0 is the lower tail, M + 1 the upper one
        width = torch.cat([self.scale[:1], self.edges.diff(), self.scale[1:]])
        excess = torch.maximum(self.edges[0] - v, torch.zeros_like(v)) / self.scale[0]
        excess = excess + (v - self.edges[-1]).clamp_min(0) / self.scale[1]
        return (self.mass / width).log()[k] - excess

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Return P(low <= x <= high); the ends may be infinite."""
        return (self._cdf(high.double() + self.integer) - self._cdf(low.double())).clamp_min(0)

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Draw a value between low and high, inclusive."""
        start, end = self._cdf(low.double()), self._cdf(high.double() + self.integer)
        x = self._quantile(start + torch.rand_like(start) * (end - start))
        x = x.floor() if self.integer else x
        return torch.minimum(torch.maximum(x, low.double()), high.double())

    def _cdf(self, v: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        k = (torch.searchsorted(self.edges, v, right=True) - 1).clamp(0, len(self.edges) - 2)
        share = ((v - self.edges[k]) / (self.edges[k + 1] - self.edges[k])).clamp(0, 1)
        inside = self.below[k] + share * (self.below[k + 1] - self.below[k])
        under = self.mass[0] * torch.exp((v - self.edges[0]).clamp_max(0) / self.scale[0])
        over = 1 - self.mass[-1] * torch.exp(-(v - self.edges[-1]).clamp_min(0) / self.scale[1])
        return torch.where(v < self.edges[0], under, torch.where(v >= self.edges[-1], over, inside))

    def _quantile(self, p: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        k = (torch.searchsorted(self.below, p) - 1).clamp(0, len(self.edges) - 2)
        share = ((p - self.below[k]) / (self.below[k + 1] - self.below[k]).clamp_min(1e-300)).clamp(0, 1)
        inside = self.edges[k] + share * (self.edges[k + 1] - self.edges[k])
        under = self.edges[0] + self.scale[0] * (p / self.mass[0].clamp_min(1e-300)).log()
        over = self.edges[-1] - self.scale[1] * ((1 - p) / self.mass[-1].clamp_min(1e-300)).log()
        return torch.where(p < self.below[0], under, torch.where(p > self.below[-1], over, inside))
