"""Charts of a classifier: its confusion matrix and its reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from loglik.classification.calibration import Reliability
from loglik.report.chart import COLOURS, Chart, columns, field, short

__all__ = ["MAX_CLASSES", "confusion", "reliability_diagram"]

MAX_CLASSES = 30  # of a confusion matrix


def confusion(matrix: Int[np.ndarray, "K K"], classes: Sequence[str], model: str) -> Chart:
    """Return the confusion matrix, shaded by row; of many classes, those with the most errors."""
    k = len(matrix)
    errors = matrix.sum(1) + matrix.sum(0) - 2 * matrix.diagonal()
    kept = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
    total = matrix.sum(1)
    names = _distinct([short(classes[i], 16) for i in kept])
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(len(kept)), np.arange(len(kept)), indexing="ij"))
    count = matrix[kept[i], kept[j]]
    data = columns(
        true=[names[a] for a in i],
        predicted=[names[b] for b in j],
        count=count,
        share=count / np.maximum(total[kept[i]], 1),
    )
    axis = {"grid": False, "ticks": False, "domain": False}
    tooltip = [field("true", kind="nominal"), field("predicted", kind="nominal"), field("count"), _SHARE]
    layer: list[dict[str, Any]] = [{"mark": "rect"}]
    if len(kept) <= 20:
        colour = {"condition": {"test": "datum.share > 0.55", "value": "#ffffff"}, "value": COLOURS["text"]}
        shown = {"mark": {"type": "text", "fontSize": 10}, "transform": [{"filter": "datum.count > 0"}]}
        layer.append({**shown, "encoding": {"text": field("count"), "color": colour}})
    # from the paper's colour, so that an empty cell is empty in the dark too
    shade = {"domain": [0, 1], "range": [COLOURS["paper"], "#0072B2"], "interpolate": "rgb"}
    layer[0]["encoding"] = {"color": field("share", scale=shade, legend=None)}
    spec = {
        "data": data,
        "height": max(180, 24 * len(kept)) if len(kept) <= 20 else 440,
        "encoding": {
            "x": field("predicted", kind="nominal", sort=None, axis={**axis, "labelAngle": -60 if k > 10 else 0}),
            "y": field("true", kind="nominal", sort=None, axis=axis),
            "tooltip": tooltip,
        },
        "layer": layer,
    }
    caption = "Confusion matrix: the number of examples of the row's class that are predicted as the column's class."
    if k > len(kept):
        caption += f" The {len(kept)} classes with the most errors, of {k:,}, are shown."
    return Chart(spec, f"confusion matrix of {model}", caption)


_SHARE = field("share", "share of the true class", format=".1%")


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of which no two are equal, as an axis needs them."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


def reliability_diagram(table: Reliability, model: str, caption: str) -> Chart:
    """Return accuracy against confidence: one bar per bin with its 95 % interval, shaded by its share of examples."""
    count = table.count.numpy()
    used, bins = np.nonzero(count)[0], len(count)
    intervals = np.asarray([list(map(float, table.intervals[m])) for m in used]).reshape(-1, 2)
    data = columns(
        low=used / bins,
        high=(used + 1) / bins,
        middle=(used + 0.5) / bins,
        accuracy=table.accuracy.numpy()[used],
        confidence=table.confidence.numpy()[used],
        least=intervals[:, 0],
        most=intervals[:, 1],
        count=count[used],
    )
    unit: dict[str, Any] = {"scale": {"domain": [0, 1]}, "axis": {"tickCount": 5, "format": "%"}}
    y = field("accuracy", **unit)
    tooltip = [
        field("confidence", "mean confidence", format=".1%"),
        field("accuracy", format=".1%"),
        field("least", "95 % interval, from", format=".1%"),
        field("most", "to", format=".1%"),
        field("count", "examples"),
    ]
    ends = {"data": {"values": [{"at": 0}, {"at": 1}]}}
    line = {"type": "line", "color": COLOURS["baseline"], "strokeDash": [4, 3]}
    spec = {
        "height": 250,
        "layer": [
            {
                "data": data,
                "encoding": {"tooltip": tooltip},
                "layer": [
                    {
                        "mark": {"type": "bar", "color": COLOURS["model"], "binSpacing": 2},
                        "encoding": {
                            "x": field("low", "confidence", bin="binned", **unit),
                            "x2": {"field": "high"},
                            "y": y,
                            "opacity": field(
                                "count", legend=None, scale={"domainMin": 0, "range": [0.25, 1], "zero": True}
                            ),
                        },
                    },
                    {
                        "mark": {"type": "rule", "color": COLOURS["text"]},
                        "encoding": {
                            "x": field("middle", "confidence", **unit),
                            "y": field("least", "accuracy", **unit),
                            "y2": {"field": "most"},
                        },
                    },
                    {
                        "mark": {"type": "point", "filled": True, "size": 30, "color": COLOURS["text"]},
                        "encoding": {"x": field("confidence", **unit), "y": y},
                    },
                ],
            },
            {**ends, "mark": line, "encoding": {"x": field("at", "confidence", **unit), "y": field("at", "accuracy")}},
        ],
    }
    return Chart(spec, f"reliability of {model}", caption)
