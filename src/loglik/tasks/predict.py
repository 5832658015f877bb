"""Predictions for the rows of a table: of targets their mean, median, std and quantiles, of classes probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from loglik import files
from loglik.data import as_data
from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.data.targets import pair_frame
from loglik.evaluation.predictions import INTERVAL, predict_rows
from loglik.evaluation.scores import evaluating
from loglik.runs import Run

__all__ = ["inputs_for", "predict", "write_predictions"]

BATCH = 1024


def predict(
    run: Run,
    data: Any = None,
    *,
    quantiles: Sequence[float] = INTERVAL,
    split: str | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Return a row of predictions for each row of the data.

    Of each real or integer target `price` the columns are `price_mean`, `price_median`, `price_std` and the quantiles
    `price_q5`, `price_q95`. Of a categorical target or a classifier's label `kind` they are `kind`, the most probable
    category, and the probabilities `kind_p_a`, `kind_p_b`, ... of its categories. The predictions are exact for
    `mixture` and classifiers; of other families they are those of 200 draws for each row.

    Args:
        run: of targets given inputs, or of a classifier.
        data: what `fit` accepts, with or without the targets or labels; if None, the run's own.
        quantiles: levels between 0 and 1.
        split: train, validation, test or all; if None, all of the data that are passed, or the run's own test split.
        seed: of the draws.

    Raises ValueError for a run of another kind, and for data that do not fit.
    """
    if wrong := [level for level in quantiles if not 0 < level < 1]:
        raise ValueError(f"quantiles are levels between 0 and 1, got {wrong[0]:g}: write 0.05,0.95")
    spec, density = run.spec, run.density
    split = split or ("test" if data is None else "all")
    if density.event == "y":
        dataset = run.data_for(data)
        x = dataset.split(split).x
        with evaluating(density, seed) as device:
            probabilities: Any = density.probabilities
            p = torch.cat([probabilities(x[i : i + BATCH].to(device)).cpu() for i in range(0, len(x), BATCH)])
        return pl.DataFrame(_probabilities(spec.label or "label", spec.classes, p))
    if not spec.inputs:
        raise ValueError(
            f'{run.path or "this run"} models whole rows, p(data): train with target="COLUMN" to predict a column, or '
            "use sample or fill"
        )
    if data is None:
        rows: Any = run.data_for().split(split).y
    else:
        rows = inputs_for(run, data).split(split).x
    found = predict_rows(density, spec, rows, levels=quantiles, seed=seed)
    columns: dict[str, Any] = {}
    for d, column in enumerate(spec.columns):
        name = column.name
        if column.categories:
            columns |= _probabilities(name, column.categories, found.probabilities[d])
            continue
        for word, values in (("mean", found.mean), ("median", found.median), ("std", found.std)):
            columns[f"{name}_{word}"] = values[:, d].numpy()
        for j, level in enumerate(quantiles):
            columns[f"{name}_q{100 * level:g}"] = found.quantiles[:, j, d].numpy()
    return pl.DataFrame(columns)


def inputs_for(run: Run, data: Any) -> Data:
    """Return the inputs of a run's targets as a table of its own; the data may have the targets or not."""
    inputs = run.spec.inputs
    if isinstance(data, Data):
        train, validation, test = (_inputs(split) for split in (data.train, data.validation, data.test))
        return replace(data, train=train, validation=validation, test=test)
    if isinstance(data, (np.ndarray, Tensor)):
        from loglik.data.tables import from_frame

        target = [column.name for column in run.spec.columns]
        frame = pair_frame(data, np.zeros((len(data), len(target)), dtype=np.int64), target)
        frame = frame.drop(target)
        if frame.width != len(inputs):
            raise ValueError(f"the data have {frame.width} columns, and the model has {len(inputs)} inputs")
        frame.columns = [column.name for column in inputs]
        return from_frame(frame, name="arrays", source="arrays", like=_table(run.spec))
    return as_data(data, like=_table(run.spec))


def _inputs(split: Split) -> Split:
    assert split.y is not None
    return Split(split.y, None, split.index)


def _table(spec: DataSpec) -> DataSpec:
    """Return the spec of the inputs alone."""
    return replace(spec, columns=spec.inputs, inputs=(), event_shape=(len(spec.inputs),))


def _probabilities(name: str, categories: Sequence[str], p: Tensor) -> dict[str, Any]:
    likeliest = {name: [categories[i] for i in p.argmax(1).tolist()]}
    return likeliest | {f"{name}_p_{category}": p[:, i].double().numpy() for i, category in enumerate(categories)}


def write_predictions(table: pl.DataFrame, path: Path) -> None:
    """Write predictions as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        table.write_csv(temporary)
