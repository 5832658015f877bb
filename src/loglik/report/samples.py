"""Samples and examples as pictures, text and files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loglik import files
from loglik.data.dataset import Split
from loglik.data.spec import Column, DataSpec

__all__ = [
    "examples",
    "image_grid",
    "numbered",
    "samples_file",
    "text_of",
    "write_samples",
]

SUFFIXES = {"image": ".png", "table": ".csv", "text": ".txt", "array": ".npy"}
CELL = 48  # the minimal height of an image in a grid, in pixels


def examples(split: Split, n: int, *, classes: int, seed: int) -> Shaped[Tensor, "n ..."]:
    """Return n random examples, the classes in turn where there are labels, as `tasks.draw` orders samples."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:5000]
    if classes and split.y is not None:
        y = split.y[order]
        earlier = F.one_hot(y, classes).cumsum(0).gather(1, y[:, None]).squeeze(1)
        order = order[(earlier * classes + y).argsort()]
    return split.batch(order[:n])[0]


def image_grid(
    x: Shaped[Tensor, "B C H W"],
    spec: DataSpec,
    *,
    columns: int,
    span: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "..."]:
    """Return a grid of images on white, row after row: (height, width), and 3 at the end for colours.

    `span` are the values of black and white: by default 0 and the highest level; for continuous data 0 and 1, or the
    lowest and highest value where some lie outside.

    Raises:
        ValueError: the images have neither one nor three channels.
    """
    b, c, h, w = x.shape
    if c not in (1, 3):
        raise ValueError(f"a picture needs 1 or 3 channels, got images of shape {tuple(x.shape[1:])}; use .npy")
    values = x.double().nan_to_num()
    if span is None:
        span = (0.0, spec.levels - 1.0) if spec.levels else (0.0, 1.0)
        if spec.levels is None and b and (values.min() < 0 or values.max() > 1):
            span = (float(values.min()), float(values.max()))
    low, high = span
    pixels = ((values - low) / ((high - low) or 1.0)).clamp(0, 1).mul(255).round().byte()
    scale = max(1, CELL // max(h, w))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    h, w, gap = h * scale, w * scale, max(2, CELL // 16)
    rows = -(-b // columns)
    grid = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, dtype=np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        grid[top : top + h, left : left + w] = image
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


def write_samples(x: Shaped[Tensor, "n ..."], spec: DataSpec, path: Path) -> None:
    """Write samples to a file: images as a `.png` grid, tables as `.csv`, text as `.txt`, arrays as `.npy`.

    Data of any kind can be written as `.npy`.

    Raises:
        ValueError: the file's suffix does not fit the kind of data.
    """
    x, suffix = x.detach().cpu(), path.suffix.lower()
    usual = SUFFIXES[spec.kind]
    if suffix not in (usual, ".npy"):
        suffixes = " or ".join(dict.fromkeys([usual, ".npy"]))
        raise ValueError(f"samples of {spec.kind} data are written as {suffixes}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(path):
        if suffix == ".npy":
            np.save(path, x.numpy())
        elif suffix == ".png":
            columns = max(1, round(len(x) ** 0.5))
            Image.fromarray(image_grid(x, spec, columns=columns)).save(path)
        elif suffix == ".csv":
            _write_table(x, spec, path)
        else:
            path.write_text(numbered([text_of(row, spec) for row in x]), encoding="utf-8")


def _write_table(x: Tensor, spec: DataSpec, path: Path) -> None:
    columns = spec.columns or tuple(Column(name=f"x{i}", type="numeric") for i in range(spec.dims))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in columns])
        for row in x.tolist():
            writer.writerow([_cell(value, column) for value, column in zip(row, columns, strict=True)])


def _cell(value: float, column: Column) -> str | int | float:
    """Return a value as it is written in a table: a number, an integer or a category."""
    if column.type == "numeric" or value != value:
        return float(f"{value:.7g}")  # as many digits as float32 holds
    code = int(value)
    assert code == value, f"column {column.name!r} holds integers, got {value}"
    return column.categories[code] if column.categories else code
