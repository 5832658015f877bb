"""Plots of likelihoods: the bars of a comparison, and a run's training curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loglik.report.panel import INK, panel, short

__all__ = ["Bar", "bars", "curves"]


@dataclass(frozen=True)
class Bar:
    """A bar: its name, value and standard error, and whether it may be drawn broken if it is very long."""

    name: str
    value: float
    error: float
    may_break: bool = False


def bars(rows: Sequence[Bar], *, unit: str, baseline: float | None, from_zero: bool) -> str:
    """Draw horizontal bars with standard errors, and a line at the baseline, where they start unless `from_zero`.

    The axis covers every bar that may not break. A bar that may break, and is over 1.5 times as long as the longest of
    these, ends beyond the labels of the axis, with a gap.
    """
    start = 0.0 if from_zero or baseline is None else baseline
    lengths = np.array([row.value - start for row in rows])
    unbroken = np.array([not row.may_break for row in rows])
    longest = float(np.abs(lengths[unbroken if unbroken.any() else slice(None)]).max())
    broken = ~unbroken & (np.abs(lengths) > 1.5 * longest) & (longest > 0)
    edge = float(np.abs(lengths[~broken]).max())
    shown = np.where(broken, start + np.sign(lengths) * 1.3 * edge, start + lengths)
    whiskers = np.where(broken, 0.0, [row.error for row in rows])
    positions = np.arange(len(rows))

    def draw(axes: Any) -> None:
        axes.barh(positions, shown - start, left=start, height=0.62, color=INK["model"], alpha=0.85)
        seen = whiskers > 0
        look = {"fmt": "none", "ecolor": INK["text"], "elinewidth": 1.1, "capsize": 2.5}
        axes.errorbar(shown[seen], positions[seen], xerr=whiskers[seen], **look)
        ends = np.maximum(shown + whiskers, start)  # right of the bar: the names are at the left
        for row, position, end in zip(rows, positions, ends, strict=True):
            axes.annotate(
                f"{row.value:.2f}".replace("-", "−"),
                (end, position),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                ha="left",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
            )
        if baseline is not None:
            axes.axvline(baseline, color=INK["baseline"], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(positions, [short(row.name, 24) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.locator_params(axis="x", nbins=5)
        if from_zero:
            axes.set_xlim(left=0)
        axes.set_xlabel(unit)
        if broken.any():
            far = start + np.sign(lengths[broken][0]) * 1.18 * edge  # the broken bars are all compressors', on one side
            low, high = axes.get_xlim()
            for position in positions[broken]:
                _gap(axes, axes.transData, far, float(position), width=(high - low) / 80, height=0.42)
            _gap(axes, axes.get_xaxis_transform(), far, 0.0, width=(high - low) / 80, height=0.02)
            axes.set_xticks([t for t in axes.get_xticks() if low <= t <= high and abs(t - start) <= 1.1 * edge])
            axes.set_xlim(low, high)

    return panel(4.6, 0.75 + 0.34 * len(rows), draw)


def _gap(axes: Any, transform: Any, x: float, y: float, *, width: float, height: float) -> None:
    """Draw a slanted white gap between two dark edges, to mark a part of the axis that is left out."""
    look = {"transform": transform, "clip_on": False, "zorder": 3}
    left, right = ([x + side - width / 2, x + side + width / 2] for side in (-width / 2, width / 2))
    ends = [y + height, y - height]
    axes.fill([*left, *right[::-1]], [*ends, *ends[::-1]], color="white", **look)
    for edge in (left, right):
        axes.plot(edge, ends, color=INK["text"], linewidth=0.9, **look)


def curves(
    title: str,
    seconds: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    unit: str,
    baseline: float | None,
    limits: tuple[float, float] | None,
) -> str:
    """Plot training and validation against seconds, without points that are not finite."""
    looks = {
        "train": {"color": INK["data"], "linewidth": 1.3},
        "validation": {"color": INK["model"], "linewidth": 1.7},
    }

    def draw(axes: Any) -> None:
        for name, values in lines.items():
            points = [(s, v) for s, v in zip(seconds, values, strict=True) if math.isfinite(s + v)]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None, **looks[name])
        if baseline is not None:
            axes.axhline(baseline, color=INK["baseline"], linewidth=1.1, linestyle=(0, (4, 3)))
        if limits:
            axes.set_ylim(*limits)
        axes.set_xlim(left=0)
        axes.set_title(short(title, 34))
        axes.set_xlabel("seconds")
        axes.set_ylabel(unit)

    return panel(3.1, 2.2, draw)
