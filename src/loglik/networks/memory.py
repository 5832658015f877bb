"""Memory: the CPU's allocator returns to the system what the next step asks for again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h
MOST = 2**30  # bytes


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, up to 1 GiB, for its next allocations.

    By default it returns a large tensor to the system, which has to clear and map every page of the next one: of a
    small network's training step that is a third. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, MOST)
        library.mallopt(TRIM_THRESHOLD, MOST)
