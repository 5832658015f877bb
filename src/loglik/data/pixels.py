"""Encoded images as pixels: each is opened, checked by its header and decoded; blocks of images by several threads.

Grey images have one channel, colour images three, RGB. A palette counts as grey where all its pixels are; what is
transparent shows the background, or stays as a fourth channel; of several frames the first is read; EXIF's orientation
is applied. Pixels of 16 bits or floating-point numbers are refused, for 8 bits would lose what they hold.
"""

from __future__ import annotations

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from loglik.data.image_settings import ImageSettings
from loglik.data.limits import check_bytes, converting, silent
from loglik.data.spec import DataSpec

__all__ = ["Block", "Form", "Label", "MixedSizes", "Sample", "decode", "decoded_bytes", "opened", "upright_size"]

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


class Block(NamedTuple):
    """Some images, their pixels (B, C, H, W), and how many of them were resized, turned and the like."""

    samples: list[Sample]
    pixels: UInt8[np.ndarray, "B C H W"]
    facts: Counter[str]


class MixedSizes(Exception):
    """Two images differ in size, and nothing says which size all shall have."""


@dataclass(frozen=True)
class Form:
    """What every image becomes.

    Attributes:
        settings: how images are read.
        size: width and height, to which images of another size are resized; None for the first image's.
        grey: a model accepts grey images only.
        first: whether the size is that of the first image, from which no other may differ.
    """

    settings: ImageSettings
    size: tuple[int, int] | None = None
    grey: bool = False
    first: bool = False

    @classmethod
    def of(cls, settings: ImageSettings, like: DataSpec | None) -> Form:
        """Return the form that settings say, or that of a model's images."""
        if like is None:
            return cls(settings, settings.size)
        channels, height, width = like.event_shape
        if channels == 4:
            settings = replace(settings, alpha="keep", colour="auto")
        return cls(settings, (width, height), grey=channels == 1)


def opened(content: bytes) -> Image.Image:
    """Open an image's file in memory."""
    return Image.open(io.BytesIO(content))


def decoded_bytes(sample: Sample, form: Form) -> int:
    """Return the bytes of an image's pixels by its header."""
    with silent(), converting(sample.name, "image"), sample.opened() as image:
        width, height = form.size or image.size
        return width * height * (4 if form.settings.alpha == "keep" else 1 if image.mode in GREY else 3)


def upright_size(sample: Sample) -> tuple[int, int]:
    """Return an image's width and height by its header, after EXIF turned it."""
    with silent(), converting(sample.name, "image"), sample.opened() as image:
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def decode(samples: Iterable[Sample], form: Form) -> Iterator[Block]:
    """Yield the pixels of samples, in order; C is 1 if all images of a block are grey.

    Raises ValueError for the first image that is damaged, too large or 16-bit, and MixedSizes for one of another size
    than the first where the form has no size.
    """
    threads = min(THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    pending: deque[Future[Block]] = deque()
    with silent(), ThreadPoolExecutor(threads) as pool:
        try:
            for block in _blocks(samples, form):
                if form.size is None:
                    pixels, _ = _decoded(block[0], form)
                    form = replace(form, size=(pixels.shape[1], pixels.shape[0]), first=True)
                pending.append(pool.submit(_decode, block, form))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            for done in pending:
                yield done.result()
        finally:
            for done in pending:
                done.cancel()


def _blocks(samples: Iterable[Sample], form: Form) -> Iterator[list[Sample]]:
    """Yield lists of samples of about BLOCK bytes."""
    block: list[Sample] = []
    room, each = BLOCK, 0
    for sample in samples:
        each = each or decoded_bytes(sample, form)
        block.append(sample)
        room -= max(each, sample.size)
        if room <= 0 or len(block) == BLOCK_IMAGES:
            yield block
            block, room = [], BLOCK
    if block:
        yield block


def _decode(block: list[Sample], form: Form) -> Block:
    arrays, facts = zip(*[_decoded(sample, form) for sample in block], strict=True)
    channels = max(array.shape[2] for array in arrays)
    out = np.empty((len(arrays), channels, *arrays[0].shape[:2]), dtype=np.uint8)
    for i, array in enumerate(arrays):
        out[i] = array.transpose(2, 0, 1)  # grey fills all channels
    return Block(block, out, Counter(fact for found in facts for fact in found))


def _decoded(sample: Sample, form: Form) -> tuple[UInt8[np.ndarray, "H W C"], set[str]]:
    """Return an image's pixels, and what was done to it."""
    name, facts = sample.name, set[str]()
    with converting(name, "image"):
        image = sample.opened()
    with image:
        if form.first and sorted(image.size) != sorted(form.size or ()):  # EXIF may turn it
            raise MixedSizes
        check_bytes(image.width * image.height * (1 if image.mode in GREY else 3), sample.size, name)
        with converting(name, "image"):
            if form.size and not form.first:
                image.draft(None, (2 * max(form.size),) * 2)  # a photo is decoded at an eighth of its size, if it can
            upright = _upright(image, facts)
        if (eight := _eight_bits(upright, form.settings, facts)) is None:
            raise ValueError(
                f"{name}: pixels of mode {image.mode}, more than 8 bits: set bits=8 to read 16 bits as 8, value // 256,"
                " or give them as a .npy array"
            )
        with converting(name, "image"):
            picture = _converted(eight, form.settings, facts)
    if form.grey and picture.mode != "L":
        raise ValueError(f"{name}: a colour image; the model accepts grey ones: convert it first")
    if form.first and picture.size != form.size:
        raise MixedSizes
    if form.size and picture.size != form.size:
        with converting(name, "image"):
            picture = _resized(picture, form.size, form.settings, facts)
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1), facts


