"""Data sets of the Hugging Face Hub, through its package `datasets` (the extra `loglik[hub]`)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from loglik.data.dataset import Data, check_kind
from loglik.data.limits import first_line, quote, some
from loglik.data.spec import DataSpec
from loglik.data.text_settings import TextSettings

__all__ = ["load_hub"]

KNOWN = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_hub(
    name: str,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
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
        found = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # from the network, the Hub, or the data set itself
        raise ValueError(f"{source}: {first_line(error)}") from None
    parts = {s: found[key] for s, keys in KNOWN.items() for key in keys if key in found}
    if "train" not in parts:
        raise ValueError(f"{source}: no split named train; found {some(list(found))}")
    columns = list(parts["train"].column_names)
    if picture := next((c for c in ("image", "img") if c in columns), None):
        label = label or next((c for c in ("label", "labels") if c in columns), None)
        return _images(parts, picture, label, source=source, seed=seed, like=like)
    if "text" in columns:
        from loglik.data.text import load_text

        strings = {s: ["\n".join(part["text"]).encode()] for s, part in parts.items()}
        return load_text(strings, name=source, where=source, like=like, settings=text)
    return _table(parts, label or ("label" if "label" in columns else None), source=source, seed=seed, like=like)


def _images(
    parts: dict[str, Any], picture: str, label: str | None, *, source: str, seed: int, like: DataSpec | None
) -> Data:
    from loglik.data.arrays import assemble
    from loglik.data.images import stack

    if label is not None and label not in parts["train"].column_names:
        raise ValueError(f"{source}: no column {quote(label)}; found {some(parts['train'].column_names)}")
    check_kind("image", like, source)
    every = chain.from_iterable(
        ((f"{source} {s}[{i}]", lambda row=row: row[picture]) for i, row in enumerate(part))
        for s, part in parts.items()
    )
    on_disk = sum(getattr(part, "size_in_bytes", None) or 0 for part in parts.values())
    x = stack(every, like, count=sum(map(len, parts.values())), on_disk=on_disk)
    y = np.concatenate([np.asarray(part[label]) for part in parts.values()]) if label else None
    classes = getattr(parts["train"].features[label], "names", None) if label else None
    spec = like or DataSpec(kind="image", event_shape=x.shape[1:], levels=256)
    sizes = {s: len(part) for s, part in parts.items()}
    return assemble(x, y, seed=seed, name=source, spec=spec, like=like, classes=classes, sizes=sizes)


def _table(parts: dict[str, Any], label: str | None, *, source: str, seed: int, like: DataSpec | None) -> Data:
    import polars as pl

    from loglik.data.tables import from_frame

    frame = pl.concat([part.to_polars() for part in parts.values()])
    if label is not None and (names := getattr(parts["train"].features.get(label), "names", None)):
        frame = frame.with_columns(pl.col(label).replace_strict(dict(enumerate(names)), return_dtype=pl.String))
    sizes = {s: len(part) for s, part in parts.items()}
    return from_frame(frame, name=source, source=source, label=label, seed=seed, like=like, sizes=sizes)
