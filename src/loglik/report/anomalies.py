"""Anomalies as files: a CSV of all rows, and a page of the least likely ones."""

from __future__ import annotations

from pathlib import Path

from loglik import files
from loglik.report.html import CONTROLS, render, scripts
from loglik.tasks import Anomalies

__all__ = ["write_anomalies"]

MAX_SHOWN = 100


def write_anomalies(found: Anomalies, path: Path, *, title: str) -> Path:
    """Write all rows as CSV in the order of the input, and the worst as a page beside it; return the page's path.

    Args:
        found: the scored rows.
        path: the CSV file; the page has its name and the suffix .html.
        title: the page's heading.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        found.frame.sort("row").write_csv(temporary)
    page = path.with_suffix(".html")
    rows = [
        {
            "row": row["row"],
            "p": f"{row['p']:.2g}",
            "score": f"{row['score']:.1f}",
            "nats": "–" if row["nats"] is None else f"{row['nats']:.1f}",
            "flagged": row["flagged"],
            "columns": row["columns"] or "–",
        }
        for row in found.frame.head(MAX_SHOWN).iter_rows(named=True)
    ]
    content = {
        "title": title,
        "count": f"{found.frame.height:,}",
        "flagged": f"{found.frame['flagged'].sum():,}",
        "known": f"{found.known:,}",
        "score": found.score,
        "blame": found.blame,
        "rows": rows,
        "scripts": scripts(CONTROLS),
    }
    with files.replacing(page) as temporary:
        temporary.write_text(render("report", content, "anomalies.html.jinja"), encoding="utf-8")
    return page
