"""load and as_data: data from a name, a path, an array or a pair of arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from loglik.data.arrays import from_arrays
from loglik.data.catalogue import names
from loglik.data.dataset import Data
from loglik.data.items import load_items
from loglik.data.limits import quote, shorten, some
from loglik.data.shard_names import expand, is_shard
from loglik.data.spec import DataSpec
from loglik.data.targets import choose_targets, pair_frame, whole_table
from loglik.data.text_settings import TextSettings

__all__ = ["as_data", "load"]

ARRAYS = {".npy", ".npz"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
SPLIT_FOLDERS = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test",
}  # fmt: skip


def load(
    source: str | Path,
    *,
    label: str | None = None,
    target: str | Sequence[str] | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
    cache: Path | None = None,
) -> Data:
    """Read data from a name, `hf:NAME`, a file or a folder.

    A folder of images, of tar shards or of text may have the subfolders train, validation and test; else the splits are
    cut from the whole: 80/10/10, at random, or by position for text. A name goes before a folder of that name;
    write `./digits` for the folder.

    Args:
        source: a name that `names()` has, `hf:NAME`, a folder, a table (.csv, .tsv, .json, .jsonl, .parquet, .feather,
            .arrow; .csv.gz and the like), a .npy, .npz or text file, or tar shards of images: a file, a folder of
            them, or a pattern such as `shards/{000..099}.tar` or `shards/*.tar`.
        label: the column of a table, or the name in the .json files of tar shards, that becomes the label.
        target: the columns of a table, in a list or a text with commas, that a density models given all others.
        seed: fixes the random split.
        like: the spec of an existing model, which the data must fit; it determines their codes.
        text: the tokenizer, window and split of text.
        cache: the folder that keeps the tokens of text; one in the user's cache if None.

    Raises:
        FileNotFoundError: there is no such file, folder or name.
        ValueError: the data are not readable, or do not fit.
    """
    table = whole_table(like) if like and like.inputs else like
    data = _targets(_load(source, label=label, seed=seed, like=table, text=text, cache=cache), target, like)
    if text is not None and data.spec.kind != "text" and like is None:
        raise ValueError(
            f"{source}: {', '.join(text.names())} are settings of text, and this is {data.spec.describe()}"
        )
    known = str(source) in names() or str(source).startswith("hf:")
    return replace(data, source=str(source) if known else str(_path(source).resolve()))


def as_data(
    data: Any,
    *,
    label: str | None = None,
    target: str | Sequence[str] | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    text: TextSettings | None = None,
    beside: Path | None = None,
) -> Data:
    """Return `Data` from a path or name, an array, a tensor, a pair (x, y), or a `torch.utils.data.Dataset`.

    With `like`, the data must fit the spec of an existing model, which determines their codes. `text` says how text is
    read, and its tokens are kept beside the folder of a run. `target` names a table's columns that are modelled given
    all others; of a pair (x, y) of inputs and targets, it names the columns of y.
    """
    if isinstance(data, Data):
        if text is not None and text != data.text:
            raise ValueError(f"{data.name}: {', '.join(text.names())} were settled when the data were read")
        return data if data.spec.inputs else _targets(data, target, None)
    if isinstance(data, (str, Path)):
        cache = None if beside is None else beside.parent / ".tokens"
        return load(data, label=label, target=target, seed=seed, like=like, text=text, cache=cache)
    if target is not None or (like and like.inputs):
        return _targets(_in_memory(data, target, label=label, seed=seed, like=like), target, like)
    if text is not None and like is None:
        raise ValueError(f"{', '.join(text.names())} are settings of text files: pass a path")
    if isinstance(data, tuple) and len(data) == 2:
        return from_arrays(data[0], data[1], seed=seed, like=like)
    if isinstance(data, (np.ndarray, Tensor)):
        return from_arrays(data, seed=seed, like=like)
    if isinstance(data, Dataset) or type(data).__module__.startswith("datasets."):  # Hugging Face's are none of torch's
        return load_items(data, seed=seed, like=like)
    raise ValueError(
        f"data must be a path, a name, an array, a pair (x, y), a Dataset or Data, got {type(data).__name__}"
    )


def _targets(data: Data, target: str | Sequence[str] | None, like: DataSpec | None) -> Data:
    """Return the data as targets given inputs, where `target` names some or a model has some."""
    if like is not None and like.inputs:
        return choose_targets(data, [column.name for column in like.columns], like)
    return data if target is None else choose_targets(data, target)


def _in_memory(
    data: Any, target: str | Sequence[str] | None, *, label: str | None, seed: int, like: DataSpec | None
) -> Data:
    """Return a whole table of a frame, or of a pair of arrays of inputs and targets."""
    from loglik.data.tables import from_frame

    table = whole_table(like) if like else None
    if isinstance(data, tuple) and len(data) == 2:
        names = target if target is not None else [column.name for column in like.columns] if like else "target"
        return from_frame(pair_frame(*data, names), name="arrays", source="arrays", seed=seed, like=table)
    return as_data(data, label=label, seed=seed, like=table)


def _load(
    source: str | Path,
    *,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    cache: Path | None,
) -> Data:
    word, path = str(source), _path(source)
    if word.startswith("hf:"):
        from loglik.data.hub import load_hub

        return load_hub(word[3:], label=label, seed=seed, like=like, text=text)
    if word in names():
        from loglik.data.named import load_named

        if label is not None and word in ("digits", "fashion-mnist"):
            _no_label(word, label)
        return load_named(word, label=label, seed=seed, like=like)
    if is_shard(word) and not path.exists() and re.search(r"[{*?\[]", word):
        return _load_shards(path, {"train": expand(str(path))}, label=label, seed=seed, like=like)
    if not path.exists():
        raise FileNotFoundError(
            f"{shorten(word, 200)}: no such file or folder, nor a known name: the names are {', '.join(names())}, "
            "hf:NAME"
        )
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{word}: a pipe, device or socket: give a file or a folder")
    if path.is_file():
        from loglik.data.frames import is_table

        if is_table(path):
            from loglik.data.image_tables import load_image_table
            from loglik.data.picture_columns import HasPictures
            from loglik.data.tables import load_table

            try:
                return load_table(path, label=label, seed=seed, like=like, text=text)
            except HasPictures as found:
                return load_image_table(path, found, label=label, seed=seed, like=like)
        if is_shard(path):
            return _load_shards(path, {"train": [path]}, label=label, seed=seed, like=like)
    if path.is_dir():
        roots = _roots(path)
        files = {split: _files(root) for split, root in roots.items()}
        shards = {split: [file for file in members if is_shard(file)] for split, members in files.items()}
        if sum(map(len, shards.values())) > sum(map(len, files.values())) // 2:
            _check_splits(shards, roots, "tar shards")
            return _load_shards(path, shards, label=label, seed=seed, like=like)
    if label is not None:
        _no_label(word, label)
    if path.is_dir():
        return _load_folder(path, files, roots, seed=seed, like=like, text=text, cache=cache)
    if path.suffix.lower() in ARRAYS:
        from loglik.data.arrays import load_array_file

        return load_array_file(path, seed=seed, like=like)
    return _load_text_file(path, like=like, text=text, cache=cache)


def _path(source: str | Path) -> Path:
    """Return the path of a source, with the user's home folder for ~."""
    if not str(source):
        raise ValueError("the path of the data is empty: give a name, a file or a folder")
    if "\0" in str(source):
        raise ValueError(f"{quote(str(source))}: a path has no zero bytes")
    try:
        return Path(source).expanduser()
    except RuntimeError:  # no home folder, or no such user
        return Path(source)


