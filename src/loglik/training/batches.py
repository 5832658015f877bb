"""Batches: the order of the training data, and subsets of a split.

The order is a function of (seed, epoch); of (seed, step) where the examples are windows of a text.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64, Shaped
from lightning_fabric import Fabric
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.windows import Windows
from loglik.training.seeds import mix_seed

__all__ = ["Batches", "evenly_spaced", "to_device"]


class Batches:
    """The training batches of one rank.

    Args:
        split: the training examples.
        dims: dimensions of an example; of a text, T tokens of a window.
        batch_size: examples per step over all ranks; at most the whole split.
        seed: fixes the order.
        fabric: the ranks, and the device of the batches.

    Raises ValueError for a batch that the ranks cannot share equally.
    """

    def __init__(self, split: Split, *, dims: int, batch_size: int, seed: int, fabric: Fabric) -> None:
        self.split, self.seed, self.device = to_device(split, fabric.device), seed, fabric.device
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of the {self.world_size} devices")
        text = isinstance(split.x, Windows)
        spacing = dims if text else 1  # windows overlap: an epoch has as many as fit side by side
        self.steps_per_epoch = max(1, len(split) // (self.batch_size * spacing))
        self._permutation: tuple[int, Tensor] | None = None

    def rows(self, step: int) -> Int64[Tensor, " B"]:
        """Return this rank's rows of a step's batch.

        They are a slice of the epoch's permutation, or random windows of a text.
        """
        if isinstance(self.split.x, Windows):  # too many to permute
            generator = torch.Generator().manual_seed(mix_seed(self.seed, step, -1))
            rows = torch.randint(len(self.split), (self.batch_size,), generator=generator)
        else:
            epoch, number = divmod(step, self.steps_per_epoch)
            rows = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return rows[self.rank :: self.world_size]

    def batch(self, step: int) -> tuple[Shaped[Tensor, "B ..."], Int64[Tensor, " B"] | None]:
        """Return this rank's examples of a step and their labels, on the device."""
        rows, device, x, y = self.rows(step), self.device, self.split.x, self.split.y
        x = x[rows] if isinstance(x, Windows) else x.index_select(0, rows.to(x.device))  # 3x faster than indexing
        x = x.to(device, non_blocking=True)
        return x, None if y is None else y.index_select(0, rows.to(y.device)).to(device, non_blocking=True)

    def _order(self, epoch: int) -> Int64[Tensor, " N"]:
        if self._permutation is None or self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, -1))
            self._permutation = epoch, torch.randperm(len(self.split), generator=generator)
        return self._permutation[1]


def evenly_spaced(split: Split, max_examples: int) -> Split:
    """Return at most `max_examples` examples, evenly spaced over the split."""
    step = math.ceil(len(split) / max_examples)
    return Split(split.x[::step], None if split.y is None else split.y[::step])


def to_device(split: Split, device: torch.device, max_bytes: int = 2**32) -> Split:
    """Return the split on the device if it is small and not windows of a text; else the split itself."""
    x = split.x
    if device.type == "cpu" or isinstance(x, Windows) or x.numel() * x.element_size() > max_bytes:
        return split
    return Split(x.to(device), None if split.y is None else split.y.to(device))
