"""Plots of a classifier: its confusion matrix and its reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from loglik.classification.calibration import Reliability
from loglik.report.panel import INK, panel, short

__all__ = ["confusion", "reliability_diagram"]


def confusion(matrix: Int[np.ndarray, "K K"], classes: Sequence[str]) -> str:
    """Draw the confusion matrix, shaded by row, with the accuracy of each class at the right."""
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
    """Plot accuracy against confidence: one bar per bin with its 95 % interval, shaded by its share of examples."""

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