def _upright(image: Image.Image, facts: set[str]) -> Image.Image:
    """Return the first frame, decoded and turned as EXIF says."""
    tiles: Any = getattr(image, "tile", None)
    if tiles and image.mode[0] != "I" and ";16B" in str(tiles[0][3]):
        facts.add("deep")  # Pillow reads 16-bit colours as 8-bit ones
    image.load()
    facts |= {"turned"} if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9) else set()
    upright = ImageOps.exif_transpose(image)  # a copy: looking for more frames moves to the second one
    with suppress(Exception):  # which may be damaged, and is not read
        facts |= {"frames"} if getattr(image, "is_animated", False) else set()
    return upright


def _eight_bits(image: Image.Image, settings: ImageSettings, facts: set[str]) -> Image.Image | None:
    """Return an image of 8 bits a channel; None if it has more and the settings do not say how to read them."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if settings.bits is None or image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        return None
    facts.add("deep")
    return Image.fromarray((values // 256).astype(np.uint8))


def _converted(image: Image.Image, settings: ImageSettings, facts: set[str]) -> Image.Image:
    """Return an image in mode L or RGB, or all in mode RGBA for alpha=keep."""
    grey, palette = image.mode in GREY, image.mode in ("P", "PA")
    facts |= {"cmyk"} if image.mode == "CMYK" else set()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        facts |= {"transparent"} if np.asarray(image.getchannel(3)).min() < 255 else set()
        if settings.alpha != "keep":
            image = Image.alpha_composite(Image.new("RGBA", image.size, settings.alpha), image)
    if settings.alpha == "keep":
        return image.convert("RGBA")
    image = image.convert("L" if image.mode in GREY else "RGB")
    if image.mode == "RGB" and (grey or (palette and _is_grey(image))):
        image = image.getchannel(0)
    if settings.colour == "grey":
        facts |= {"to grey"} if image.mode == "RGB" else set()
        return image.convert("L")
    facts |= {"colour"} if image.mode == "RGB" else {"grey"}
    return image.convert("RGB") if settings.colour == "rgb" else image


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def _resized(image: Image.Image, size: tuple[int, int], settings: ImageSettings, facts: set[str]) -> Image.Image:
    """Return an image of a size, by the settings' rule and Lanczos resampling."""
    scales = [new / old for new, old in zip(size, image.size, strict=True)]
    scale = min(scales) if settings.fit == "pad" else max(scales)
    facts |= {"resized", "enlarged"} if scale > 1 else {"resized"}
    if settings.fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if settings.fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    width, height = (max(1, min(new, round(old * scale))) for old, new in zip(image.size, size, strict=True))
    empty = (0, 0, 0, 0) if image.mode == "RGBA" else "black" if settings.alpha == "black" else "white"
    out = Image.new(image.mode, size, empty)
    inner = image.resize((width, height), Image.Resampling.LANCZOS)
    out.paste(inner, ((size[0] - width) // 2, (size[1] - height) // 2))
    return out
