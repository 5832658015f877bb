"""Tables from files (`frames`) and data frames, as float32 tensors (N, D).

A column of integers is `integer`, or `numeric` beyond ±2²³, where float32 no longer holds each of them;
of real numbers `numeric`; of strings `categorical`; of booleans `boolean`. The last two become codes into
their categories, sorted. Strings that are nearly all distinct are text: one such column beside the label, and no other,
makes a data set of texts, each a row of T tokens; else they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import torch

from loglik.data.codes import check_label, encode, label_of, labels
from loglik.data.dataset import Data, check_kind, into_splits
from loglik.data.frames import COMPRESSED, is_lines
from loglik.data.isolated import TooMany, read_frame
from loglik.data.large_tables import IsText, load_large
from loglik.data.limits import check_bytes, quote, some
from loglik.data.profile import Profile, Where, check_missing
from loglik.data.spec import DataSpec
from loglik.data.store import in_memory, is_large
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
) -> Data:
    """Read a table's file; the column `label` becomes the classes and is not in x.

    Raises:
        ValueError: the file does not parse, has no rows, a value is missing, or a column's type is unknown.
    """
    in_lines = is_lines(path)

    def where(row: int, column: str) -> str:
        return f"{path}: row {row + 1}{f' (line {row + 2})' if in_lines else ''}, column {quote(column)}"

    name = Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem
    source, large = str(path), path.is_file() and is_large(path.stat().st_size)
    if not large:
        try:
            frame = read_frame(path, like, max_size=in_memory())
        except TooMany:
            large = True
    if large and not (like and like.padded):
        with suppress(IsText):
            return load_large(path, name=name, where=where, label=label, seed=seed, like=like)
    if large:
        frame = read_frame(path, like)
    return from_frame(frame, name=name, source=source, where=where, label=label, seed=seed, like=like, text=text)


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
) -> Data:
    """Return data from a polars frame.

    Args:
        source: begins each error.
        where: describes a row and a column, for errors.
        sizes: the number of rows of each split that exists already, in order.
        text: how a column of text is read.
    """
    where = where or (lambda row, column: f"{source}: row {row + 1}, column {quote(column)}")
    if frame.height == 0:
        raise ValueError(f"{source}: the table has no rows")
    check_label(label, frame.columns, source)
    if like.padded if like else _is_text(frame, label, where):
        return _texts(
            frame, name=name, source=source, where=where, label=label, seed=seed, like=like, sizes=sizes, text=text
        )
    check_kind("table", like, source)
    if like is not None:
        label = label_of(like, label, frame.columns, source)
        columns = like.columns
    else:
        columns = tuple(_profile(s, where).column(source, where) for s in frame.iter_columns() if s.name != label)
        if not columns:
            raise ValueError(f"{source}: no columns besides the label {quote(label)}")
    x = torch.from_numpy(np.stack([encode(frame[c.name], c, where) for c in columns], axis=1))
    y, classes = None, tuple[str, ...]()
    if label is not None:
        y, classes = labels(frame[label], where, like)
    spec = like or DataSpec(kind="table", event_shape=(len(columns),), classes=classes, columns=columns, label=label)
    return into_splits(name, spec, x, y, seed=seed, sizes=sizes)


def _profile(series: pl.Series, where: Where) -> Profile:
    profile = Profile(series.name)
    profile.add(series, where)
    return profile


def _is_text(frame: pl.DataFrame, label: str | None, where: Where) -> bool:
    """Return whether the only column beside the label has texts that are nearly all distinct."""
    others = [series for series in frame.iter_columns() if series.name != label]
    if label is None or len(others) != 1 or others[0].dtype != pl.String:
        return False
    return _profile(others[0], where).is_text


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
    """Return texts as rows of T tokens; shorter texts are padded with the number K, longer ones are cut."""
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
