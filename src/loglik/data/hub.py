"""Data sets of Hugging Face's package `datasets`: by name, streamed from the Hub, or objects in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loglik.data.array_names import EXAMPLES, label_key
from loglik.data.dataset import Data
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.image_settings import ImageSettings
from loglik.data.items import load_items
from loglik.data.limits import first_line, reading, some
from loglik.data.pixels import Sample, opened
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings

__all__ = ["load_datasets", "load_hub"]

KNOWN = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ROWS = 4096  # of a table, read at once


def load_hub(
    name: str,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
    table: TableSettings | None = None,
    images: ImageSettings | None = None,
) -> Data:
    """Read the data set NAME, or NAME:CONFIGURATION: images with labels, a table, or text.

    Its own splits are kept; see `load_datasets` for what it is.

    Raises:
        ValueError: the package is not installed, the data set is not found, or it is none of these.
    """
    source = f"hf:{name}"
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{source} needs Hugging Face's datasets: pip install 'loglik[hub]'") from None
    repository, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None, streaming=True)
    except Exception as error:  # from the network, the Hub, or the data set itself
        raise ValueError(f"{source}: {first_line(error)}") from None
    return _load(
        _splits(found, source), source, True, label=label, seed=seed, like=like, text=text, table=table, images=images
    )


def load_datasets(
    dataset: Any,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
    table: TableSettings | None = None,
    images: ImageSettings | None = None,
) -> Data:
    """Return data from a `datasets.Dataset`, `DatasetDict`, or one of their iterable variants.

    It is images where it has a column of images, text where it has a column `text`, and a table where all columns hold
    single values; else its items are arrays. A `DatasetDict` keeps its splits.

    Raises:
        ValueError: it is empty, an image is damaged, there is no column `label`, or as for tables, text and images.
    """
    name = type(dataset).__name__
    parts = _splits(dataset, name) if isinstance(dataset, Mapping) else {"train": dataset}
    return _load(parts, name, False, label=label, seed=seed, like=like, text=text, table=table, images=images)


def _splits(found: Any, source: str) -> dict[str, Any]:
    parts = {s: found[key] for s, keys in KNOWN.items() for key in keys if key in found}
    if "train" not in parts:
        raise ValueError(f"{source}: no split named train; found {some(list(found))}")
    return parts


def _load(
    parts: dict[str, Any],
    source: str,
    lasting: bool,
    *,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    table: TableSettings | None,
    images: ImageSettings | None,
) -> Data:
    train = parts["train"]
    with reading(source, "data set"):
        first: dict[str, Any] = next(iter(train), {})
        columns = list(train.column_names or first)
    if not first:
        raise ValueError(f"{source}: no rows")
    if len(parts) == 1 and (getattr(train, "format", None) or {}).get("type") == "custom":  # the user's set_transform
        return load_items(train, label=label, seed=seed, like=like, images=images)
    if (picture := _picture(train, columns, first)) is not None:
        pictures = _images(parts, picture, label_key(columns, label, source, strict=like is None), source, lasting)
        return load_image_set(replace(pictures, label=label), seed=seed, like=like, settings=images)
    if "text" in columns and label is None:
        from loglik.data.text import load_text

        strings = {s: ["\n".join(row["text"] for row in _rows(part, source, s)).encode()] for s, part in parts.items()}
        return load_text(strings, name=source, where=source, like=like, settings=text)
    if any(isinstance(value, list | dict | np.ndarray | Image.Image) for value in first.values()):
        if len(parts) > 1:
            raise ValueError(f"{source}: its splits hold arrays: pass one of them, such as its train split")
        return load_items(train.with_format("numpy"), label=label, seed=seed, like=like, images=images)
    key = label or ("label" if "label" in columns else None)
    return _table(parts, key, source=source, seed=seed, like=like, text=text, table=table)


def _picture(part: Any, columns: list[str], first: dict[str, Any]) -> str | None:
    """Return the first column of encoded images, the usual names before others; None if there is none."""
    features = part.features or {}
    for name in dict.fromkeys([*(c for c in EXAMPLES if c in columns), *columns]):
        value, typed = first.get(name), type(features.get(name)).__name__ == "Image"
        if typed or (isinstance(value, dict) and set(value) == {"bytes", "path"}):
            return name
    return None


def _rows(part: Any, source: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split; an error of the network or the data set is a ValueError."""
    rows = iter(part)
    while True:
        with reading(f"{source} {split}", "data set"):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _images(parts: dict[str, Any], picture: str, label: str | None, source: str, lasting: bool) -> ImageSet:
    import datasets

    features = parts["train"].features or {}
    image = datasets.Image(decode=False)
    encoded = {s: part.with_format(None).cast_column(picture, image) for s, part in parts.items()}

    def samples() -> Iterator[Sample]:
        for split, part in encoded.items():
            for number, row in enumerate(_rows(part, source, split)):
                name = f"{source} {split}[{number}]"
                with reading(name, "image"):
                    content = row[picture]["bytes"] or Path(row[picture]["path"]).read_bytes()
                yield Sample(name, partial(opened, content), len(content), row[label] if label else None, split)

    info = parts["train"].info
    sizes = {split: known.num_examples for split, known in (info.splits or {}).items()}
    classes = getattr(features.get(label), "names", None) if label else None
    settings = [source, picture, label, str(info.version), info.download_size, sizes]
    count = sum(map(len, parts.values())) if all(hasattr(part, "__len__") for part in parts.values()) else None
    return ImageSet(
        source,
        source,
        samples,
        on_disk=0,
        settings=settings,
        count=None if lasting else count,
        classes=classes,
        lasting=lasting,
    )


def _table(
    parts: dict[str, Any],
    label: str | None,
    *,
    source: str,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    table: TableSettings | None,
) -> Data:
    import polars as pl

    from loglik.data.tables import from_frame

    frames = {}
    for split, part in parts.items():
        with reading(f"{source} {split}", "data set"):
            frames[split] = pl.concat([pl.DataFrame(rows) for rows in part.iter(ROWS)], how="vertical_relaxed")
    frame = pl.concat(frames.values(), how="vertical_relaxed")
    if label is not None and (names := getattr((parts["train"].features or {}).get(label), "names", None)):
        frame = frame.with_columns(pl.col(label).replace_strict(dict(enumerate(names)), return_dtype=pl.String))
    sizes = {split: part.height for split, part in frames.items()}
    return from_frame(
        frame, name=source, source=source, label=label, seed=seed, like=like, sizes=sizes, text=text, table=table
    )
