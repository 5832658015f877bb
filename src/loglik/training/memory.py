"""Memory that a training step frees is kept for the next step."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's names of them, in malloc.h
LARGEST = 2**28  # bytes of a block that is kept


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, where it is glibc; for the process, from here on.

    By default each tensor above some megabytes is given back to the system when it is freed, and the pages of the next
    one are zeroed again: a tenth of a training step on a processor. The process then stays as large as its largest
    step. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
