"""Draws from densities whose conditionals of one column are known, within conditions.

Values are set first, exactly. Ranges follow, one column after the other: a draw within the range given the columns
before it, with the weight P(range | before). Rows are resampled by these weights at the end, and the rest of each row
is drawn given them. With values and one range all weights are equal, and the draws are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.conditioning.condition import Condition

__all__ = ["ColumnDistribution", "HasColumns", "HasConditionals", "particles"]


@runtime_checkable
class ColumnDistribution(Protocol):
    """The distribution of one column for each of B rows."""

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return log p(x) of a value for each row."""
        ...

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(low <= x <= high) for each row; the ends may be infinite."""
        ...

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Shaped[Tensor, " B"]:
        """Draw a value between low and high, inclusive, for each row."""
        ...


@runtime_checkable
class HasColumns(Protocol):
    """A density over rows that knows p(one column | some others), and so draws under conditions exactly."""

    def column(
        self, x: Shaped[Tensor, "B D"], d: int, context: Shaped[Tensor, "B ..."] | None = None
    ) -> ColumnDistribution:
        """Return the distribution of column d given the values of each row that are not NaN."""
        ...

    def fill(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Shaped[Tensor, "B D"]:
        """Draw the missing values, NaN, given the others."""
        ...


@runtime_checkable
class HasConditionals(Protocol):
    """A density over rows that knows log p(some columns | others)."""

    def conditional_log_prob(
        self, x: Shaped[Tensor, "B D"], given: Bool[Tensor, "..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"]:
        """Return log p of the values that are not given, given those that are; NaN is left out."""
        ...


def particles(
    density: HasColumns,
    conditions: Sequence[Condition],
    n: int,
    like: Shaped[Tensor, "_ D"],
    context: Shaped[Tensor, "n ..."] | None = None,
) -> tuple[Shaped[Tensor, "n D"], Float[Tensor, " n"]]:
    """Return n rows with the conditioned columns drawn and NaN elsewhere, and the logarithm of each row's weight.

    Args:
        density: with the distribution of each column.
        conditions: at most one for each column.
        n: the number of rows.
        like: rows of the density, for their dtype and device.
        context: of a conditional density.
    """
    x = torch.full((n, like.shape[1]), torch.nan, dtype=like.dtype, device=like.device)
    log_weight = torch.zeros(n, dtype=torch.float64, device=like.device)
    for condition in sorted(conditions, key=lambda c: (not c.is_value, c.column)):
        distribution = density.column(x, condition.column, context)
        value, log_w = _draw_column(distribution, condition, n, like)
        x[:, condition.column] = value.to(x.dtype)
        log_weight += log_w.double()
    return x, log_weight


def _draw_column(distribution: ColumnDistribution, condition: Condition, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a column within a condition; with the log of the condition's probability, or density at its values."""
    ends = torch.tensor(condition.intervals, dtype=like.dtype, device=like.device)[:, :, None].expand(-1, -1, n)
    if condition.has_mass:
        log_mass = torch.stack([distribution.probability(low, high) for low, high in ends], 1).double().log()
    else:
        log_mass = torch.stack([distribution.log_prob(low) for low, _ in ends], 1).double()
    chosen = (log_mass.softmax(1).nan_to_num() / torch.empty_like(log_mass).exponential_()).argmax(1)
    rows = torch.arange(n, device=like.device)
    low, high = ends[chosen, 0, rows], ends[chosen, 1, rows]
    value = low if condition.is_value or not condition.has_mass else distribution.sample_between(low, high)
    return condition.clamp(value), log_mass.logsumexp(1)
