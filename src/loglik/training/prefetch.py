"""Batches that do not fit on a GPU, copied to it one ahead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Prefetch"]

Batch = tuple[Tensor, Tensor | None]


class Prefetch:
    """Copy each batch to a CUDA device by a side stream, through pinned memory, while the GPU works on the one before.

    Args:
        load: from the number of a step to its batch, on the host.
        device: where batches go.
    """

    def __init__(self, load: Callable[[int], Batch], device: torch.device) -> None:
        self.load, self.device = load, device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._step = -1
        self._batch: Batch

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, and begin to copy that of the next."""
        if self._step != step:
            self._start(step)
        here, ready = torch.cuda.current_stream(self.device), self._batch
        here.wait_stream(self.stream)
        for tensor in ready:
            if tensor is not None:
                tensor.record_stream(here)
        self._start(step + 1)
        return ready

    def _start(self, step: int) -> None:
        x, y = self.load(step)
        with torch.cuda.stream(self.stream):
            self._step, self._batch = step, (self._copy(x), None if y is None else self._copy(y))

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)
