"""The range of each column of numbers in the training data, within which samples are drawn."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loglik.data.dataset import Data
from loglik.data.spec import DataSpec

__all__ = ["clamp_to_ranges", "outside_ranges", "with_ranges"]

BLOCK_VALUES = 2**22  # that are read from a split at once


def with_ranges(data: Data) -> Data:
    """Return data whose spec has the smallest and the largest value of each column of numbers in the training split.

    Targets given inputs have none, since other inputs may have other targets.
    """
    spec = data.spec
    if spec.inputs or not any(not column.categories for column in spec.columns) or not len(data.train):
        return data
    low, high = torch.full((spec.dims,), torch.inf), torch.full((spec.dims,), -torch.inf)
    size = max(1, BLOCK_VALUES // spec.dims)
    for start in range(0, len(data.train), size):
        x = data.train.x[start : start + size].cpu()
        low = torch.minimum(low, x.nan_to_num(nan=torch.inf).amin(0))
        high = torch.maximum(high, x.nan_to_num(nan=-torch.inf).amax(0))
    columns = [
        column if column.categories or a > b else replace(column, low=a, high=b)
        for column, a, b in zip(spec.columns, low.tolist(), high.tolist(), strict=True)
    ]
    return replace(data, spec=replace(spec, columns=tuple(columns)))


def outside_ranges(rows: Float[Tensor, "N D"], spec: DataSpec) -> Bool[Tensor, " N"]:
    """Return which rows have a value beyond the range of its column."""
    low, high = _ends(rows, spec)
    return ((rows < low) | (rows > high)).any(1)


def clamp_to_ranges(rows: Float[Tensor, "N D"], spec: DataSpec) -> Float[Tensor, "N D"]:
    """Return rows with each value moved to the nearest one in the range of its column."""
    low, high = _ends(rows, spec)
    return torch.minimum(torch.maximum(rows, low), high)


def _ends(rows: Tensor, spec: DataSpec) -> tuple[Tensor, Tensor]:
    ends = [(-torch.inf if c.low is None else c.low, torch.inf if c.high is None else c.high) for c in spec.columns]
    low, high = torch.tensor(ends, dtype=rows.dtype, device=rows.device).unbind(1)
    return low, high
