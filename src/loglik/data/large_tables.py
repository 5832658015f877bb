"""Tables larger than memory: read in blocks, and encoded into a store.

The first pass finds the columns' types, categories and classes, the second one encodes; the spec of a model makes the
first one unnecessary. A CSV file that commas do not separate has one more pass before, which looks for decimal commas.
Spec, codes, splits and errors are those of the same table in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from loglik.data.codes import check_classes, check_label, encode, label_of, label_values
from loglik.data.dataset import Data, check_kind, into_splits
from loglik.data.frames import Commas, format_of, has_commas, is_packed, typed
from loglik.data.isolated import blocks, check_table
from loglik.data.labels import code_labels
from loglik.data.limits import quote
from loglik.data.profile import Profile, Where, check_missing
from loglik.data.spec import DataSpec
from loglik.data.store import Store, Writer, found, stored

__all__ = ["IsText", "load_large"]


class IsText(Exception):
    """A table's only column beside the label is text, which is read in memory."""


def load_large(path: Path, *, name: str, where: Where, label: str | None, seed: int, like: DataSpec | None) -> Data:
    """Read a table's file in blocks; its examples stay on disk, in a store.

    Raises:
        ValueError: as `load_table`.
        IsText: the table has a label and one column of text.
    """
    check_table(path)
    check_kind("table", like, str(path))
    store = _store(path, where, label, like)
    spec = like or DataSpec.from_dict(store.about)
    return into_splits(name, spec, store.rows(), store.tensor("y") if "y" in store else None, seed=seed)


def _store(path: Path, where: Where, label: str | None, like: DataSpec | None) -> Store:
    """Return the store of a table's codes: for the data that a model was trained on, the one of its training."""
    if like is None:
        return stored([path], {"label": label}, _Reader(path, where, label).write)
    plain, own = like.to_dict(), found([path], {"label": like.label})
    if own is not None and own.about == plain and label in (None, like.label):
        return own
    return stored([path], {"label": label, "like": plain}, _Reader(path, where, label, like).write)


class _Reader:
    """Reads a table's file into a store."""

    def __init__(self, path: Path, where: Where, label: str | None, like: DataSpec | None = None) -> None:
        self.path, self.where, self.label, self.like = path, where, label, like
        self.typed = format_of(path) != "CSV" or is_packed(path)
        self.commas: list[str] = []
        self.label_type = Profile("")  # of texts

    def write(self, writer: Writer) -> None:
        """Append all rows and set the spec."""
        if has_commas(self.path):
            self.commas = self._find_commas()
        spec = self.like or self._spec()
        for start, frame in self._blocks():
            if self.like is not None and start == 0:
                self.label = label_of(self.like, self.label, frame.columns, str(self.path))
            where = self._from(start)
            arrays = {"x": np.stack([encode(frame[column.name], column, where) for column in spec.columns], axis=1)}
            if self.label is not None:
                arrays["y"] = self._codes(frame[self.label], where, spec.classes)
            writer.append(**arrays)
        writer.about = spec.to_dict()

    def _blocks(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield blocks of rows, and the number of the first row of each."""
        start = 0
        for frame in blocks(self.path, self.commas):
            if frame.height:
                yield start, frame
                start += frame.height
        if start == 0:
            raise ValueError(f"{self.path}: the table has no rows")

    def _from(self, start: int) -> Where:
        return lambda row, column: self.where(start + row, column)

    def _find_commas(self) -> list[str]:
        commas = Commas([c.name for c in self.like.columns if c.type == "categorical"] if self.like else [])
        for _, frame in self._blocks():
            commas.add(list(frame.iter_columns()))
        return commas.columns(self.path)

    def _spec(self) -> DataSpec:
        """Return the spec of the table, after one pass; two if a column begins with thousands of distinct numbers."""
        profiles, labels = self._profiles(())
        if partly := [name for name, profile in profiles.items() if not (profile.complete or name == self.label)]:
            profiles, labels = self._profiles(partly)
        others = [profile for name, profile in profiles.items() if name != self.label]
        if not others:
            raise ValueError(f"{self.path}: no columns besides the label {quote(self.label)}")
        if self.label is not None and len(others) == 1 and others[0].is_text:
            raise IsText
        columns = tuple(profile.column(str(self.path), self.where) for profile in others)
        classes = tuple[str, ...]()
        if self.label is not None:
            self.label_type, name, rows = profiles[self.label], self.label, profiles[self.label].rows
            values = self._values(label_values(labels["value"], self.where), None)
            at = labels["row"].to_list()
            _, classes = code_labels(values.to_numpy(), lambda i: self.where(at[i], name), rows=rows)
            check_classes(classes, rows, self.where(0, name))
        return DataSpec(kind="table", event_shape=(len(columns),), classes=classes, columns=columns, label=self.label)

    def _profiles(self, keep: Sequence[str]) -> tuple[dict[str, Profile], pl.DataFrame]:
        """Return the profile of each column, and the distinct labels with the first row of each."""
        profiles: dict[str, Profile] = {}
        labels = pl.DataFrame()
        for start, frame in self._blocks():
            if start == 0:
                check_label(self.label, frame.columns, str(self.path))
            where = self._from(start)
            for series in frame.iter_columns():
                name = series.name
                profile = profiles.setdefault(name, Profile(name, typed=self.typed, keep=name in keep))
                profile.add(series, where)
            if self.label is not None:
                labels = pl.concat(
                    [labels, _distinct(frame[self.label], start)], how="vertical" if start else "diagonal"
                )
                labels = labels.unique("value", keep="first", maintain_order=True)
        return profiles, labels

    def _codes(self, series: pl.Series, where: Where, classes: tuple[str, ...]) -> Int64[np.ndarray, " B"]:
        """Return the codes of a block's labels."""
        check_missing(series, where)
        series = label_values(series, where)
        labels, name = _distinct(series), series.name
        values, at = self._values(labels["value"], classes), labels["row"].to_list()
        codes, _ = code_labels(values.to_numpy(), lambda i: where(at[i], name), classes)
        return series.replace_strict(labels["value"], pl.Series(codes.numpy()), return_dtype=pl.Int64).to_numpy()

    def _values(self, labels: pl.Series, classes: tuple[str, ...] | None) -> pl.Series:
        """Return labels in the type of their column; texts of a CSV file are typed by their values."""
        if self.typed:
            return labels
        if self.like is not None:
            return labels if classes and labels.is_in(list(classes)).all() else typed(labels)
        dtype = self.label_type.type
        return labels.str.to_lowercase() == "true" if dtype == pl.Boolean else labels.cast(dtype)


def _distinct(series: pl.Series, start: int = 0) -> pl.DataFrame:
    """Return the distinct values of a block and the first row of each."""
    values = series.cast(pl.String) if series.dtype in (pl.Categorical, pl.Enum) else series
    frame = pl.DataFrame({"value": values, "row": np.arange(start, start + series.len())})
    return frame.unique("value", keep="first", maintain_order=True)
