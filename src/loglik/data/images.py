"""Folders of images as uint8 tensors (N, C, H, W) with 256 levels.

Grey images have one channel. If any image is in colour all have three, RGB. A palette counts as grey where
all its pixels are; what is transparent shows white; of an animation the first frame is read. 16-bit and
floating-point images are rejected, for 8 bits would lose what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from loglik.data.arrays import assemble
from loglik.data.dataset import Data, check_kind
from loglik.data.limits import check_bytes, quote, reading, some
from loglik.data.spec import DataSpec

__all__ = ["load_images", "read", "stack"]

GREY = ("1", "L", "LA", "La")
Opened = Callable[[], Image.Image]


def load_images(
    folder: Path,
    files: dict[str, list[Path]],
    roots: dict[str, Path],
    *,
    seed: int = 0,
    like: DataSpec | None = None,
) -> Data:
    """Read the image files of each split; a split's subfolders are its classes.

    Args:
        files: the image files of `train`, and of `validation` and `test` where they exist, in order.
        roots: the folder of each split.

    Raises:
        ValueError: an image is corrupt, has another size than the first, or is 16-bit; some images lie in
            class subfolders and some beside them; there is only one class.
    """
    check_kind("image", like, str(folder))
    paths = [path for split in files.values() for path in split]
    labels = [_class(path, roots[split]) for split, members in files.items() for path in members]
    if like is not None and not like.classes:
        labels = [None] * len(labels)
    named = [label for label in labels if label is not None]
    if named and len(named) < len(labels):
        stray = paths[labels.index(None)]
        raise ValueError(
            f"{folder}: {stray} lies in no class subfolder, but others do: move it, or give unlabelled images only"
        )
    if len(set(named)) == 1 and like is None:
        inner = roots["train"] / named[0]
        raise ValueError(f"{folder}: {quote(named[0])} is the only class; for unlabelled images give {inner} itself")
    if like is not None and (unknown := [p for p, c in zip(paths, labels, strict=True) if c and c not in like.classes]):
        raise ValueError(f"{unknown[0]}: its class is none of the model's: {some(like.classes)}")
    on_disk = sum(path.stat().st_size for path in paths)
    x = stack(((path, partial(Image.open, path)) for path in paths), like, count=len(paths), on_disk=on_disk)
    y = np.array(named) if named else None
    sizes = {split: len(members) for split, members in files.items()}
    spec = like or DataSpec(kind="image", event_shape=x.shape[1:], levels=256)
    return assemble(x, y, seed=seed, name=folder.name, where=str(folder), spec=spec, like=like, sizes=sizes)


def stack(
    images: Iterable[tuple[Path | str, Opened]], like: DataSpec | None = None, *, count: int, on_disk: int
) -> UInt8[np.ndarray, "N C H W"]:
    """Stack `count` images of one size, each a name for errors and a function that opens it.

    Sizes are read from the images' headers. Raises ValueError, before pixels are decoded, if they differ, or if images
    of `on_disk` bytes in all need too much memory.
    """
    pixels: list[np.ndarray] = []
    first: Path | str = ""
    size: tuple[int, int] | None = None if like is None else (like.event_shape[2], like.event_shape[1])
    for name, opened in images:
        with reading(name, "image"):
            image = opened()
        with image:
            if size is not None and sorted(image.size) != sorted(size):  # EXIF may turn an image
                raise ValueError(_other_size(name, image.size, first, size))
            if not pixels:
                required = count * image.width * image.height * (1 if image.mode in GREY else 3)
                check_bytes(required, on_disk, f"{count} images like {name}")
            array = read(name, image)
        height, width = array.shape[:2]
        if size is not None and (width, height) != size:
            raise ValueError(_other_size(name, (width, height), first, size))
        if like is not None and array.ndim == 3 and like.event_shape[0] == 1:
            raise ValueError(f"{name}: a colour image; the model accepts grey ones: convert it first")
        if array.ndim == 3 and not any(other.ndim == 3 for other in pixels[-1:]):
            check_bytes(count * array.size, on_disk, f"{count} images like {name}")
        first, size = first or name, (width, height)
        pixels.append(array)
    colour = any(array.ndim == 3 for array in pixels) or (like is not None and like.event_shape[0] == 3)
    if not colour:
        return np.stack(pixels)[:, None]
    out = np.empty((len(pixels), 3, *pixels[0].shape[:2]), dtype=np.uint8)
    for i, array in enumerate(pixels):
        out[i] = array.transpose(2, 0, 1) if array.ndim == 3 else array
    return out


def _other_size(name: Path | str, own: tuple[int, int], first: Path | str, size: tuple[int, int]) -> str:
    if not first:
        return f"{name}: {own[0]}×{own[1]} pixels; the model accepts {size[0]}×{size[1]}: resize or crop it first"
    return (
        f"{name} is {own[0]}×{own[1]} pixels but {first} is {size[0]}×{size[1]}: resize or crop all images to one size"
    )


def read(name: Path | str, image: Image.Image) -> UInt8[np.ndarray, "H W *C"]:
    """Return an opened image's pixels: (H, W) for grey, (H, W, 3) for colour."""
    with reading(name, "image"):
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


def _class(path: Path, root: Path) -> str | None:
    """Return the subfolder of the root that contains a file."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None
