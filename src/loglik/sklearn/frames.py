"""From what scikit-learn's users pass to tables, and back: arrays and data frames, checked as scikit-learn does."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from loglik.data.decode import decode
from loglik.data.limits import quote
from loglik.data.spec import DataSpec
from loglik.data.tables import from_frame

__all__ = ["columns_of", "encoded", "library_of", "like_input", "to_library"]


def library_of(x: Any) -> str | None:
    """Return the library of a data frame, `pandas`, `polars` or `pyarrow`; None for anything else."""
    name = type(x).__module__.partition(".")[0]
    is_frame = {"pandas": "iloc", "polars": "get_columns", "pyarrow": "column_names"}
    return name if name in is_frame and hasattr(x, is_frame[name]) and len(x.shape) == 2 else None


def columns_of(estimator: BaseEstimator, x: Any, *, reset: bool) -> pl.DataFrame:
    """Return X as a polars frame, after scikit-learn's checks of its shape, names and values.

    A data frame keeps the types of its columns; the columns have the names of the features, or x0, x1, ...

    Args:
        estimator: learns the number and the names of the features if `reset`, else X must have them.
        x: an array (N, D) or a data frame.
        reset: at fit.
    """
    least = 2 if reset else 1
    rule: dict[str, Any] = {"ensure_all_finite": "allow-nan", "ensure_min_samples": least}
    if library_of(x) is None:
        array = validate_data(estimator, x, reset=reset, dtype="numeric", **rule)
        names = getattr(estimator, "feature_names_in_", [f"x{d}" for d in range(array.shape[1])])
        return pl.DataFrame({name: np.ascontiguousarray(array[:, d]) for d, name in enumerate(names)})
    frame = _polars(x)
    validate_data(estimator, x, reset=reset, skip_check_array=True)
    if min(frame.shape) == 0 or frame.height < least:
        check_array(np.empty(frame.shape), estimator=estimator, input_name="X", ensure_min_samples=least)
    numbers = [series for series in frame.iter_columns() if series.dtype.is_float()]
    if numbers:
        check_array(pl.DataFrame(numbers).to_numpy(), estimator=estimator, input_name="X", **rule)
    names = getattr(estimator, "feature_names_in_", [f"x{d}" for d in range(frame.width)])
    return frame.rename(dict(zip(frame.columns, names, strict=True)))


def _polars(x: Any) -> pl.DataFrame:
    """Return a data frame of any library as one of polars. Raises ValueError for two columns of one name."""
    library, names = library_of(x), [str(name) for name in getattr(x, "column_names", x.columns)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"X has two columns named {min(twice)!r}: rename one")
    if library == "polars":
        return x
    if library == "pyarrow":
        return pl.DataFrame(pl.from_arrow(x))
    columns = {}
    for d, name in enumerate(names):
        series = x.iloc[:, d]
        values = series.to_numpy()
        if values.dtype.kind == "O":
            values = [None if gone else value for value, gone in zip(values.tolist(), series.isna(), strict=True)]
            columns[name] = pl.Series(name, values, strict=False)
        else:
            columns[name] = pl.Series(name, values)
    return pl.DataFrame(columns)


def encoded(frame: pl.DataFrame, like: DataSpec | None) -> tuple[Float[Tensor, "N D"], DataSpec]:
    """Return the rows of a frame in codes, with NaN where a value is missing, and their spec.

    Args:
        frame: with missing values, null or NaN.
        like: the spec that the frame must fit; learned from it if None.

    Raises ValueError where a column cannot be modelled, at fit.
    """
    whole = from_frame(frame, name="X", source="X", like=like)
    if whole.spec.left_out:
        name, reason = whole.spec.left_out[0]
        raise ValueError(f"column {quote(name)} of X cannot be modelled: {reason}; leave it out")
    return whole.split("all").tensor(), like or whole.spec


def like_input(x: Float[Tensor, "N D"], spec: DataSpec, library: str | None) -> Any:
    """Return rows as an array, or as a data frame of the library of the training data."""
    if library is None:
        return x.double().cpu().numpy()
    return to_library(decode(x, spec.columns), library)


def to_library(frame: pl.DataFrame, library: str | None, like: Any = None) -> Any:
    """Return a polars frame as one of another library, of pandas with the index of `like`."""
    if library == "polars":
        return frame
    if library == "pyarrow":
        return frame.to_arrow()
    import pandas

    return pandas.DataFrame({name: frame[name].to_list() for name in frame.columns}, index=getattr(like, "index", None))
