"""Templates, scripts and pictures of self-contained HTML pages: no page loads anything from elsewhere."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

__all__ = ["CHARTS", "CONTROLS", "Picture", "png_picture", "png_source", "render", "scripts"]

CHARTS = ("vega/vega.min.js", "vega/vega-lite.min.js", "vega/vega-embed.min.js")
CONTROLS = "page.js"


@dataclass(frozen=True)
class Picture:
    """An image inside the page: its data as a `data:` address, a text in its place, and a caption."""

    source: str
    alt: str
    caption: str = ""


def png_picture(pixels: UInt8[np.ndarray, "..."], alt: str, caption: str = "") -> Picture:
    """Return pixels as a picture."""
    return Picture(png_source(pixels), alt, caption)


def png_source(pixels: UInt8[np.ndarray, "..."]) -> str:
    """Return pixels as the address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def scripts(*names: str) -> Markup:
    """Return scripts of the report's folder as elements of a page."""
    folder = resources.files("loglik.report")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in names]
    assert not any("</script" in text or "<!--" in text for text in texts)
    return Markup("\n".join(f"<script>{text}</script>" for text in texts))


def render(package: str, content: dict[str, Any], template: str = "page.html.jinja") -> str:
    """Render a template of a subpackage, which may include the report's `style.html.jinja`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("loglik", package), PackageLoader("loglik", "report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)
