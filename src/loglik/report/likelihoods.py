"""The report's section on likelihoods: the table, the terms of the bounds, the bars and the training curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from loglik.comparison import Row, best_density, by_score
from loglik.evaluation.format import decimals
from loglik.report.chart import Chart
from loglik.report.likelihood_figures import Bar, bars, curves
from loglik.report.numbers import TableRow, Unit, count, duration, number, plus_minus
from loglik.runs import Run

__all__ = ["bar_chart", "bound_terms", "curve_charts", "is_code_length", "kind_of", "run_history", "table_rows"]

KINDS = {"exact": "exact", "lower": "lower bound", "estimate": "estimate"}


def is_code_length(row: Row, baseline: Row | None) -> bool:
    """Return whether a row is a compressor's."""
    return row.run is None and row is not baseline


def kind_of(row: Row, baseline: Row | None) -> str:
    """Return what a row's number is, in words."""
    return "code length" if is_code_length(row, baseline) else KINDS.get(row.result.bound, row.result.bound)


def table_rows(rows: Sequence[Row], unit: Unit, baseline: Row | None) -> list[TableRow]:
    """Return the rows of the table of likelihoods, with every cell as text."""
    best = best_density(rows)
    cells = []
    for row in rows:
        r = row.result
        notes = ["given the label"] if row.conditional else []
        if r.bound != "exact" and row.run is not None:
            notes.append(f"{r.samples:,} sample" + "s" * (r.samples != 1))
        notes += [note.split(":")[0] for note in r.notes]
        error = None if r.stderr is None else r.stderr * abs(unit.per_nat)
        cells.append(
            TableRow(
                rank="" if r.rank is None else str(r.rank),
                model=r.model,
                kind=kind_of(row, baseline),
                note=", ".join(notes),
                in_unit=plus_minus(r.nats * unit.per_nat, error),
                nats=plus_minus(r.nats, r.stderr),
                perplexity=number(r.perplexity),
                gain="–" if row is baseline else plus_minus(r.gain, r.gain_stderr, signed=True),
                params=count(r.params) if r.params else "–",
                time=duration(r.train_seconds) if r.train_seconds else "–",
                steps=f"{r.steps:,}" if r.steps > 0 else "–",
                speed="–" if r.samples_per_second is None else f"{float(f'{r.samples_per_second:.3g}'):,.10g}",
                best=row is best,
                order={
                    "rank": r.rank,
                    "unit": r.nats * unit.per_nat,
                    "nats": r.nats,
                    "perplexity": r.perplexity,
                    "gain": None if row is baseline else r.gain,
                    "params": r.params or None,
                    "time": r.train_seconds or None,
                    "steps": r.steps or None,
                    "speed": r.samples_per_second,
                },
            )
        )
    return cells


def bound_terms(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return the terms of each bound and their sum, which is the nats of its row."""
    terms = {}
    for row in by_score(rows):
        r = row.result
        if r.terms:
            digits = decimals(r.stderr, 2)
            cells = {name: number(nats, digits) for name, nats in r.terms.items()}
            terms[r.model] = cells | {"sum": number(sum(r.terms.values()), digits)}
    return terms


def bar_chart(rows: Sequence[Row], unit: Unit, baseline: Row | None) -> Chart | None:
    """Return the bars of a comparison; None if fewer than two rows are finite."""
    finite = [row for row in by_score(rows) if math.isfinite(row.result.nats)]
    if len(finite) < 2:
        return None
    return bars(
        [
            Bar(
                f"{r.rank}  {r.model}" if r.rank else r.model,
                r.nats * unit.per_nat,
                (r.stderr or 0.0) * abs(unit.per_nat),
                nats=r.nats,
                nats_error=r.stderr,
                bound=kind_of(row, baseline),
                may_break=is_code_length(row, baseline),
            )
            for row, r in ((row, row.result) for row in finite)
        ],
        unit=unit.name,
        baseline=baseline.result.nats * unit.per_nat if baseline else None,
        from_zero=not unit.in_nats,
    )


def curve_charts(rows: Sequence[Row], unit: Unit, baseline: Row | None, per_example: int = 1) -> list[Chart]:
    """Return one training curve per model, all with the same range, from the best value to just beyond the baseline.

    Args:
        rows: those with a history are shown.
        unit: the unit of the vertical axis.
        baseline: its likelihood is a line in each panel.
        per_example: tokens per example: a history is in nats per example, and the unit may be per token.
    """
    runs = [(row.result.model, row.run) for row in rows if row.run is not None and len(row.run.history) > 1]
    lines = {name: run_history(run, unit.per_nat / per_example) for name, run in runs}
    level = baseline.result.nats * unit.per_nat if baseline else None
    limits = _curve_limits(lines.values(), level, lower_is_better=unit.per_nat < 0)
    return [curves(name, line, unit=unit.name, baseline=level, limits=limits) for name, line in lines.items()]


def run_history(run: Run, per_nat: float) -> dict[str, list[float]]:
    """Return steps, seconds, training and validation likelihood of a run, as lists."""

    def column(key: str, factor: float = 1.0) -> list[float]:
        return [float(row.get(key, math.nan)) * factor for row in run.history]

    return {
        "step": column("step"),
        "seconds": column("time"),
        "train": column("train_nats", per_nat),
        "validation": column("validation_nats", per_nat),
    }


def _curve_limits(
    lines: Iterable[dict[str, list[float]]], level: float | None, *, lower_is_better: bool
) -> tuple[float, float] | None:
    finite = [
        np.array([v for v in values if math.isfinite(v)])
        for line in lines
        for values in (line["train"], line["validation"])
    ]
    finite = [values for values in finite if len(values)]
    if not finite:
        return None
    # the first values of a run may be far from all others: use the medians, and the values at the end
    typical = [*(np.median(v).item() for v in finite), *(v[-1].item() for v in finite)]
    typical += [] if level is None else [level]
    best = min(v.min().item() for v in finite) if lower_is_better else max(v.max().item() for v in finite)
    low, high = min(*typical, best), max(*typical, best)
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad
