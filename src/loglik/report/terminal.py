"""The terminal's tables: a comparison, and a classifier's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from loglik.classification.calibration import per_class
from loglik.comparison import Entry
from loglik.data.dataset import Data
from loglik.report.numbers import count

__all__ = ["print_classes", "print_comparison"]


def print_comparison(entries: Sequence[Entry], data: Data) -> None:
    """The densities of the data in one table, the classifier on a line of its own: its event is the label."""
    rows = [entry for entry in entries if entry.result.event == "x"]
    discrete = any(entry.result.bits_per_dim is not None for entry in rows)
    text = any(r.result.unit == "token" for r in rows)
    unit = "bits/byte" if any(r.result.bits_per_byte is not None for r in rows) else "bits/dim"
    split, per = data.held_out, "per token of" if text else "of"
    table = Table(
        title=f"{data.name}: log-likelihood {per} {entries[0].result.n:,} {split} {'tokens' if text else 'examples'}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    digits = 3 if text else 2
    names = ["model", "nats", "±", unit if discrete else "", "perplexity" if text else ""]
    names += ["number", "params", "steps", "time"]
    for name in filter(None, names):
        table.add_column(name, justify="left" if name in ("model", "number") else "right", no_wrap=True)
    best = max((entry.result.nats for entry in rows if entry.run and not entry.conditional), default=None)
    for entry in rows:
        r = entry.result
        cells = [r.model, f"{r.nats:.{digits}f}", "" if r.stderr is None else f"{r.stderr:.{digits}f}"]
        if discrete:
            bits = r.bits_per_dim if r.bits_per_byte is None else r.bits_per_byte
            cells.append("" if bits is None else f"{bits:.3f}")
        if text:
            cells.append("" if r.perplexity is None else f"{r.perplexity:.2f}")
        time = f"{r.train_seconds:.0f} s" if r.steps else ""
        cells += [_kind(entry), count(r.params) if r.params else "", f"{r.steps:,}" if r.steps else "", time]
        table.add_row(*cells, style="bold" if r.nats == best else None)
    Console().print(table)
    for entry in entries:
        r = entry.result
        if r.event == "y":
            print(
                f"{r.model}, p(label | data): accuracy {r.accuracy:.1%}, {r.nats:.3f} ± {r.stderr or 0:.3f} nats a "
                f"label, calibration error {r.calibration_error:.1%}"
            )


def print_classes(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Precision, recall and F1 of each class, and what it is mistaken for most."""
    matrix = torch.tensor(confusion)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("class", "precision", "recall", "F1", "examples", "mistaken most for"):
        table.add_column(name, justify="left" if name.startswith(("class", "mistaken")) else "right")
    for k, score in enumerate(per_class(matrix)):
        mistakes = matrix[k].clone()
        mistakes[k] = 0
        worst = f"{classes[int(mistakes.argmax())]} ({int(mistakes.max())})" if mistakes.any() else ""
        rates = [f"{100 * rate:.1f}%" for rate in (score.precision, score.recall, score.f1)]
        table.add_row(classes[k], *rates, f"{score.count:,}", worst)
    Console().print(table)


def _kind(entry: Entry) -> str:
    if entry.run is None:
        return "code length"
    given = " given label" if entry.conditional else ""
    return entry.result.bound + (f", K={entry.result.samples}" if entry.result.samples > 1 else "") + given
