r"""Normal scores: monotone maps that make each column of rows standard normal, fitted to weighted rows.

A map is linear between 33 knots: the quantile of level $\Phi(s)$ goes to s, for s from -3 to 3. So the density of a
column is a standard normal's times the slope, and heavy or skewed columns become easy for a Gaussian.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["NormalScores"]

KNOTS, REACH = 33, 3.0
EVEN = 0.02  # of the knots, spread evenly, so that repeated values leave no slope infinite
TAIL_SLOPE = 0.5  # of the slope beyond the last knots, against that inside: tails heavier than the columns'


class NormalScores:
    """One increasing map for each of D columns, from rows (N, D) with weights (N,) that sum to 1."""

    def __init__(self, rows: Float64[Tensor, "N D"], weights: Float64[Tensor, " N"]) -> None:
        scores = torch.linspace(-REACH, REACH, KNOTS, dtype=torch.float64, device=rows.device)
        order = rows.argsort(0)
        cumulative = weights[order].cumsum(0) - 0.5 * weights[order]
        at = torch.searchsorted(cumulative.T.contiguous(), torch.special.ndtr(scores).repeat(rows.shape[1], 1))
        knots = rows.gather(0, order).gather(0, at.T.clamp_max(len(rows) - 1)).T  # (D, KNOTS)
        low, high = knots[:, :1], knots[:, -1:]
        width = (high - low).clamp_min(1e-6 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-6))
        even = (scores + REACH) / (2 * REACH)
        self.knots = ((1 - EVEN) * knots + EVEN * (low + width * even)).contiguous()
        self.scores = scores
        slopes = (scores[1] - scores[0]) / self.knots.diff(dim=1)
        ends = TAIL_SLOPE * torch.stack([slopes[:, :4].amin(1), slopes[:, -4:].amin(1)], 1)
        self.slopes = torch.cat([ends[:, :1], slopes, ends[:, 1:]], 1)

    def __call__(self, v: Float64[Tensor, "N D"]) -> tuple[Float64[Tensor, "N D"], Float64[Tensor, "N D"]]:
        """Return the scores and the logarithms of the slopes; infinite values have infinite scores."""
        k = torch.searchsorted(self.knots, v.T.contiguous())
        slope, start = self.slopes.gather(1, k), (k - 1).clamp_min(0)
        score = self.scores[start] + (v.T - self.knots.gather(1, start)) * slope
        return score.T, slope.log().T

    def inverse(self, s: Float64[Tensor, "N D"]) -> tuple[Float64[Tensor, "N D"], Float64[Tensor, "N D"]]:
        """Return the values of scores, and the logarithms of the slopes there."""
        k = torch.searchsorted(self.scores, s.T.contiguous())
        slope, start = self.slopes.gather(1, k), (k - 1).clamp_min(0)
        value = self.knots.gather(1, start) + (s.T - self.scores[start]) / slope
        return value.T, slope.log().T
