"""The report's section on samples: images, columns of a table, or windows of text, beside those of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from loglik.data.dataset import Data
from loglik.data.spec import Column
from loglik.report.chart import Chart, script_json
from loglik.report.html import Picture, png_picture
from loglik.report.sample_figures import axis_of, correlations, first_pair, marginal, pairs
from loglik.report.samples import examples, image_grid, text_of
from loglik.runs import Run
from loglik.tasks.sample import draw, labels_of

__all__ = ["MAX_COLUMNS", "ColumnView", "columns_of", "image_samples", "text_windows", "view_columns"]

MAX_COLUMNS = 24  # of a table, that are drawn
MAX_CLASSES = 10  # side by side in a grid of images
MAX_NUMBERS = 60_000  # of all rows in the chart of pairs, so that the page stays small
MAX_CHOICES = 100  # classes in a list


@dataclass(frozen=True)
class ColumnView:
    """The charts of a table's columns, and the choices of their controls: each a name, and the change as JSON."""

    models: list[tuple[str, Markup]]
    classes: list[tuple[str, Markup]]
    x: list[tuple[str, Markup]]
    y: list[tuple[str, Markup]]
    pairs: Chart
    correlations: Chart | None
    marginals: list[Chart]
    first: tuple[int, int]
    shown: int
    columns: int


def image_samples(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> list[Picture]:
    """Return a grid of data and a grid of samples for each model, with a class per column if there are labels."""
    channels, height, width = data.spec.event_shape
    if channels not in (1, 3) or not runs:
        return []
    classes, side = data.spec.classes, max(height, width)
    across = 8 if side <= 32 else 6 if side <= 64 else 4
    shown = classes[: MAX_CLASSES if side <= 64 else 4]
    by_class = len(classes) > 1
    if by_class:
        across = len(shown)
    deep = min(across, 64 // across) if not by_class else max(2, min(8, 64 // across))
    real = _by_class(data, split, across, deep, seed) if by_class else None
    if real is None:
        by_class = False
        real = examples(data.split(split), across * deep, seed=seed)
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(real.min()), float(real.max()))
    given = f"a class in each column: {', '.join(shown)}" if by_class else ""
    rest = f", of {len(classes):,} classes" if by_class and len(classes) > len(shown) else ""
    grids = [("data", ", ".join(filter(None, [f"{split} split", given + rest])), real)]
    for name, run in runs:
        if run.density.conditional and by_class:
            drawn = _draws_by_class(run, data, across, deep, seed)
            grids.append((name, f"samples, {given}{rest}", drawn))
        else:
            note = "samples, given the classes in turn" if run.density.conditional else "samples"
            grids.append((name, note, draw(run.density, data.spec, across * deep, seed=seed)))
    return [
        png_picture(
            image_grid(x, data.spec, columns=across, span=span, clear=True), f"{name}: {note}", f"{name}, {note}"
        )
        for name, note, x in grids
    ]


def _by_class(data: Data, split: str, classes: int, deep: int, seed: int) -> Tensor | None:
    """Return rows of examples, the class k in column k, as deep as the rarest class allows; None where one has none."""
    part = data.split(split)
    if part.y is None:
        return None
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:20_000]
    y = torch.as_tensor(part.y[order])
    rows = [order[y == k][:deep] for k in range(classes)]
    depth = min(map(len, rows))
    return part.batch(torch.stack([at[:depth] for at in rows], 1).flatten())[0] if depth else None


def _draws_by_class(run: Run, data: Data, classes: int, deep: int, seed: int) -> Tensor:
    if classes == len(data.spec.classes):  # `draw` gives the classes in turn
        return draw(run.density, data.spec, classes * deep, seed=seed)
    drawn = [draw(run.density, data.spec, deep, seed=seed, label=name) for name in data.spec.classes[:classes]]
    return torch.stack(drawn, 1).flatten(0, 1)


def columns_of(data: Data) -> tuple[Column, ...]:
    """Return the columns of a table, or those that an array's dimensions stand for."""
    spec = data.spec
    return spec.columns or tuple(
        Column(name=f"dim {i}", type="integer" if spec.levels else "numeric") for i in range(spec.dims)
    )


def view_columns(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> ColumnView | None:
    """Return charts of the first `MAX_COLUMNS` columns: each alone, any two, and correlations, with samples."""
    if not runs:
        return None
    spec, columns = data.spec, columns_of(data)
    shown, part = columns[:MAX_COLUMNS], data.split(split)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:2000]
    x, y = part.batch(order)
    n = 512 if spec.dims <= 1024 else 64
    drawn = {name: _rows_of(draw(run.density, spec, n, seed=seed)) for name, run in runs}
    real, classes = _rows_of(x), {}
    if spec.classes and y is not None and len(spec.classes) <= MAX_CHOICES:
        classes["data"] = [spec.classes[k] for k in y.tolist()]
        for name, run in runs:
            labels = labels_of(run.density, spec, n, None)
            if labels is not None:
                classes[name] = [spec.classes[k] for k in labels.tolist()]
    count = max(50, min(500, MAX_NUMBERS // (len(shown) * (len(drawn) + 1))))
    few = {name: rows[: min(count, max(100, 2 * len(real)))] for name, rows in drawn.items()}
    axes = [(column.name, axis_of(d, column, real[:, d])) for d, column in enumerate(shown)]
    chosen = [("all classes", script_json({"params.1.value": None}))]
    chosen += [(name, script_json({"params.1.value": name})) for name in spec.classes]
    return ColumnView(
        models=[(name, script_json({"params.0.value": name})) for name in drawn],
        classes=chosen if classes else [],
        x=[(name, script_json({"encoding.x": axis})) for name, axis in axes],
        y=[(name, script_json({"encoding.y": axis})) for name, axis in axes],
        pairs=pairs(
            shown,
            real[:count],
            few,
            classes={name: k[: len(few.get(name, real[:count]))] for name, k in classes.items()},
            seed=seed,
        ),
        correlations=correlations(shown, real, drawn),
        marginals=[
            marginal(c, real[:, d], {name: rows[:, d] for name, rows in drawn.items()}) for d, c in enumerate(shown)
        ],
        first=first_pair(shown),
        shown=len(shown),
        columns=len(columns),
    )


def text_windows(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[str]]:
    """Return a few windows of text of the data, and of each model."""
    if not runs:
        return {}
    texts = {"data": examples(data.split(split), 4, seed=seed)}
    texts |= {name: draw(run.density, data.spec, 4, seed=seed) for name, run in runs}
    return {name: [text_of(row.flatten(), data.spec) for row in x] for name, x in texts.items()}


def _rows_of(x: Tensor) -> np.ndarray:
    return x.double().flatten(1).numpy()
