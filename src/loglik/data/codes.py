"""The numbers of a table's columns and labels: codes of categories, moments in their unit, and numbers themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64
from torch import Tensor

from loglik.data.labels import check_count, code_labels
from loglik.data.limits import quote, some
from loglik.data.moments import EXACT, moments_of, parse_text, to_numbers
from loglik.data.numbers import NOT_GIVEN, numbers
from loglik.data.profile import STRINGS, TEMPORAL, Found, Where, as_texts, check_missing, form_of, is_missing
from loglik.data.spec import Column, DataSpec

__all__ = [
    "check_classes", "check_label", "check_label_values", "encode", "encode_frame", "label_of", "label_values",
    "labels", "typed",
]  # fmt: skip

NUMBER = r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?"  # with a decimal point or comma


def encode_frame(
    frame: pl.DataFrame,
    columns: Sequence[Column],
    where: Where,
    *,
    found: Mapping[str, Found] | None = None,
    refuse: Sequence[str] = (),
) -> Float32[np.ndarray, "N D"]:
    """Return the rows of a table as numbers; a missing value is NaN, a category that is not known the next code.

    Args:
        found: how the texts of each column are read.
        refuse: of `missing` and `unseen`, those that are errors.

    Raises ValueError where a value does not fit its column.
    """
    found = found or {}
    rows = np.empty((frame.height, len(columns)), dtype=np.float32)
    for d, column in enumerate(columns):
        series = frame[column.indicates or column.name]
        how = found.get(series.name, Found())
        if column.indicates:  # the other column comes before
            at = [c.name for c in columns].index(column.indicates)
            rows[:, d] = np.isnan(rows[:, at])
            continue
        if "missing" in refuse:
            check_missing(series, where)
        rows[:, d] = encode(series, column, where, found=how, unseen="unseen" not in refuse)
    return rows


def encode(
    series: pl.Series, column: Column, where: Where, *, found: Found | None = None, unseen: bool = False
) -> Float32[np.ndarray, " N"]:
    """Return the column's values in float32: codes, moments in the column's unit, or the numbers themselves.

    A missing value is NaN. A category that is not known is the code after the last one if `unseen`, else an error.
    """
    found = found or Found()
    if column.categories:
        return _codes(series, column, where, unseen)
    series = series.set(_not_given(series), None)
    if series.null_count() == len(series):
        return np.full(len(series), np.nan, dtype=np.float32)
    numbers = _moments(series, column, where, found) if column.temporal else _numbers(series, column, where, found)
    if column.type == "integer":
        bad, right = (numbers != np.floor(numbers)) | (np.abs(numbers) > EXACT), f"an integer within ±{EXACT:,}"
    else:
        bad, right = np.abs(numbers) > np.finfo(np.float32).max, "a finite number in float32"
    bad &= ~np.isnan(numbers)
    if bad.any():
        row = int(bad.argmax())
        if column.temporal:
            since = f" since {column.origin}" if column.origin else ""
            right = f"an integer number of {column.unit}{since} within ±{EXACT:,}, as the model's are"
            raise ValueError(f"{where(row, column.name)}: {quote(str(series[row]))} is not {right}")
        raise ValueError(f"{where(row, column.name)}: {numbers[row]:g} is not {right}")
    return numbers.astype(np.float32)


def _not_given(series: pl.Series) -> pl.Series:
    """Return where a text says that a value is missing."""
    if series.dtype != pl.String:
        return pl.Series([False]).new_from_index(0, len(series))
    return series.is_in(NOT_GIVEN).fill_null(False)


def _codes(series: pl.Series, column: Column, where: Where, unseen: bool) -> np.ndarray:
    if not (series.dtype in (*STRINGS, *TEMPORAL, pl.Boolean, pl.Null) or series.dtype.is_numeric()):
        raise ValueError(f"{where(0, column.name)}: the values are {series.dtype}, and the model's are categories")
    texts, lower = as_texts(series.fill_nan(None) if series.dtype.is_float() else series), column.type == "boolean"
    texts = texts.str.to_lowercase() if lower else texts
    codes = {category.lower() if lower else category: i for i, category in enumerate(column.categories)}
    coded = texts.replace_strict(codes, default=None, return_dtype=pl.Float64)
    unknown = coded.is_null() & texts.is_not_null()
    if unknown.any():
        row = int(unknown.arg_max() or 0)
        at, known = where(row, column.name), some(column.categories)
        if coded.null_count() == len(coded) and len(coded) > 1 and _turned_to_numbers(texts, column):
            raise ValueError(f"{at}: the column holds numbers, as {quote(texts[row])}, and the model's holds {known}")
        if not unseen or column.type == "boolean":
            raise ValueError(f"{at}: {quote(texts[row])} is none of the categories {known}")
        coded = coded.set(unknown, float(len(codes)))
    return coded.fill_null(np.nan).to_numpy().astype(np.float32)


def _turned_to_numbers(texts: pl.Series, column: Column) -> bool:
    """Return whether all texts are numbers, and no category is."""
    given = texts.drop_nulls()
    return not numbers(given).null_count() and not any(re.fullmatch(NUMBER, c, re.I) for c in column.categories)


def _numbers(series: pl.Series, column: Column, where: Where, found: Found) -> np.ndarray:
    if series.dtype in STRINGS:
        values = numbers(series.cast(pl.String), found.number)
    elif series.dtype in TEMPORAL or series.dtype == pl.Boolean or series.dtype.is_nested():
        raise ValueError(f"{where(0, column.name)}: the values are {series.dtype}, and the model's are numbers")
    else:
        values = series.cast(pl.Float64, strict=False)
    wrong = values.is_null() & series.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise ValueError(f"{where(row, column.name)}: {quote(series[row])} is not a number")
    return values.fill_null(np.nan).to_numpy()


def _moments(series: pl.Series, column: Column, where: Where, found: Found) -> np.ndarray:
    """Return the moments in the column's unit from its origin."""
    row = int(series.is_not_null().arg_max() or 0)
    if series.dtype in TEMPORAL:
        form = form_of(series.dtype)
        same = form.kind == column.temporal or {form.kind, column.temporal} == {"date", "datetime"}
        if not same or bool(form.zone) != bool(column.zone):
            own = f"{column.temporal} with{'' if column.zone else 'out'} a time zone"
            raise ValueError(f"{where(row, column.name)}: the values are {series.dtype}, and the model's are {own}")
        return to_numbers(moments_of(series), column)
    texts, moment = as_texts(series), found.moment
    if moment is None or bool(moment.zone) != bool(column.zone):
        written = column.written or "ISO 8601"
        raise ValueError(
            f"{where(row, column.name)}: {quote(texts[row])} is not a {column.temporal} in one form for the whole "
            f"column{', with a time zone' if column.zone else ''}: write {written}"
        )
    moments = parse_text(texts, moment)
    wrong = moments.is_null() & texts.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise ValueError(f"{where(row, column.name)}: {quote(texts[row])} is not a {column.temporal}")
    return to_numbers(moments, column)


