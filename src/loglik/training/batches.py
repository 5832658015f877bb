"""Batches: the order of the training data.

The order is a function of (seed, epoch); of (seed, step) where the examples are windows of a text.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64, Shaped
from lightning_fabric import Fabric
from torch import Tensor

from loglik.data.dataset import Split
from loglik.training.prefetch import Prefetch
from loglik.training.seeds import mix_seed

__all__ = ["MAX_BYTES", "Batches"]

MAX_BYTES = 2**32  # of a split that is kept on the device


class Batches:
    """The training batches of one rank.

    Args:
        split: the training examples.
        batch_size: examples per step over all ranks; at most the whole split, or its largest part that they can share.
        seed: fixes the order.
        fabric: the ranks, and the device of the batches.
        accumulate: the number of equal parts in which each rank computes its examples.

    Raises ValueError for a batch that the ranks and parts cannot share equally.
    """

    def __init__(self, split: Split, *, batch_size: int, seed: int, fabric: Fabric, accumulate: int = 1) -> None:
        self.split, self.seed, self.device = split.to(fabric.device, max_bytes=MAX_BYTES), seed, fabric.device
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        parts = self.world_size * accumulate
        self.batch_size = batch_size if batch_size <= len(split) else len(split) // parts * parts
        if self.batch_size == 0 or self.batch_size % parts:
            devices = f"{self.world_size} device{'s' * (self.world_size > 1)}"
            shares = devices + (f" times accumulate={accumulate}" if accumulate > 1 else "")
            raise ValueError(f"batch_size {min(batch_size, len(split))} must be a multiple of {parts} ({shares})")
        # windows overlap: an epoch has as many as fit side by side
        self.steps_per_epoch = max(1, len(split) // (self.batch_size * split.units_per_example))
        self._permutation: tuple[int, Tensor] | None = None
        stored = self.split.x.device if isinstance(self.split.x, Tensor) else torch.device("cpu")
        self._rows_device = stored
        self._prefetch = Prefetch(self._load, self.device) if self.device.type == "cuda" != stored.type else None

    def rows(self, step: int) -> Int64[Tensor, " B"]:
        """Return this rank's rows of a step's batch, on the device of the split.

        The batch is a slice of the epoch's permutation, or random windows of a text; each rank has a slice of it.
        """
        if self.split.with_replacement:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, step, -1))
            rows = torch.randint(len(self.split), (self.batch_size,), generator=generator)
        else:
            epoch, number = divmod(step, self.steps_per_epoch)
            rows = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return rows if self.world_size == 1 else rows.chunk(self.world_size)[self.rank]

    def batch(self, step: int) -> tuple[Shaped[Tensor, "B ..."], Shaped[Tensor, "B ..."] | None]:
        """Return this rank's examples of a step and their labels or inputs, on the device."""
        if self._prefetch is not None:
            return self._prefetch.batch(step)
        x, y = self._load(step)
        return x.to(self.device), None if y is None else y.to(self.device)

    def _load(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return this rank's examples of a step and their labels, where the split is stored."""
        return self.split.batch(self.rows(step))

    def _order(self, epoch: int) -> Int64[Tensor, " N"]:
        if self._permutation is None or self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, -1))
            order = torch.randperm(len(self.split), generator=generator)
            self._permutation = epoch, order.to(self._rows_device)
        return self._permutation[1]
