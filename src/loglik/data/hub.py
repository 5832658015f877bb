"""Data sets of the Hugging Face Hub, streamed by its package `datasets` (the extra `loglik[hub]`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from loglik.data.dataset import Data
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.limits import first_line, quote, reading, some
from loglik.data.pixels import Sample, opened
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings

__all__ = ["load_hub"]

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
) -> Data:
    """Read the data set NAME, or NAME:CONFIGURATION: images with labels, a table, or text.

    It is images where it has a column `image` or `img`, a table where all columns hold single values, and
    text where there is a column `text` besides. Its own splits are kept.

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
    parts = {s: found[key] for s, keys in KNOWN.items() for key in keys if key in found}
    if "train" not in parts:
        raise ValueError(f"{source}: no split named train; found {some(list(found))}")
    with reading(source, "data set"):
        columns = list(parts["train"].column_names or next(iter(parts["train"]), {}))
    if picture := next((c for c in ("image", "img") if c in columns), None):
        label = label or next((c for c in ("label", "labels") if c in columns), None)
        if label is not None and label not in columns:
            raise ValueError(f"{source}: no column {quote(label)}; found {some(columns)}")
        encoded = {s: part.cast_column(picture, datasets.Image(decode=False)) for s, part in parts.items()}
        return load_image_set(_images(encoded, picture, label, source), seed=seed, like=like)
    if "text" in columns:
        from loglik.data.text import load_text

        strings = {s: ["\n".join(row["text"] for row in _rows(part, source, s)).encode()] for s, part in parts.items()}
        return load_text(strings, name=source, where=source, like=like, settings=text)
    label = label or ("label" if "label" in columns else None)
    return _table(parts, label, source=source, seed=seed, like=like, table=table)


def _rows(part: Any, source: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split; an error of the network or the data set is a ValueError."""
    rows = iter(part)
    while True:
        with reading(f"{source} {split}", "data set"):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _images(parts: dict[str, Any], picture: str, label: str | None, source: str) -> ImageSet:
    def samples() -> Iterator[Sample]:
        for split, part in parts.items():
            for number, row in enumerate(_rows(part, source, split)):
                name = f"{source} {split}[{number}]"
                with reading(name, "image"):
                    content = row[picture]["bytes"] or Path(row[picture]["path"]).read_bytes()
                yield Sample(name, partial(opened, content), len(content), row[label] if label else None, split)

    info = parts["train"].info
    sizes = {split: known.num_examples for split, known in (info.splits or {}).items()}
    classes = getattr((info.features or {}).get(label), "names", None) if label else None
    settings = [source, picture, label, str(info.version), info.download_size, sizes]
    return ImageSet(source, source, samples, on_disk=0, settings=settings, classes=classes)


def _table(
    parts: dict[str, Any],
    label: str | None,
    *,
    source: str,
    seed: int,
    like: DataSpec | None,
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
    return from_frame(frame, name=source, source=source, label=label, seed=seed, like=like, sizes=sizes, table=table)
