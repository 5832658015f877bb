"""The charts and pictures of the inspection's page, in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from markupsafe import Markup, escape
from torch import Tensor

from loglik.inspection.cost import FORMULA, Cost
from loglik.inspection.gradients import GradientFlow
from loglik.inspection.receptive import ReceptiveField
from loglik.report.chart import COLOURS, ZOOM, Chart, columns, field
from loglik.report.html import png_source

__all__ = ["Heads", "attention_maps", "cost_curves", "field_sizes", "gradient_norms", "heat_map", "jacobian_values"]

MAX_POSITIONS = 64  # of an attention map; longer sequences are averaged over neighbours
MAX_IMAGES = 6  # fields are drawn up to this many times the size of the image
DASH, DOTS = [4, 3], [1, 3]
INK = (30, 136, 210)  # of the largest value; smaller ones are more transparent, so that the page shows through
COST_COLOURS = {
    "attention": COLOURS["model"], FORMULA: COLOURS["data"], "convolution": COLOURS["second"],
    "recurrence": COLOURS["baseline"],
}  # fmt: skip


@dataclass(frozen=True)
class Heads:
    """The attention maps of one layer: the address of a picture for each head."""

    layer: str
    maps: list[str]


def field_sizes(fields: Sequence[ReceptiveField]) -> Chart:
    """Return the field over depth, by the formula and clipped by the border, and the side of the image."""
    side = max(max(last for _, last in f.seen) + 1 if f.seen else 1 for f in fields)
    seen = [max(b - a + 1 for a, b in f.seen) if f.seen else 0 for f in fields]
    kinds = {"field without border": [max(f.size) for f in fields], "seen by the middle unit": seen}
    return Chart(
        _lines(
            [f.layer for f in fields],
            kinds,
            {"range": [COLOURS["model"], COLOURS["data"]]},
            title="pixels",
            scale={"domainMin": 0},
            depth="layer",
            line=side,
        ),
        "receptive field over depth",
        "The dashed line is the side of the image.",
    )


def gradient_norms(flow: GradientFlow) -> Chart:
    """Return the norms of the gradients of each layer's output and weights over depth, on a logarithmic scale."""
    kinds = {
        "of the output": [layer.output_norm for layer in flow.layers],
        "of the weights": [layer.parameter_norm for layer in flow.layers],
    }
    spec = _lines(
        [layer.layer for layer in flow.layers],
        kinds,
        {"range": [COLOURS["model"], COLOURS["data"]]},
        title="gradient norm",
        scale=_log(kinds),
    )
    return Chart(spec, "gradient norms over depth", "Norms of the gradient of the loss.")


def jacobian_values(flow: GradientFlow) -> Chart:
    """Return the largest, root mean square and smallest singular value of each layer's Jacobian."""
    known = [layer.jacobian for layer in flow.layers]
    kinds = {
        "largest": [None if j is None else j.largest for j in known],
        "root mean square": [None if j is None else j.rms for j in known],
        "smallest": [None if j is None else j.smallest for j in known],
    }
    spec = _lines(
        [layer.layer for layer in flow.layers],
        kinds,
        {"range": [COLOURS["data"], COLOURS["model"], COLOURS["second"]]},
        title="singular values",
        scale=_log({**kinds, "one": [1.0]}),
        line=1,
    )
    return Chart(spec, "singular values over depth", "Singular values of each layer's Jacobian; the dashed line is 1.")


def cost_curves(costs: Sequence[Cost], *, memory: bool = False) -> Chart:
    """Return time, or the memory saved for the backward pass, against length on logarithmic axes, with the fits."""
    unit, title = (2**20, "MiB saved") if memory else (1e-3, "milliseconds")
    rows: dict[str, list[Any]] = {name: [] for name in ("kind", "n", "value", "fit")}
    for cost in costs:
        values, law = (cost.saved_bytes, cost.saved_law) if memory else (cost.seconds, cost.law)
        for n, value in zip(cost.lengths, values, strict=True):
            for name, one in zip(rows, (cost.kind, n, value / unit, law.c * n**law.p / unit), strict=True):
                rows[name].append(one)
    ticks = {"values": list(costs[0].lengths), "format": ",d"}
    names = [cost.kind for cost in costs]
    spec = {
        "data": columns(**rows),
        "height": 220,
        "encoding": {
            "x": field("n", "length n", scale={"type": "log", "base": 2, "nice": False, "padding": 8}, axis=ticks),
            "color": field(
                "kind", "", "nominal", scale={"domain": names, "range": [COST_COLOURS[name] for name in names]}
            ),
            "tooltip": [
                field("kind", "", "nominal"),
                field("n", "length"),
                field("value", title, format=".3g"),
                field("fit", "fit", format=".3g"),
            ],
        },
        "layer": [
            {"mark": {"type": "line"}, "encoding": {"y": _log_axis("fit", title, LOG)}},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {"y": _log_axis("value", title, LOG)},
            },
        ],
    }
    return Chart(
        spec,
        f"{'memory' if memory else 'time'} against length",
        f"{title[0].upper()}{title[1:]}: points are measured, lines are the fits.",
    )


