"""An inspection as one self-contained HTML page in the style of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loglik import files
from loglik.inspection import figures
from loglik.inspection.cost import Cost
from loglik.inspection.gradients import GradientFlow
from loglik.inspection.measure import Inspection
from loglik.inspection.receptive import ReceptiveField
from loglik.inspection.tables import (
    LEFT,
    bytes_text,
    cost_note,
    cost_table,
    count_table,
    distinct_fields,
    field_size,
    field_table,
    gradient_table,
    number_text,
    symmetry_table,
)
from loglik.report.chart import Chart
from loglik.report.html import CHARTS, CONTROLS, render, scripts
from loglik.report.numbers import count

__all__ = ["write_page"]

MAX_MAPS = 12  # attention layers whose maps are shown


def write_page(path: Path, inspection: Inspection) -> Path:
    """Write an inspection as one HTML file that needs no network; return its path."""
    page = render("inspection", _content(inspection))
    with files.naming(path):
        path.write_text(page, encoding="utf-8")
    return path


def _content(inspection: Inspection) -> dict[str, Any]:
    """Return the values that the template shows."""
    state = "trained" if inspection.trained else "untrained"
    symmetry, maps = symmetry_table(inspection), _short_names(inspection.maps)
    return {
        "title": f"Inside {inspection.model}, {state}",
        "data": inspection.data,
        "examples": inspection.examples,
        "parameters": f"{inspection.parameters:,}",
        "flops": count(round(inspection.flops)),
        "memory": bytes_text(inspection.saved_bytes),
        "counts": count_table(inspection.counts),
        "flow": inspection.flow,
        "gradients": gradient_table(inspection),
        "flow_pictures": _flow_pictures(inspection.flow),
        **_field_content(inspection),
        "symmetry": symmetry if symmetry.rows else None,
        "maps": figures.attention_maps(maps) if maps else None,
        "heads": max(map(len, maps.values()), default=0),
        **(_cost_content(inspection.cost) if inspection.cost else {"cost": None}),
        "left_out": inspection.left_out,
        "left": LEFT,
        "scripts": scripts(*CHARTS, CONTROLS),
    }


def _field_content(inspection: Inspection) -> dict[str, Any]:
    fields = inspection.fields
    if not fields:
        return {"fields": None}
    shown = distinct_fields(fields)
    growing: list[ReceptiveField] = []
    for f in shown:  # along the widest branch
        if f.jump is not None and (not growing or f.size > growing[-1].size):
            growing.append(f)
    image = inspection.data.spec.event_shape[1:]
    return {
        "fields": field_table(shown, (image[0], image[1])),
        "n_fields": len(fields),
        "agreement": inspection.agreement,
        "skipped": len(shown) < len(fields),
        "assumed": ", ".join(sorted({name for f in fields for name in f.assumed})),
        "sizes": figures.field_sizes(growing) if len(growing) > 3 else None,
        "heat": [
            (figures.heat_map(inspection.heat[f.layer], f), f"{f.layer}: {field_size(f)}")
            for f in fields
            if f.layer in inspection.heat
        ],
    }


def _flow_pictures(flow: GradientFlow) -> list[Chart]:
    pictures = []
    if sum(layer.output_norm > 0 for layer in flow.layers) > 2:
        pictures.append(figures.gradient_norms(flow))
    if sum(layer.jacobian is not None for layer in flow.layers) > 2:
        pictures.append(figures.jacobian_values(flow))
    return pictures


def _cost_content(costs: list[Cost]) -> dict[str, Any]:
    return {
        "cost": cost_table(costs),
        "lengths": ", ".join(f"{n:,}" for n in costs[0].lengths),
        "cost_pictures": [figures.cost_curves(costs, memory=memory) for memory in (False, True)],
        "quadratic": _quadratic(costs),
        "memory_note": cost_note(costs),
    }


def _quadratic(costs: list[Cost]) -> str:
    a, b = next(cost.quadratic for cost in costs if cost.quadratic)
    text = f"The fit a·n² + b·n to the time of attention has a = {number_text(a)} s and b = {number_text(b)} s"
    return f"{text}; the quadratic term is the larger one from n = {b / a:,.0f} on." if a > 0 and b > 0 else f"{text}."


def _short_names(maps: dict[str, Float[Tensor, "H T S"]]) -> dict[str, Float[Tensor, "H T S"]]:
    """Return at most `MAX_MAPS` layers, evenly spaced, without the start and end that all names share."""
    chosen = list(maps)[:: max(1, -(-len(maps) // MAX_MAPS))]
    parts = [name.split(".") for name in chosen]
    if len(parts) < 2:
        return {words[-1]: maps[name] for words, name in zip(parts, chosen, strict=True)}
    start = max(0, _n_common(parts) - 1)
    end = min(_n_common([words[::-1] for words in parts]), min(map(len, parts)) - 1)
    short = [".".join(words[start : len(words) - end]) for words in parts]
    return {name: maps[layer] for name, layer in zip(short, chosen, strict=True)}


def _n_common(parts: list[list[str]]) -> int:
    """Return the number of words at the start that all lists share."""
    return next((i for i, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1), 0)
