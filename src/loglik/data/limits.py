"""Limits for files from strangers: their bytes in memory, and the length of what an error quotes.

Decoded data may have 256 MiB, or 50 times the bytes on disk if that is more, but not more than the memory of the
machine. The environment variable LOGLIK_MAX_BYTES sets another limit.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO

__all__ = [
    "Stream",
    "TooLarge",
    "bytes_from",
    "check_bytes",
    "converting",
    "first_line",
    "max_bytes",
    "quote",
    "read_at_most",
    "reading",
    "shorten",
    "silent",
    "some",
    "too_large",
]

VARIABLE = "LOGLIK_MAX_BYTES"
SMALLEST = 2**28  # of the limits
GROWTH = 50  # CSV grows up to 20 times, photographs 30 times; zip and gzip can grow 1,000 times
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
QUOTED = 80  # characters of a value in an error
Stream = IO[bytes] | BufferedIOBase


def max_bytes(on_disk: int, *, in_memory: bool = True) -> int:
    """Return the number of bytes that data of so many bytes on disk may have, decoded, in memory or in a store.

    Raises ValueError if LOGLIK_MAX_BYTES is not a number of bytes such as 8GiB.
    """
    if (limit := bytes_from(VARIABLE)) is not None:
        return limit
    limit = max(SMALLEST, GROWTH * on_disk)
    if in_memory and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        limit = min(limit, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return limit


def bytes_from(variable: str) -> int | None:
    """Return the number of bytes in a variable of the environment; None if it is not set.

    Raises ValueError if it is not a number of bytes such as 8GiB.
    """
    if (text := os.environ.get(variable, "").strip()) == "":
        return None
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]i?|)b?", text, re.I)
    if not match or not (limit := int(float(match[1]) * UNITS[match[2].lower()])):
        raise ValueError(f"{variable} must be a number of bytes such as 8GiB, got {quote(text)}")
    return limit


def check_bytes(required: int, on_disk: int, where: Path | str, *, in_memory: bool = True) -> None:
    """Raise ValueError if decoded data need more bytes than `max_bytes` returns."""
    if required > (limit := max_bytes(on_disk, in_memory=in_memory)):
        raise ValueError(f"{where}: {too_large(f'needs {_size(required)} of memory', limit)}")


def read_at_most(file: Stream, limit: int) -> bytes:
    """Read a decompressed file; raise TooLarge for more than `limit` bytes."""
    blocks, total = [], 0
    while block := file.read(2**20):
        blocks.append(block)
        if (total := total + len(block)) > limit:
            raise TooLarge(too_large("decompresses to too many bytes", limit))
    return b"".join(blocks)


def too_large(what: str, limit: int) -> str:
    """Return what an error says of data that exceed the limit."""
    return f"{what}, and the limit is {_size(limit)}: if you trust the file, set {VARIABLE}, for example to 8GiB"


class TooLarge(ValueError):
    """Data that exceed the limit; `reading` adds the file's name."""


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Turn any error of a reader into a ValueError of one line: "PATH: not a readable KIND (what the reader said)".

    An error of the system that names its file passes, and so does one of the user's interrupts. Warnings are silenced.
    """
    with silent(), converting(path, kind):
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Silence warnings, of all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def converting(path: Path | str, kind: str) -> Iterator[None]:
    """Turn errors as `reading` does, without silencing warnings, which only one thread may do."""
    try:
        yield
    except TooLarge as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # decoders raise many kinds; polars' panics are not even an Exception
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path}: not a readable {kind} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    if type(error).__name__ == "PanicException":  # of polars: where in its source it stopped
        return "damaged"
    lines = str(error).strip().splitlines()
    return shorten(lines[0] if lines else type(error).__name__, 200)


def shorten(text: str, length: int = QUOTED) -> str:
    r"""Return a text of at most about `length` characters, cut in the middle, without control characters.

    >>> shorten("a" * 50 + "b" * 50, 20)
    'aaaaaaaaaa...bbbbbbb (100 characters)'
    >>> print(shorten("red" + chr(27) + "[0m"))
    red\x1b[0m
    """
    total = len(text)
    if total > length:
        head = length // 2
        text = f"{text[:head]}...{text[total - (length - head - 3) :]} ({total} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quote(value: object) -> str:
    """Return a value as Python writes it, shortened, for an error.

    >>> quote("it")
    "'it'"
    """
    return shorten(repr(value))


def some(names: list[str] | tuple[str, ...], count: int = 10) -> str:
    """Return the first names of a list, shortened, for an error.

    >>> some(["a", "b", "c"], 2)
    'a, b, ... (3 in all)'
    """
    few = ", ".join(shorten(str(name), 40) for name in names[:count])
    return few + (f", ... ({len(names)} in all)" if len(names) > count else "")


def _size(count: int) -> str:
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:,.4g} {unit}" if count < 2**60 else f"{count:.3g} bytes"
    return f"{count:,} bytes"
