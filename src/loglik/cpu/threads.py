"""Threads: one is faster than many where the operations of a loop are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loglik.cpu.choices import single_thread_flops

__all__ = ["threads_for"]


@contextmanager
def threads_for(flops: int) -> Iterator[None]:
    """Run the block on one thread if the work is small; restore the thread count afterwards.

    Args:
        flops: of each operation in the block, a multiplication and an addition being two. Each operation would wake the
            threads and wait for them. `loglik.cpu.choices` says what is small.
    """
    if torch.compiler.is_compiling() or (threads := torch.get_num_threads()) == 1 or flops > single_thread_flops():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
