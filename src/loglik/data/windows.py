"""Tokens in a memory-mapped file, and windows of the tokens: a text is never loaded completely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

__all__ = ["Stream", "Windows", "rolling"]

MAPPED_WINDOWS = 1024  # windows read from one mapping, whose pages are then released


@dataclass(frozen=True)
class Stream:
    """`count` tokens from number `start` on, in a file of raw numbers or in an array.

    A file is mapped anew for each read, so that its pages do not pile up in this process.
    """

    source: Path | np.ndarray
    dtype: str
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def cut(self, start: int, stop: int) -> Stream:
        """Return tokens start ... stop-1 of the stream."""
        start, stop = max(0, start), min(stop, self.count)
        return replace(self, start=self.start + start, count=max(0, stop - start))

    def tokens(self) -> Shaped[np.ndarray, " N"]:
        """Return the tokens, which are read when they are accessed."""
        if isinstance(self.source, np.ndarray):
            return self.source[self.start : self.start + self.count]
        if self.count == 0:
            return np.empty(0, self.dtype)
        offset = self.start * np.dtype(self.dtype).itemsize
        return np.memmap(self.source, self.dtype, mode="r", offset=offset, shape=(self.count,))

    def blocks(self, size: int = 2**20) -> Iterator[Shaped[np.ndarray, " B"]]:
        """Yield the tokens in order, `size` at a time."""
        for start in range(0, self.count, size):
            yield np.array(self.cut(start, start + size).tokens())


class Windows:
    """Windows of `length` = T tokens of a stream, one every `stride` tokens: indexed as a tensor (N, T) is.

    An index reads only the indexed windows, as uint8 where tokens are bytes, else as int64.
    """

    def __init__(self, stream: Stream, length: int, stride: int) -> None:
        self.stream, self.length, self.stride = stream, length, stride
        self.shape = (max(0, (len(stream) - length) // stride + 1), length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Shaped[Tensor, "B T"]:
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows.cpu().numpy()
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"window {numbers.max()} of {len(self)}")
        picked = np.empty((len(numbers), self.length), self.stream.dtype)
        for first in range(0, len(numbers), MAPPED_WINDOWS):
            tokens = self.stream.tokens()
            for row, start in enumerate((numbers[first : first + MAPPED_WINDOWS] * self.stride).tolist(), first):
                picked[row] = tokens[start : start + self.length]
        return torch.from_numpy(picked if picked.dtype == np.uint8 else picked.astype(np.int64))


def rolling(n: int, length: int, stride: int) -> tuple[Int64[Tensor, " W"], Int64[Tensor, " W"]]:
    """Return where windows over n tokens begin, and the first position in each that no window before it has.

    A window begins every `stride` tokens, from 0 on, and one more ends with the text. There are at least `length`
    tokens.
    """
    last = n - length
    starts = torch.arange(0, last + 1, stride)
    firsts = torch.full_like(starts, length - stride)
    firsts[:1] = 0
    rest = last - int(starts[-1])
    if rest:
        starts, firsts = torch.cat([starts, torch.tensor([last])]), torch.cat([firsts, torch.tensor([length - rest])])
    return starts, firsts
