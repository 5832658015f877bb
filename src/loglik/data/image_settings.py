"""How image files are read: their size, transparency, colours and bits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loglik.data.limits import quote
from loglik.data.read_settings import ReadSettings

__all__ = ["ImageSettings"]

CHOICES = {
    "fit": ("crop", "pad", "stretch"), "alpha": ("white", "black", "keep"), "colour": ("auto", "grey", "rgb"),
}  # fmt: skip
MAX_SIDE = 2048  # pixels; an event has at most 4 * 2048^2 dimensions


@dataclass(frozen=True, kw_only=True)
class ImageSettings(ReadSettings):
    """How image files are read.

    Attributes:
        resize: the size of all images, 64 or WIDTHxHEIGHT; if None, their common size, or that of 90 % of them.
        fit: how an image of another size becomes one of this size: `crop` scales the shorter side and cuts out the
            centre, `pad` scales the longer side and fills the rest with the background, `stretch` scales both sides.
        alpha: what is transparent shows a `white` or `black` background; `keep` reads RGBA, four channels.
        colour: `auto` reads all images as RGB if one is in colour; `grey` and `rgb` convert them.
        bits: 8 reads 16-bit images as 8-bit ones, value // 256; if None, 16-bit grey images are refused.
    """

    resize: int | str | None = None
    fit: str = "crop"
    alpha: str = "white"
    colour: str = "auto"
    bits: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be {', '.join(allowed)}, got {quote(value)}")
        if self.bits is not None and (type(self.bits) is not int or self.bits != 8):
            raise ValueError(f"bits must be 8, got {quote(self.bits)}")
        if self.alpha == "keep" and self.colour == "grey":
            raise ValueError("alpha=keep reads RGBA, and colour=grey has no colours: leave one out")
        _ = self.size

    @property
    def size(self) -> tuple[int, int] | None:
        """The width and the height of all images, in pixels.

        >>> ImageSettings(resize="64x48").size
        (64, 48)
        """
        if self.resize is None:
            return None
        match = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", str(self.resize).strip().lower())
        width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if type(self.resize) not in (int, str) or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise ValueError(
                f"resize must be a size in pixels such as 64 or 64x48, WIDTHxHEIGHT, each of 1 to {MAX_SIDE:,}, got "
                f"{quote(self.resize)}"
            )
        return width, height
