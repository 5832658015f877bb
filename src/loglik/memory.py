"""Work in pieces that fit in memory, and say in one line what did not fit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from loglik.cpu.allocator import return_freed_memory

__all__ = ["OutOfMemory", "Pieces", "is_out_of_memory", "release"]

Part = TypeVar("Part")

MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "out of memory",
    "could not create a memory object",
)
ONEDNN = ("could not create a primitive", "could not execute a primitive")  # for want of memory, which it does not say


class OutOfMemory(MemoryError):
    """What does not fit in memory, in a line that says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the CPU or on a GPU.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory")), is_out_of_memory(RuntimeError("no"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return str(error).strip() in ONEDNN or any(sign in str(error) for sign in MESSAGES)


def release(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    gc.collect()
    if device.type == "cpu":
        return_freed_memory()
    elif device.type != "meta":
        torch.get_device_module(device).empty_cache()


class Pieces(Generic[Part]):
    """Compute rows in pieces that fit in memory.

    All rows are one piece until memory runs out. Then the piece is halved until it fits, and its size stays for all
    later calls. The results depend on the size of the pieces alone.

    Args:
        compute: a function of a slice of the rows; it seeds its own random numbers, since it is called again after a
            failure.
        device: where the rows are computed.
    """

    def __init__(self, compute: Callable[[slice], Part], device: torch.device) -> None:
        self.compute, self.device = compute, device
        self.rows: int | None = None

    def __call__(self, rows: slice) -> list[Part]:
        """Return the results of the slice's pieces, in order.

        Raises OutOfMemory if not even one row fits.
        """
        parts, start = list[Part](), rows.start
        while start < rows.stop:
            piece = slice(start, min(rows.stop, start + (self.rows or rows.stop - start)))
            failed = False
            try:
                parts.append(self.compute(piece))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = True  # the error, which holds the tensors, ends here
            if not failed:
                start = piece.stop
                continue
            size = piece.stop - piece.start
            if size == 1:
                raise OutOfMemory(
                    f"one row does not fit in the memory of {self.device}: free memory, or use another device"
                )
            self.rows = -(-size // 2)
            release(self.device)
        return parts
