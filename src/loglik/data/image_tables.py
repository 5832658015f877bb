"""Images in a Parquet file: a column of encoded images, and one of labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from loglik.data.dataset import Data
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.image_settings import ImageSettings
from loglik.data.isolated import picture_blocks
from loglik.data.limits import quote, some
from loglik.data.picture_columns import HasPictures
from loglik.data.pixels import Sample, opened
from loglik.data.spec import DataSpec

__all__ = ["load_image_table"]

LABELS = ("label", "labels")


def load_image_table(
    path: Path,
    found: HasPictures,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    settings: ImageSettings | None = None,
) -> Data:
    """Read the images of a Parquet file; the column `label` (or one that is named so) holds their classes.

    Raises:
        ValueError: there is no such column, a row has no image, and as for other images.
    """
    picture, *others = found.columns
    if label is not None and label not in others and like is None:
        raise ValueError(f"{path}: no column {quote(label)} for the label; the columns are {some(found.columns)}")
    key = next((name for name in (label, *LABELS) if name in others), None)
    columns = [picture] if key is None else [picture, key]

    def samples() -> Iterator[Sample]:
        row = 0
        for piece in picture_blocks(path, columns):
            labels = piece["label"].to_list() if key else [None] * piece.height
            for content, value in zip(piece["picture"], labels, strict=True):
                row += 1
                if content is None:
                    raise ValueError(f"{path}: row {row}: no image in column {quote(picture)}")
                if not (value is None or isinstance(value, str | int)):
                    raise ValueError(f"{path}: row {row}: the label {quote(value)} is no string, integer or boolean")
                yield Sample(f"{path}: row {row}", partial(opened, content), len(content), value)

    size = path.stat().st_size
    images = ImageSet(path.stem, str(path), samples, on_disk=size, files=[path], settings=columns, label=label)
    return load_image_set(images, seed=seed, like=like, settings=settings)
