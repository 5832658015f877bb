"""Batches: the order of the training data.

The order is a function of (seed, epoch); of (seed, step) where the examples are windows of a text.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64, Shaped
from lightning_fabric import Fabric
from torch import Tensor

from loglik.data.dataset import Split
from loglik.training.seeds import mix_seed

__all__ = ["MAX_BYTES", "Batches"]

MAX_BYTES = 2**32  # of a split that is kept on the device


class Batches:
    """The training batches of one rank.

    Args:
        split: the training examples.
        batch_size: examples per step over all ranks; at most the whole split.
        seed: fixes the order.
        fabric: the ranks, and the device of the batches.

    Raises ValueError for a batch that the ranks cannot share equally.
    """

    def __init__(self, split: Split, *, batch_size: int, seed: int, fabric: Fabric) -> None:
        self.split, self.seed, self.device = split.to(fabric.device, max_bytes=MAX_BYTES), seed, fabric.device
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of the {self.world_size} devices")
        # windows overlap: an epoch has as many as fit side by side
        self.steps_per_epoch = max(1, len(split) // (self.batch_size * split.units_per_example))
        self._permutation: tuple[int, Tensor] | None = None

    def rows(self, step: int) -> Int64[Tensor, " B"]:
        """Return this rank's rows of a step's batch.

        They are a slice of the epoch's permutation, or random windows of a text.
        """
        if self.split.with_replacement:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, step, -1))
            rows = torch.randint(len(self.split), (self.batch_size,), generator=generator)
        else:
            epoch, number = divmod(step, self.steps_per_epoch)
            rows = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return rows[self.rank :: self.world_size]

    def batch(self, step: int) -> tuple[Shaped[Tensor, "B ..."], Int64[Tensor, " B"] | None]:
        """Return this rank's examples of a step and their labels, on the device."""
        x, y = self.split.batch(self.rows(step))
        return x.to(self.device, non_blocking=True), None if y is None else y.to(self.device, non_blocking=True)

    def _order(self, epoch: int) -> Int64[Tensor, " N"]:
        if self._permutation is None or self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, -1))
            self._permutation = epoch, torch.randperm(len(self.split), generator=generator)
        return self._permutation[1]
