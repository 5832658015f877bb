"""Threads: one is faster than many where a loop's steps are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads_for"]

SMALL = 2**24  # multiplications, below which waking other threads takes longer than what they save


@contextmanager
def threads_for(multiplications: int, small: int = SMALL) -> Iterator[None]:
    """For operations that each make this many multiplications: one thread if that is few, and all again after them.

    Each would wake the threads and wait for them; a step of generation is a handful of small products.
    """
    if torch.compiler.is_compiling() or multiplications > small:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
