"""Images as a classifier from elsewhere reads them: sizes, crops and scales, as its own preprocessing has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.hf_folder import read_json
from loglik.data.spec import DataSpec

__all__ = ["Pixels", "pixels_of"]

PREPROCESSING = "preprocessor_config.json"
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by the numbers of PIL


class Pixels(nn.Module):
    r"""Scale integers 0 ... K-1 of images to [0, 1], resize and crop them, and return $(v - \text{mean}) / \text{std}$.

    Args:
        levels: K.
        mean, std: for each channel, or one for all; left out if None.
        size: the height and width of the images, or one number, the shorter side; left out if None.
        crop: the height and width of the centre that is kept; the whole image if None.
        channels: a grey image is repeated for so many.
        mode: `bilinear`, `bicubic` or `nearest`, with antialiasing, and rounded to levels.

    Data of another shape than (B, C, H, W) are returned as they are.
    """

    def __init__(
        self,
        levels: int = 256,
        *,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        size: tuple[int, int] | int | None = None,
        crop: tuple[int, int] | None = None,
        channels: int | None = None,
        mode: str = "bilinear",
    ) -> None:
        super().__init__()
        self.levels, self.size, self.crop, self.channels, self.mode = levels, size, crop, channels, mode
        for name, value in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std)):
            numbers = torch.as_tensor(value, dtype=torch.get_default_dtype()).reshape(-1, 1, 1)
            if name == "std" and (numbers == 0).any():
                raise ValueError("std must not be 0")
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        if x.dim() != 4:
            return x
        mean, std, levels = self.get_buffer("mean"), self.get_buffer("std"), not x.is_floating_point()
        x = x.to(mean.dtype) if levels else x
        if self.channels is not None and x.shape[1] != self.channels:
            if x.shape[1] != 1:
                raise ValueError(f"the model reads {self.channels} channels, and the images have {x.shape[1]}")
            x = x.expand(-1, self.channels, -1, -1)
        if self.size is not None:
            resized = self._resize(x, self.size)
            x = resized.round().clamp(0, self.levels - 1) if levels else resized
        if self.crop is not None:
            top, left = ((side - kept) // 2 for side, kept in zip(x.shape[2:], self.crop, strict=True))
            x = F.pad(x, (-left, self.crop[1] - x.shape[3] + left, -top, self.crop[0] - x.shape[2] + top))
        x = x / (self.levels - 1) if levels else x
        return (x - mean) / std

    def _resize(self, x: Float[Tensor, "B C H W"], size: tuple[int, int] | int) -> Float[Tensor, "B C H2 W2"]:
        h, w = x.shape[2:]
        if isinstance(size, int):
            short = min(h, w)
            size = (size * h // short, size * w // short)
        if size == (h, w):
            return x
        smooth = self.mode != "nearest"
        return F.interpolate(x, size, mode=self.mode, antialias=smooth, align_corners=False if smooth else None)


def pixels_of(path: Path, config: Any, spec: DataSpec) -> tuple[Pixels, tuple[str, ...]]:
    """Return the preprocessing in a folder of transformers, and what is to be said of it.

    Raises ValueError for settings that are not known here.
    """
    levels, channels = spec.levels or 256, getattr(config, "num_channels", None)
    if not (path / PREPROCESSING).is_file():
        side = getattr(config, "image_size", None)
        size = (side, side) if isinstance(side, int) and spec.event_shape[1:] != (side, side) else None
        note = f"{path} has no {PREPROCESSING}: pixels are scaled to [0, 1]{f' and resized to {size}' if size else ''}"
        return Pixels(levels, size=size, channels=channels), (note,)
    own = read_json(path, PREPROCESSING)
    known: dict[str, Any] = {"channels": channels}
    if own.get("do_resize", False):
        known |= _sizes(path, own)
    if own.get("do_center_crop"):
        known["crop"] = _pair(own.get("crop_size"))
    if own.get("do_normalize", False):
        known |= {"mean": own.get("image_mean"), "std": own.get("image_std")}
    if not own.get("do_rescale", True):
        known = {**known, "mean": _times(known.get("mean"), 1 / 255), "std": _times(known.get("std", 1.0), 1 / 255)}
    elif abs(float(own.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ValueError(f"{path / PREPROCESSING}: rescale_factor is {own['rescale_factor']}: only 1/255 is known here")
    return Pixels(levels, **known), ()


def _sizes(path: Path, own: dict[str, Any]) -> dict[str, Any]:
    size, number = own.get("size"), own.get("resample", 2)
    if number not in FILTERS:
        raise ValueError(
            f"{path / PREPROCESSING}: resample is {number}: only 0, 2 and 3 (nearest, bilinear, bicubic) are known here"
        )
    found: dict[str, Any] = {"mode": FILTERS[number]}
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if short is None:
        return {**found, "size": _pair(size)}
    share = own.get("crop_pct")
    if share is None:
        return {**found, "size": int(short)}
    if short >= 384:  # ConvNeXT resizes large images without a crop
        return {**found, "size": (int(short), int(short))}
    return {**found, "size": int(short / share), "crop": (int(short), int(short))}


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (int(size), int(size)) if isinstance(size, (int, float)) else (int(size[0]), int(size[1]))


def _times(values: Any, factor: float) -> Any:
    if values is None:
        return None
    return [value * factor for value in values] if isinstance(values, (list, tuple)) else values * factor
