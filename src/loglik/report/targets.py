"""The report's section on targets given inputs: predictions beside the true values, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loglik.comparison import Row
from loglik.data.dataset import Data
from loglik.evaluation.format import score_in_words
from loglik.evaluation.predictions import TargetValues, target_values
from loglik.report.chart import COLOURS, ZOOM, Chart, columns, field, short

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


def _pictures(row: Row, data: Data, split: str, seed: int, d: int) -> list[Chart]:
    assert row.run is not None
    model, name = row.result.model, short(data.spec.columns[d].name, 24)
    values = target_values(row.run.density, data.split(split).evenly(MAX_POINTS), data.spec, seed=seed)
    caption = (
        f"{name}: medians with 90 % intervals against true values. The {WORST} rows with the largest CRPS are marked."
    )
    plot = _against_true(values, d, f"predictions of {model} against true values of {name}", caption)
    caption = (
        "The predicted probability of a lower value than the true one: flat where the distribution is right, high "
    )
    caption += "at both ends where it is too narrow, and in the middle where it is too wide."
    return [plot, _calibration(values, d, f"calibration of {model} on {name}", caption)]


def _against_true(values: TargetValues, d: int, alt: str, caption: str) -> Chart:
    true, p = values.true[:, d].numpy(), values.prediction
    crps = values.crps[:, d].numpy()
    worst = np.isin(np.arange(len(crps)), np.argsort(crps)[-WORST:])
    data = columns(
        true=true,
        median=p.median[:, d].numpy(),
        low=p.quantiles[:, 0, d].numpy(),
        high=p.quantiles[:, 1, d].numpy(),
        crps=crps,
        worst=worst.tolist(),
    )
    ends = {"values": [{"at": float(true.min())}, {"at": float(true.max())}]}
    scale: dict[str, Any] = {"scale": {"zero": False}, "axis": {"tickCount": 5}}
    x, y = field("true", **scale), field("median", "predicted", **scale)
    tooltip = [
        field("true"),
        field("median"),
        field("low", "5 % quantile"),
        field("high", "95 % quantile"),
        field("crps"),
    ]
    colour = {"condition": {"test": "datum.worst", "value": COLOURS["baseline"]}, "value": COLOURS["model"]}
    shape = {"condition": {"test": "datum.worst", "value": "triangle"}, "value": "circle"}
    spec = {
        "height": 280,
        "layer": [
            {
                "data": data,
                "mark": {"type": "rule", "color": COLOURS["data"], "opacity": 0.7, "clip": True},
                "encoding": {"x": x, "y": field("low", "predicted", **scale), "y2": {"field": "high"}},
            },
            {
                "data": ends,
                "mark": {"type": "line", "color": COLOURS["quiet"], "strokeDash": [4, 3], "clip": True},
                "encoding": {"x": field("at", "true", **scale), "y": field("at", "predicted", **scale)},
            },
            {
                "data": data,
                "params": [ZOOM],
                "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.85, "clip": True},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip},
            },
        ],
    }
    return Chart(spec, alt, caption)


def _calibration(values: TargetValues, d: int, alt: str, caption: str) -> Chart:
    counts, edges = np.histogram(
        ((values.below + values.at_most) / 2)[:, d].clamp(0, 1).numpy(), bins=BINS, range=(0, 1)
    )
    share = counts / max(1, counts.sum())
    tooltip = [field("low", "from", format=".0%"), field("high", "to", format=".0%"), field("share", format=".1%")]
    unit, axis = {"domain": [0, 1]}, {"format": "%"}
    x = field("low", "predicted probability below the true value", bin="binned", scale=unit, axis=axis)
    line = {"type": "rule", "color": COLOURS["baseline"], "strokeDash": [4, 3]}
    spec = {
        "height": 280,
        "data": columns(low=edges[:-1], high=edges[1:], share=share),
        "layer": [
            {
                "mark": {"type": "bar", "color": COLOURS["model"], "binSpacing": 1},
                "encoding": {
                    "x": x,
                    "x2": {"field": "high"},
                    "y": field("share", "share of rows", axis={"format": ".0%", "tickCount": 5}),
                    "tooltip": tooltip,
                },
            },
            {"mark": line, "encoding": {"y": {"datum": 1 / BINS, "type": "quantitative"}}},
        ],
    }
    return Chart(spec, alt, caption)
