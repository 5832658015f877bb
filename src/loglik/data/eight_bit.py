"""Floating-point arrays that hold 8-bit images: all values are k/255, or 2k/255 - 1, up to rounding.

`torchvision.transforms.ToTensor` makes the former of 8-bit pixels, and a normalisation to [-1, 1] the latter. Their
likelihood is a probability of the integers k; a density of the real numbers would grow without a bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["SCALES", "encode", "fitting_scales", "levels_of"]

SCALES = {
    "0, 1": (0.0, 1.0, 1),
    "[0, 1]": (0.0, 255.0, 255),
    "[-1, 1]": (1.0, 127.5, 255),
}  # k = (x + a) * b <= c
BLOCK = 2**20  # values that are looked at at once


def fitting_scales(x: Float[np.ndarray, "N ..."]) -> set[str]:
    """Return the names of the scales on which all values are integers.

    >>> sorted(fitting_scales(np.array([[0.0, 51 / 255]])))
    ['[0, 1]']
    """
    found = set(SCALES)
    tolerance = max(1e-3, 255 * float(np.finfo(x.dtype).eps))
    for block in _blocks(x):
        values = block.astype(np.float64)
        for name in tuple(found):
            shift, factor, top = SCALES[name]
            codes = (values + shift) * factor
            near = np.rint(codes)
            if not (np.abs(codes - near) <= tolerance).all() or near.min() < 0 or near.max() > top:  # NaN fails
                found.remove(name)
        if not found:
            break
    return found


def levels_of(scales: set[str]) -> int:
    """Return the number of levels on the scale that `encode` takes: 2 for zeros and ones, else 256."""
    return SCALES[_first(scales)][2] + 1


def encode(x: Float[np.ndarray, "N ..."], scales: set[str]) -> UInt8[np.ndarray, "N ..."]:
    """Return the integers k of values on the first of the scales that fit.

    >>> encode(np.array([[-1.0, 1.0]]), {"[-1, 1]"}).tolist()
    [[0, 255]]
    """
    shift, factor, _ = SCALES[_first(scales)]
    out = np.empty(x.shape, np.uint8)
    for part, block in zip(_blocks(out), _blocks(x), strict=True):
        part[...] = np.rint((block.astype(np.float64) + shift) * factor)
    return out


def _first(scales: set[str]) -> str:
    return next(name for name in SCALES if name in scales)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // max(1, x[:1].size))
    for start in range(0, len(x), step):
        yield x[start : start + step]
