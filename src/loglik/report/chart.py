"""Interactive charts of a page: Vega-Lite specifications with their data, as JSON that a script tag can hold.

`page.js` draws them with the vendored libraries in `vega/`. It gives each name in `COLOURS` the colour of the light or
the dark theme, and turns `{"columns": ...}` into rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

__all__ = ["COLOURS", "ZOOM", "Chart", "columns", "field", "script_json", "short"]

COLOURS = {name: f"${name}" for name in ("text", "quiet", "data", "model", "baseline", "paper", "second")}
DIGITS = 6  # significant, of a chart's numbers
# the wheel alone scrolls the page
ZOOM = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.ctrlKey]", "clear": "dblclick"},
    "bind": "scales",
}


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, a text in its place, a caption, and the names of the controls that change it."""

    spec: Mapping[str, Any]
    alt: str
    caption: str = ""
    groups: str = ""

    @property
    def json(self) -> Markup:
        """Return the specification for a script tag."""
        return script_json({"width": "container", "height": 180, "description": self.alt, **self.spec})


def columns(**values: Sequence[Any] | np.ndarray) -> dict[str, Any]:
    """Return the data of a chart, a list of values for each field."""
    return {"columns": {name: list(column) for name, column in values.items()}}


def field(name: str, title: str | None = None, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    """Return the encoding of a field, whose name stands in no path or expression."""
    return {"field": name, "type": kind, "title": name if title is None else title, **more}


def script_json(value: Any) -> Markup:
    """Return JSON that no HTML parser ends early, with few digits and null for what is not finite."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    for mark, code in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(mark, code)
    return Markup(text)


def short(text: str, limit: int) -> str:
    """Cut a name to a number of characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
    return value
