"""Charts of samples beside data: marginals, pairs of columns, correlations, and latent dimensions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from loglik.data.spec import Column
from loglik.report.chart import COLOURS, ZOOM, Chart, columns, field, short

__all__ = ["MODEL", "axis_of", "correlations", "first_pair", "latent_bars", "latent_map", "marginal", "pairs"]

MODEL = "datum.s == 'data' || datum.s == model"  # the rows that a chart shows: those of the data and of one model
PAIR = {"domain": ["data", "samples"], "range": [COLOURS["data"], COLOURS["model"]]}
CATEGORIES = 8  # of a marginal
JITTER = 0.3  # of a category in a scatter plot


def _param(model: str) -> dict[str, Any]:
    return {"name": "model", "value": model}


def marginal(column: Column, data: Float[np.ndarray, " N"], samples: Mapping[str, Float[np.ndarray, " M"]]) -> Chart:
    """Return the distribution of a column: data filled, samples of one model outlined; bars if it is categorical."""
    parts = {"data": data, **samples}
    parts = {name: values[np.isfinite(values)] for name, values in parts.items()}
    spec = (_category_bars if column.categories else _histogram)(column, parts)
    more = {"title": short(column.name, 24), "height": 110, "params": [_param(next(iter(samples)))]}
    return Chart({**spec, **more}, f"{column.name}: data and samples", groups="samples")


def _histogram(column: Column, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if not len(parts["data"]):
        return {"data": {"values": []}, "mark": "bar"}
    integer = column.type == "integer"
    edges = _edges(parts["data"], integer=integer)
    rows: dict[str, list[Any]] = {name: [] for name in ("s", "low", "high", "middle", "share")}
    for name, values in parts.items():
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        rows["s"] += [name] * len(share)
        rows["low"] += edges[:-1].tolist()
        rows["high"] += edges[1:].tolist()
        rows["middle"] += ((edges[1:] + edges[:-1]) / 2).tolist()
        rows["share"] += share.tolist()
    tooltip = [field("s", "rows of", "nominal"), field("low", "from"), field("high", "to"), _SHARE]
    scale = {"domain": [edges[0], edges[-1]], "nice": False}
    y = field("share", "", axis=None)
    axis = {"tickCount": 4, "grid": False} | _plain(edges, integer=integer)
    lines = {"type": "line", "interpolate": "step", "color": COLOURS["model"], "strokeWidth": 1.8}
    x = field("middle", "", scale=scale, axis=axis)
    return {
        "data": columns(**rows),
        "transform": [{"filter": MODEL}],
        "encoding": {"tooltip": tooltip, "y": y},
        "layer": [
            {
                "transform": [{"filter": "datum.s == 'data'"}],
                "mark": {"type": "bar", "color": COLOURS["data"], "opacity": 0.6, "binSpacing": 0},
                "encoding": {"x": field("low", "", bin="binned", scale=scale, axis=axis), "x2": {"field": "high"}},
            },
            {"transform": [{"filter": "datum.s != 'data'"}], "mark": lines, "encoding": {"x": x}},
            {
                "transform": [{"filter": "datum.s != 'data'"}],
                "mark": {"type": "point", "opacity": 0, "size": 60},
                "encoding": {"x": x},
            },
        ],
    }


def _plain(values: Float[np.ndarray, " N"], *, integer: bool) -> dict[str, str]:
    """Return the format of an axis of small integers, such as years, which have no separator of thousands."""
    return {"format": "~r"} if integer and np.abs(values).max(initial=0) < 10_000 else {}


_SHARE = field("share", format=".1%")


def _category_bars(column: Column, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the shares of the commonest categories, data beside samples."""
    k = len(column.categories)
    shares = {
        name: np.bincount(codes.round().clip(0, k - 1).astype(int), minlength=k) / max(len(codes), 1)
        for name, codes in parts.items()
    }
    kept = np.sort(np.argsort(-shares["data"], kind="stable")[:CATEGORIES])
    names = [short(column.categories[i], 14) for i in kept]
    rows = columns(
        s=[name for name in shares for _ in kept],
        at=[i for _ in shares for i in range(len(kept))],
        share=[share for values in shares.values() for share in values[kept]],
        name=[name for _ in shares for name in names],
    )
    axis = {
        "labelExpr": f"{json.dumps(names)}[datum.value]",
        "labelAngle": -45 if sum(map(len, names)) > 16 else 0,
        "labelOverlap": False,
        "ticks": False,
    }
    title = f"the {len(kept)} most common of {k:,}" if k > len(kept) else ""
    return {
        "data": rows,
        "transform": [{"filter": MODEL}, {"calculate": "datum.s == 'data' ? 'data' : 'samples'", "as": "of"}],
        "mark": "bar",
        "encoding": {
            "x": field("at", title, "nominal", axis=axis),
            "xOffset": {"field": "of", "type": "nominal"},
            "y": field("share", "", axis=None),
            "color": field("of", "", "nominal", scale=PAIR, legend=None),
            "tooltip": [field("s", "rows of", "nominal"), field("name", "category", "nominal"), _SHARE],
        },
    }


