"""One panel of a plot, as the text of a small SVG.

A panel is drawn with matplotlib's object-oriented API, so no global state changes. The SVG has no dates or addresses,
so the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["INK", "panel", "short"]

INK = {"text": "#2b2f38", "quiet": "#8a909c", "data": "#b9bec8", "model": "#2f6db0", "baseline": "#c2553a"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loglik",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK["text"],
    "axes.labelcolor": INK["text"],
    "axes.edgecolor": INK["quiet"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "xtick.color": INK["quiet"],
    "ytick.color": INK["quiet"],
    "xtick.labelcolor": INK["text"],
    "ytick.labelcolor": INK["text"],
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def panel(width: float, height: float, draw: Callable[[Any], None]) -> str:
    """Draw one panel, with its size in inches; `draw` receives the axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the text is shown with the reader's fonts, not with ours
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)


def short(text: str, limit: int) -> str:
    """Cut a name to a number of characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
