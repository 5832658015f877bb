"""Samples and examples as pictures, text and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from loglik import files
from loglik.data.dataset import Split
from loglik.data.decode import TABLES, decode, write_table
from loglik.data.spec import Column, DataSpec
from loglik.tasks import Samples

__all__ = [
    "examples",
    "image_grid",
    "numbered",
    "samples_file",
    "text_of",
    "write_samples",
]

SUFFIXES = {"image": ".png", "table": ".csv", "text": ".txt", "array": ".npy"}
MAX_GRID = 2**27  # values in a grid of images
CELL = 48  # the minimal height of an image in a grid, in pixels


def examples(split: Split, n: int, *, seed: int) -> Shaped[Tensor, "n ..."]:
    """Return n random examples."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.batch(order[:n])[0]


def image_grid(
    x: Shaped[Tensor, "B C H W"],
    spec: DataSpec,
    *,
    columns: int,
    span: tuple[float, float] | None = None,
    cell: int = CELL,
    clear: bool = False,
) -> UInt8[np.ndarray, "..."]:
    """Return a grid of images on white, row after row: (height, width), and 3 or 4 at the end for colours.

    With `clear` the ground is transparent: one channel more, unless there are 4.

    `span` are the values of black and white: by default 0 and the highest level; for continuous data 0 and 1, or the
    lowest and highest value where some lie outside. Smaller images are enlarged to about `cell` pixels.

    Raises:
        ValueError: the images have neither one, three nor four channels.
    """
    b, c, h, w = x.shape
    if c not in (1, 3, 4):
        raise ValueError(f"a picture needs 1, 3 or 4 channels, got images of shape {tuple(x.shape[1:])}; use .npy")
    values = x.double().nan_to_num()
    if span is None:
        span = (0.0, spec.levels - 1.0) if spec.levels else (0.0, 1.0)
        if spec.levels is None and b and (values.min() < 0 or values.max() > 1):
            span = (float(values.min()), float(values.max()))
    low, high = span
    pixels = ((values - low) / ((high - low) or 1.0)).clamp(0, 1).mul(255).round().byte()
    scale = max(1, cell // max(h, w))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    h, w, gap = h * scale, w * scale, max(2, CELL // 16)
    rows = -(-b // columns)
    grid = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, dtype=np.uint8)
    opaque = np.zeros((*grid.shape[:2], 1), dtype=np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        grid[top : top + h, left : left + w] = image
        opaque[top : top + h, left : left + w] = 255
    if clear and c != 4:
        return np.concatenate([grid, opaque], 2)
    return grid[..., 0] if c == 1 else grid


def text_of(tokens: Shaped[Tensor, " T"], spec: DataSpec) -> str:
    """Return tokens as text with unprintable characters replaced, or as numbers where there is no tokenizer."""
    if spec.tokenizer is None:
        return " ".join(str(int(t)) for t in tokens)
    text = spec.tokenizer.decode(t for t in tokens.tolist() if t < spec.tokenizer.size).decode(errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def numbered(texts: Sequence[str]) -> str:
    """Return texts one after the other, under headings if there are several."""
    heads = [f"--- sample {i} ---\n" if len(texts) > 1 else "" for i in range(1, len(texts) + 1)]
    return "".join(f"{head}{text}\n" for head, text in zip(heads, texts, strict=True))


def samples_file(folder: Path, spec: DataSpec) -> Path:
    """Return the default file for samples in a run's folder, by the kind of its data."""
    return folder / f"samples{SUFFIXES[spec.kind]}"


def write_samples(x: Shaped[Tensor, "n ..."] | Samples, spec: DataSpec, path: Path) -> None:
    """Write samples: images as a `.png` grid, text as `.txt`, arrays as `.npy`, tables in the format of the suffix.

    Data of any kind can be written as `.npy`, and images as a folder of `.png` files: a path without a suffix. Samples
    that are not drawn yet are written block by block, except a grid.

    Raises:
        ValueError: the file's suffix does not fit the kind of data, or a grid would be too large.
    """
    suffix, usual = path.suffix.lower(), SUFFIXES[spec.kind]
    allowed = dict.fromkeys([*(TABLES if usual == ".csv" else [usual]), ".npy", *([""] if usual == ".png" else [])])
    if suffix not in allowed:
        names = " or ".join(name or "a folder of pictures" for name in allowed)
        raise ValueError(f"samples of {spec.kind} data are written as {names}, got {path.name!r}")
    blocks = iter([x.detach().cpu()]) if isinstance(x, Tensor) else iter(x)
    if suffix in TABLES:
        columns = spec.columns or tuple(Column(name=f"x{i}", type="numeric") for i in range(spec.dims))
        write_table((decode(block, columns) for block in blocks), path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == "":
        _write_pictures(blocks, spec, path)
        return
    if suffix == ".png":
        _check_grid(len(x), spec)
    with files.replacing(path) as temporary:
        if suffix == ".npy":
            _write_array(blocks, len(x), temporary)
        elif suffix == ".png":
            grid = image_grid(torch.cat(list(blocks)), spec, columns=max(1, round(len(x) ** 0.5)))
            Image.fromarray(grid).save(temporary, format="png")
        else:
            _write_texts(blocks, len(x), spec, temporary)


def _write_array(blocks: Iterator[Shaped[Tensor, "B ..."]], n: int, path: Path) -> None:
    """Write blocks of n rows together as one `.npy` array, whose header comes before the rows."""
    first = next(blocks)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(first.numpy().dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (n, *first.shape[1:])})
        for block in chain([first], blocks):
            file.write(block.contiguous().numpy().data)


def _check_grid(n: int, spec: DataSpec) -> None:
    c, h, w = spec.event_shape if len(spec.event_shape) == 3 else (1, 1, 1)
    scale = max(1, CELL // max(h, w))
    if n * c * h * w * scale**2 > MAX_GRID:
        raise ValueError(
            f"{n} images are too many for one picture: write a .npy file, or a folder of pictures (a name without .png)"
        )


def _write_pictures(blocks: Iterator[Tensor], spec: DataSpec, folder: Path) -> None:
    """Write each image as a file in a new folder, named by its number from 1."""
    folder.mkdir()
    number, span = 0, (0.0, spec.levels - 1.0 if spec.levels else 1.0)
    for block in blocks:
        for image in block:
            number += 1
            pixels = image_grid(image[None], spec, columns=1, span=span, cell=1)
            with files.naming(folder):
                Image.fromarray(pixels).save(folder / f"{number:07}.png")


def _write_texts(blocks: Iterator[Tensor], n: int, spec: DataSpec, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(chain.from_iterable(blocks), 1):
            head = f"--- sample {i} ---\n" if n > 1 else ""
            file.write(f"{head}{text_of(row, spec)}\n")
