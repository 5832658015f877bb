r"""Proposals of rows under conditions, with their weights p / q, and the mixture q that is fitted to them.

Two spaces have proposals. Among rows, q meets the conditions by itself. Among the variables z of the base density of a
flow x = f(z), q is not told the conditions, and a proposal whose row does not meet them has the weight 0; the weights
$p_0(z) / q(z)$ there do not depend on the flow, whose density may be rough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from loglik.conditioning.condition import Condition, contains
from loglik.conditioning.mixture import RowMixture
from loglik.conditioning.rows import PILOT, Rows, components_for
from loglik.conditioning.weights import resample, tempered
from loglik.density import Bound, Density

__all__ = ["PROPOSALS", "SEEDS", "BaseProposer", "HasBase", "RowProposer", "Subset"]

PROPOSALS = 4096  # of each round in which q is fitted
REMEMBERED = 3  # rounds
SEEDS = 64  # samples that meet the conditions, which a first q is fitted to


@runtime_checkable
class HasBase(Protocol):
    """A density of x = decode(z), z of a base density, as a flow is."""

    base: Density

    def decode(self, z: Tensor) -> Tensor:
        """Return x."""
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, and the log-determinant."""
        ...


class Subset:
    """A mixture over some of the columns of rows; the other columns stay as they are.

    Args:
        columns: of the mixture.
        mixture: over these columns.
    """

    def __init__(self, columns: Sequence[int], mixture: RowMixture) -> None:
        self.columns, self.mixture = list(columns), mixture

    def draw(
        self, x: Shaped[Tensor, "B D"], samples: int, within: Sequence[Condition] = ()
    ) -> tuple[Shaped[Tensor, "B S D"], Float64[Tensor, "B S"]]:
        """Draw the missing values of each row S times given the others; with the log-density of each draw."""
        drawn, log_q = self.mixture.given(x[:, self.columns], self._translated(within)).draw(samples)
        filled = x[:, None].repeat(1, samples, 1)
        filled[:, :, self.columns] = drawn
        return filled, log_q

    def redraw(
        self, x: Shaped[Tensor, "B D"], columns: Sequence[int], samples: int, within: Sequence[Condition] = ()
    ) -> tuple[Shaped[Tensor, "B S D"], Float64[Tensor, "B S"], Float64[Tensor, "B 1"]]:
        """Draw some columns anew given the others; with the log-densities of the draws and of the present values."""
        missing = x.clone()
        missing[:, list(columns)] = torch.nan
        inside = [condition for condition in within if condition.column in columns]
        given = self.mixture.given(missing[:, self.columns], self._translated(inside))
        drawn, log_q = given.draw(samples)
        filled = x[:, None].repeat(1, samples, 1)
        filled[:, :, self.columns] = drawn
        return filled, log_q, given.log_prob(x[:, None, self.columns])

    def _translated(self, within: Sequence[Condition]) -> list[Condition]:
        return [Condition(self.columns.index(c.column), c.intervals, c.discrete) for c in within]


