"""Folders of image files; see `pixels` for how images are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from loglik.data.dataset import Data, check_kind
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.image_settings import ImageSettings
from loglik.data.limits import quote, some
from loglik.data.pixels import Sample
from loglik.data.spec import DataSpec

__all__ = ["load_images"]


def load_images(
    folder: Path,
    files: dict[str, list[Path]],
    roots: dict[str, Path],
    *,
    seed: int = 0,
    like: DataSpec | None = None,
    settings: ImageSettings | None = None,
) -> Data:
    """Read the image files of each split; a split's subfolders are its classes.

    Args:
        files: the image files of `train`, and of `validation` and `test` where they exist, in order.
        roots: the folder of each split.

    Raises:
        ValueError: an image is corrupt or 16-bit; sizes differ and none is set; some images lie in class
            subfolders and some beside them; there is only one class.
    """
    check_kind("image", like, str(folder))
    paths = [path for split in files.values() for path in split]
    labels = [_class(path, roots[split]) for split, members in files.items() for path in members]
    _check_classes(folder, paths, labels, roots["train"], like)
    splits = [split for split, members in files.items() for _ in members]
    sizes = [path.stat().st_size for path in paths]

    def samples() -> Iterator[Sample]:
        for path, size, label, split in zip(paths, sizes, labels, splits, strict=True):
            yield Sample(str(path), partial(Image.open, path), size, label, split)

    images = ImageSet(
        folder.name,
        str(folder),
        samples,
        sum(sizes),
        paths,
        [[split, len(files[split])] for split in files],
        len(paths),
    )
    return load_image_set(images, seed=seed, like=like, settings=settings)


def _check_classes(
    folder: Path, paths: list[Path], labels: list[str | None], root: Path, like: DataSpec | None
) -> None:
    if like is not None and not like.classes:
        return
    named = {label for label in labels if label is not None}
    if named and None in labels:
        stray = paths[labels.index(None)]
        raise ValueError(
            f"{folder}: {stray} lies in no class subfolder, but others do: move it, or give unlabelled images only"
        )
    if len(named) == 1 and like is None:
        (only,) = named
        raise ValueError(f"{folder}: {quote(only)} is the only class; for unlabelled images give {root / only} itself")
    if like is not None and (unknown := [p for p, c in zip(paths, labels, strict=True) if c and c not in like.classes]):
        raise ValueError(f"{unknown[0]}: its class is none of the model's: {some(like.classes)}")


def _class(path: Path, root: Path) -> str | None:
    """Return the subfolder of the root that contains a file."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None
