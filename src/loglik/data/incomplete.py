"""Tables with missing values, in blocks: the values to fill in, and the cells that replace them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loglik.data.codes import encode
from loglik.data.frames import Commas, has_commas
from loglik.data.isolated import TooMany, blocks, check_table, read_frame
from loglik.data.limits import quote, some
from loglik.data.spec import Column, DataSpec
from loglik.data.store import in_memory, is_large

__all__ = ["Incomplete", "decode_column"]


class Incomplete:
    """A table with missing values, for an existing model.

    A large one is read in blocks, twice; the cells of a CSV file then stay the texts that they are.

    Attributes:
        gaps: the numbers of the columns that have missing values.

    Raises ValueError where the file does not parse or does not fit the model.
    """

    def __init__(self, path: Path, like: DataSpec) -> None:
        check_table(path)
        self.path, self.like = path, like
        self._frame: pl.DataFrame | None = None
        self._commas: list[str] = []
        if not is_large(path.stat().st_size):
            with suppress(TooMany):
                self._frame = read_frame(path, like, max_size=in_memory())
        if self._frame is None and has_commas(path):
            commas = Commas([c.name for c in like.columns if c.type == "categorical"])
            for frame in self._frames():
                commas.add(list(frame.iter_columns()))
            self._commas = commas.columns(path)
        gaps, rows = set[int](), 0
        for frame in self._frames():
            names = frame.columns
            if absent := [c.name for c in like.columns if c.name not in names]:
                raise ValueError(f"{path}: no column {quote(absent[0])}, which the model needs; found {some(names)}")
            rows += frame.height
            gaps |= {d for d, c in enumerate(like.columns) if _is_missing(frame[c.name]).any()}
        if rows == 0:
            raise ValueError(f"{path}: the table has no rows")
        self.gaps = sorted(gaps)

    def blocks(self, size: int) -> Iterator[tuple[int, pl.DataFrame, Float[Tensor, "B D"], Bool[Tensor, "B D"]]]:
        """Yield the first row of a block, its cells, its numbers and which of them are missing.

        Each block but the last has a multiple of `size` rows.
        """
        start, left = 0, pl.DataFrame()
        for frame in self._frames():
            left = frame if left.height == 0 else pl.concat([left, frame])
            rows = left.height // size * size
            if rows:
                yield start, left.head(rows), *self._encode(left.head(rows), start)
            start, left = start + rows, left.tail(left.height - rows)
        if left.height:
            yield start, left, *self._encode(left, start)

    def _frames(self) -> Iterator[pl.DataFrame]:
        return blocks(self.path, self._commas) if self._frame is None else iter([self._frame])

    def _encode(self, frame: pl.DataFrame, start: int) -> tuple[Tensor, Tensor]:
        values, missing = [], []
        for column in self.like.columns:
            series = frame[column.name]
            is_missing = _is_missing(series)
            coded = np.zeros(len(series), dtype=np.float32)
            kept = np.flatnonzero(~is_missing.to_numpy())

            def where(row: int, name: str, kept: np.ndarray = kept) -> str:
                return f"{self.path}: row {start + kept[row] + 1}, column {quote(name)}"

            if len(kept):
                coded[kept] = encode(series.filter(~is_missing), column, where)
            values.append(coded)
            missing.append(is_missing.to_numpy())
        return torch.from_numpy(np.stack(values, 1)), torch.from_numpy(np.stack(missing, 1))


def _is_missing(series: pl.Series) -> pl.Series:
    return (series.fill_nan(None) if series.dtype.is_float() else series).is_null()


def decode_column(series: pl.Series, column: Column, values: torch.Tensor, chosen: torch.Tensor) -> pl.Series:
    """Return the series with the chosen rows replaced by values, as they are written in the table."""
    cells: list[object] = series.cast(pl.String).to_list()
    for row in chosen.nonzero().flatten().tolist():
        value = float(values[row])
        if column.categories:
            cells[row] = column.categories[int(value)]
        else:
            cells[row] = str(int(value)) if column.type == "integer" else f"{value:.7g}"
    return pl.Series(series.name, cells, dtype=pl.String)
