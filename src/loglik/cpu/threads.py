"""Threads: one is faster than many where the operations of a loop are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SINGLE_THREAD_FLOPS", "threads_for"]

SINGLE_THREAD_FLOPS = 2**25  # up to this size waking other threads takes longer than they save


@contextmanager
def threads_for(flops: int, max_single_thread: int = SINGLE_THREAD_FLOPS) -> Iterator[None]:
    """Run the block on one thread if the work is small; restore the thread count afterwards.

    Args:
        flops: of each operation in the block, a multiplication and an addition being two. Each operation would wake the
            threads and wait for them.
        max_single_thread: the largest `flops` that run on one thread.
    """
    if torch.compiler.is_compiling() or flops > max_single_thread:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
