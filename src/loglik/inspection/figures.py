"""The plots of the inspection's page, each one an SVG in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.inspection.cost import FORMULA, Cost
from loglik.inspection.gradients import GradientFlow
from loglik.inspection.receptive import ReceptiveField
from loglik.report.panel import INK, panel

__all__ = ["attention_maps", "cost_curves", "field_sizes", "gradient_norms", "heat_map", "jacobian_values"]

MAX_POSITIONS = 64  # of an attention map; longer sequences are averaged over neighbours
MAX_IMAGES = 6  # fields are drawn up to this many times the size of the image


def field_sizes(fields: Sequence[ReceptiveField]) -> str:
    """Plot the field over depth, by the formula and clipped by the border, and the side of the image."""

    def draw(axes: Any) -> None:
        depth = range(1, len(fields) + 1)
        side = max(max(last for _, last in f.seen) + 1 if f.seen else 1 for f in fields)
        axes.step(depth, [max(f.size) for f in fields], where="mid", color=INK["model"], linewidth=1.7)
        clipped = [max(b - a + 1 for a, b in f.seen) if f.seen else 0 for f in fields]
        axes.step(depth, clipped, where="mid", color=INK["data"], linewidth=1.5, linestyle=(0, (2, 1.5)))
        axes.axhline(side, color=INK["baseline"], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer")
        axes.set_ylabel("pixels")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return panel(4.2, 2.6, draw)


def heat_map(heat: Float[Tensor, "H W"], field: ReceptiveField) -> str:
    """Plot the effective field of a layer's middle unit, and the field by the formula."""
    height, width = heat.shape
    values = heat.double().numpy()

    def draw(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.patches import Rectangle

        shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", INK["model"], "#12345a"])

        axes.imshow(values / max(values.max(), 1e-30), cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        top, left, tall, wide = _square(field, height, width)
        axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=INK["data"], linewidth=0.8))
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), wide, tall, fill=False, edgecolor=INK["baseline"], linewidth=1.5)
        )
        for limit, low, high, n in (
            (axes.set_xlim, left, left + wide, width),
            (axes.set_ylim, top, top + tall, height),
        ):
            a, b = max(min(low, 0), -MAX_IMAGES * n), min(max(high, n), MAX_IMAGES * n)
            limit((a - 1.0, b) if limit == axes.set_xlim else (b, a - 1.0))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)

    return panel(2.2, 2.2, draw)


def gradient_norms(flow: GradientFlow) -> str:
    """Plot the norms of the gradients of each layer's output and weights over depth, on a logarithmic scale."""

    def draw(axes: Any) -> None:
        depth = np.arange(1, len(flow.layers) + 1)
        outputs = np.array([layer.output_norm for layer in flow.layers])
        weights = np.array([layer.parameter_norm or np.nan for layer in flow.layers])
        for values, color, marker in ((outputs, INK["model"], "o"), (weights, INK["data"], "s")):
            shown = values > 0
            if shown.any():
                axes.plot(depth[shown], values[shown], marker, linestyle="-", color=color, markersize=3, linewidth=1.4)
        _log(axes, [*outputs, *weights])
        axes.set_ylabel("gradient norm")

    return panel(4.2, 2.6, draw)


def jacobian_values(flow: GradientFlow) -> str:
    """Plot the largest, root mean square and smallest singular value of each layer's Jacobian."""

    def draw(axes: Any) -> None:
        known = [(i, layer.jacobian) for i, layer in enumerate(flow.layers, 1) if layer.jacobian is not None]
        plotted = []
        for name, look in (("largest", "-"), ("rms", "-"), ("smallest", ":")):
            points = [(i, getattr(j, name)) for i, j in known if getattr(j, name)]
            if points:
                color = INK["data"] if name == "largest" else INK["model"]
                axes.plot(*zip(*points, strict=True), look, marker="o", color=color, markersize=3, linewidth=1.4)
                plotted += [v for _, v in points]
        axes.axhline(1, color=INK["baseline"], linewidth=1.1, linestyle=(0, (4, 3)))
        _log(axes, plotted)
        axes.set_ylabel("singular values")

    return panel(4.2, 2.6, draw)


