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
from loglik.data.spec import DataSpec

__all__ = ["load_images", "read", "stack"]


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
        raise ValueError(f"{folder}: {named[0]!r} is the only class; for unlabelled images give {inner} itself")
    if like is not None and (unknown := [p for p, c in zip(paths, labels, strict=True) if c and c not in like.classes]):
        raise ValueError(f"{unknown[0]}: its class is none of the model's: {', '.join(like.classes)}")
    x = stack(((path, partial(Image.open, path)) for path in paths), like)
    y = np.array(named) if named else None
    sizes = {split: len(members) for split, members in files.items()}
    spec = like or DataSpec(kind="image", event_shape=x.shape[1:], levels=256)
    return assemble(x, y, seed=seed, name=folder.name, where=str(folder), spec=spec, like=like, sizes=sizes)


def stack(
    images: Iterable[tuple[Path | str, Callable[[], Image.Image]]], like: DataSpec | None = None
) -> UInt8[np.ndarray, "N C H W"]:
    """Stack images of one size, each a name for errors and a function that opens it."""
    pixels: list[np.ndarray] = []
    first: Path | str = ""
    for name, opened in images:
        array = read(name, opened)
        height, width = array.shape[:2]
        if like is not None and (height, width) != like.event_shape[1:]:
            h, w = like.event_shape[1:]
            raise ValueError(f"{name}: {width}×{height} pixels; the model accepts {w}×{h}: resize or crop it first")
        if like is not None and array.ndim == 3 and like.event_shape[0] == 1:
            raise ValueError(f"{name}: a colour image; the model accepts grey ones: convert it first")
        if pixels and pixels[0].shape[:2] != (height, width):
            h, w = pixels[0].shape[:2]
            raise ValueError(
                f"{name} is {width}×{height} pixels but {first} is {w}×{h}: resize or crop all images to one size"
            )
        first = first or name
        pixels.append(array)
    colour = any(array.ndim == 3 for array in pixels) or (like is not None and like.event_shape[0] == 3)
    if not colour:
        return np.stack(pixels)[:, None]
    out = np.empty((len(pixels), 3, *pixels[0].shape[:2]), dtype=np.uint8)
    for i, array in enumerate(pixels):
        out[i] = array.transpose(2, 0, 1) if array.ndim == 3 else array
    return out


def read(name: Path | str, opened: Callable[[], Image.Image]) -> UInt8[np.ndarray, "H W *C"]:
    """Return an image: (H, W) for grey, (H, W, 3) for colour."""
    try:
        with opened() as image:
            image.load()
            mode = image.mode
            upright = ImageOps.exif_transpose(image)
            # 16-bit and floating-point images are refused below; everything else is 8 bits a channel.
            pixels = None if mode[0] in "IF" else _grey_or_rgb(upright)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise ValueError(
            f"{name}: not a readable image ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    if pixels is None:
        raise ValueError(
            f"{name}: pixels of mode {mode}, more than 8 bits: convert to 8 bits, or give them as a .npy array"
        )
    return pixels


def _grey_or_rgb(image: Image.Image) -> np.ndarray:
    grey = image.mode in ("1", "L", "LA", "La")
    palette = image.mode in ("P", "PA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("RGB"))
    if grey or (palette and (pixels == pixels[..., :1]).all()):
        return pixels[..., 0]
    return pixels


def _class(path: Path, root: Path) -> str | None:
    """Return the subfolder of the root that contains a file."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None