def axis_of(d: int, column: Column, values: Float[np.ndarray, " N"]) -> dict[str, Any]:
    """Return the encoding of a column of `pairs` with some values: the names of categories stand at their codes."""
    title, names = short(column.name, 40), [short(name, 14) for name in column.categories]
    if not names:
        axis: dict[str, Any] = {"tickCount": 6} | _plain(np.nan_to_num(values), integer=column.type == "integer")
        return field(f"c{d}", title, scale={"zero": False, "nice": False, "padding": 6}, axis=axis)
    # at most 12 labels
    step = math.ceil(len(names) / 12)
    axis = {"values": list(range(0, len(names), step)), "labelExpr": f"{json.dumps(names)}[datum.value]"}
    return field(f"c{d}", title, scale={"domain": [-0.6, len(names) - 0.4], "nice": False}, axis=axis)


def first_pair(shown: Sequence[Column]) -> tuple[int, int]:
    """Return the columns that `pairs` shows at first: two numbers if there are."""
    order = sorted(range(len(shown)), key=lambda d: bool(shown[d].categories))
    return order[0], order[min(1, len(order) - 1)]


def pairs(
    shown: Sequence[Column],
    data: Float[np.ndarray, "N D"],
    samples: Mapping[str, Float[np.ndarray, "M D"]],
    *,
    classes: Mapping[str, Sequence[str]],
    seed: int,
) -> Chart:
    """Return rows of the data and of one model by two columns, which two controls choose.

    Args:
        shown: the columns.
        data: rows.
        samples: of each model.
        classes: of the rows of `data` and of the models that are given them; a control chooses one.
        seed: of the noise that parts rows of the same category.
    """
    noise = np.random.default_rng(seed)
    parts = {**samples, "data": data}  # data are drawn last, on top
    fields: dict[str, Any] = {"s": [name for name, rows in parts.items() for _ in rows]}
    together = np.concatenate([rows[:, : len(shown)] for rows in parts.values()])
    for d, column in enumerate(shown):
        values = together[:, d]
        if column.categories:
            values = values + noise.uniform(-JITTER, JITTER, len(values))
        elif column.decimals is not None:
            values = values.round(column.decimals)
        fields[f"c{d}"] = [float(f"{value:.4g}") for value in values]
    first, second = first_pair(shown)
    tooltip = [field("s", "row of", "nominal")]
    if classes:
        fields["k"] = [k for name, rows in parts.items() for k in classes.get(name, [None] * len(rows))]
        tooltip.append(field("k", "class", "nominal"))
    spec = {
        "data": columns(**fields),
        "height": 380,
        "params": [_param(next(iter(samples))), {"name": "only", "value": None}],
        "transform": [
            {"filter": MODEL},
            {"filter": "only === null || datum.k === null || datum.k === only"},
            {"calculate": "datum.s == 'data' ? 'data' : 'samples'", "as": "of"},
        ],
        "encoding": {
            "x": axis_of(first, shown[first], data[:, first]),
            "y": axis_of(second, shown[second], data[:, second]),
            "color": field("of", "", "nominal", scale=PAIR),
            "shape": field("of", "", "nominal", scale={"domain": PAIR["domain"], "range": ["circle", "cross"]}),
            "tooltip": tooltip,
        },
        "layer": [
            {"params": [ZOOM], "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.6, "clip": True}}
        ],
    }
    return Chart(spec, "two columns: rows of the data and samples", groups="samples pairs")


def correlations(
    shown: Sequence[Column], data: Float[np.ndarray, "N D"], samples: Mapping[str, Float[np.ndarray, "M D"]]
) -> Chart | None:
    """Return rank correlations, the data's above the diagonal and one model's below it; None for under two numbers."""
    kept = [d for d, column in enumerate(shown) if len(column.categories) <= 2 and _varies(data[:, d])]
    if len(kept) < 2:
        return None
    names = [short(shown[d].name, 16) for d in kept]
    real = _rank_correlation(data[:, kept])
    rows: dict[str, list[Any]] = {name: [] for name in ("s", "i", "j", "first", "second", "r", "data", "samples")}
    for model, x in samples.items():
        drawn = _rank_correlation(x[:, kept])
        for i in range(len(kept)):
            for j in range(len(kept)):
                if i != j:
                    row = (model, i, j, names[i], names[j], (real if i < j else drawn)[i, j], real[i, j], drawn[i, j])
                    for values, value in zip(rows.values(), row, strict=True):
                        values.append(value)
    axis = {"labelExpr": f"{json.dumps(names)}[datum.value]", "ticks": False, "domain": False, "labelLimit": 110}
    colour = {"domain": [-1, 0, 1], "range": [COLOURS["baseline"], COLOURS["paper"], COLOURS["model"]]}
    colour["interpolate"] = "rgb"
    crowded = len(kept) > 6
    layer: list[dict[str, Any]] = [
        {"mark": {"type": "rect"}, "encoding": {"color": field("r", "correlation", scale=colour)}}
    ]
    if len(kept) <= 10:
        layer.append({"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": field("r", format=".2f")}})
    spec = {
        "data": columns(**rows),
        "height": max(160, min(420, 34 * len(kept))),
        "params": [_param(next(iter(samples)))],
        "transform": [{"filter": "datum.s == model"}],
        "encoding": {
            "x": field("j", "", "ordinal", axis={**axis, "labelAngle": -90 if crowded else -40, "labelOverlap": False}),
            "y": field("i", "", "ordinal", axis=axis),
            "tooltip": [
                field("first", "", "nominal"),
                field("second", "and", "nominal"),
                field("data", "correlation in the data", format=".2f"),
                field("samples", "in the samples", format=".2f"),
            ],
        },
        "layer": layer,
    }
    return Chart(spec, "rank correlations of the columns, of the data and of the samples", groups="samples")


