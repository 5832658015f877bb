"""A data set in memory: a spec and three splits, each one tensor of examples and perhaps one of labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from loglik.data.spec import DataSpec

__all__ = ["Data", "Split"]


@dataclass(frozen=True)
class Split:
    """Examples `x` of shape (N, *event_shape) and their labels `y` (N,), if they have labels."""

    x: Shaped[Tensor, "N ..."]
    y: Int64[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Data:
    """A named data set with its spec and its training, validation and test splits."""

    name: str
    spec: DataSpec
    train: Split
    validation: Split
    test: Split

    def split(self, name: str) -> Split:
        """One split by name, or `all` of them joined in the order train, validation, test."""
        if name == "all":
            parts = [self.train, self.validation, self.test]
            y = None if self.train.y is None else torch.cat([s.y for s in parts if s.y is not None])
            return Split(torch.cat([s.x for s in parts]), y)
        if name not in ("train", "validation", "test"):
            raise ValueError(f"no split named {name!r}: use train, validation, test or all")
        return getattr(self, name)
