"""Values that a device computes and the host reads later, without waiting for them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Arrivals"]

MAX_STEPS_AHEAD = 4  # of the host, ahead of a GPU
STEPS_BETWEEN_READS = 50  # on other devices than CUDA


class Arrivals:
    """The newest values that have arrived on the host.

    On CUDA each `send` starts a copy to pinned memory, and waits until the copy `MAX_STEPS_AHEAD` sends before has
    arrived: values are a few steps late, and the host does not run further ahead, where a limit of time would be
    missed. On other devices every `STEPS_BETWEEN_READS`-th value is read.

    Args:
        count: how many values are sent together.
        device: where they are computed.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.newest: list[float] | None = None
        self._last: Tensor | None = None
        self._sent = 0
        self._copies: list[tuple[Tensor, torch.cuda.Event | None]] = []
        if device.type == "cuda":
            empty = torch.empty(count, dtype=torch.float64)
            self._copies = [(empty.clone().pin_memory(), None) for _ in range(MAX_STEPS_AHEAD)]

    def send(self, values: Float[Tensor, " N"]) -> None:
        """Start to copy values to the host."""
        self._last, number = values, self._sent % (MAX_STEPS_AHEAD if self._copies else STEPS_BETWEEN_READS)
        self._sent += 1
        if not self._copies:
            if number == STEPS_BETWEEN_READS - 1:
                self.read()
            return
        copy, event = self._copies[number]
        if event is not None:
            event.synchronize()
            self.newest = copy.tolist()
        copy.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._copies[number] = copy, event

    def read(self) -> None:
        """Wait for the last values that were sent."""
        if self._last is not None:
            self.newest = self._last.tolist()