def cost_curves(costs: Sequence[Cost], *, memory: bool = False) -> str:
    """Plot time, or the memory saved for the backward pass, against length on logarithmic axes, with the fits."""
    colors = {
        "attention": INK["model"],
        FORMULA: INK["data"],
        "convolution": INK["quiet"],
        "recurrence": INK["baseline"],
    }

    def draw(axes: Any) -> None:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for cost in costs:
            n = np.array(cost.lengths, float)
            values, law = (cost.saved_bytes, cost.saved_law) if memory else (cost.seconds, cost.law)
            unit = 2**20 if memory else 1e-3
            axes.plot(n, np.array(values) / unit, "o", color=colors[cost.kind], markersize=4)
            fit = law.c * n**law.p / unit
            axes.plot(n, fit, color=colors[cost.kind], linewidth=1.3)
            axes.annotate(
                cost.kind,
                (n[-1], fit[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
        axes.set_xticks(n)
        _plain(axes)
        axes.xaxis.set_major_formatter(lambda n, _: f"{int(n):,}")
        axes.set_xlim(n[0] / 1.2, n[-1] * 2.6)
        axes.set_xlabel("length n")
        axes.set_ylabel("MiB saved" if memory else "milliseconds")

    return panel(4.2, 2.6, draw)


def attention_maps(maps: Mapping[str, Float[Tensor, "H T S"]]) -> str:
    """Draw the maps of all heads, one row per layer; the largest weight of each map is darkest."""
    side = min(MAX_POSITIONS, max(max(m.shape[1:]) for m in maps.values()))
    gap = max(1, side // 16)
    rows = []
    for weights in maps.values():
        tall, wide = (min(side, n) for n in weights.shape[1:])
        small = F.adaptive_avg_pool2d(weights.float()[None], (tall, wide))[0]
        small = small / small.amax((1, 2), keepdim=True).clamp_min(1e-30)
        tiles = small.new_full((len(small), side + gap, side + gap), torch.nan)
        tiles[:, :tall, :wide] = small
        rows.append(torch.cat(list(tiles), 1))
    across = max(row.shape[1] for row in rows)
    sheet = torch.cat([F.pad(row, (0, across - row.shape[1]), value=torch.nan) for row in rows]).detach().numpy()

    def draw(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        shades = LinearSegmentedColormap.from_list("shades", ["#eef2f8", INK["model"], "#12345a"])
        axes.imshow(sheet, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        heads = max(len(weights) for weights in maps.values())
        axes.set_xticks([i * (side + gap) + side / 2 for i in range(heads)], [str(i + 1) for i in range(heads)])
        axes.set_yticks([i * (side + gap) + side / 2 for i in range(len(maps))], list(maps))
        axes.set_xlabel("head")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    inches = 0.9
    return panel(1.6 + inches * across / (side + gap), 0.5 + inches * len(maps), draw)


def _square(field: ReceptiveField, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the middle unit's field: by the formula, or as seen if there is none."""
    if field.start is None or field.jump is None or len(field.shape) != 3:
        seen = field.seen or ((0, height - 1), (0, width - 1))
        return seen[0][0], seen[1][0], seen[0][1] - seen[0][0] + 1, seen[1][1] - seen[1][0] + 1
    top, left = (s + j * i for s, j, i in zip(field.start, field.jump, field.unit[1:], strict=True))
    return top, left, field.size[0], field.size[1]


def _log(axes: Any, values: Sequence[float]) -> None:
    """Set a logarithmic vertical axis over at least two decades, and integers as the horizontal one."""
    positive = [v for v in values if v > 0]
    axes.set_yscale("log")
    if positive and max(positive) < 10 * min(positive):  # an axis of less than a decade has no labels
        middle = float(np.sqrt(max(positive) * min(positive)))
        axes.set_ylim(middle / 10, middle * 10)
    axes.set_xlabel("layer, from the input to the loss")
    _plain(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _plain(axes: Any) -> None:
    """Write powers of ten as numbers, because the text of a plot is not rendered as formulas."""
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("e-0", "e-").replace("-", "−"))