def _varies(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 2 and bool(finite.min() < finite.max())


def _rank_correlation(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "D D"]:
    """Return Spearman's correlations of the rows without missing values; NaN where a column is constant."""
    x = x[np.isfinite(x).all(1)]
    if len(x) < 3:
        return np.full((x.shape[1], x.shape[1]), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef([pl.Series(column).rank("average").to_numpy() for column in x.T])


def latent_bars(kl: Float[np.ndarray, " L"], active: Bool[np.ndarray, " L"], model: str, limit: int = 64) -> Chart:
    """Return the KL of each latent dimension in nats, at most `limit`, largest first; inactive ones are grey."""
    order = np.argsort(-kl)[:limit]
    rest = f" of {len(kl):,}" if len(kl) > len(order) else ""
    colour = {"condition": {"test": "datum.active", "value": COLOURS["model"]}, "value": COLOURS["data"]}
    spec = {
        "data": columns(
            rank=np.arange(1, len(order) + 1),
            name=[f"z{d + 1}" for d in order],
            kl=kl[order],
            active=[bool(active[d]) for d in order],
        ),
        "mark": "bar",
        "encoding": {
            "x": field(
                "rank", f"{len(order)}{rest} latent dimensions", "ordinal", axis={"labels": False, "ticks": False}
            ),
            "y": field("kl", "KL, nats", axis={"tickCount": 4}),
            "color": colour,
            "tooltip": [
                field("name", "dimension", "nominal"),
                field("kl", "KL, nats"),
                field("active", kind="nominal"),
            ],
        },
    }
    caption = "KL of each latent dimension, largest first"
    return Chart(spec, f"{model}: {caption}", caption)


def latent_map(
    prior: Float[np.ndarray, "M 2"],
    z: Float[np.ndarray, "N 2"],
    names: tuple[str, str],
    model: str,
    *,
    classes: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
) -> Chart:
    """Return latents of examples over samples of the prior, in two dimensions.

    Args:
        prior: samples of the prior.
        z: the latents of the examples.
        names: of the two dimensions.
        model: the model's name.
        classes: the class of each example, which colours it.
        images: the picture of each example as an address, shown on hover.
    """
    x = field("x", names[0], scale={"zero": False}, axis={"tickCount": 5})
    y = field("y", names[1], scale={"zero": False}, axis={"tickCount": 5})
    known = {"x": z[:, 0], "y": z[:, 1], "example": np.arange(len(z))}
    tooltip = []
    colour: dict[str, Any] = {"value": COLOURS["model"]}
    if classes is not None:
        known["class"] = np.array(classes, dtype=object)
        tooltip.append(field("class", kind="nominal"))
        if len(set(classes)) <= 20:
            fit = {"expr": f"max(1, min(10, floor(width / {7 * max(map(len, classes)) + 24})))"}
            scheme = {"scheme": "tableau20"} if len(set(classes)) > 8 else {}
            colour = field("class", "", "nominal", scale=scheme, legend={"columns": fit})
    if images is not None:
        known["image"] = np.array(images, dtype=object)
        tooltip.append(field("image", kind="nominal"))
    tooltip += [field("x", names[0], format=".2f"), field("y", names[1], format=".2f")]
    picked = "datum.example === picked"
    marked = {
        "size": {"condition": {"test": picked, "value": 240}, "value": 34},
        "stroke": {"condition": {"test": picked, "value": COLOURS["text"]}, "value": None},
    }
    spec = {
        "height": 320,
        "params": [{"name": "picked", "value": -1}],
        "usermeta": {"picker": names},
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "data": columns(x=prior[:, 0], y=prior[:, 1]),
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 14,
                    "color": COLOURS["data"],
                    "opacity": 0.5,
                    "clip": True,
                },
            },
            {
                "data": columns(**known),
                "params": [ZOOM],
                "mark": {"type": "point", "filled": True, "opacity": 0.85, "strokeWidth": 2.5, "clip": True},
                "encoding": {"color": colour, **marked, "tooltip": tooltip},
            },
        ],
    }
    caption = (
        "Latents of the data (coloured) and samples of the prior (grey), in the two dimensions with the largest KL."
    )
    if images is not None:
        caption += " Hover over a point, or move the slider, to see an image."
    return Chart(spec, f"{model}: {caption}", caption)


def _edges(data: Float[np.ndarray, " N"], *, integer: bool) -> np.ndarray:
    """Return the edges of equal bins over the central 99 % of the data; for integers, around integers."""
    low, high = np.quantile(data, [0.005, 0.995])
    bins = int(min(30, max(6, 2 * len(data) ** 0.5)))
    if not integer:
        pad = 0.06 * (high - low) or 0.5
        return np.linspace(low - pad, high + pad, bins + 1)
    step = max(1, math.ceil((high - low + 1) / bins))
    return np.arange(math.floor(low) - 0.5, high + step + 0.5, step)
