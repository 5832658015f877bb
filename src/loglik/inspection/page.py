"""The inspection as one self-contained HTML page in the look of the report, and as tables in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from loglik.inspection import figures
from loglik.inspection.cost import FORMULA, Cost
from loglik.inspection.counts import LayerCount
from loglik.inspection.measure import Inspection
from loglik.inspection.receptive import ReceptiveField
from loglik.networks.attention import MAX_KEYS_UNFUSED
from loglik.report.figures import INK
from loglik.report.numbers import count
from loglik.report.page import Picture, address, render

__all__ = ["print_inspection", "write_page"]

MAPS = 12  # layers of attention whose maps are shown
ORDER = 1e-3  # an error far above rounding
PATH = (
    "The layers are those that all of the signal goes through from the data to the loss or, where these are fewer than "
    "three or leave out weights, all with weights, in the order in which they run."
)


def write_page(path: Path, found: Inspection) -> Path:
    """Write an inspection as one HTML file that needs no network, and give its path back."""
    path.write_text(render("inspection", _content(found)), encoding="utf-8")
    return path


def print_inspection(found: Inspection) -> None:
    """The same tables in the terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has room for the names
    console.print(_headline(found), highlight=False)
    columns, rows = _counts(found)
    _print(console, "Parameters and operations", [name for name, _ in columns], rows)
    if found.fields:
        names = ["layer", "kind", "output", "field", "stride", "starts at", "middle unit sees", "share"]
        _print(console, "Receptive fields", names, [_field_row(f, found) for f in _listed(found.fields)])
    names = ["layer", "kind", "output gradient", "weight gradient", "σ largest", "σ rms", "σ smallest"]
    _print(console, "Gradient flow", names, _gradients(found))
    console.print(f"{found.flow.verdict}: {found.flow.reason}", highlight=False)
    if symmetry := _symmetry(found):
        _print(console, "Equivariance", ["what", "error", "how"], symmetry)
    if found.cost:
        names = ["layer", "p of time", "R²", "p of FLOPs", "p of memory", *_longest(found.cost)]
        _print(console, "Cost in length", names, _cost(found.cost))
        console.print(_holds(found.cost), highlight=False)
    for line in found.left_out:
        console.print(line, style="dim", highlight=False)


