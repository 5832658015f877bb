"""Tables larger than memory: read in blocks, and encoded into a store.

The first pass finds the columns' types, categories and classes, the second one encodes. With the spec of a model the
first pass is made for texts alone, and finds the form of their numbers and dates. Spec, codes, splits and errors are
those of the same table in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from loglik.data.codes import (
    check_classes,
    check_label_values,
    encode_frame,
    label_of,
    label_values,
    typed,
)
from loglik.data.dataset import Data, check_kind, into_splits
from loglik.data.frames import format_of
from loglik.data.isolated import blocks, check_table
from loglik.data.labels import code_labels
from loglik.data.profile import Found, Where
from loglik.data.reading import Profiles, empty_rows, refused
from loglik.data.spec import DataSpec
from loglik.data.store import Store, Writer, found, stored
from loglik.data.table_settings import TableSettings

__all__ = ["IsText", "load_large"]


class IsText(Exception):
    """A table's only column beside the label is text, which is read in memory."""


def load_large(
    path: Path,
    *,
    name: str,
    where: Where,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    table: TableSettings | None = None,
) -> Data:
    """Read a table's file in blocks; its examples stay on disk, in a store.

    Raises:
        ValueError: as `load_table`.
        IsText: the table has a label and one column of text.
    """
    check_table(path)
    check_kind("table", like, str(path))
    settings = table or TableSettings()
    store = _store(path, where, label, like, settings)
    spec = like or DataSpec.from_dict(store.about["spec"])
    data = into_splits(name, spec, store.rows(), store.tensor("y") if "y" in store else None, seed=seed)
    return replace(data, table=settings if like is None else table, notes=tuple(store.about["notes"]))


def _store(path: Path, where: Where, label: str | None, like: DataSpec | None, settings: TableSettings) -> Store:
    """Return the store of a table's codes: for the data that a model was trained on, the one of its training."""
    key = {"label": label, "table": settings.to_dict()}
    if like is None:
        return stored([path], key, _Reader(path, where, label, settings).write)
    plain, own = like.to_dict(), found([path], key | {"label": like.label})
    if own is not None and own.about["spec"] == plain and label in (None, like.label):
        return own
    settings = replace(settings, columns={})
    return stored([path], key | {"like": plain}, _Reader(path, where, label, settings, like).write)


class _Reader:
    """Reads a table's file into a store."""

    def __init__(
        self, path: Path, where: Where, label: str | None, settings: TableSettings, like: DataSpec | None = None
    ) -> None:
        self.path, self.where, self.label, self.settings, self.like = path, where, label, settings, like
        self.typed = format_of(path) != "CSV"
        self.label_type: Any = None  # of texts
        self.found: dict[str, Found] = {}
        self.notes: list[str] = []

    def write(self, writer: Writer) -> None:
        """Append all rows and set the spec."""
        spec, empty = self._model_spec(self.like) if self.like else self._spec(), 0
        refuse = refused(self.settings, self.like)
        for start, frame in self._blocks():
            where = self._from(start)
            x = encode_frame(frame, spec.columns, where, found=self.found, refuse=refuse)
            empty += int(np.isnan(x).all(1).sum())
            arrays = {"x": x}
            if self.label is not None:
                arrays["y"] = self._codes(frame[self.label], where, spec.classes)
            writer.append(**arrays)
        writer.about = {"spec": spec.to_dict(), "notes": [*self.notes, *empty_rows(empty)]}

    def _blocks(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield blocks of rows, and the number of the first row of each."""
        start = 0
        for frame in blocks(self.path):
            if frame.height:
                yield start, frame
                start += frame.height
        if start == 0:
            raise ValueError(f"{self.path}: the table has no rows")

    def _from(self, start: int) -> Where:
        return lambda row, column: self.where(start + row, column)

    def _model_spec(self, like: DataSpec) -> DataSpec:
        """Return the spec of a model, after one pass over texts, whose numbers and dates have a form."""
        names = [column.name for column in like.columns if not (column.indicates or column.categories)]
        profiles = Profiles(str(self.path), typed=self.typed, label=None, settings=self.settings)
        for start, frame in self._blocks():
            if start == 0:
                self.label = label_of(like, self.label, frame.columns, str(self.path))
            texts = [name for name in names if frame[name].dtype == pl.String]
            if not texts:
                break
            profiles.add(frame.select(texts))
        self.found = profiles.found(like.columns)
        return like

    def _spec(self) -> DataSpec:
        """Return the spec of the table, after one pass; two if a column begins with thousands of distinct numbers."""
        profiles, labels = self._profiles(())
        partly = [name for name, profile in profiles.by_name.items() if not (profile.complete or name == self.label)]
        if partly:
            profiles, labels = self._profiles(partly)
        if profiles.is_text:
            raise IsText
        read, classes = profiles.read(self.where), tuple[str, ...]()
        self.found, self.notes = profiles.found(read.columns), read.lines()
        if self.label is not None:
            profile, name = profiles.by_name[self.label], self.label
            at = labels["row"].to_list()
            values = label_values(labels["value"] if self.typed else typed(labels["value"]), self.where)
            self.label_type = values.dtype
            _, classes = code_labels(values.to_numpy(), lambda i: self.where(at[i], name), rows=profile.rows)
            check_classes(classes, profile.rows, self.where(0, name))
        return read.spec(self.label, classes)

    def _profiles(self, keep: Sequence[str]) -> tuple[Profiles, pl.DataFrame]:
        """Return the profile of each column, and the distinct labels with the first row of each."""
        profiles = Profiles(str(self.path), typed=self.typed, label=self.label, settings=self.settings, keep=keep)
        labels = pl.DataFrame()
        for start, frame in self._blocks():
            profiles.add(frame)
            if self.label is not None:
                check_label_values(frame[self.label], self._from(start))
                labels = pl.concat(
                    [labels, _distinct(frame[self.label], start)], how="vertical" if start else "diagonal"
                )
                labels = labels.unique("value", keep="first", maintain_order=True)
        return profiles, labels

    def _codes(self, series: pl.Series, where: Where, classes: tuple[str, ...]) -> Int64[np.ndarray, " B"]:
        """Return the codes of a block's labels."""
        check_label_values(series, where)
        series = label_values(series, where)
        labels, name = _distinct(series), series.name
        values, at = self._values(labels["value"], classes), labels["row"].to_list()
        codes, _ = code_labels(values.to_numpy(), lambda i: where(at[i], name), classes)
        return series.replace_strict(labels["value"], pl.Series(codes.numpy()), return_dtype=pl.Int64).to_numpy()

    def _values(self, labels: pl.Series, classes: tuple[str, ...]) -> pl.Series:
        """Return labels in the type of their column; texts of a CSV file are typed by their values."""
        if self.typed:
            return labels
        if self.like is not None:
            return labels if labels.is_in(list(classes)).all() else typed(labels)
        if self.label_type == pl.Boolean:
            return labels.str.to_lowercase() == "true"
        return labels.cast(self.label_type)


def _distinct(series: pl.Series, start: int = 0) -> pl.DataFrame:
    """Return the distinct values of a block and the first row of each."""
    values = series.cast(pl.String) if series.dtype in (pl.Categorical, pl.Enum) else series
    frame = pl.DataFrame({"value": values, "row": np.arange(start, start + series.len())})
    return frame.unique("value", keep="first", maintain_order=True)
