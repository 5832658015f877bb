"""Columns of encoded images in Parquet files.

Images are bytes, or records with a field `bytes`, as Hugging Face's datasets write them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from loglik.data.frames import format_of
from loglik.data.limits import quote, reading

__all__ = ["HasPictures", "picture_columns", "pictures"]

ROWS = 1024  # read at once
PIECE = 2**22  # bytes handed over at once


class HasPictures(ValueError):
    """A Parquet file has a column of encoded images.

    Attributes:
        columns: all columns, that of images first.
    """

    def __init__(self, path: Path, columns: list[str]) -> None:
        super().__init__(f"{path}: column {quote(columns[0])} holds images, but a table of numbers and texts is needed")
        self.columns = columns


def picture_columns(path: Path) -> list[str]:
    """Return all columns of a Parquet file, the first one of encoded images first; nothing if it has no images."""
    if format_of(path) != "Parquet":
        return []
    with reading(path, "Parquet file"):
        schema = pl.scan_parquet(path, glob=False).collect_schema()
        for name, dtype in schema.items():
            fields = dict(dtype) if isinstance(dtype, pl.Struct) else {}
            if fields.get("bytes") == pl.Binary or (dtype == pl.Binary and _begins_with_image(path, name)):
                return [name, *(other for other in schema if other != name)]
    return []


def _begins_with_image(path: Path, column: str) -> bool:
    from PIL import Image

    first = pl.scan_parquet(path, glob=False).select(column).head(1).collect()
    try:
        Image.open(io.BytesIO(first.item() if first.height else b"")).close()
    except Exception:  # Pillow raises many kinds
        return False
    return True


def pictures(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the columns `picture` and, if there is a second one, `label` of a Parquet file, some rows at once."""
    with reading(path, "Parquet file"):
        scan = pl.scan_parquet(path, glob=False)
        picture = pl.col(columns[0])
        if isinstance(scan.collect_schema()[columns[0]], pl.Struct):
            picture = picture.struct.field("bytes")
        selected = scan.select(picture.alias("picture"), *(pl.col(name).alias("label") for name in columns[1:]))
        for batch in selected.collect_batches(chunk_size=ROWS, maintain_order=True):
            each = max(1, int(batch.estimated_size()) // max(1, batch.height))
            yield from batch.iter_slices(max(1, PIECE // each))
