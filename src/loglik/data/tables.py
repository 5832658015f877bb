"""Tables from files (`frames`) and data frames, as float32 tensors (N, D).

A column of integers is `integer`, or `numeric` beyond ±2²³, where float32 no longer holds each of them;
of real numbers `numeric`; of strings `categorical`; of booleans `boolean`. The last two become codes into
their categories, sorted. Dates and times are numbers of a unit (`moments`). A missing value is NaN. Strings that are
nearly all distinct are text: one such column beside the label, and no other, makes a data set of texts, each a row of T
tokens; else the column is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from loglik.data.codes import check_label_values, encode_frame, label_of, labels, typed
from loglik.data.dataset import Data, check_kind, into_splits
from loglik.data.frames import COMPRESSED, is_lines
from loglik.data.isolated import TooMany, read_frame
from loglik.data.large_tables import IsText, load_large
from loglik.data.limits import check_bytes, quote, some
from loglik.data.profile import Where, check_missing
from loglik.data.reading import Profiles, empty_rows, refused
from loglik.data.spec import DataSpec
from loglik.data.store import in_memory, is_large
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings

__all__ = ["from_frame", "load_table"]

LONGEST = 256  # tokens of a text in a column, unless a window is requested


def load_table(
    path: Path,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
    table: TableSettings | None = None,
) -> Data:
    """Read a table's file; the column `label` becomes the classes and is not in x.

    Raises:
        ValueError: the file does not parse, has no rows, no column can be modelled, or a value does not fit.
    """
    in_lines = is_lines(path)

    def where(row: int, column: str) -> str:
        return f"{path}: row {row + 1}{f' (line {row + 2})' if in_lines else ''}, column {quote(column)}"

    name = Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem
    source, large = str(path), path.is_file() and is_large(path.stat().st_size)
    if not large:
        try:
            frame = read_frame(path, max_size=in_memory())
        except TooMany:
            large = True
    if large and not (like and like.padded):
        with suppress(IsText):
            return load_large(path, name=name, where=where, label=label, seed=seed, like=like, table=table)
    if large:
        frame = read_frame(path)
    return from_frame(
        frame,
        name=name,
        source=source,
        where=where,
        label=label,
        seed=seed,
        like=like,
        text=text,
        table=table,
        typed=not in_lines,
    )


def from_frame(
    frame: pl.DataFrame,
    *,
    name: str,
    source: str,
    where: Where | None = None,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    sizes: Mapping[str, int] | None = None,
    text: TextSettings | None = None,
    table: TableSettings | None = None,
    typed: bool = True,
) -> Data:
    """Return data from a polars frame.

    Args:
        source: begins each error.
        where: describes a row and a column, for errors.
        sizes: the number of rows of each split that exists already, in order.
        text: how a column of text is read.
        table: how the columns are read.
        typed: whether the columns have types; else they are texts of a CSV file.
    """
    where = where or (lambda row, column: f"{source}: row {row + 1}, column {quote(column)}")
    settings = table or TableSettings()
    if frame.height == 0:
        raise ValueError(f"{source}: the table has no rows")
    if like is not None and not like.padded:
        check_kind("table", like, source)
        label = label_of(like, label, frame.columns, source)
        needed = [column.name for column in like.columns if not column.indicates]
        frame, settings = frame.select(*needed, *([label] if label else [])), replace(settings, columns={})
    profiles = Profiles(source, typed=typed, label=label, settings=settings)
    if like is None or not like.padded:
        profiles.add(frame)
    if like.padded if like else profiles.is_text:
        return _texts(
            frame, name=name, source=source, where=where, label=label, seed=seed, like=like, sizes=sizes, text=text
        )
    if label is not None:
        check_label_values(frame[label], where)
    notes, spec, y = tuple[str, ...](), like, None
    if spec is None:
        read = profiles.read(where)
        notes, spec = tuple(read.lines()), read.spec(label)
    if label is not None:
        y, classes = labels(_label(frame[label], typed, like), where, like)
        spec = like or replace(spec, classes=classes)
    found, refuse = profiles.found(spec.columns), refused(settings, like)
    x = torch.from_numpy(encode_frame(frame, spec.columns, where, found=found, refuse=refuse))
    data = into_splits(name, spec, x, y, seed=seed, sizes=sizes)
    notes += empty_rows(int(x.isnan().all(1).sum()))
    return replace(data, table=table if like else settings, notes=notes)


def _label(series: pl.Series, is_typed: bool, like: DataSpec | None) -> pl.Series:
    """Return labels in the type that all of them have; texts that are a model's classes stay texts."""
    if is_typed or (like is not None and series.is_in(list(like.classes)).fill_null(True).all()):
        return series
    return typed(series)


def _texts(
    frame: pl.DataFrame,
    *,
    name: str,
    source: str,
    where: Where,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    sizes: Mapping[str, int] | None,
    text: TextSettings | None,
) -> Data:
    """Return texts as rows of T tokens; shorter texts are padded with the number K, longer ones are cut.

    Those of a model from elsewhere are not cut: T is the length of the longest.
    """
    from loglik.data import tokenizers

    settings = text or TextSettings()
    if like is not None:
        label = label_of(like, label, frame.columns, source)
    others = [column for column in frame.columns if column != label]
    if len(others) != 1:
        raise ValueError(
            f"{source}: the model accepts one column of text{f' beside {quote(label)}' if label else ''}, found "
            f"{some(others) or 'none'}"
        )
    series = frame[others[0]].cast(pl.String)
    check_missing(series, where)
    texts = [value.encode() for value in series]
    if like is not None:
        assert like.tokenizer is not None
        tokenizer, t = like.tokenizer, like.event_shape[0]
    else:
        tokenizer = tokenizers.train(settings.tokenizer, texts, vocabulary=settings.vocabulary)
        t = settings.window or 0
    rows = [tokenizer.encode(value, lambda at, row=row: where(row, others[0])) for row, value in enumerate(texts)]  # type: ignore[misc]
    if tokenizer.elsewhere:  # its model scores texts of any length
        t = max(1, *map(len, rows))
        like = None if like is None else replace(like, event_shape=(t,))
    t = t or max(1, min(LONGEST, max(map(len, rows))))
    dtype = np.uint8 if tokenizer.size < 256 else np.int64
    check_bytes(len(rows) * t * np.dtype(dtype).itemsize, sum(map(len, texts)), f"{source}: windows of {t} tokens")
    codes = np.full((len(rows), t), tokenizer.size, dtype=dtype)
    for code, tokens in zip(codes, rows, strict=True):
        code[: len(tokens)] = tokens[:t]
    y, classes = None, tuple[str, ...]()
    if label is not None:
        y, classes = labels(frame[label], where, like)
    spec = like or DataSpec(
        kind="text",
        event_shape=(t,),
        levels=tokenizer.size + 1,
        classes=classes,
        label=label,
        tokenizer=tokenizer,
        padded=True,
    )
    return into_splits(name, spec, torch.from_numpy(codes), y, seed=seed, sizes=sizes)