def heat_map(heat: Float[Tensor, "H W"], of: ReceptiveField) -> Markup:
    """Return the effective field of a layer's middle unit, and the field by the formula, as an SVG for the page."""
    height, width = heat.shape
    top, left, tall, wide = _square(of, height, width)
    low_y, low_x = max(min(top, 0), -MAX_IMAGES * height), max(min(left, 0), -MAX_IMAGES * width)
    high_y = min(max(top + tall, height), (MAX_IMAGES + 1) * height)
    high_x = min(max(left + wide, width), (MAX_IMAGES + 1) * width)
    around = 0.03 * max(high_x - low_x, high_y - low_y)
    box = (low_x - around, low_y - around, high_x - low_x + 2 * around, high_y - low_y + 2 * around)
    return Markup(
        f'<svg class="field" role="img" aria-label="effective field of {escape(of.layer)}" '
        f'viewBox="{" ".join(f"{value:.2f}" for value in box)}">'
        f'<image href="{png_source(_shades(heat))}" width="{width}" height="{height}"/>'
        f'<rect class="edge" width="{width}" height="{height}"/>'
        f'<rect class="formula" x="{left}" y="{top}" width="{wide}" height="{tall}"/></svg>'
    )


def attention_maps(maps: Mapping[str, Float[Tensor, "H T S"]]) -> list[Heads]:
    """Return the maps of all heads, layer by layer, as opaque as the square root of the weights."""
    side = min(MAX_POSITIONS, max(max(m.shape[1:]) for m in maps.values()))
    shown = []
    for layer, weights in maps.items():
        tall, wide = (min(side, n) for n in weights.shape[1:])
        small = F.adaptive_avg_pool2d(weights.detach().float()[None], (tall, wide))[0]
        shown.append(Heads(layer, [png_source(_shades(one.sqrt())) for one in small]))
    return shown


def _shades(values: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W 4"]:
    """Return pixels of one colour, as opaque as the values are large."""
    values = values.detach().double()
    opaque = (255 * values / values.max().clamp_min(1e-30)).round().byte().numpy()
    return np.concatenate([np.full((*opaque.shape, 3), INK, dtype=np.uint8), opaque[..., None]], 2)


def _lines(
    layers: Sequence[str],
    kinds: Mapping[str, Sequence[float | None]],
    colours: Mapping[str, Any],
    *,
    title: str,
    scale: Mapping[str, Any],
    depth: str = "layer, from the input to the loss",
    line: float | None = None,
) -> dict[str, Any]:
    """Return lines over the layers, one for each kind; a horizontal one is dashed. Zero has no logarithm: no point."""
    rows: dict[str, list[Any]] = {name: [] for name in ("layer", "depth", "kind", "value")}
    for kind, values in kinds.items():
        for i, (own, value) in enumerate(zip(layers, values, strict=True), 1):
            if value:
                for name, one in zip(rows, (own, i, kind, value), strict=True):
                    rows[name].append(one)
    names = list(kinds)
    layer: list[dict[str, Any]] = [
        {
            "params": [ZOOM] if scale.get("type") != "log" else [],
            "mark": {"type": "line", "point": {"size": 40}, "strokeWidth": 1.7, "clip": True},
            "encoding": {
                "y": _log_axis("value", title, scale),
                "color": field("kind", "", "nominal", scale={"domain": names, **colours}),
                "strokeDash": field(
                    "kind", "", "nominal", scale={"domain": names, "range": [[1, 0], [1, 0], DOTS][: len(names)]}
                ),
                "tooltip": [field("layer", kind="nominal"), field("kind", "", "nominal"), field("value", title)],
            },
        }
    ]
    if line is not None:
        rule = {"type": "rule", "color": COLOURS["baseline"], "strokeDash": DASH}
        layer.append({"mark": rule, "encoding": {"x": None, "y": {"datum": line, "type": "quantitative"}}})
    axis = {"tickMinStep": 1, "format": "d"}
    across = field("depth", depth, scale={"domain": [0.5, len(layers) + 0.5], "nice": False}, axis=axis)
    return {"data": columns(**rows), "height": 220, "encoding": {"x": across}, "layer": layer}


LOG = {"type": "log", "nice": False}
POWERS = "datum.value >= 1e-3 && datum.value < 1e4 ? format(datum.value, '~g') : format(datum.value, '.0e')"


def _log_axis(name: str, title: str, scale: Mapping[str, Any]) -> dict[str, Any]:
    axis = {"tickCount": 5} | ({"labelExpr": POWERS} if scale.get("type") == "log" else {})
    return field(name, title, scale=dict(scale), axis=axis)


def _log(kinds: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Return a logarithmic scale over the values, of at least two decades."""
    positive = [value for values in kinds.values() for value in values if value]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    widen = max(1.2, 10 / (high / low) ** 0.5)
    return {**LOG, "domain": [low / widen, high * widen]}


def _square(field: ReceptiveField, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the middle unit's field: by the formula, or as seen if there is none."""
    if field.start is None or field.jump is None or len(field.shape) != 3:
        seen = field.seen or ((0, height - 1), (0, width - 1))
        return seen[0][0], seen[1][0], seen[0][1] - seen[0][0] + 1, seen[1][1] - seen[1][0] + 1
    top, left = (s + j * i for s, j, i in zip(field.start, field.jump, field.unit[1:], strict=True))
    return top, left, field.size[0], field.size[1]
