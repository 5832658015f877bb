"""Templates and pictures of self-contained HTML pages: no page loads anything from elsewhere."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

__all__ = ["Picture", "png_picture", "render", "svg_picture"]


@dataclass(frozen=True)
class Picture:
    """An image inside the page: its data as a `data:` address, a text in its place, and a caption."""

    source: str
    alt: str
    caption: str = ""


def svg_picture(svg: str, alt: str, caption: str = "") -> Picture:
    """Return an SVG as a picture."""
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), alt, caption)


def png_picture(pixels: UInt8[np.ndarray, "..."], alt: str, caption: str = "") -> Picture:
    """Return pixels as a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return Picture("data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), alt, caption)


def render(package: str, content: dict[str, Any], template: str = "page.html.jinja") -> str:
    """Render a template of a subpackage, which may include the report's `style.html.jinja`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("loglik", package), PackageLoader("loglik", "report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)
