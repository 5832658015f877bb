"""A verification as one self-contained HTML page, its formulas as MathML, and as a table in the terminal."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from markupsafe import Markup

from loglik import files
from loglik.report.html import CONTROLS, render, scripts
from loglik.report.mathml import mathml
from loglik.terminal import printable
from loglik.verification.check import Finding
from loglik.verification.verify import CheckResult, Outcome, Verification, ordered

__all__ = ["print_verification", "write_page"]

OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "reported", "does not apply")
STYLES = {"holds": "green", "fails": "bold red", "reported": "cyan", "does not apply": "dim"}


def write_page(path: Path, verification: Verification) -> Path:
    """Write a verification as one HTML file that needs no network, and return its path."""
    sections = [
        (section, [_shown(row) for row in rows if row.outcome != "does not apply"])
        for section, rows in ordered(verification.rows)
    ]
    content = {
        "title": f"What holds for {verification.model} on {verification.data}",
        "summary": summary(verification),
        "sections": [(section, rows) for section, rows in sections if rows],
        "scripts": scripts(CONTROLS),
        "failed": [row.check.name for row in verification.rows if row.outcome == "fails"],
        "absent": [row for row in verification.rows if row.outcome == "does not apply"],
    }
    with files.naming(path):
        path.write_text(render("verification", content), encoding="utf-8")
    return path


def summary(verification: Verification) -> str:
    """Return one line that counts the outcomes."""
    counts = ((outcome, verification.count(outcome)) for outcome in OUTCOMES)
    words = {"holds": "hold", "fails": "fail", "reported": "only reported", "does not apply": "not applicable"}
    parts = [f"{n} {words[outcome]}" for outcome, n in counts if n or outcome in ("holds", "fails")]
    return f"{len(verification.rows)} statements: {', '.join(parts)}."


def print_verification(verification: Verification) -> None:
    """Print one line for each number, grouped by the sections of the notes, and the count of outcomes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(text: str) -> Text:
        return Text(printable(text))

    console = Console(width=None if sys.stdout.isatty() else 160)
    for section, rows in ordered(verification.rows):
        shown = [row for row in rows if row.outcome != "does not apply"]
        if not shown:
            continue
        table = Table(title=section, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("check", "", "computed", "value", "statement", "tolerance"):
            right = name in ("value", "statement", "tolerance")
            table.add_column(name, justify="right" if right else "left", no_wrap=right or not name, overflow="fold")
        for row in shown:
            for number, finding in enumerate(row.findings):
                names = (row.check.name, row.outcome) if number == 0 else ("", "")
                style = STYLES["fails" if finding.holds is False else row.outcome]
                cells = map(cell, (*names, finding.computed, *_cells(finding)))
                table.add_row(*cells, style=style if number == 0 else None)
            if row.reason:
                table.add_row(row.check.name, row.outcome, cell(row.reason), "", "", "", style=STYLES["fails"])
        console.print(table)
        console.print()
    console.print(summary(verification), highlight=False)


def _shown(row: CheckResult) -> dict[str, object]:
    return {
        "name": row.check.name,
        "formula": Markup(mathml(row.check.statement)),
        "says": row.check.says,
        "outcome": row.outcome,
        "reason": row.reason,
        "findings": [(finding, *(cell.replace("-", "−") for cell in _cells(finding))) for finding in row.findings],
        "seconds": f"{row.seconds:.1f} s",
    }


def _cells(finding: Finding) -> tuple[str, str, str]:
    """Return the value with its standard error, the statement, and the tolerance."""
    value = f"{finding.value:.4g}" + ("" if finding.stderr is None else f" ± {finding.stderr:.2g}")
    tolerance = f"{finding.tolerance:.2g}" if math.isfinite(finding.tolerance) else ""
    return value, finding.expected, tolerance
