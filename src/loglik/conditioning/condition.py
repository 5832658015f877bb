"""A condition on one column: the intervals that its value may lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

__all__ = ["Condition", "contains"]


@dataclass(frozen=True)
class Condition:
    """The value of a column lies in one of several closed intervals; an interval of one point is a value.

    Attributes:
        column: the column's number.
        intervals: (low, high) of each, in order and disjoint; integers if the column is discrete.
        discrete: the column holds integers or codes.

    Raises ValueError for no interval, for an empty interval, and for values beside ranges in a column of real numbers.

    >>> Condition(0, ((1.0, 1.0), (3.0, 5.0)), discrete=True).contains(torch.tensor([1.0, 2.0, 3.0]))
    tensor([ True, False,  True])
    """

    column: int
    intervals: tuple[tuple[float, float], ...]
    discrete: bool

    def __post_init__(self) -> None:
        if not self.intervals:
            raise ValueError("a condition has at least one value or range")
        if any(not low <= high for low, high in self.intervals):
            raise ValueError(f"a range goes from its lowest to its highest value, got {self.intervals}")
        if not self.discrete and len({low == high for low, high in self.intervals}) > 1:
            raise ValueError("a condition on real numbers has values or ranges, not both")

    @property
    def is_value(self) -> bool:
        """Whether the condition fixes the value."""
        return len(self.intervals) == 1 and self.intervals[0][0] == self.intervals[0][1]

    @property
    def has_mass(self) -> bool:
        """Whether the condition has a probability above 0; real numbers equal to a value have none."""
        return self.discrete or any(low < high for low, high in self.intervals)

    @property
    def codes(self) -> list[int]:
        """The integers that a discrete column may have; the intervals must be finite."""
        return [code for low, high in self.intervals for code in range(int(low), int(high) + 1)]

    def contains(self, x: Shaped[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return whether each value meets the condition."""
        met = torch.zeros_like(x, dtype=torch.bool)
        for low, high in self.intervals:
            met |= (x >= low) & (x <= high)
        return met

    def clamp(self, x: Shaped[Tensor, " B"]) -> Shaped[Tensor, " B"]:
        """Move values that rounding has put outside the nearest interval onto its end."""
        if len(self.intervals) == 1:
            return x.clamp(*self.intervals[0])
        nearest = torch.stack([x.clamp(low, high) for low, high in self.intervals])
        best = (nearest - x).abs().nan_to_num(nan=math.inf).argmin(0)
        return nearest.gather(0, best[None]).squeeze(0)


def contains(conditions: Sequence[Condition], x: Shaped[Tensor, "B D"]) -> Bool[Tensor, " B"]:
    """Return whether each row meets all conditions."""
    met = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for condition in conditions:
        met &= condition.contains(x[:, condition.column])
    return met