def _load_text_file(path: Path, *, like: DataSpec | None, text: TextSettings | None, cache: Path | None) -> Data:
    from loglik.data.text import is_text, load_text

    if path.suffix.lower() in IMAGES:
        raise ValueError(f"{path}: one image is not a data set: give the folder of images")
    reads_bytes = (like.tokenizer.kind if like and like.tokenizer else text.tokenizer if text else "") == "bytes"
    if not is_text(path) and not reads_bytes:
        raise ValueError(
            f"{path}: binary, and of no known type: give a table (.csv, .json, .jsonl, .parquet, .feather, .arrow, or "
            ".csv.gz), a .npy, .npz or text file, or a folder of images; tokenizer=bytes reads any file as text"
        )
    return load_text({"train": [path]}, name=path.stem, where=str(path), like=like, settings=text, cache=cache)


def _load_shards(
    path: Path, shards: dict[str, list[Path]], *, label: str | None, seed: int, like: DataSpec | None
) -> Data:
    from loglik.data.shards import load_shards

    return load_shards(shards, name=path.stem or path.name, where=str(path), label=label, seed=seed, like=like)


def _load_folder(
    folder: Path,
    files: dict[str, list[Path]],
    roots: dict[str, Path],
    *,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    cache: Path | None,
) -> Data:
    """Read a folder of images, or of text if it contains more text files than images."""
    from loglik.data.frames import is_table
    from loglik.data.text import is_text, load_text

    images = {s: [p for p in paths if p.suffix.lower() in IMAGES] for s, paths in files.items()}
    texts = {s: [p for p in paths if p.suffix.lower() not in IMAGES and is_text(p)] for s, paths in files.items()}
    n_images, n_texts = (sum(map(len, found.values())) for found in (images, texts))
    if not n_images and not n_texts:
        raise ValueError(f"{folder}: no images and no text files in this folder")
    found = images if n_images >= n_texts else texts
    every = [path for paths in found.values() for path in paths]
    if all(map(is_table, every)):
        raise ValueError(f"{folder}: a folder of tables: give one file, as {every[0]}, or rename text to .txt")
    _check_splits(found, roots, "images" if found is images else "text files")
    if found is images:
        from loglik.data.images import load_images

        return load_images(folder, images, roots, seed=seed, like=like)
    return load_text(texts, name=folder.name, where=str(folder), like=like, settings=text, cache=cache)


def _check_splits(found: dict[str, list[Path]], roots: dict[str, Path], what: str) -> None:
    if empty := [roots[split] for split, paths in found.items() if not paths]:
        raise ValueError(f"{empty[0]}: no {what} in this folder")


def _roots(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits: the folder itself, unless all its subfolders are named for splits."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    splits = {SPLIT_FOLDERS.get(p.name.lower(), ""): p for p in inner}
    if "train" not in splits or "" in splits:
        return {"train": folder}
    if len(splits) < len(inner):
        raise ValueError(f"{folder}: {some([p.name for p in inner])} name one split twice")
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _files(root: Path) -> list[Path]:
    """Return every visible file below a folder, sorted."""
    visible = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    return sorted(p for p in visible if p.is_file())


def _no_label(source: str, label: str) -> None:
    raise ValueError(f"{source} is not a table, so it has no column {quote(label)} for the label: leave the label out")
