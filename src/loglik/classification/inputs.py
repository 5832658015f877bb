"""Inputs: data to numbers of order one, for a classifier's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

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

    Args:
        categories: for each column, its number of categories; 0 for a numeric column.
    """

    numbers: Tensor

    def __init__(self, categories: Sequence[int]) -> None:
        super().__init__()
        self.categories = list(categories)
        numbers = [d for d, count in enumerate(categories) if count == 0]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.standardise = Standardise((len(self.numbers),))
        self.outputs = len(self.numbers) + sum(categories)

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        if len(self.numbers):
            self.standardise.initialise(x.flatten(1)[:, self.numbers].float())

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B F"]:
        rows = x.flatten(1)
        numbers, _ = self.standardise.encode(rows[:, self.numbers].to(torch.get_default_dtype()))
        codes = [
            F.one_hot(rows[:, d].long(), count).to(numbers.dtype) for d, count in enumerate(self.categories) if count
        ]
        return torch.cat([numbers, *codes], dim=1)
