"""The tables of an inspection, with every cell as text; the page and the terminal show the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loglik.inspection.cost import FORMULA, Cost
from loglik.inspection.counts import LayerCount
from loglik.inspection.equivariance import Translation
from loglik.inspection.measure import Inspection
from loglik.inspection.receptive import ReceptiveField
from loglik.networks.attention import MAX_KEYS_UNFUSED
from loglik.report.numbers import count

__all__ = [
    "LEFT", "Table", "bytes_text", "cost_note", "cost_table", "count_table", "distinct_fields", "field_size",
    "field_table", "gradient_table", "number_text", "symmetry_table",
]  # fmt: skip

LEFT = ("layer", "kind", "what", "how")  # columns that are aligned at the left
MAX_ROUNDING = 1e-3  # a larger relative error is not due to rounding


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def count_table(counts: Iterable[LayerCount]) -> Table:
    """Return parameters, FLOPs and memory of each layer, and those of a dense layer if there are convolutions."""
    shown = [row for row in counts if row.parameters or row.flops]
    dense = any(row.dense_parameters for row in shown)
    columns = [
        "layer",
        "kind",
        "output",
        "parameters",
        *(["dense", "dense / this"] if dense else []),
        "FLOPs",
        "memory",
    ]
    rows = []
    for row in shown:
        cells = [row.layer, row.kind, _shape(row.output), f"{row.parameters:,}" if row.parameters else "–"]
        if dense:
            ratio = (row.dense_parameters or 0) / max(row.parameters, 1)
            cells += [count(row.dense_parameters), f"{ratio:,.0f}×"] if row.dense_parameters else ["–", "–"]
        cells.append(count(round(row.flops)) if row.flops else "–")
        cells.append(bytes_text(row.activation_bytes) if row.activation_bytes else "–")
        rows.append(cells)
    return Table("Parameters and operations", columns, rows)


def distinct_fields(fields: list[ReceptiveField]) -> list[ReceptiveField]:
    """Return the layers whose field differs from that of the layer before."""

    def key(f: ReceptiveField) -> tuple[Any, ...]:
        return f.size, f.jump, f.seen

    return [f for i, f in enumerate(fields) if i == 0 or key(f) != key(fields[i - 1])]


def field_table(fields: list[ReceptiveField], image: tuple[int, int]) -> Table:
    """Return the receptive field of each layer, for images of a height and width."""
    columns = ["layer", "kind", "output", "field", "stride", "starts at", "middle unit sees", "share of image"]
    rows = []
    for f in fields:
        seen = [last - first + 1 for first, last in f.seen] if f.seen else [0, 0]
        starts = "–" if f.start is None else ", ".join(str(s).replace("-", "−") for s in dict.fromkeys(f.start))
        share = f"{100 * seen[0] * seen[1] / (image[0] * image[1]):.0f} %"
        stride = "–" if f.jump is None else _times(f.jump)
        rows.append([f.layer, f.kind, _shape(f.shape), field_size(f), stride, starts, _times(seen), share])
    return Table("Receptive fields", columns, rows)


def field_size(f: ReceptiveField) -> str:
    """Return the size of a field, such as 3×3."""
    return "whole image" if f.whole and f.jump is None else _times(f.size)


def gradient_table(inspection: Inspection) -> Table:
    """Return the gradient norms and singular values of each layer."""
    columns = ["layer", "kind", "output gradient", "weight gradient", "σ largest", "σ rms", "σ smallest"]
    rows = []
    for layer in inspection.flow.layers:
        j = layer.jacobian
        about = "≈ " if j is not None and j.smallest is None else ""
        values = ["–"] * 3
        if j is not None:
            values = [f"{about}{number_text(j.largest)}", f"{about}{number_text(j.rms)}", number_text(j.smallest)]
        norms = [number_text(layer.output_norm), number_text(layer.parameter_norm)]
        rows.append([layer.layer, layer.kind, *norms, *values])
    return Table("Gradient flow", columns, rows)


def symmetry_table(inspection: Inspection) -> Table:
    """Return the relative errors of translations and permutations."""
    rows = [] if inspection.translation is None else _translation_rows(inspection.translation)
    for what, error in inspection.invariance.items():
        how = "change of the output, relative to its spread over images"
        rows.append([f"{what}, images moved by 1 pixel", number_text(error), how])
    for p in inspection.permutations:
        how = f"{p.layer}, with its sequence permuted"
        if p.without > MAX_ROUNDING:
            how += "; a mask or a convolution also depends on the order"
        placed = p.with_positions is not None
        what = "without positions" if placed else "no positions are added"
        rows.append([f"permutation, {what}", number_text(p.without), how])
        if placed:
            rows.append(["permutation, with positions", number_text(p.with_positions), how])
    return Table("Equivariance", ["what", "error", "how"], rows)


def _translation_rows(t: Translation) -> list[list[str]]:
    how = (
        f"{t.layer}: maps of {_times(t.side)} images moved by {_times(t.shift)} pixels (the stride), "
        "against maps moved by one unit"
    )
    if t.inside is None:
        return [["translation, with the border", number_text(t.everywhere), how]]
    border = "the same, with the border: the padding does not move"
    return [
        ["translation, without the border", number_text(t.inside), how],
        ["translation, with the border", number_text(t.everywhere), border],
    ]


def cost_table(costs: list[Cost]) -> Table:
    """Return the exponents of each kind of layer, and its cost at the longest sequence."""
    n = f"{costs[0].lengths[-1]:,}"
    columns = ["layer", "p of time", "R²", "p of FLOPs", "p of memory", f"time at {n}", f"memory at {n}"]
    rows = [
        [
            c.kind,
            f"{c.law.p:.2f}",
            f"{c.law.r2:.3f}",
            f"{c.flops_law.p:.2f}",
            f"{c.saved_law.p:.2f}",
            f"{1e3 * c.seconds[-1]:.2f} ms",
            bytes_text(c.saved_bytes[-1]),
        ]
        for c in costs
    ]
    return Table("Cost against length", columns, rows)


def cost_note(costs: list[Cost]) -> str:
    """Return the memory of attention in words, as it ran and by its formula."""
    ran, formula = (next(c for c in costs if c.kind == kind) for kind in ("attention", FORMULA))
    n = ran.lengths[-1]
    matrix = 4 * n**2
    saves = "also saves this matrix" if ran.saved_bytes[-1] >= matrix else "saves no n×n matrix"
    return (
        f"By its formula, {FORMULA}, attention saves a matrix of n² weights: {bytes_text(matrix)} of its "
        f"{bytes_text(formula.saved_bytes[-1])} at n = {n:,}, per head and example. The networks run torch's fused "
        f"kernel, which {saves}: {bytes_text(ran.saved_bytes[-1])}. In bfloat16 on a CPU the networks use the formula "
        f"up to {MAX_KEYS_UNFUSED} keys."
    )


def number_text(value: float | None) -> str:
    """Write a number with three digits, in scientific notation if it is very small or large.

    >>> number_text(0.01234), number_text(1.2e-7), number_text(None)
    ('0.0123', '1.2e−7', '–')
    """
    if value is None:
        return "–"
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def bytes_text(size: float | None) -> str:
    """Write a size in bytes with its unit.

    >>> bytes_text(200), bytes_text(3 * 2**19), bytes_text(None)
    ('200 B', '1.5 MiB', 'an unknown number of bytes')
    """
    if size is None:
        return "an unknown number of bytes"
    for minimum, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= minimum:
            return f"{size / minimum:.1f} {unit}"
    return f"{size:.0f} B"


def _times(values: Iterable[int]) -> str:
    return "×".join(map(str, values))


def _shape(values: tuple[int, ...] | None) -> str:
    return _times(values) if values else "–"
