"""Tables with missing values, in blocks: the values to fill in, and the cells that replace them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loglik.data.codes import encode_frame
from loglik.data.decode import as_text, decode_column
from loglik.data.frames import format_of
from loglik.data.isolated import TooMany, blocks, check_table, read_frame
from loglik.data.limits import quote, some
from loglik.data.moments import from_numbers, parse_text, to_numbers
from loglik.data.numbers import numbers
from loglik.data.profile import STRINGS, Found
from loglik.data.reading import Profiles
from loglik.data.spec import Column, DataSpec
from loglik.data.store import in_memory, is_large
from loglik.data.table_settings import TableSettings

__all__ = ["Incomplete"]


class Incomplete:
    """A table with missing values, for an existing model.

    A large one is read in blocks, twice; the cells of a CSV file stay the texts that they are.

    Attributes:
        gaps: the numbers of the columns that have missing values.

    Raises ValueError where the file does not parse or does not fit the model.
    """

    def __init__(self, path: Path, like: DataSpec) -> None:
        check_table(path)
        self.path, self.like = path, like
        self._frame: pl.DataFrame | None = None
        if not is_large(path.stat().st_size):
            with suppress(TooMany):
                self._frame = read_frame(path, max_size=in_memory())
        names = [column.name for column in like.columns if not column.indicates]
        typed = format_of(path) != "CSV"
        profiles = Profiles(str(path), typed=typed, label=None, settings=TableSettings())
        rows = 0
        for frame in self._frames():
            if absent := [name for name in names if name not in frame.columns]:
                found = some(frame.columns)
                raise ValueError(f"{path}: no column {quote(absent[0])}, which the model needs; found {found}")
            rows += frame.height
            if frame.height:
                profiles.add(frame.select(names))
        if rows == 0:
            raise ValueError(f"{path}: the table has no rows")
        self._found = profiles.found(like.columns)
        self.gaps = [
            d
            for d, column in enumerate(like.columns)
            if not column.indicates and profiles.by_name[column.name].gaps(categorical=bool(column.categories))
        ]

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
        return blocks(self.path) if self._frame is None else iter([self._frame])

    def _encode(self, frame: pl.DataFrame, start: int) -> tuple[Tensor, Tensor]:
        """Return numbers, 0 where missing; whether a missing value is missing is itself to be drawn."""

        def where(row: int, name: str) -> str:
            return f"{self.path}: row {start + row + 1}, column {quote(name)}"

        columns = self.like.columns
        x = torch.from_numpy(encode_frame(frame, columns, where, found=self._found, refuse=("unseen",)))
        missing, names = x.isnan(), [column.name for column in columns]
        for d, column in enumerate(columns):
            if column.indicates:
                missing[:, d] = missing[:, names.index(column.indicates)]
        return x.masked_fill(missing, 0), missing

    def filled(
        self, frame: pl.DataFrame, values: Float[Tensor, "B D"], chosen: Bool[Tensor, "B D"], *, texts: bool
    ) -> pl.DataFrame:
        """Return cells with the chosen ones replaced by values.

        If `texts`, the cells of a CSV file stay texts: numbers get a decimal point, and dates keep their form. Else
        they get the types of the model's columns.
        """
        columns = []
        for d, column in enumerate(self.like.columns):
            if column.indicates:
                continue
            series = _cells(frame[column.name], column, self._found[column.name], texts=texts)
            if d in self.gaps:
                drawn = decode_column(values[:, d].double().numpy(), column)
                if series.dtype in STRINGS:
                    moment = self._found[column.name].moment
                    dated = column.temporal and moment is not None and moment.format
                    drawn = drawn.dt.strftime(dated) if dated else as_text(drawn)
                    series = series.cast(pl.String)
                series = series.zip_with(pl.Series(~chosen[:, d].numpy()), drawn.cast(series.dtype))
            columns.append(series.alias(column.name))
        return frame.with_columns(columns)


def _cells(series: pl.Series, column: Column, found: Found, *, texts: bool) -> pl.Series:
    """Return the cells of a column; those of a CSV file as texts, or in the type of the model's column."""
    if series.dtype != pl.String:
        return series
    if column.temporal:
        moments = None if texts or found.moment is None else parse_text(series, found.moment)
        return series if moments is None else from_numbers(to_numbers(moments, column), column)
    if column.categories:
        is_word = column.categories == ("false", "true") and not texts
        return series.str.to_lowercase() == "true" if is_word else series
    if texts and found.number == "point":
        return series
    known = numbers(series, found.number)
    known = known.cast(pl.Int64) if column.type == "integer" else known
    return as_text(known) if texts else known
