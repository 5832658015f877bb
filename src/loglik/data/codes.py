"""The codes of a table's columns and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int64
from torch import Tensor

from loglik.data.frames import NUMBER
from loglik.data.labels import check_count, code_labels
from loglik.data.limits import quote, some
from loglik.data.profile import EXACT, STRINGS, Where, check_missing
from loglik.data.spec import Column, DataSpec

__all__ = ["check_classes", "check_label", "encode", "label_of", "label_values", "labels"]


def encode(series: pl.Series, column: Column, where: Where) -> np.ndarray:
    """Return the column's values (N,) in float32: codes, or the numbers themselves."""
    check_missing(series, where)
    if column.categories:
        strings = series.cast(pl.String)
        strings = strings.str.to_lowercase() if column.type == "boolean" else strings
        codes = {category: i for i, category in enumerate(column.categories)}
        coded = strings.replace_strict(codes, default=None, return_dtype=pl.Float32)
        if coded.null_count():
            row = int(coded.is_null().arg_max() or 0)
            raise ValueError(
                f"{where(row, column.name)}: {quote(strings[row])} is none of the categories {some(column.categories)}"
            )
        return coded.to_numpy().copy()
    numbers = series.cast(pl.Float64, strict=False)
    if numbers.null_count():
        row = int(numbers.is_null().arg_max() or 0)
        raise ValueError(f"{where(row, column.name)}: {quote(series[row])} is not a number")
    values = numbers.to_numpy()
    if column.type == "integer":
        bad, right = (
            (values != np.floor(values)) | (np.abs(values) > EXACT),
            f"an integer within ±{EXACT:,}",
        )
    else:
        bad, right = np.abs(values) > np.finfo(np.float32).max, "a finite number in float32"
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{where(row, column.name)}: {values[row]:g} is not {right}")
    return values.astype(np.float32)


def labels(series: pl.Series, where: Where, like: DataSpec | None) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Return the codes of a table's labels (N,) and the names of their classes."""
    check_missing(series, where)
    series, name = label_values(series, where), series.name
    y, classes = code_labels(series.to_numpy(), lambda row: where(row, name), like.classes if like else None)
    if like is None:
        check_classes(classes, len(y), where(0, name))
    return y, classes


def label_values(series: pl.Series, where: Where) -> pl.Series:
    """Return labels as numbers, booleans or strings; raise ValueError if they are none of these."""
    dtype = series.dtype
    if not (dtype.is_numeric() or dtype == pl.Boolean or dtype in STRINGS):
        raise ValueError(f"{where(0, series.name)}: a label of type {dtype}: labels are integers, strings or booleans")
    return series.cast(pl.String) if dtype in (pl.Categorical, pl.Enum) else series


def check_classes(classes: Sequence[str], rows: int, where: str) -> None:
    """Raise ValueError for too many classes for so many rows; numbers are too many earlier."""
    numbers = all(re.fullmatch(NUMBER, label, re.I) for label in classes)
    check_count(classes, rows, where, rows_each=10 if numbers else 2)


def check_label(label: str | None, columns: list[str], source: str) -> None:
    """Raise ValueError if a table has no column for the label."""
    if label is not None and label not in columns:
        raise ValueError(f"{source}: no column {quote(label)} for the label; the columns are {some(columns)}")


def label_of(like: DataSpec, label: str | None, columns: list[str], source: str) -> str | None:
    """Return the label of a model's data if a table has it; raise ValueError if the model needs another column."""
    if label not in (None, like.label):
        raise ValueError(f"{source}: the label is {quote(label)}, but the model's label is {quote(like.label)}")
    if absent := [c.name for c in like.columns if c.name not in columns]:
        raise ValueError(f"{source}: no column {quote(absent[0])}, which the model needs; found {some(columns)}")
    return like.label if like.label in columns else None