class RowProposer:
    """Proposals among rows: values are set, and q has the other columns.

    Attributes:
        q: the mixture to propose from; the first one has all columns, and is conditioned on the values.
        within: the conditions that are not values.
        free: the columns without a value.
    """

    def __init__(self, rows: Rows, conditions: Sequence[Condition]) -> None:
        self.rows = rows
        values = [c for c in conditions if c.is_value or not c.has_mass]
        self.within = [c for c in conditions if c not in values]
        points = list(product(*[[low for low, _ in c.intervals] for c in values]))
        self.points = torch.tensor(points).view(len(points), len(values)).to(rows.pilot)
        self.fixed = [c.column for c in values]
        self.free = [d for d in range(rows.pilot.shape[1]) if d not in self.fixed]
        self.q = Subset(range(rows.pilot.shape[1]), rows.mixture())
        self.rounds: list[tuple[Tensor, Tensor]] = []

    def propose(self, q: Subset, count: int) -> tuple[Shaped[Tensor, "S D"], Float64[Tensor, " S"]]:
        """Return proposals, and log p(x) - log q(x) of each."""
        filled, log_q = self._draw(q, max(1, count // len(self.points)))
        return filled, self.rows.log_prob(filled) - (log_q - math.log(len(self.points)))

    def draw(self, count: int) -> Shaped[Tensor, "S D"]:
        """Draw rows from q for each point of the values, without weights."""
        return self._draw(self.q, count)[0]

    def _draw(self, q: Subset, count: int) -> tuple[Shaped[Tensor, "S D"], Float64[Tensor, " S"]]:
        x = torch.full((len(self.points), self.rows.pilot.shape[1]), torch.nan).to(self.rows.pilot)
        x[:, self.fixed] = self.points
        filled, log_q = q.draw(x, count, self.within)
        return filled.flatten(0, 1), log_q.flatten()

    def refit(self, x: Shaped[Tensor, "S D"], log_w: Float64[Tensor, " S"]) -> None:
        """Fit q to the last proposals."""
        self.rounds = [*self.rounds, (x, log_w)][-REMEMBERED:]
        self.q = _fit(self.rounds, self.free, self.rows.discrete, self.rows.categories) or self.q

    def best_rows(self, n: int) -> Shaped[Tensor, "S D"]:
        """Return n rows of the last proposals, by tempered weights."""
        x, log_w = (torch.cat(parts) for parts in zip(*self.rounds, strict=True))
        return x[resample(tempered(log_w, n)[0], n)] if log_w.isfinite().any() else x[:n]

    def rows_of(self, x: Shaped[Tensor, "S D"]) -> Shaped[Tensor, "S D"]:
        """Return the rows of proposals: themselves."""
        return x


class BaseProposer:
    """Proposals among the variables of a flow's base density, with weights p₀ / q where their rows meet the conditions.

    Args:
        rows: of the flow.
        conditions: each of positive probability.
        seeds: rows that meet the conditions, where few samples do.
    """

    def __init__(self, rows: Rows, conditions: Sequence[Condition], seeds: Shaped[Tensor, "S D"] | None) -> None:
        assert isinstance(rows.density, HasBase)
        self.flow, self.conditions = rows.density, conditions
        self.base = Rows(self.flow.base)
        z = self.base.pilot[contains(conditions, self.rows_of(self.base.pilot))]
        if seeds is not None:
            z = torch.cat([z, self.flow.encode(seeds)[0].to(z)])
        self.columns = list(range(z.shape[1]))
        self.rounds: list[tuple[Tensor, Tensor]] = []
        start = _fit([(z, z.new_zeros(len(z), dtype=torch.float64))], self.columns, *self._kinds)
        assert start is not None
        self.q = start

    @staticmethod
    def fits(density: Density) -> bool:
        """Return whether a density is a flow whose base has an exact density of real numbers."""
        if not isinstance(density, HasBase) or density.conditional:
            return False
        base = density.base
        return base.bound is Bound.EXACT and not base.discrete and len(base.event_shape) == 1

    @property
    def _kinds(self) -> tuple[list[bool], list[int]]:
        return [False] * len(self.columns), [0] * len(self.columns)

    def propose(self, q: Subset, count: int) -> tuple[Shaped[Tensor, "S D"], Float64[Tensor, " S"]]:
        """Return proposals z, and log p₀(z) - log q(z) where the rows meet the conditions, else -inf."""
        z = torch.full((1, len(self.columns)), torch.nan).to(self.base.pilot)
        drawn, log_q = q.draw(z, count)
        drawn = drawn.squeeze(0)
        met = contains(self.conditions, self.rows_of(drawn))
        return drawn, torch.where(met, self.base.log_prob(drawn) - log_q.squeeze(0), -torch.inf)

    def refit(self, z: Shaped[Tensor, "S D"], log_w: Float64[Tensor, " S"]) -> None:
        """Fit q to the last proposals."""
        self.rounds = [*self.rounds, (z, log_w)][-REMEMBERED:]
        self.q = _fit(self.rounds, self.columns, *self._kinds) or self.q

    def rows_of(self, z: Shaped[Tensor, "S D"]) -> Shaped[Tensor, "S D"]:
        """Return the rows of proposals."""
        return torch.cat([self.flow.decode(part) for part in torch.split(z, PILOT)])


def _fit(
    rounds: Sequence[tuple[Tensor, Tensor]], columns: list[int], discrete: Sequence[bool], categories: Sequence[int]
) -> Subset | None:
    """Fit a mixture over some columns to weighted rows, with weights that are tempered while few of them count."""
    x, log_w = (torch.cat(parts) for parts in zip(*rounds, strict=True))
    if not columns or not log_w.isfinite().any():
        return None
    weights, effective = tempered(log_w, min(0.25 * PROPOSALS, 40.0 * (len(columns) + 2)))
    chosen = weights > weights.max() * 1e-8
    weights = weights[chosen] / weights[chosen].sum()
    kinds = [discrete[d] for d in columns], [categories[d] for d in columns]
    return Subset(columns, RowMixture(x[chosen][:, columns], weights, *kinds, components_for(effective, len(columns))))
