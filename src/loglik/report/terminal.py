"""The terminal's tables: a comparison, and a classifier's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loglik.classification.calibration import per_class
from loglik.comparison import Row, best_density, better_compressors, by_score, ranked
from loglik.data.dataset import Data
from loglik.evaluation.format import share, with_error
from loglik.report.numbers import count
from loglik.terminal import printable

__all__ = ["print_classes", "print_comparison"]

MARK = "*"  # beside a number with a note below the table


def print_comparison(rows: Sequence[Row], data: Data) -> None:
    """Print the densities of the data in one table, best first, and the classifiers below it.

    The event of a classifier is the label, so its likelihood is not comparable with the others.
    """
    rows = ranked(rows)
    generative = by_score([row for row in rows if row.result.event == "x"])
    discrete = any(row.result.bits_per_dim is not None for row in generative)
    text = any(row.result.unit == "token" for row in generative)
    unit = "bits/byte" if any(row.result.bits_per_byte is not None for row in generative) else "bits/dim"
    split, per = data.scored_split, "per token of" if text else "of"
    table = Table(
        title=Text(
            printable(f"{data.name}: log-likelihood {per} {rows[0].result.n:,} {split} ")
            + f"{'tokens' if text else 'examples'}, best first",
            style="table.title",
        ),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    names = ["#", "model", "nats", "±", unit if discrete else "", "perplexity" if text else ""]
    names += ["number", "params", "steps", "time"]
    for name in filter(None, names):
        table.add_column(name, justify="left" if name in ("model", "number") else "right", no_wrap=True)
    best = best_density(generative)
    for row in generative:
        r = row.result
        nats, _, error = with_error(r.nats, r.stderr, 3 if text else 2).partition(" ± ")
        cells = ["" if r.rank is None else str(r.rank), r.model, nats, error]
        if discrete:
            bits = r.bits_per_dim if r.bits_per_byte is None else r.bits_per_byte
            cells.append("" if bits is None else f"{bits:.3f}")
        if text:
            cells.append("" if r.perplexity is None else f"{r.perplexity:.2f}")
        time = f"{r.train_seconds:.0f} s" if r.steps else ""
        cells += [_kind(row), count(r.params) if r.params else "", f"{r.steps:,}" if r.steps else "", time]
        table.add_row(*cells, style="bold" if row is best else None)
    _print(table)
    if best is not None:
        for compressor in better_compressors(generative, best):
            print(f"{compressor.result.model}, a compressor, is better than {best.result.model}, the best density")
    for row in rows:
        r = row.result
        if r.event == "y" and r.accuracy is not None and r.calibration_error is not None:
            accuracy, error = share(r.accuracy, r.accuracy_interval), share(r.calibration_error, r.calibration_interval)
            nats = with_error(r.nats, r.stderr, 3)
            print(f"{r.model}, p(label | data): accuracy {accuracy}, {nats} nats per label, calibration error {error}")
    for row in rows:
        for note in row.result.notes:
            print(printable(f"{MARK} {row.result.model}, {note}"))


def print_classes(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Print precision, recall and F1 of each class, and its most frequent wrong prediction."""
    matrix, names = torch.tensor(confusion), [Text(printable(name)) for name in classes]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("class", "precision", "recall", "F1", "examples", "mistaken most for"):
        table.add_column(name, justify="left" if name.startswith(("class", "mistaken")) else "right", no_wrap=True)
    for k, score in enumerate(per_class(matrix)):
        mistakes = matrix[k].clone()
        mistakes[k] = 0
        worst = names[int(mistakes.argmax())] + f" ({int(mistakes.max())})" if mistakes.any() else ""
        rates = [_rate(score.precision, score.precision_interval), _rate(score.recall, score.recall_interval)]
        table.add_row(names[k], *rates, f"{score.f1:.1%}", f"{score.count:,}", worst)
    _print(table)
    print("in brackets: 95% intervals")


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _print(table: Table) -> None:
    """Print a table without cutting cells: on a narrower terminal its lines wrap."""
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def _kind(row: Row) -> str:
    if row.run is None:
        return "code length"
    samples = f", K={row.result.samples}" if row.result.samples > 1 else ""
    return row.result.bound + samples + " given label" * row.conditional + f" {MARK}" * bool(row.result.notes)
