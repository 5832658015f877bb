"""The tables of an inspection in the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from loglik.inspection.measure import Inspection
from loglik.inspection.tables import (
    LEFT,
    Table,
    bytes_text,
    cost_note,
    cost_table,
    count_table,
    distinct_fields,
    field_table,
    gradient_table,
    symmetry_table,
)
from loglik.report.numbers import count
from loglik.terminal import printable

__all__ = ["print_inspection"]


def print_inspection(inspection: Inspection) -> None:
    """Print the tables of an inspection, and why the missing ones do not apply."""
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has no width: leave room for the names
    console.print(printable(_headline(inspection)), highlight=False, markup=False)
    _print(console, count_table(inspection.counts))
    if inspection.fields:
        image = inspection.data.spec.event_shape[1:]
        _print(console, field_table(distinct_fields(inspection.fields), (image[0], image[1])))
    _print(console, gradient_table(inspection))
    console.print(printable(f"{inspection.flow.verdict}: {inspection.flow.reason}"), highlight=False, markup=False)
    symmetry = symmetry_table(inspection)
    if symmetry.rows:
        _print(console, symmetry)
    if inspection.cost:
        _print(console, cost_table(inspection.cost))
        console.print(cost_note(inspection.cost), highlight=False)
    for line in inspection.left_out:
        console.print(printable(line), style="dim", highlight=False, markup=False)


def _headline(inspection: Inspection) -> str:
    state = "trained" if inspection.trained else "untrained"
    return (
        f"{inspection.model}, {state}, on {inspection.data.name}: {inspection.parameters:,} parameters; per example "
        f"{count(round(inspection.flops))} FLOPs in the forward pass, and {bytes_text(inspection.saved_bytes)} saved "
        "for the backward pass"
    )


def _print(console: Console, table: Table) -> None:
    shown = RichTable(title=table.title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in table.columns:
        shown.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console.print(shown)
