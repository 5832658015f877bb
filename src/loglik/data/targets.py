"""Targets given inputs: a table's data as the event p(targets | inputs), by choosing columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import SPLITS, Data, Split
from loglik.data.limits import quote, some
from loglik.data.spec import DataSpec
from loglik.data.store import Rows

__all__ = ["choose_targets", "named_targets", "pair_frame", "whole_table"]


def named_targets(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of targets: a list, or a text with commas between them.

    >>> named_targets("price, sales")
    ('price', 'sales')
    """
    names = target.split(",") if isinstance(target, str) else target
    names = tuple(name.strip() for name in names)
    if not all(names) or not names:
        raise ValueError(f'the targets {quote(str(target))} name no column: write target="COLUMN" or "A,B"')
    if len(set(names)) < len(names):
        raise ValueError(f"the targets {some(names)} name one column twice")
    return names


def whole_table(like: DataSpec) -> DataSpec:
    """Return the spec of the table that a spec of targets and inputs was chosen from: inputs, then targets."""
    columns = like.inputs + like.columns
    return replace(like, columns=columns, inputs=(), event_shape=(len(columns),))


def choose_targets(data: Data, target: str | Sequence[str], like: DataSpec | None = None) -> Data:
    """Return a table's data with the target columns as the event, and all other columns as the context.

    A split's `x` are the targets (N, T) and its `y` the inputs (N, I), with NaN where they are missing. Rows without a
    target are left out, and a note says how many.

    Args:
        data: of a table.
        target: the names of the columns.
        like: the spec of an existing model, whose targets and inputs are chosen.

    Raises ValueError for data that have no such columns, for no inputs, and in training data for a target that is
    constant.
    """
    spec = data.spec
    if spec.kind != "table":
        raise ValueError(f"{data.name}: targets are columns of a table, and these are {spec.describe()}")
    names = named_targets(target)
    if spec.label is not None:
        twice = spec.label in names
        raise ValueError(
            f"{data.name}: {quote(spec.label)} is {'a target and' if twice else ''} the label, and a model has targets "
            "or a label: leave one out"
        )
    own = [c.name for c in spec.columns]
    if dropped := [f"{quote(name)} is left out: {reason}" for name, reason in spec.left_out if name in names]:
        raise ValueError(f"{data.name}: the target {dropped[0]}")
    if absent := [name for name in names if name not in own]:
        raise ValueError(f"{data.name}: no column {quote(absent[0])} for the target; the columns are {some(own)}")
    others = [c.name for c in spec.columns if c.name not in names and c.indicates not in names]
    kept = [c.name for c in like.inputs] if like else others
    if not kept:
        raise ValueError(f"{data.name}: all columns are targets: leave one as an input, or leave target= out")
    at, given = [own.index(name) for name in names], [own.index(name) for name in kept]
    chosen = {name: _split(data.split(name), at, given) for name in SPLITS}
    without = sum(len(data.split(name)) - len(split) for name, split in chosen.items())
    if like is None:
        _check_varies(data.name, names, chosen["train"])
        inputs = tuple(spec.columns[d] for d in given)
        columns = tuple(replace(spec.columns[d], missing=False) for d in at)
        spec = replace(spec, columns=columns, inputs=inputs, event_shape=(len(at),))
    train, validation, test = (chosen[name] for name in SPLITS)
    notes = (*data.notes, f"{without:,} rows without a target are left out") if without else data.notes
    return replace(data, spec=like or spec, train=train, validation=validation, test=test, notes=notes)


def _split(split: Split, targets: list[int], inputs: list[int]) -> Split:
    x, y, index = _columns(split.x, targets), _columns(split.x, inputs), split.index
    known = ~x[:].isnan().any(1)
    if not known.all():
        rows = known.nonzero().squeeze(1)
        x, y, index = _rows(x, rows), _rows(y, rows), rows if index is None else index[rows]
    return Split(x, y, index)


def _columns(x: Any, columns: list[int]) -> Tensor | Rows:
    return x.choose(columns) if isinstance(x, Rows) else x[:, columns]


def _rows(x: Tensor | Rows, rows: Tensor) -> Tensor | Rows:
    return x.select(rows) if isinstance(x, Rows) else x[rows]


def _check_varies(name: str, targets: tuple[str, ...], train: Split) -> None:
    if len(train) == 0:
        raise ValueError(f"{name}: no row to train on has the target {some(targets)}: choose another target")
    low, high = train.x[:].aminmax(dim=0)
    for target, least, most in zip(targets, low.tolist(), high.tolist(), strict=True):
        if least == most:
            raise ValueError(
                f"{name}: the target {quote(target)} is constant, {least:g} in all {len(train):,} rows to train on: "
                "there is nothing to learn"
            )


def pair_frame(x: Any, y: Any, target: str | Sequence[str]) -> Any:
    """Return a polars frame of a pair of arrays: the inputs x1, x2, ... and the targets by name.

    Raises ValueError for shapes that do not fit.
    """
    import polars as pl

    names = named_targets(target)
    inputs, targets = (np.asarray(torch.as_tensor(a).cpu()) if isinstance(a, Tensor) else np.asarray(a) for a in (x, y))
    targets = targets[:, None] if targets.ndim == 1 else targets
    if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets) or targets.shape[1] != len(names):
        raise ValueError(
            f"the inputs have the shape {inputs.shape} and the targets {targets.shape}: give (N, I) and, for "
            f"{len(names)} target{'s' * (len(names) > 1)}, (N, {len(names)})"
        )
    columns = {f"x{d + 1}": inputs[:, d] for d in range(inputs.shape[1])}
    if twice := [name for name in names if name in columns]:
        raise ValueError(f"{quote(twice[0])} is the name of an input: name the target otherwise")
    return pl.DataFrame(columns | {name: targets[:, d] for d, name in enumerate(names)}, nan_to_null=True)
