"""describe: what each column of a table is read as, or what other data are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from loglik.data.dataset import Data
from loglik.data.limits import shorten
from loglik.data.loading import as_data
from loglik.data.spec import Column
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings

__all__ = ["ColumnSummary", "Description", "describe"]

EXAMPLES = 3
WIDTHS = (40, 70, 20, 60, 80, 200)  # of the cells in text, at most
ROWS = 2**16  # read at once


@dataclass(frozen=True)
class ColumnSummary:
    """A column of a table, as it is read.

    Attributes:
        name: as in the table.
        read_as: its type, with the unit and origin of dates and times; `label`, or `left out`.
        missing: the number of rows without a value; None of a column that is left out.
        values: the number of categories, or the range.
        examples: values of the first rows.
        note: what was decided about the column, or why it is left out.
    """

    name: str
    read_as: str
    missing: int | None = None
    values: str = ""
    examples: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Description:
    """What data are read as.

    Attributes:
        name: of the data.
        summary: one line: the kind, the shape and the sizes of the splits.
        rows: the number of examples.
        columns: of a table, the columns that are left out too.
        facts: of other data.
        notes: what is said of the whole.
    """

    name: str
    summary: str
    rows: int
    columns: tuple[ColumnSummary, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"facts": dict(self.facts)}

    def __str__(self) -> str:
        """Return a table in text."""
        cells: list[tuple[str, ...]] = list(self.facts)
        if self.columns:
            cells.append(("column", "read as", "missing", "values", "examples", "note"))
        for c in self.columns:
            missing = "" if c.missing is None else f"{c.missing:,}"
            cells.append((c.name, c.read_as, missing, c.values, ", ".join(c.examples), c.note))
        short = [tuple(shorten(cell, WIDTHS[min(i, 5)]) for i, cell in enumerate(row)) for row in cells]
        widths = [max(len(row[i]) for row in short) for i in range(len(short[0]))] if short else []
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in short]
        return "\n".join([self.summary, *lines, *self.notes])


def describe(
    data: Any,
    *,
    label: str | None = None,
    seed: int = 0,
    text: TextSettings | None = None,
    table: TableSettings | None = None,
    beside: Path | None = None,
) -> Description:
    """Return what data are read as: of a table each column, with its type, missing values and examples.

    Args:
        data: what `fit` accepts.
        label: the label's column.
        seed: of the splits.
        text: how text is read.
        table: how a table is read.
        beside: a path beside which the tokens of text are kept.

    Raises ValueError as `as_data`.
    """
    found = as_data(data, label=label, seed=seed, text=text, table=table, beside=beside)
    spec, whole = found.spec, found.split("all")
    about = Description(name=found.name, summary=found.describe(), rows=len(whole), notes=found.notes)
    if spec.columns:
        of_all = tuple(note for note in found.notes if not note.startswith("column "))
        return replace(about, columns=_columns(found), notes=of_all)
    facts = {"kind": spec.kind, "shape": "×".join(map(str, spec.event_shape))}
    facts["levels"] = f"{spec.levels}" if spec.levels else "real numbers"
    if spec.tokenizer is not None:
        facts["tokenizer"] = spec.tokenizer.kind
    if spec.classes:
        facts["classes"] = f"{len(spec.classes)}: {shorten(', '.join(spec.classes), 100)}"
    return replace(about, facts=tuple(facts.items()))


def _columns(data: Data) -> tuple[ColumnSummary, ...]:
    """Return the columns of a table; its rows are read in blocks."""
    import numpy as np
    import torch

    from loglik.data.decode import decode_column

    spec, whole = data.spec, data.split("all")
    d = len(spec.columns)
    missing, low, high = torch.zeros(d, dtype=torch.int64), torch.full((d,), torch.inf), torch.full((d,), -torch.inf)
    for start in range(0, len(whole), ROWS):
        x = whole.x[start : start + ROWS]
        gaps = x.isnan()
        missing += gaps.sum(0)
        low, high = (
            torch.minimum(low, x.masked_fill(gaps, torch.inf).amin(0)),
            torch.maximum(high, x.masked_fill(gaps, -torch.inf).amax(0)),
        )
    first = whole.x[:100].double().numpy()
    notes = {name: note for name, _, note in (line.removeprefix("column ").partition(": ") for line in data.notes)}
    found = []
    for i, column in enumerate(spec.columns):
        cells = decode_column(first[:, i], column).drop_nulls().unique(maintain_order=True).head(EXAMPLES)
        values = f"{len(column.categories)} categories"
        if not column.categories:
            ends = decode_column(np.array([float(low[i]), float(high[i])]), column).to_list()
            values = " to ".join(map(_cell, ends)) if missing[i] < len(whole) else ""
        if column.type == "boolean":
            values = " or ".join(column.categories)
        note = "made by the reader" if column.indicates else notes.get(repr(column.name), "")
        examples = tuple(_cell(value) for value in cells.to_list())
        found.append(ColumnSummary(column.name, _read_as(column), int(missing[i]), values, examples, note))
    if spec.label is not None:
        classes = shorten(", ".join(spec.classes), 48)
        found.append(ColumnSummary(spec.label, "label", 0, f"{len(spec.classes)} classes", (), classes))
    return (*found, *(ColumnSummary(name, "left out", note=reason) for name, reason in spec.left_out))


def _read_as(column: Column) -> str:
    if column.temporal:
        since = f" since {column.origin}" if column.origin else ""
        kind = f"{column.temporal} {column.zone}".strip()
        return f"{kind}: {column.type}, {column.unit}{since}"
    decimals = f", {column.decimals} decimal{'s' * (column.decimals > 1)}" if column.decimals else ""
    return column.type + decimals


def _cell(value: Any) -> str:
    """Return a value as it is written in the table's text."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
