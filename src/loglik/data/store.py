"""Decoded examples on disk, memory-mapped: data larger than memory, read row by row.

A store is a folder in the user's cache with one file of raw numbers for each array, and `header.json`: its first line
is the SHA-256 of the second, which holds the arrays' types and shapes and what the reader of the data found, such as a
table's columns. It is written under a temporary name and renamed when it is complete. Its name is a digest of the
source files' paths, of their sizes and times of change, and of how they were read: a file that changes gets a new
store, and its old one is deleted. A store that is damaged is written again.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from loglik.data.limits import bytes_from
from loglik.files import naming

__all__ = ["Rows", "Store", "Writer", "found", "in_memory", "is_large", "stored", "temporary", "user_cache"]

VARIABLE = "LOGLIK_MAX_IN_MEMORY"
FORMAT = 1  # of a store; stores of another format are not found
IN_MEMORY = 2**28  # decoded bytes that are kept in memory
RESIDENT = 3 * 2**29  # bytes of a store that stay mapped in this process
FAULT = 2**16  # bytes that the system maps at once for a row that is read
BLOCK = 2**24  # bytes that are gathered at once
CHOSEN = 2**18  # rows that are read whole at once, where only some columns are wanted


def user_cache() -> Path:
    """Return the cache folder: $LOGLIK_CACHE, or `loglik` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("LOGLIK_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loglik"


def in_memory() -> int:
    """Return the number of decoded bytes that are kept in memory: 256 MiB, or what LOGLIK_MAX_IN_MEMORY says.

    Data of more bytes are read from a store. Both ways give the same numbers.
    """
    return bytes_from(VARIABLE) or IN_MEMORY


def is_large(decoded: int) -> bool:
    """Return whether data of so many decoded bytes are read from a store, not kept in memory."""
    return decoded > in_memory()


class Rows:
    """Rows of an array in a store: indexed as a tensor (N, ...) is, by a slice or row numbers, which copies the rows.

    Args:
        array: the memory-mapped array.
        index: the rows of the array, in order; None for all.
        columns: the second dimension's numbers, in order; None for all.
    """

    def __init__(
        self, array: _Array, index: Int64[Tensor, " N"] | None = None, columns: Sequence[int] | Tensor | None = None
    ) -> None:
        self.array, self.index = array, index
        self.columns = None if columns is None else torch.as_tensor(columns, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.array.values) if self.index is None else len(self.index)

    @property
    def shape(self) -> torch.Size:
        if self.columns is not None:
            return torch.Size((len(self), len(self.columns)))
        return torch.Size((len(self), *self.array.values.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.array.values.dtype

    def __getitem__(self, rows: slice | Int64[Tensor, " B"]) -> Shaped[Tensor, "B ..."]:
        numbers = self._numbers(rows)
        if self.columns is None:
            return self.array.gather(numbers)
        return torch.cat([self.array.gather(part)[:, self.columns] for part in numbers.split(CHOSEN)])

    def select(self, rows: slice | Int64[Tensor, " B"]) -> Rows:
        """Return some of the rows without reading them."""
        return Rows(self.array, self._numbers(rows), self.columns)

    def choose(self, columns: Sequence[int]) -> Rows:
        """Return some columns of all rows (N, D) without reading them."""
        return Rows(self.array, self.index, columns)

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """Return the rows of several parts of one array, one part after another."""
        assert all(part.array is parts[0].array for part in parts), "the parts are of several arrays"
        return Rows(parts[0].array, torch.cat([part._numbers(slice(None)) for part in parts]), parts[0].columns)

    def _numbers(self, rows: slice | Tensor) -> Int64[Tensor, " B"]:
        numbers = torch.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows.cpu()
        return numbers if self.index is None else self.index[numbers]


class Store:
    """A store on disk: `about`, what its reader noted in plain values, and its arrays, memory-mapped.

    Raises ValueError if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = self._header()
        self.about: Any = header["about"]
        self._arrays = {
            name: _Array(path / f"{name}.bin", getattr(torch, dtype), tuple(shape))
            for name, (dtype, shape) in header["arrays"].items()
        }

    def _header(self) -> dict[str, Any]:
        try:
            digest, _, plain = (self.path / "header.json").read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} has no readable header.json: {error}") from error
        if digest != _digest(plain):
            raise ValueError(f"{self.path / 'header.json'} is damaged: its SHA-256 is another")
        return json.loads(plain)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def rows(self, name: str = "x") -> Rows:
        """Return all rows of an array, which are read when they are indexed."""
        return Rows(self._arrays[name])

    def tensor(self, name: str) -> Shaped[Tensor, "N ..."]:
        """Return an array in memory."""
        return self.rows(name)[:]


class _Array:
    """A memory-mapped file of raw numbers, as a tensor that must not be written to."""

    def __init__(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        size = torch.Size(shape).numel() * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{path} is damaged: it has not the {size:,} bytes that its header names")
        self._touched = 0
        if size == 0:
            self._map, self.values = None, torch.empty(shape, dtype=dtype)
            return
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) <= RESIDENT and hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED)  # read ahead, in the order of the file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of memory that cannot be written
            self.values = torch.frombuffer(self._map, dtype=dtype).view(shape)

    def gather(self, numbers: Int64[Tensor, " B"]) -> Shaped[Tensor, "B ..."]:
        """Return a copy of rows; many are read in the order of the file, in blocks."""
        row = max(1, self.values[:1].numel() * self.values.element_size())
        if len(numbers) * row <= BLOCK:
            self._count(len(numbers), row)
            return self.values.index_select(0, numbers)  # in memory, sorting takes 2x the time of the copy
        out = torch.empty(len(numbers), *self.values.shape[1:], dtype=self.values.dtype)
        ordered, order = numbers.sort()
        for part, rows in zip(order.split(max(1, BLOCK // row)), ordered.split(max(1, BLOCK // row)), strict=True):
            out.index_copy_(0, part, self.values.index_select(0, rows))
            self._count(len(rows), row)
        return out

    def _count(self, rows: int, row: int) -> None:
        """Count the bytes that reading rows maps, and release them when they are many."""
        self._touched += rows * max(row, FAULT)
        if self._map is not None and self._touched > RESIDENT < len(self._map):
            self.release()

    def release(self) -> None:
        """Give the pages that were read back to the system, which keeps them in its cache of files."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        self._touched = 0


class Writer:
    """Writes a store block by block; `about` holds plain values for its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: Any = None
        self._files: dict[str, IO[bytes]] = {}
        self._types: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}

    def append(self, **blocks: np.ndarray) -> None:
        """Append rows to each named array."""
        for name, block in blocks.items():
            if name not in self._files:
                self._files[name] = (self.path / f"{name}.bin").open("xb")
                self._types[name], self._rows[name] = (block.dtype, block.shape[1:]), 0
            assert self._types[name] == (block.dtype, block.shape[1:]), f"{name} changes its type or shape"
            self._files[name].write(np.ascontiguousarray(block).data)
            self._rows[name] += len(block)

    def change(self, name: str, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the rows of an array that were appended so far by what a function makes of their blocks."""
        (dtype, shape), rows = self._types.pop(name), self._rows.pop(name)
        self._files.pop(name).close()
        path, old = self.path / f"{name}.bin", self.path / f"{name}.old"
        path.rename(old)
        step = max(1, BLOCK // max(1, dtype.itemsize * int(np.prod(shape))))
        with old.open("rb") as file:
            for start in range(0, rows, step):
                block = np.fromfile(file, dtype, min(step, rows - start) * int(np.prod(shape)))
                self.append(**{name: convert(block.reshape(-1, *shape))})
        old.unlink()

    def finish(self) -> None:
        """Write the header, after all numbers are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays = {name: [dtype.name, [self._rows[name], *shape]] for name, (dtype, shape) in self._types.items()}
        plain = json.dumps({"arrays": arrays, "about": self.about})
        (self.path / "header.json").write_text(f"{_digest(plain)}\n{plain}", encoding="utf-8")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


def found(files: Sequence[Path], settings: Any) -> Store | None:
    """Return the store of source files if there is one that is not damaged."""
    with suppress(ValueError):
        return Store(_path(files, settings))
    return None


def _path(files: Sequence[Path], settings: Any) -> Path:
    parts = [str(path.resolve()) for path in files], _state(files), [settings, FORMAT]
    return user_cache() / "data" / "-".join(_digest(part)[:16] for part in parts)


def stored(files: Sequence[Path], settings: Any, write: Callable[[Writer], None]) -> Store:
    """Return the store of source files, which `write` writes if there is none or it is damaged.

    Args:
        files: the sources; a change of one makes another store.
        settings: how they are read, in plain values.
        write: appends all rows and sets `about`.

    A second process that wants the same store waits for the first.

    Raises ValueError if a source changes while it is read, and OSError with the file's name if the disk is full.
    """
    path, state = _path(files, settings), _state(files)
    folder, which = path.parent, path.name[:16]
    with naming(path):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(ValueError):
            return Store(path)
        with _locked(folder / f"{which}.lock"):
            with suppress(ValueError):
                return Store(path)  # another process wrote it
            _write(path, write)
            if _state(files) != state:
                shutil.rmtree(path)
                raise ValueError(f"{files[0]} changed while it was read: try again when it is complete")
            for other in folder.glob(f"{which}-*"):
                if not other.name.startswith(path.name[:33]):  # of files that have changed since
                    shutil.rmtree(other, ignore_errors=True)
            return Store(path)


def temporary(write: Callable[[Writer], None]) -> Store:
    """Return a store of data that no files identify; its files are deleted at once or, on Windows, at the end."""
    folder = user_cache() / "data"
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="items-", dir=folder))
        try:
            with Writer(path) as writer:
                write(writer)
                writer.finish()
            return Store(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)  # what is mapped stays readable
            if path.exists():
                atexit.register(shutil.rmtree, path, ignore_errors=True)


def _write(path: Path, write: Callable[[Writer], None]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    for left in path.parent.glob(f"{path.name}.*.partial"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir()
        with Writer(partial) as writer:
            write(writer)
            writer.finish()
        shutil.rmtree(path, ignore_errors=True)  # a damaged one
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; where the system has none, two processes write under names of their own."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
        yield


def _state(files: Sequence[Path]) -> list[tuple[int, int]]:
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _digest(plain: Any) -> str:
    return hashlib.sha256((plain if isinstance(plain, str) else json.dumps(plain)).encode()).hexdigest()
