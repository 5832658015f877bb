"""Tables that a user holds in memory: pandas, polars, Arrow, or a dictionary of columns, as polars frames.

pandas is read column by column through NumPy, since not every installation has pyarrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loglik.data.dataset import Data
from loglik.data.limits import first_line, quote, some
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings

__all__ = ["as_frame", "as_series", "from_values", "is_frame"]


def is_frame(data: Any) -> bool:
    """Return whether a value is a table: a data frame, an Arrow table, or a dictionary of columns, each (N,)."""
    module = type(data).__module__.partition(".")[0]
    if module == "datasets":  # Hugging Face's, whose items are read
        return False
    if isinstance(data, Mapping):
        return bool(data) and all(getattr(column, "ndim", 1) == 1 for column in data.values())
    return _is_pandas(data, "DataFrame") or module == "polars" or hasattr(data, "__arrow_c_stream__")


def _is_pandas(data: Any, name: str) -> bool:
    """Return whether a value is pandas' class of this name, or of a subclass."""
    return any(c.__name__ == name and c.__module__.partition(".")[0] == "pandas" for c in type(data).__mro__)


def from_values(
    data: Any,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    table: TableSettings | None = None,
) -> Data:
    """Return data from a table in memory, or from a pair of a table and its labels.

    Raises:
        ValueError: column names are not distinct strings, a column's values are of mixed types, or as `from_frame`.
    """
    from loglik.data.tables import from_frame

    name = type(data[0] if isinstance(data, tuple) else data).__name__
    if isinstance(data, tuple):
        frame = as_frame(data[0])
        if label is not None:
            raise ValueError(f"{name}: label={label!r} names a column, but the labels are the second of the pair")
        labels = as_series(getattr(data[1], "name", None) or (like.label if like else None) or "label", data[1])
        if labels.name in frame.columns:
            raise ValueError(f"{name}: a column is named {quote(labels.name)}, as the labels are: rename the labels")
        if len(labels) != frame.height:
            raise ValueError(f"{name}: {len(labels)} labels for {frame.height} rows: give one label a row")
        frame, label = frame.with_columns(labels), labels.name
    else:
        frame = as_frame(data)
    return from_frame(frame, name=name, source=name, label=label, seed=seed, like=like, table=table)


def as_frame(data: Any) -> Any:
    """Return a table as a polars frame; raise ValueError if its columns are not named by distinct strings."""
    import polars as pl

    name = type(data).__name__
    if _is_pandas(data, "DataFrame"):
        if data.columns.nlevels > 1 or data.index.nlevels > 1:
            what = "columns" if data.columns.nlevels > 1 else "rows"
            raise ValueError(f"{name}: its {what} have a MultiIndex: give each column one name, as by reset_index()")
        _check_names(list(data.columns), name)
        return pl.DataFrame([as_series(key, data.iloc[:, i]) for i, key in enumerate(data.columns)])
    if isinstance(data, Mapping):
        _check_names(list(data), name)
        columns = [as_series(key, values) for key, values in data.items()]
        if len(sizes := {len(column) for column in columns}) > 1:
            raise ValueError(f"{name}: its columns have {some([str(n) for n in sorted(sizes)])} rows: give all as many")
        return pl.DataFrame(columns)
    if isinstance(data, pl.LazyFrame):
        try:
            return data.collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"the LazyFrame cannot be collected ({first_line(error)})") from error
    if isinstance(data, pl.Series):
        raise ValueError("one Series is no table: pass a DataFrame, as series.to_frame()")
    _check_names(list(getattr(data, "column_names", [])), name)  # of an Arrow table
    try:
        return data if isinstance(data, pl.DataFrame) else pl.DataFrame(data)
    except Exception as error:  # of the library that the table is from
        raise ValueError(f"{name} is no table that can be read ({first_line(error)})") from error


def _check_names(names: Sequence[Any], source: str) -> None:
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{source}: a column is named {quote(odd[0])}: name all columns by strings")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{source}: two columns are named {quote(twice)}: rename one")


def as_series(name: Any, values: Any) -> Any:
    """Return a column of pandas, NumPy, torch or plain values as a polars series; NaN and NaT are null.

    Raises ValueError where its values are of mixed types, or not in one dimension.
    """
    import polars as pl

    if isinstance(values, pl.Series):
        return values.alias(str(name))
    if _is_pandas(values, "Series"):
        return _of_pandas(name, values)
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        return pl.Series(str(name), values)
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise ValueError(f"column {quote(name)} holds {type(values).__name__}: give one value a row")
    array = values if isinstance(values, np.ndarray) else None
    if array is None:
        return _of_objects(name, list(values))
    if array.ndim != 1:
        raise ValueError(f"column {quote(name)} has the shape {array.shape}: give one value a row")
    if array.dtype.kind in "mM":
        array = array.astype(f"{array.dtype.kind}8[us]")
    return _of_objects(name, array.tolist()) if array.dtype.kind in "OUS" else pl.Series(str(name), array)


def _of_pandas(name: Any, series: Any) -> Any:
    import polars as pl

    kind, dtype = series.dtype.kind if hasattr(series.dtype, "kind") else "O", series.dtype
    if type(dtype).__name__ == "CategoricalDtype":
        categories = [str(category) for category in dtype.categories]
        codes = pl.Series(str(name), series.cat.codes.to_numpy().astype(np.int64))
        texts = pl.Series(str(name), categories, dtype=pl.String).gather(codes.set(codes < 0, None))
        return texts.cast(pl.Enum(categories)) if dtype.ordered else texts
    if type(dtype).__name__ == "DatetimeTZDtype":
        utc = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("M8[us]")
        moments = pl.Series(str(name), utc).dt.replace_time_zone("UTC")
        try:
            return moments.dt.convert_time_zone(str(dtype.tz))
        except pl.exceptions.PolarsError:  # a zone without a name, as UTC+02:00
            return moments
    if isinstance(dtype, np.dtype) and kind in "biufmM":
        return as_series(name, series.to_numpy())
    return _of_objects(name, [None if gone else v for v, gone in zip(series.tolist(), series.isna(), strict=True)])


def _of_objects(name: Any, values: list[Any]) -> Any:
    """Return Python values of one type as a series; integers and real numbers may be together."""
    import polars as pl

    values = [None if value is None or value != value else value for value in map(_plain, values)]
    types = {type(value) for value in values if value is not None}
    if len(types - {int, float}) > (0 if types & {int, float} else 1):
        words = sorted(kind.__name__ for kind in types)
        raise ValueError(f"column {quote(name)} holds values of mixed types, {some(words)}: give one type")
    try:
        return pl.Series(str(name), values, strict=False)
    except Exception:  # a type that polars does not know; its column is left out
        return pl.Series(str(name), values, dtype=pl.Object)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, str) else value
