"""Rows of a model as a table with the types of the data, and tables as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik import files
from loglik.data.moments import from_numbers
from loglik.data.spec import Column

__all__ = ["TABLES", "as_csv", "as_text", "as_written", "decode", "decode_column", "write_table"]

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".feather", ".arrow")
DIGITS = 7  # that float32 holds


def decode(rows: Float[Tensor, "N D"], columns: Sequence[Column]) -> pl.DataFrame:
    """Return rows as a table: categories as texts, integers, booleans, dates and times as such, NaN as null.

    A column that says whether another's value is missing is not in the table: it makes that value null.
    """
    values = {column.name: rows[:, d].double().cpu().numpy() for d, column in enumerate(columns)}
    for column in columns:
        if column.indicates in values:
            gone = values.pop(column.name) == 1
            values[column.indicates] = np.where(gone, np.nan, values[column.indicates])
    return pl.DataFrame([decode_column(values[c.name], c) for c in columns if c.name in values])


def as_written(
    rows: Shaped[Tensor, "N D"], columns: Sequence[Column]
) -> tuple[Float[Tensor, "N E"], tuple[Column, ...]]:
    """Return rows as `decode` writes them, still as numbers, and their columns.

    Numbers have as many decimals as the data's, and a column that says whether another's value is missing is left out.
    """
    index = {column.name: d for d, column in enumerate(columns)}
    x = rows.float().clone()
    for d, column in enumerate(columns):
        if column.type == "numeric" and column.decimals is not None and not column.temporal:
            x[:, d] = torch.from_numpy(np.round(x[:, d].double().cpu().numpy(), column.decimals)).to(x)
        if column.indicates in index:
            x[:, index[column.indicates]] = x[:, index[column.indicates]].masked_fill(rows[:, d] == 1, torch.nan)
    kept = [d for d, column in enumerate(columns) if column.indicates not in index]
    return x[:, kept], tuple(columns[d] for d in kept)


def decode_column(values: Float[np.ndarray, " N"], column: Column) -> pl.Series:
    """Return the values of one column in the type of the data, null where NaN or no known category."""
    if column.temporal:
        return from_numbers(values, column)
    known = np.isfinite(values)
    if column.categories:
        codes = pl.Series(column.name, np.where(known, values, -1).astype(np.int64))
        if column.categories == ("false", "true"):
            return (codes == 1).set(codes < 0, None)
        names = pl.Series(column.name, column.categories, dtype=pl.String)
        return names.gather(codes.set((codes < 0) | (codes >= len(names)), None))
    if column.type == "integer":
        return pl.Series(column.name, np.where(known, values, 0).astype(np.int64)).set(pl.Series(~known), None)
    if column.decimals is not None:
        numbers = np.round(values, column.decimals)
    else:
        numbers = np.array([float(f"{value:.{DIGITS}g}") for value in values.tolist()])
    return pl.Series(column.name, numbers, dtype=pl.Float64).fill_nan(None)


def as_text(series: pl.Series) -> pl.Series:
    """Return values as the texts that CSV has of them."""
    if series.dtype == pl.Boolean:
        return series.cast(pl.String)
    if series.dtype in (pl.Datetime, pl.Duration, pl.Date, pl.Time):
        return series.dt.to_string("iso:strict" if series.dtype == pl.Datetime else "iso")
    return series.cast(pl.String)


def as_csv(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose durations are texts, which CSV and JSON can hold."""
    return frame.with_columns(s.dt.to_string("iso") for s in frame.iter_columns() if s.dtype == pl.Duration)


def write_table(frames: Iterable[pl.DataFrame], path: Path) -> None:
    """Write blocks of a table as one file, in the format of its suffix; CSV and JSON lines block by block.

    Raises ValueError for a suffix that is not a table's.
    """
    suffix, blocks = path.suffix.lower(), iter(frames)
    if suffix not in TABLES:
        raise ValueError(f"{path.name!r} is no table's name: end it in {', '.join(TABLES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        if suffix in (".csv", ".tsv", ".jsonl"):
            with temporary.open("wb") as file:
                for number, block in enumerate(map(as_csv, blocks)):
                    if suffix == ".jsonl":
                        block.write_ndjson(file)
                    else:
                        block.write_csv(file, include_header=number == 0, separator="\t" if suffix == ".tsv" else ",")
            return
        first = next(blocks)
        frame = pl.concat(chain([first], blocks))
        if suffix == ".json":
            as_csv(frame).write_json(temporary)
        elif suffix == ".parquet":
            frame.write_parquet(temporary)
        else:
            frame.write_ipc(temporary)
