"""Charts of likelihoods: the bars of a comparison, a run's training curve, and the nats of single examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from loglik.report.chart import COLOURS, ZOOM, Chart, columns, field
from loglik.report.numbers import number

__all__ = ["AGAINST", "Bar", "bars", "curves", "histogram"]

DASH = [4, 3]
AGAINST = (  # of training curves: what a control says, and what it changes
    ("seconds", {"encoding.x": field("seconds")}),
    ("steps", {"encoding.x": field("step", "steps")}),
)
MAX_POINTS = 400  # of a training curve
BINS, MIN_BINS = 40, 8  # fewer for few examples


@dataclass(frozen=True)
class Bar:
    """A bar: its name, value and standard error, what hovering says, and whether it may be cut if it is very long."""

    name: str
    value: float
    error: float
    nats: float = 0.0
    nats_error: float | None = None
    bound: str = ""
    may_break: bool = False


def bars(rows: Sequence[Bar], *, unit: str, baseline: float | None, from_zero: bool) -> Chart:
    """Return horizontal bars with standard errors, and a line at the baseline, where they start unless `from_zero`.

    The axis covers every bar that may not break. A bar that may break, and is over 1.5 times as long as the longest of
    these, is cut and pale.
    """
    start = 0.0 if from_zero or baseline is None else baseline
    lengths = np.array([row.value - start for row in rows])
    unbroken = np.array([not row.may_break for row in rows])
    longest = float(np.abs(lengths[unbroken if unbroken.any() else slice(None)]).max())
    broken = ~unbroken & (np.abs(lengths) > 1.5 * longest) & (longest > 0)
    edge = float(np.abs(lengths[~broken]).max())
    shown = np.where(broken, start + np.sign(lengths) * 1.3 * edge, start + lengths)
    errors = np.where(broken, 0.0, [row.error for row in rows])
    low, high = min(start, *(shown - errors)), max(start, *(shown + errors))
    # the numbers are right of the bars
    domain = [low if from_zero else low - 0.04 * ((high - low) or 1), high + 0.3 * ((high - low) or 1)]
    data = columns(
        name=[row.name for row in rows],
        value=[row.value for row in rows],
        shown=shown,
        low=shown - errors,
        high=shown + errors,
        end=np.maximum(shown + errors, start),
        start=np.full(len(rows), start),
        text=[number(row.value) for row in rows],
        cut=broken.tolist(),
        nats=[row.nats for row in rows],
        error=[row.nats_error for row in rows],
        bound=[row.bound for row in rows],
    )
    tooltip = [
        field("name", "model", "nominal"),
        field("value", unit),
        field("nats"),
        field("error", "standard error, nats"),
        field("bound", "number", "nominal"),
    ]
    y = field("name", "", "nominal", sort=None, axis={"labelLimit": 170, "ticks": False, "domain": False})
    x: dict[str, Any] = {"scale": {"domain": domain, "zero": False, "nice": False}, "axis": {"tickCount": 5}}
    layer: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "color": COLOURS["model"], "height": {"band": 0.62}},
            "encoding": {
                "x": field("shown", unit, **x),
                "x2": {"field": "start"},
                "opacity": {"condition": {"test": "datum.cut", "value": 0.4}, "value": 0.9},
            },
        },
        {
            "mark": {"type": "rule", "color": COLOURS["text"], "strokeWidth": 1.5},
            "encoding": {"x": field("low", unit, **x), "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 6},
            "encoding": {"x": field("end", unit, **x), "text": field("text", kind="nominal")},
        },
    ]
    if baseline is not None:
        line = {"type": "rule", "color": COLOURS["baseline"], "strokeDash": DASH, "strokeWidth": 1.5}
        layer.append({"mark": line, "encoding": {"x": {"datum": baseline, "type": "quantitative"}, "y": None}})
    spec = {
        "data": data,
        "height": 30 * len(rows),
        "encoding": {"y": y, "tooltip": tooltip},
        "layer": layer,
    }
    return Chart(spec, f"{unit} of each model, with standard errors")


def curves(
    title: str,
    history: Mapping[str, Sequence[float]],
    *,
    unit: str,
    baseline: float | None,
    limits: tuple[float, float] | None,
) -> Chart:
    """Return training and validation against seconds or steps, without points that are not finite.

    Args:
        title: above the chart.
        history: `step`, `seconds`, `train` and `validation`, each a list.
        unit: of the last two.
        baseline: a line, if any.
        limits: of the vertical axis.
    """
    x, thin = {}, max(1, math.ceil(len(history["step"]) / MAX_POINTS))
    for name, values in history.items():
        x[name] = list(values)[::thin]
    scale = {"zero": False} | ({"domain": list(limits), "nice": False} if limits else {})
    y = field("nats", unit, scale=scale, axis={"tickCount": 5})
    names = ["train", "validation"]
    colour = field("split", "", "nominal", scale={"domain": names, "range": [COLOURS["data"], COLOURS["model"]]})
    tooltip = [field("split", kind="nominal"), field("nats", unit), field("step"), field("seconds")]
    layer: list[dict[str, Any]] = [
        {
            "params": [ZOOM],
            "mark": {"type": "line", "clip": True, "point": {"size": 14, "clip": True}, "strokeWidth": 1.6},
            "encoding": {"y": y, "color": {**colour, "legend": None}, "tooltip": tooltip},
        }
    ]
    if baseline is not None:
        line = {"type": "rule", "color": COLOURS["baseline"], "strokeDash": DASH, "clip": True}
        layer.append({"mark": line, "encoding": {"y": {"datum": baseline, "type": "quantitative"}, "x": None}})
    spec = {
        "title": title,
        "data": columns(**x),
        "transform": [{"fold": names, "as": ["split", "nats"]}, {"filter": "isValid(datum.nats)"}],
        "encoding": {"x": AGAINST[0][1]["encoding.x"]},
        "layer": layer,
    }
    return Chart(spec, f"training of {title}: {unit} against seconds or steps", groups="curves")


def histogram(nats: Mapping[str, Float64[np.ndarray, " N"]], each: str) -> Chart | None:
    """Return how the nats of single examples are spread, one line per model; None where none is finite."""
    finite = {name: values[np.isfinite(values)] for name, values in nats.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    if not finite:
        return None
    pooled = np.concatenate(list(finite.values()))
    low, high = np.quantile(pooled, 0.005), pooled.max()
    pad = 0.02 * (high - low) or 0.5
    bins = int(min(BINS, max(MIN_BINS, 3 * max(map(len, finite.values())) ** 0.5)))
    edges = np.linspace(low - pad, high + pad, bins + 1)
    rows: dict[str, list[Any]] = {name: [] for name in ("model", "low", "high", "middle", "share")}
    for name, values in finite.items():
        share = np.histogram(values, edges)[0] / len(values)
        rows["model"] += [name] * bins
        rows["low"] += edges[:-1].tolist()
        rows["high"] += edges[1:].tolist()
        rows["middle"] += ((edges[:-1] + edges[1:]) / 2).tolist()
        rows["share"] += share.tolist()
    tooltip = [
        field("model", kind="nominal"),
        field("low", "from, nats", format=".4~g"),
        field("high", "to, nats", format=".4~g"),
        field("share", format=".1%"),
    ]
    several, scale = len(finite) > 1, {"domain": [edges[0], edges[-1]], "nice": False}
    spec = {
        "data": columns(**rows),
        "height": 220,
        "encoding": {
            "x": field("middle", f"nats of one {each}", scale=scale, axis={"tickCount": 8}),
            "y": field("share", f"share of {each}s", axis={"format": "%", "tickCount": 5}, stack=None),
            "color": field(
                "model",
                "",
                "nominal",
                sort=None,
                legend={} if several else None,
                **({} if several else {"scale": {"range": [COLOURS["model"]]}}),
            ),
            "tooltip": tooltip,
        },
        "layer": [
            {
                "mark": {
                    "type": "line" if several else "area",
                    "interpolate": "step",
                    "opacity": 0.9 if several else 0.6,
                }
            },
            {"mark": {"type": "point", "opacity": 0, "size": 120}},  # to hover over
        ],
    }
    return Chart(spec, f"the nats of single {each}s" + (f" of {', '.join(finite)}" if finite else ""))
