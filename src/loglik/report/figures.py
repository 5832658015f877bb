"""The plots of the report, each as the text of one small SVG that a page can lay out by itself.

Every function draws one panel with matplotlib's object-oriented API, so no global state is touched, and
without dates or addresses, so the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from loglik.classification.calibration import Reliability
from loglik.data.spec import Column

__all__ = [
    "INK",
    "Bar",
    "bars",
    "confusion",
    "curves",
    "latent_bars",
    "marginal",
    "panel",
    "reliability_diagram",
    "scatter",
]

INK = {"text": "#2b2f38", "quiet": "#8a909c", "data": "#b9bec8", "model": "#2f6db0", "baseline": "#c2553a"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loglik",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK["text"],
    "axes.labelcolor": INK["text"],
    "axes.edgecolor": INK["quiet"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "xtick.color": INK["quiet"],
    "ytick.color": INK["quiet"],
    "xtick.labelcolor": INK["text"],
    "ytick.labelcolor": INK["text"],
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value and standard error, and whether it may be drawn broken where it is far out."""

    name: str
    value: float
    error: float
    may_break: bool = False


def bars(rows: Sequence[Bar], *, unit: str, baseline: float | None, from_zero: bool) -> str:
    """Draw horizontal bars with standard errors; a line at the baseline, where they start unless `from_zero`.

    The axis holds every bar that may not break. One that may, and is more than half longer than the longest of them,
    ends beyond the axis's labels, with a gap.
    """
    start = 0.0 if from_zero or baseline is None else baseline
    lengths = np.array([row.value - start for row in rows])
    whole = np.array([not row.may_break for row in rows])
    reach = float(np.abs(lengths[whole if whole.any() else slice(None)]).max())
    broken = ~whole & (np.abs(lengths) > 1.5 * reach) & (reach > 0)
    edge = float(np.abs(lengths[~broken]).max())
    shown = np.where(broken, start + np.sign(lengths) * 1.3 * edge, start + lengths)
    whiskers = np.where(broken, 0.0, [row.error for row in rows])
    places = np.arange(len(rows))

    def draw(axes: Any) -> None:
        axes.barh(places, shown - start, left=start, height=0.62, color=INK["model"], alpha=0.85)
        seen = whiskers > 0
        look = {"fmt": "none", "ecolor": INK["text"], "elinewidth": 1.1, "capsize": 2.5}
        axes.errorbar(shown[seen], places[seen], xerr=whiskers[seen], **look)
        ends = np.maximum(shown + whiskers, start)  # right of the bar, where no name stands
        for row, place, end in zip(rows, places, ends, strict=True):
            axes.annotate(
                f"{row.value:.2f}".replace("-", "−"),
                (end, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                ha="left",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
            )
        if baseline is not None:
            axes.axvline(baseline, color=INK["baseline"], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(places, [short(row.name, 24) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.locator_params(axis="x", nbins=5)
        if from_zero:
            axes.set_xlim(left=0)
        axes.set_xlabel(unit)
        if broken.any():
            far = start + np.sign(lengths[broken][0]) * 1.18 * edge  # a compressor's bars all go one way
            low, high = axes.get_xlim()
            for place in places[broken]:
                _gap(axes, axes.transData, far, float(place), width=(high - low) / 80, height=0.42)
            _gap(axes, axes.get_xaxis_transform(), far, 0.0, width=(high - low) / 80, height=0.02)
            axes.set_xticks([t for t in axes.get_xticks() if low <= t <= high and abs(t - start) <= 1.1 * edge])
            axes.set_xlim(low, high)

    return panel(4.6, 0.75 + 0.34 * len(rows), draw)


def _gap(axes: Any, transform: Any, x: float, y: float, *, width: float, height: float) -> None:
    """Draw a slanted white gap between two dark edges: what lies between is left out."""
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
    """Training and validation against seconds; points that are not finite are left out."""
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


def marginal(column: Column, data: Float[np.ndarray, " N"], samples: Float[np.ndarray, " M"], limit: int = 8) -> str:
    """One column's distribution: the data filled, the samples outlined, or bars where it is categorical."""
    data, samples = data[np.isfinite(data)], samples[np.isfinite(samples)]

    def draw(axes: Any) -> None:
        axes.set_title(short(column.name, 24))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        if not len(data):
            return
        if column.categories:
            _category_bars(axes, column.categories, data, samples, limit)
            return
        edges = _edges(data, whole=column.type == "integer")
        look = {"bins": edges, "density": True}
        axes.hist(data, color=INK["data"], **look)
        inside = samples[(samples >= edges[0]) & (samples <= edges[-1])]
        if len(inside):  # outlined in proportion to what lies within the range
            weights = np.full(len(inside), 1 / (len(samples) * (edges[1] - edges[0])))
            axes.hist(inside, bins=edges, weights=weights, histtype="step", color=INK["model"], linewidth=1.4)
        axes.set_xlim(edges[0], edges[-1])
        axes.locator_params(axis="x", nbins=4)

    return panel(2.2, 1.5, draw)


def latent_bars(kl: Float[np.ndarray, " L"], active: Bool[np.ndarray, " L"], most: int = 64) -> str:
    """Nats of each latent dimension, the largest first and `most` at most; inactive ones grey."""
    order = np.argsort(-kl)[:most]

    def draw(axes: Any) -> None:
        colors = [INK["model"] if active[d] else INK["data"] for d in order]
        axes.bar(np.arange(len(order)), kl[order], width=0.8, color=colors)
        axes.set_ylabel("KL, nats")
        rest = f" of {len(kl)}" if len(kl) > len(order) else ""
        axes.set_xlabel(f"{len(order)}{rest} latent dimensions")
        axes.set_xticks([])
        axes.locator_params(axis="y", nbins=4)

    return panel(2.8, 1.9, draw)


def scatter(data: Float[np.ndarray, "N 2"], samples: Float[np.ndarray, "M 2"], labels: tuple[str, str]) -> str:
    """Two dimensions against each other: the data grey, the samples coloured, in the range of the data."""
    data = data[np.isfinite(data).all(1)]

    def draw(axes: Any) -> None:
        axes.scatter(*data.T, s=6, color=INK["data"], linewidths=0)
        finite = samples[np.isfinite(samples).all(1)]
        axes.scatter(*finite.T, s=4, color=INK["model"], alpha=0.6, linewidths=0)
        for limit, values in ((axes.set_xlim, data[:, 0]), (axes.set_ylim, data[:, 1])):
            low, high = np.quantile(values, [0.005, 0.995])
            pad = 0.1 * (high - low) or 1.0
            limit(low - pad, high + pad)
        axes.locator_params(nbins=4)
        axes.set_xlabel(short(labels[0], 24))
        axes.set_ylabel(short(labels[1], 24))

    return panel(2.2, 1.9, draw)


def confusion(matrix: Int[np.ndarray, "K K"], classes: Sequence[str]) -> str:
    """The confusion matrix, shaded by row, with the accuracy of each class at the right."""
    k = len(matrix)
    total = matrix.sum(1)
    share = matrix / np.maximum(total[:, None], 1)
    written = k <= 20

    def draw(axes: Any) -> None:
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if not written:
            return
        names = [short(name, 12) for name in classes]
        turned = max(map(len, names)) > 3
        axes.set_xticks(range(k), names, rotation=90 if turned else 0)
        axes.set_yticks(range(k), names)
        size = 7.5 if k <= 12 else 6.5
        for i, j in zip(*np.nonzero(matrix), strict=True):
            color = "white" if share[i, j] > 0.6 else INK["text"]
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=size)
        for i in np.nonzero(total)[0]:
            axes.text(k - 0.3, i, f"{share[i, i]:.0%}", va="center", color=INK["quiet"], fontsize=size)

    side = min(5.2, max(2.8, 1.3 + 0.23 * k)) if written else 3.6
    return panel(side + 0.3, side, draw)


def reliability_diagram(table: Reliability) -> str:
    """Accuracy against confidence, one bar for each bin, shaded by its share of the examples, with 95 % intervals."""

    def draw(axes: Any) -> None:
        count = table.count.numpy()
        bins = len(count)
        shade = 0.25 + 0.75 * count / max(count.max(), 1)
        for m in np.nonzero(count)[0]:
            height = float(table.accuracy[m])
            axes.bar((m + 0.5) / bins, height, width=0.92 / bins, color=INK["model"], alpha=float(shade[m]))
            axes.plot(float(table.confidence[m]), height, "o", markersize=3.2, color=INK["text"])
            axes.vlines((m + 0.5) / bins, *table.intervals[m], color=INK["text"], linewidth=0.9)
        axes.plot([0, 1], [0, 1], color=INK["baseline"], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    return panel(3.7, 3.4, draw)


def short(text: str, limit: int) -> str:
    """A name cut to what a plot has room for."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _edges(data: Float[np.ndarray, " N"], *, whole: bool) -> np.ndarray:
    """Equal bins over all but the outermost of the data; for integers, bins of integers."""
    low, high = np.quantile(data, [0.005, 0.995])
    if not whole:
        pad = 0.06 * (high - low) or 0.5
        return np.linspace(low - pad, high + pad, 29)
    step = max(1, math.ceil((high - low + 1) / 30))
    return np.arange(math.floor(low) - 0.5, high + step + 0.5, step)


def _category_bars(axes: Any, categories: Sequence[str], data: np.ndarray, samples: np.ndarray, limit: int) -> None:
    """Shares of the commonest categories, data beside samples."""
    k = len(categories)
    shares = [
        np.bincount(codes.round().clip(0, k - 1).astype(int), minlength=k) / max(len(codes), 1)
        for codes in (data, samples)
    ]
    shown = np.sort(np.argsort(-shares[0], kind="stable")[:limit])
    places = np.arange(len(shown))
    axes.bar(places - 0.2, shares[0][shown], width=0.4, color=INK["data"])
    axes.bar(places + 0.2, shares[1][shown], width=0.4, color=INK["model"])
    if k > limit:
        axes.set_xlabel(f"the {limit} commonest of {k}")
    names = [short(categories[i], 9) for i in shown]
    crowded = sum(map(len, names)) + len(names) > 26
    axes.set_xticks(places, names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    axes.tick_params(axis="x", length=0)


def panel(width: float, height: float, draw: Callable[[Any], None]) -> str:
    """One panel of a size in inches; `draw` is given its axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts, not ours, show the text
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
