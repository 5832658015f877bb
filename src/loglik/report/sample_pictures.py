"""The report's section on samples: images, columns of a table, or windows of text, beside those of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from loglik.data.dataset import Data
from loglik.data.spec import Column
from loglik.report.html import Picture, png_picture, svg_picture
from loglik.report.sample_figures import marginal, scatter
from loglik.report.samples import examples, image_grid, text_of
from loglik.runs import Run
from loglik.tasks.sample import draw

__all__ = ["MAX_COLUMNS", "image_samples", "marginals", "text_windows"]

MAX_COLUMNS = 24  # of a table, that are drawn


def image_samples(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> list[Picture]:
    """Return a grid of data and a grid of samples for each model, with a class per column if there are labels."""
    channels, height, width = data.spec.event_shape
    if channels not in (1, 3) or not runs:
        return []
    classes, side = len(data.spec.classes), max(height, width)
    across = 8 if side <= 32 else 6 if side <= 64 else 4
    if side <= 32 and 6 <= classes <= 12:
        across = classes
    n = across * min(across, 64 // across)
    real = examples(data.split(split), n, classes=classes, seed=seed)
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(real.min()), float(real.max()))
    grids = [("data", f"{split} split", real)]
    for name, run in runs:
        note = "samples, given the classes in turn" if run.density.conditional else "samples"
        grids.append((name, note, draw(run.density, data.spec, n, seed=seed)))
    return [
        png_picture(image_grid(x, data.spec, columns=across, span=span), f"{name}: {note}", f"{name}, {note}")
        for name, note, x in grids
    ]


def marginals(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[Picture]]:
    """Return, per model, the first `MAX_COLUMNS` columns, and the first two columns against each other."""
    spec = data.spec
    columns = spec.columns or tuple(
        Column(name=f"dim {i}", type="integer" if spec.levels else "numeric") for i in range(spec.dims)
    )
    real = _rows_of(examples(data.split(split), 2000, classes=0, seed=seed))
    panels = {}
    for name, run in runs:
        drawn = _rows_of(draw(run.density, spec, 512 if spec.dims <= 1024 else 64, seed=seed))
        panels[name] = [
            svg_picture(marginal(c, real[:, i], drawn[:, i]), f"{c.name}: data and samples of {name}")
            for i, c in enumerate(columns[:MAX_COLUMNS])
        ]
        if len(columns) > 1 and not (columns[0].categories or columns[1].categories):
            plot = scatter(real[:400, :2], drawn[:400, :2], (columns[0].name, columns[1].name))
            alt = f"{columns[0].name} and {columns[1].name}: data and samples of {name}"
            panels[name].append(svg_picture(plot, alt))
    return panels


def text_windows(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[str]]:
    """Return a few windows of text of the data, and of each model."""
    if not runs:
        return {}
    texts = {"data": examples(data.split(split), 4, classes=0, seed=seed)}
    texts |= {name: draw(run.density, data.spec, 4, seed=seed) for name, run in runs}
    return {name: [text_of(row.flatten(), data.spec) for row in x] for name, x in texts.items()}


def _rows_of(x: Tensor) -> np.ndarray:
    return x.double().flatten(1).numpy()