def _print(console: Any, title: str, names: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("layer", "kind", "what", "how") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _content(found: Inspection) -> dict[str, Any]:
    """All that the template shows."""
    columns, counts = _counts(found)
    listed = _listed(found.fields or [])
    deep: list[ReceptiveField] = []
    for f in listed:  # along the widest branch
        if f.jump is not None and (not deep or f.size > deep[-1].size):
            deep.append(f)
    flow = found.flow
    state = "trained" if found.trained else "untrained"
    flow_pictures = []
    if sum(layer.output_norm > 0 for layer in flow.layers) > 2:
        note = "Gradient of the loss at each layer's output (blue) and of its weights (grey)."
        flow_pictures.append(Picture(address(figures.gradient_norms(flow)), "gradient norms over depth", note))
    if sum(layer.jacobian is not None for layer in flow.layers) > 2:
        note = "Singular values of each layer's Jacobian: largest (grey), root mean square (blue), smallest (dotted)."
        flow_pictures.append(Picture(address(figures.jacobian_values(flow)), "singular values over depth", note))
    heat = [
        Picture(
            address(figures.heat_map(found.heat[f.layer], f)),
            f"effective field of {f.layer}",
            _caption(f),
        )
        for f in found.fields or []
        if f.layer in found.heat
    ]
    return {
        "title": f"Inside {found.model}, {state}",
        "data": found.data,
        "parameters": f"{found.parameters:,}",
        "flops": count(round(found.flops)),
        "memory": _memory(found.held),
        "flow": flow,
        "fields": [_field_row(f, found) for f in listed],
        "n_fields": len(found.fields or []),
        "agreement": found.agreement,
        "skipped": len(listed) < len(found.fields or []),
        "assumed": ", ".join(sorted({name for f in found.fields or [] for name in f.assumed})),
        "sizes": Picture(address(figures.field_sizes(deep)), "field over depth") if len(deep) > 3 else None,
        "heat": heat,
        "count_columns": columns,
        "counts": counts,
        "dense": len(columns) > 6,
        "gradients": _gradients(found),
        "path": PATH if flow.layers else "",
        "flow_pictures": flow_pictures,
        "examples": found.examples,
        "symmetry": _symmetry(found),
        "maps": Picture(address(figures.attention_maps(_short(found.maps))), "attention maps, heads by layers")
        if found.maps
        else None,
        **(_lengths(found.cost) if found.cost else {"cost": None}),
        "left_out": found.left_out,
        "ink": INK,
    }


def _short(maps: dict[str, Any]) -> dict[str, Any]:
    """The layers' names without what all have in common; at most MAPS layers, evenly spaced."""
    chosen = list(maps)[:: max(1, -(-len(maps) // MAPS))]
    parts = [name.split(".") for name in chosen]
    if len(parts) == 1:
        return {parts[0][-1]: maps[chosen[0]]}
    head = next((i for i, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1), 0)
    return {".".join(words[max(0, head - 1) :]): maps[name] for words, name in zip(parts, chosen, strict=True)}


def _headline(found: Inspection) -> str:
    state = "trained" if found.trained else "untrained"
    return (
        f"{found.model}, {state}, on {found.data.name}: {found.parameters:,} parameters; per example "
        f"{count(round(found.flops))} FLOPs forward and {_memory(found.held)} held for the backward pass"
    )


def _counts(found: Inspection) -> tuple[list[tuple[str, bool]], list[list[str]]]:
    rows = [row for row in found.counts if row.parameters or row.flops]
    dense = any(row.dense_parameters for row in rows)
    columns = [("layer", True), ("kind", True), ("output", False), ("parameters", False)]
    columns += [("dense", False), ("dense / this", False)] if dense else []
    columns += [("FLOPs", False), ("memory", False)]

    def cells(row: LayerCount) -> list[str]:
        cells = [row.layer, row.kind, _shape(row.output), f"{row.parameters:,}" if row.parameters else "–"]
        if dense:
            ratio = (row.dense_parameters or 0) / max(row.parameters, 1)
            cells += [count(row.dense_parameters), f"{ratio:,.0f}×"] if row.dense_parameters else ["–", "–"]
        return [
            *cells,
            count(round(row.flops)) if row.flops else "–",
            _memory(row.activation_bytes) if row.activation_bytes else "–",
        ]

    return columns, [cells(row) for row in rows]


def _listed(fields: list[ReceptiveField]) -> list[ReceptiveField]:
    """The first layer of each field: the layers that change it."""
    return [f for i, f in enumerate(fields) if i == 0 or (f.size, f.jump, f.seen) != _key(fields[i - 1])]


def _key(f: ReceptiveField) -> tuple[Any, ...]:
    return f.size, f.jump, f.seen


def _field_row(f: ReceptiveField, found: Inspection) -> list[str]:
    height, width = found.data.spec.event_shape[1:]
    seen = [last - first + 1 for first, last in f.seen] if f.seen else [0, 0]
    return [
        f.layer,
        f.kind,
        _shape(f.shape),
        "whole image" if f.whole and f.jump is None else _by(f.size),
        "–" if f.jump is None else _by(f.jump),
        "–" if f.start is None else ", ".join(str(s).replace("-", "−") for s in dict.fromkeys(f.start)),
        _by(seen),
        f"{100 * seen[0] * seen[1] / (height * width):.0f} %",
    ]


def _caption(f: ReceptiveField) -> str:
    return f"{f.layer}: " + ("whole image" if f.whole and f.jump is None else _by(f.size))


def _gradients(found: Inspection) -> list[list[str]]:
    rows = []
    for layer in found.flow.layers:
        j = layer.jacobian
        about = "≈ " if j is not None and j.smallest is None else ""
        values = [f"{about}{_number(j.largest)}", f"{about}{_number(j.rms)}", _number(j.smallest)] if j else ["–"] * 3
        rows.append([layer.layer, layer.kind, _number(layer.output_norm), _number(layer.parameter_norm), *values])
    return rows


def _symmetry(found: Inspection) -> list[list[str]]:
    rows = []
    if found.translation is not None:
        t = found.translation
        how = f"{t.layer}: images of {_by(t.side)} moved by {_by(t.shift)}, its stride, against maps moved by one unit"
        if t.inside is not None:
            rows.append(["translation, away from the border", _number(t.inside), how])
        rows.append(
            [
                "translation, border and all",
                _number(t.everywhere),
                "the same; the padding does not move" if t.inside is not None else how,
            ]
        )
    for what, error in found.invariance.items():
        rows.append(
            [f"{what}, images moved by 1 pixel", _number(error), "change of the output against its spread over images"]
        )
    for p in found.permutations:
        how = f"{p.layer}, its sequence shuffled"
        if p.without > ORDER:
            how += "; a mask or a convolution orders it too"
        placed = p.with_positions is not None
        what = "without its positions" if placed else "no positions are added to it"
        rows.append([f"permutation, {what}", _number(p.without), how])
        if placed:
            rows.append(["permutation, with its positions", _number(p.with_positions), how])
    return rows


def _lengths(costs: list[Cost]) -> dict[str, Any]:
    return {
        "cost": _cost(costs),
        "longest": _longest(costs),
        "lengths": ", ".join(f"{n:,}" for n in costs[0].lengths),
        "cost_pictures": [
            Picture(address(figures.cost_curves(costs, memory=memory)), f"{what} against length")
            for memory, what in ((False, "time"), (True, "memory"))
        ],
        "quadratic": _quadratic(costs),
        "holds": _holds(costs),
    }


def _cost(costs: list[Cost]) -> list[list[str]]:
    return [
        [
            c.kind,
            f"{c.law.p:.2f}",
            f"{c.law.r2:.3f}",
            f"{c.flops_law.p:.2f}",
            f"{c.held_law.p:.2f}",
            f"{1e3 * c.seconds[-1]:.2f} ms",
            _memory(c.held[-1]),
        ]
        for c in costs
    ]


def _longest(costs: list[Cost]) -> list[str]:
    n = f"{costs[0].lengths[-1]:,}"
    return [f"time at {n}", f"memory at {n}"]


def _holds(costs: list[Cost]) -> str:
    """What attention holds for the backward pass, as it ran and by its formula."""
    ran, formula = (next(c for c in costs if c.kind == kind) for kind in ("attention", FORMULA))
    n = ran.lengths[-1]
    matrix = 4 * n**2
    whole = "holds this matrix too" if ran.held[-1] >= matrix else "holds no n×n matrix"
    return (
        f"By its formula, {FORMULA}, attention holds a matrix of n² weights: {_memory(matrix)} of its "
        f"{_memory(formula.held[-1])} at n = {n:,}, per head and example. The attention that the networks run, by "
        f"torch's fused kernel, {whole}: {_memory(ran.held[-1])}. In bfloat16 on a CPU the networks use the formula "
        f"up to {MAX_KEYS_UNFUSED} keys."
    )


def _quadratic(costs: list[Cost]) -> str:
    a, b = next(cost.quadratic for cost in costs if cost.quadratic)
    text = f"Attention's times as a·n² + b·n: a = {_number(a)} s, b = {_number(b)} s"
    return f"{text}; the square outweighs the rest from n = {b / a:,.0f} on." if a > 0 and b > 0 else f"{text}."


def _by(values: Any) -> str:
    return "×".join(map(str, values))


def _shape(values: tuple[int, ...] | None) -> str:
    return _by(values) if values else "–"


def _number(value: float | None) -> str:
    """Three digits; powers of ten where they are needed.

    >>> _number(0.01234), _number(1.2e-7), _number(None)
    ('0.0123', '1.2e−7', '–')
    """
    if value is None:
        return "–"
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _memory(size: float | None) -> str:
    if size is None:
        return "an unknown number of bytes"
    for least, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size:.0f} B"
