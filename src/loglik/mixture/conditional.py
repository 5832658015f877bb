r"""Conditionals of a mixture: the components' weights given the observed columns, then draws of the others.

$p(x_m \mid x_o, c) = \sum_{mk} w_{mk}\, p_{mk}(x_m \mid c)$ with $w_{mk} \propto \pi_{mk}(c)\, p_{mk}(x_o \mid c)$:
columns are independent given the component. B rows, J components of all members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from loglik.conditioning.truncated import mass_within, sample_within
from loglik.density import sample_categories
from loglik.mixture.asinh import Asinh

__all__ = ["CodeGiven", "NumberGiven"]


@dataclass(frozen=True)
class NumberGiven:
    """The distribution of a column of numbers for each of B rows: normal components after a monotone map.

    Attributes:
        weight: of the components, given the observed columns.
        mean, scale: of the components after the map.
        map: of all columns of numbers.
        column: which of these.
        integer: whether the column has integers x, each the interval from x - 1/2 to x + 1/2.
    """

    weight: Float64[Tensor, "B J"]
    mean: Float64[Tensor, "B J"]
    scale: Float64[Tensor, "B J"]
    map: Asinh
    column: int
    integer: bool

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return log p(x) of a value for each row."""
        if self.integer:
            return self.probability(x, x).log()
        u, log_slope = self.map.encode(self._placed(x))
        z = (u[:, None, self.column] - self.mean) / self.scale
        log_p = -0.5 * z.square() - self.scale.log() + self.weight.log()
        return log_p.logsumexp(1) - 0.5 * torch.log(torch.tensor(2 * torch.pi)) + log_slope[:, self.column]

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(low <= x <= high) for each row; the ends may be infinite."""
        return (self.weight * mass_within(*self._ends(low, high))).sum(1)

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Shaped[Tensor, " B"]:
        """Draw a value between low and high, inclusive, for each row."""
        ends = self._ends(low, high)
        j = sample_categories(self.weight * mass_within(*ends))[:, None]
        z = sample_within(*(end.gather(1, j) for end in ends))
        u = self.mean.gather(1, j).squeeze(1) + self.scale.gather(1, j).squeeze(1) * z
        x = self.map.decode(self._placed(u))[:, self.column]
        return torch.minimum(torch.maximum(x.round() if self.integer else x, low.double()), high.double())

    def _ends(self, low: Tensor, high: Tensor) -> tuple[Float64[Tensor, "B J"], Float64[Tensor, "B J"]]:
        """Return the ends of an interval as values of the components' standard normal variables."""
        half = 0.5 * self.integer
        u = [self.map.encode(self._placed(end))[0][:, self.column, None] for end in (low - half, high + half)]
        below, above = ((end - self.mean) / self.scale for end in u)
        return below, above

    def _placed(self, value: Shaped[Tensor, " B"]) -> Float64[Tensor, "B R"]:
        """Return values in their place among the columns of numbers."""
        rows = torch.zeros(len(value), len(self.map.at), dtype=torch.float64, device=value.device)
        rows[:, self.column] = value.double()
        return rows


@dataclass(frozen=True)
class CodeGiven:
    """The probabilities of a column's codes for each of B rows."""

    p: Float64[Tensor, "B C"]

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return log P(x) of a code for each row."""
        return self.p.gather(1, x.long()[:, None]).squeeze(1).log()

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(low <= x <= high) for each row."""
        return self._within(low, high).sum(1)

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Shaped[Tensor, " B"]:
        """Draw a code between low and high, inclusive, for each row."""
        return sample_categories(self._within(low, high)).double()

    def _within(self, low: Tensor, high: Tensor) -> Float64[Tensor, "B C"]:
        code = torch.arange(self.p.shape[1], device=self.p.device)
        return self.p * ((code >= low[:, None]) & (code <= high[:, None]))
