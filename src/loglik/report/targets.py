"""The report's section on targets given inputs: predictions beside the true values, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loglik.comparison import Row
from loglik.data.dataset import Data
from loglik.evaluation.format import score_in_words
from loglik.evaluation.predictions import TargetValues, target_values
from loglik.report.html import Picture, svg_picture
from loglik.report.panel import INK, panel, short

__all__ = ["target_content"]

MAX_POINTS = 400
WORST = 5
BINS = 20


def target_content(rows: Sequence[Row], data: Data, split: str, seed: int) -> list[dict[str, Any]]:
    """Return the scores of each model's targets, and pictures of the first numeric target."""
    shown = []
    for row in rows:
        if not row.result.targets or row.run is None:
            continue
        lines = [
            f"{name}: " + ", ".join(score_in_words(key, value) for key, value in scores.items())
            for name, scores in row.result.targets.items()
        ]
        number = next((d for d, column in enumerate(data.spec.columns) if not column.categories), None)
        pictures = [] if number is None else _pictures(row, data, split, seed, number)
        shown.append({"model": row.result.model, "lines": lines, "pictures": pictures})
    return shown


def _pictures(row: Row, data: Data, split: str, seed: int, d: int) -> list[Picture]:
    assert row.run is not None
    model, name = row.result.model, short(data.spec.columns[d].name, 24)
    values = target_values(row.run.density, data.split(split).evenly(MAX_POINTS), data.spec, seed=seed)
    caption = (
        f"{name}: medians with 90 % intervals against true values. The {WORST} rows with the largest CRPS are red."
    )
    plot = svg_picture(_against_true(values, d), f"predictions of {model} against true values of {name}", caption)
    caption = (
        "The predicted probability of a lower value than the true one: flat where the distribution is right, high "
    )
    caption += "at both ends where it is too narrow, and in the middle where it is too wide."
    return [plot, svg_picture(_calibration(values, d), f"calibration of {model} on {name}", caption)]


def _against_true(values: TargetValues, d: int) -> str:
    true, p = values.true[:, d].numpy(), values.prediction
    median, low, high = p.median[:, d].numpy(), p.quantiles[:, 0, d].numpy(), p.quantiles[:, 1, d].numpy()
    worst = np.argsort(values.crps[:, d].numpy())[-WORST:]

    def draw(axes: Any) -> None:
        axes.vlines(true, low, high, color=INK["data"], linewidth=0.7)
        axes.plot(true, median, "o", markersize=2.2, color=INK["model"])
        axes.plot(true[worst], median[worst], "o", markersize=3.4, color=INK["baseline"])
        ends = [float(true.min()), float(true.max())]
        axes.plot(ends, ends, color=INK["quiet"], linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")

    return panel(3.9, 3.4, draw)


def _calibration(values: TargetValues, d: int) -> str:
    counts, edges = np.histogram(
        ((values.below + values.at_most) / 2)[:, d].clamp(0, 1).numpy(), bins=BINS, range=(0, 1)
    )
    share = counts / max(1, counts.sum())

    def draw(axes: Any) -> None:
        axes.bar(edges[:-1], share, width=0.94 / BINS, align="edge", color=INK["model"])
        axes.axhline(1 / BINS, color=INK["baseline"], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        axes.set_xlabel("predicted probability below the true value")
        axes.set_ylabel("share of rows")

    return panel(3.7, 3.4, draw)
