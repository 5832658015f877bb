"""Inputs: data to numbers of order one, for a classifier's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.missing import hot_deck
from loglik.transforms import Standardise

__all__ = ["Columns", "Levels"]


class Levels(nn.Module):
    """Scale integers 0 ... K-1 to [-1, 1].

    Args:
        levels: K.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.scale = 2 / (levels - 1)

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return x.to(torch.get_default_dtype()) * self.scale - 1


class Columns(nn.Module):
    """Standardise numeric columns and encode categorical columns as one-hot vectors, concatenated in this order.

    A missing number, NaN, is read as 0, the mean, and a missing category as no category. Flags, 1 where a value is
    missing, follow.

    Args:
        categories: for each column, its number of categories; 0 for a numeric column.
        missing: for each column, whether it has a flag; none has if None.
    """

    numbers: Tensor
    flags: Tensor

    def __init__(self, categories: Sequence[int], missing: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.categories = list(categories)
        numbers = [d for d, count in enumerate(categories) if count == 0]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        flags = [d for d, flag in enumerate(missing or ()) if flag]
        self.register_buffer("flags", torch.tensor(flags, dtype=torch.long), persistent=False)
        self.standardise = Standardise((len(self.numbers),))
        self.outputs = len(self.numbers) + sum(categories) + len(flags)

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        if len(self.numbers):
            self.standardise.initialise(hot_deck(x.flatten(1)[:, self.numbers].float()))

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B F"]:
        rows = x.flatten(1)
        missing = rows.isnan() if rows.is_floating_point() else torch.zeros_like(rows, dtype=torch.bool)
        rows = rows.masked_fill(missing, 0)
        numbers, _ = self.standardise.encode(rows[:, self.numbers].to(torch.get_default_dtype()))
        numbers = numbers.masked_fill(missing[:, self.numbers], 0)
        codes = [
            F.one_hot(rows[:, d].long(), count).masked_fill(missing[:, d, None], 0).to(numbers.dtype)
            for d, count in enumerate(self.categories)
            if count
        ]
        return torch.cat([numbers, *codes, missing[:, self.flags].to(numbers.dtype)], dim=1)
