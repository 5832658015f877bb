"""Plots for notebooks: each draws on matplotlib axes and returns them. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

__all__ = ["plot_bars", "plot_history", "plot_images", "plot_rows"]

POINTS = 2000  # of a scatter plot


def plot_history(history: Sequence[Mapping[str, float]], axes: Any = None, *, against: str = "step") -> Any:
    """Draw the training and validation nats of a run's history against `step` or `time`; return the axes.

    Raises ValueError where there is no history, as of a density without training.
    """
    if against not in ("step", "time"):
        raise ValueError(f"against must be step or time, got {against!r}")
    if not history:
        raise ValueError("this run has no history to plot: its density was not trained in steps")
    axes = _axes(axes)
    at = [row[against] for row in history]
    for key in ("train_nats", "validation_nats"):
        axes.plot(at, [row.get(key, math.nan) for row in history], label=key.removesuffix("_nats"))
    axes.set_xlabel("step" if against == "step" else "seconds")
    axes.set_ylabel("nats per example")
    axes.legend()
    return axes


def plot_bars(names: Sequence[str], values: Sequence[float], errors: Sequence[float | None], axes: Any = None) -> Any:
    """Draw one bar for each named value in nats, with its standard error, the first on top; return the axes."""
    axes = _axes(axes)
    axes.barh(list(names), list(values), xerr=[error or 0.0 for error in errors])
    axes.invert_yaxis()
    axes.set_xlabel("nats per example (higher is better)")
    return axes


def plot_rows(rows: Shaped[np.ndarray, "N D"], names: Sequence[str], axes: Any = None) -> Any:
    """Draw rows of one column as a histogram, of two as points; return the axes."""
    axes = _axes(axes)
    axes.set_xlabel(names[0])
    if rows.shape[1] == 1:
        axes.hist(rows[:, 0], bins="auto")
        axes.set_ylabel("rows")
    else:
        axes.scatter(rows[:POINTS, 0], rows[:POINTS, 1], s=8, alpha=0.5)
        axes.set_ylabel(names[1])
    return axes


def plot_images(images: Shaped[np.ndarray, "N C H W"], levels: int, axes: Any = None) -> Any:
    """Draw images in a square grid; return the axes."""
    axes = _axes(axes)
    n, c, h, w = images.shape
    side = math.ceil(math.sqrt(n))
    grid = np.zeros((side * side, c, h, w), dtype=np.float64)
    grid[:n] = images / max(1, levels - 1)
    page = grid.reshape(side, side, c, h, w).transpose(0, 3, 1, 4, 2).reshape(side * h, side * w, c)
    axes.imshow(page if c == 3 else page[..., 0], cmap=None if c == 3 else "gray", vmin=0, vmax=1)
    axes.set_axis_off()
    return axes


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots()[1]
