"""Tables in notebooks: what `_repr_html_` of runs, results, comparisons and data returns. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from loglik.terminal import printable

__all__ = ["facts", "listed", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """Return an HTML table.

    >>> table(["model"], [["<b>"]])
    '<table><thead><tr><th>model</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    above = f"<caption>{_text(caption)}</caption>" if caption else ""
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{above}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def facts(values: Mapping[str, object], *, caption: str = "") -> str:
    """Return an HTML table with a row for each name and its value."""
    above = f"<caption>{_text(caption)}</caption>" if caption else ""
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in values.items())
    return f"<table>{above}<tbody>{rows}</tbody></table>"


def listed(name: str, values: Mapping[str, object]) -> str:
    """Return one line that names what differs from nothing: `Run(flow, 200 steps)`.

    >>> listed("Run", {"model": "flow", "steps": 200, "path": None})
    'Run(model=flow, steps=200)'
    """
    return (
        f"{name}({', '.join(f'{key}={printable(str(value))}' for key, value in values.items() if value is not None)})"
    )


def _text(value: object) -> str:
    return "" if value is None else escape(printable(str(value)))