def labels(series: pl.Series, where: Where, like: DataSpec | None) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Return the codes of a table's labels (N,) and the names of their classes."""
    series, name = label_values(series, where), series.name
    y, classes = code_labels(series.to_numpy(), lambda row: where(row, name), like.classes if like else None)
    if like is None:
        check_classes(classes, len(y), where(0, name))
    return y, classes


def check_label_values(series: pl.Series, where: Where) -> None:
    """Raise ValueError where a label is missing."""
    missing = is_missing(series)
    if missing.any():
        at = where(int(missing.arg_max() or 0), series.name)
        raise ValueError(f"{at}: the label is missing: fill it in or remove the row")


def label_values(series: pl.Series, where: Where) -> pl.Series:
    """Return labels as numbers, booleans or strings; raise ValueError if they are none of these."""
    dtype = series.dtype
    if not (dtype.is_numeric() or dtype == pl.Boolean or dtype in STRINGS):
        raise ValueError(f"{where(0, series.name)}: a label of type {dtype}: labels are integers, strings or booleans")
    return series.cast(pl.String) if dtype in (pl.Categorical, pl.Enum) else series


def typed(series: pl.Series) -> pl.Series:
    """Return texts as integers, real numbers or booleans where all of a column are; else unchanged."""
    missing = series.null_count()
    if missing == series.len():
        return series
    for dtype in (pl.Int64, pl.Float64):
        numbers = series.cast(dtype, strict=False)
        if numbers.null_count() == missing:
            return numbers
    lower = series.str.to_lowercase()
    return lower == "true" if lower.drop_nulls().is_in(["true", "false"]).all() else series


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
    if absent := [c.name for c in like.columns if not c.indicates and c.name not in columns]:
        raise ValueError(f"{source}: no column {quote(absent[0])}, which the model needs; found {some(columns)}")
    return like.label if like.label in columns else None
