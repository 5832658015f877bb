"""Encoded images as pixels: each is opened, checked by its header and decoded; blocks of images by several threads.

Grey images have one channel. If any image is in colour all have three, RGB. A palette counts as grey where
all its pixels are; what is transparent shows white; of an animation the first frame is read. 16-bit and
floating-point images are rejected, for 8 bits would lose what they hold.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from loglik.data.limits import check_bytes, converting, silent
from loglik.data.spec import DataSpec

__all__ = ["Label", "Sample", "Size", "decode", "decoded_bytes", "opened", "read"]

GREY = ("1", "L", "LA", "La")
BLOCK = 2**22  # bytes of pixels, or of files, that a thread decodes at once
BLOCK_IMAGES = 256
THREADS = 16  # at most: Python's own work for each image is done by one at a time
Label = str | int | bool | None


class Sample(NamedTuple):
    """An encoded image.

    Attributes:
        name: for errors.
        opened: opens the image, without decoding it.
        size: bytes that it takes on disk.
        label: its class; None if it has none.
        split: train, validation or test.
    """

    name: str
    opened: Callable[[], Image.Image]
    size: int
    label: Label = None
    split: str = "train"


@dataclass
class Size:
    """The size that all images must have: that of a model, or of the first image."""

    width: int
    height: int
    of: str = ""  # the first image's name
    grey: bool = False  # a model accepts grey images only

    @classmethod
    def like(cls, spec: DataSpec) -> Size:
        return cls(spec.event_shape[2], spec.event_shape[1], grey=spec.event_shape[0] == 1)

    def check(self, name: str, width: int, height: int, *, turned: bool = False) -> None:
        """Raise ValueError for another size; before EXIF turns an image, width and height may change places."""
        own, required = (width, height), (self.width, self.height)
        if own == required or (turned and own == required[::-1]):
            return
        if not self.of:
            raise ValueError(
                f"{name}: {width}×{height} pixels; the model accepts {self.width}×{self.height}: resize or crop it "
                "first"
            )
        raise ValueError(
            f"{name} is {width}×{height} pixels but {self.of} is {self.width}×{self.height}: resize or crop all images "
            "to one size"
        )


def opened(content: bytes) -> Image.Image:
    """Open an image's file in memory."""
    return Image.open(io.BytesIO(content))


def decoded_bytes(sample: Sample) -> int:
    """Return the bytes of an image's pixels by its header."""
    with silent(), converting(sample.name, "image"), sample.opened() as image:
        return image.width * image.height * (1 if image.mode in GREY else 3)


def decode(samples: Iterable[Sample], size: Size | None = None) -> Iterator[tuple[list[Sample], np.ndarray]]:
    """Yield blocks of samples, in order, with their pixels (B, C, H, W); C is 1 if all images of a block are grey.

    Raises ValueError for the first image that is damaged, is too large, is 16-bit, or has another size than the first.
    """
    threads = min(THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    pending: deque[tuple[list[Sample], Future[np.ndarray]]] = deque()
    with silent(), ThreadPoolExecutor(threads) as pool:
        try:
            for block in _blocks(samples):
                if size is None:  # of the first image; the others are compared with it before they are decoded
                    height, width = _decoded(block[0], None).shape[:2]
                    size = Size(width, height, of=block[0].name)
                pending.append((block, pool.submit(_decode, block, size)))
                if len(pending) > 2 * threads:
                    done, pixels = pending.popleft()
                    yield done, pixels.result()
            for done, pixels in pending:
                yield done, pixels.result()
        finally:
            for _, pixels in pending:
                pixels.cancel()


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield lists of samples of about BLOCK bytes."""
    block: list[Sample] = []
    room, each = BLOCK, 0
    for sample in samples:
        each = each or decoded_bytes(sample)
        block.append(sample)
        room -= max(each, sample.size)
        if room <= 0 or len(block) == BLOCK_IMAGES:
            yield block
            block, room = [], BLOCK
    if block:
        yield block


def _decode(block: list[Sample], size: Size) -> UInt8[np.ndarray, "B C H W"]:
    arrays = [_decoded(sample, size) for sample in block]
    if all(array.ndim == 2 for array in arrays):
        return np.stack(arrays)[:, None]
    out = np.empty((len(arrays), 3, size.height, size.width), dtype=np.uint8)
    for i, array in enumerate(arrays):
        out[i] = array.transpose(2, 0, 1) if array.ndim == 3 else array
    return out


def _decoded(sample: Sample, size: Size | None) -> UInt8[np.ndarray, "H W *C"]:
    name = sample.name
    with converting(name, "image"):
        image = sample.opened()
    with image:
        if size is not None:
            size.check(name, image.width, image.height, turned=True)
        check_bytes(image.width * image.height * (1 if image.mode in GREY else 3), sample.size, name)
        pixels = read(name, image)
    if size is not None:
        size.check(name, pixels.shape[1], pixels.shape[0])
        if size.grey and pixels.ndim == 3:
            raise ValueError(f"{name}: a colour image; the model accepts grey ones: convert it first")
    return pixels


def read(name: Path | str, image: Image.Image) -> UInt8[np.ndarray, "H W *C"]:
    """Return an opened image's pixels: (H, W) for grey, (H, W, 3) for colour."""
    with converting(name, "image"):
        image.load()
        mode = image.mode
        upright = ImageOps.exif_transpose(image)
        # 16-bit and floating-point images are refused below; everything else is 8 bits a channel.
        pixels = None if mode[0] in "IF" else _grey_or_rgb(upright)
    if pixels is None:
        raise ValueError(
            f"{name}: pixels of mode {mode}, more than 8 bits: convert to 8 bits, or give them as a .npy array"
        )
    return pixels


def _grey_or_rgb(image: Image.Image) -> np.ndarray:
    grey, palette = image.mode in GREY, image.mode in ("P", "PA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif grey:
        return np.asarray(image.convert("L"))
    pixels = np.asarray(image.convert("RGB"))
    if grey or (palette and (pixels == pixels[..., :1]).all()):
        return pixels[..., 0]
    return pixels
