"""load and as_data: data from a name, a path, an array or a pair of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from loglik.data.arrays import from_arrays, from_named, has_arrays, is_array
from loglik.data.catalogue import names
from loglik.data.dataset import Data
from loglik.data.image_settings import ImageSettings
from loglik.data.items import load_items
from loglik.data.limits import quote, shorten, some
from loglik.data.shard_names import expand, is_shard
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings
from loglik.data.targets import choose_targets, pair_frame, whole_table
from loglik.data.text_settings import TextSettings
from loglik.data.values import from_values, is_frame

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
    table: TableSettings | None = None,
    images: ImageSettings | None = None,
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
        table: what becomes of a table's missing values, unseen categories, and columns.
        images: the size, fit, alpha, colour and bits of image files.
        cache: the folder that keeps the tokens of text; one in the user's cache if None.

    Raises:
        FileNotFoundError: there is no such file, folder or name.
        ValueError: the data are not readable, or do not fit.
    """
    whole = whole_table(like) if like and like.inputs else like
    data = _load(source, label=label, seed=seed, like=whole, text=text, table=table, images=images, cache=cache)
    _check_is_table(data, table, str(source))
    data = _targets(data, target, like)
    if text is not None and data.spec.kind != "text" and like is None:
        raise ValueError(
            f"{source}: {', '.join(text.names())} are settings of text, and this is {data.spec.describe()}"
        )
    if images is not None and data.images is None and like is None:
        raise ValueError(
            f"{source}: {', '.join(images.names())} are settings of image files, and this is {data.spec.describe()}"
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
    table: TableSettings | None = None,
    images: ImageSettings | None = None,
    beside: Path | None = None,
) -> Data:
    """Return `Data` from a path or name, arrays or tensors, a data frame, a pair (x, y), or a Dataset.

    A data frame is one of pandas or polars, an Arrow table, or a dictionary of columns; a Dataset is PyTorch's or
    Hugging Face's. With `like`, the data must fit the spec of an existing model, which determines their codes. `label`
    names the column or the key that holds labels; `target` names a table's columns that are modelled given all others,
    or of a pair (x, y) of inputs and targets, the columns of y. `text`, `table` and `images` say how these are read;
    tokens are kept beside the folder of a run.
    """
    if isinstance(data, Data):
        for given, own in ((text, data.text), (images, data.images), (None if like else table, data.table)):
            if given is not None and given != own:
                raise ValueError(f"{data.name}: {', '.join(given.names())} were settled when the data were read")
        return data if data.spec.inputs else _targets(data, target, like)
    settings: dict[str, Any] = {"label": label, "seed": seed, "text": text, "table": table, "images": images}
    if isinstance(data, (str, Path)):
        cache = None if beside is None else beside.parent / ".tokens"
        return load(data, target=target, like=like, cache=cache, **settings)
    whole = whole_table(like) if like and like.inputs else like
    if isinstance(data, tuple) and len(data) == 2 and (target is not None or (like and like.inputs)):
        names = target if target is not None else [column.name for column in like.columns] if like else "target"
        data = pair_frame(*data, names)
    found = _from_object(data, like=whole, **settings)
    for given, own, what in (
        (text, found.text, "text"),
        (table, found.table, "tables"),
        (images, found.images, "images that are files or PIL images"),
    ):
        if given is not None and own is None and like is None:
            raise ValueError(
                f"{', '.join(given.names())} are settings of {what}, and these are {found.spec.describe()}"
            )
    return _targets(found, target, like)


def _from_object(
    data: Any,
    *,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    table: TableSettings | None,
    images: ImageSettings | None,
) -> Data:
    """Return data from an object in memory."""
    if type(data).__module__.partition(".")[0] == "datasets":  # Hugging Face's are none of torch's
        from loglik.data.hub import load_datasets

        return load_datasets(data, label=label, seed=seed, like=like, text=text, table=table, images=images)
    if isinstance(data, Mapping) and has_arrays(data):
        return from_named(data, label=label, seed=seed, like=like)
    if is_frame(data[0] if isinstance(data, tuple) and len(data) == 2 else data):
        return from_values(data, label=label, seed=seed, like=like, table=table)
    if is_array(data):
        return from_arrays(data, seed=seed, like=like)
    if isinstance(data, tuple) and len(data) == 2:
        x, y = data
        if not isinstance(x, list) or is_array(x):
            return from_arrays(x, y, seed=seed, like=like)
        if len(x) != len(y):
            raise ValueError(f"{len(x)} examples but {len(y)} labels: give one label an example")
        return load_items([*zip(x, y, strict=True)], seed=seed, like=like, images=images)
    if isinstance(data, (Dataset, list)):
        return load_items(data, label=label, seed=seed, like=like, images=images)
    raise ValueError(
        "data must be a path, a name, an array, a data frame, a pair (x, y), a dict of arrays, a Dataset or Data, got "
        f"{type(data).__name__}"
    )


def _targets(data: Data, target: str | Sequence[str] | None, like: DataSpec | None) -> Data:
    """Return the data as targets given inputs, where `target` names some or a model has some."""
    if like is not None and like.inputs:
        return choose_targets(data, [column.name for column in like.columns], like)
    return data if target is None else choose_targets(data, target)


def _load(
    source: str | Path,
    *,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    table: TableSettings | None,
    images: ImageSettings | None,
    cache: Path | None,
) -> Data:
    word, path = str(source), _path(source)
    if word.startswith("hf:"):
        from loglik.data.hub import load_hub

        return load_hub(word[3:], label=label, seed=seed, like=like, text=text, table=table, images=images)
    if word in names():
        from loglik.data.named import load_named

        if label is not None and word in ("digits", "fashion-mnist"):
            _no_label(word, label)
        return load_named(word, label=label, seed=seed, like=like, table=table)
    if is_shard(word) and not path.exists() and re.search(r"[{*?\[]", word):
        return _load_shards(path, {"train": expand(str(path))}, label=label, seed=seed, like=like, images=images)
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
                return load_table(path, label=label, seed=seed, like=like, text=text, table=table)
            except HasPictures as found:
                return load_image_table(path, found, label=label, seed=seed, like=like, settings=images)
        if is_shard(path):
            return _load_shards(path, {"train": [path]}, label=label, seed=seed, like=like, images=images)
    if path.is_dir():
        roots = _roots(path)
        files = {split: _files(root) for split, root in roots.items()}
        shards = {split: [file for file in members if is_shard(file)] for split, members in files.items()}
        if sum(map(len, shards.values())) > sum(map(len, files.values())) // 2:
            _check_splits(shards, roots, "tar shards")
            return _load_shards(path, shards, label=label, seed=seed, like=like, images=images)
    if path.suffix.lower() in ARRAYS and path.is_file():
        from loglik.data.arrays import load_array_file

        return load_array_file(path, label=label, seed=seed, like=like)
    if label is not None and like is None:
        _no_label(word, label)
    if path.is_dir():
        return _load_folder(path, files, roots, seed=seed, like=like, text=text, images=images, cache=cache)
    return _load_text_file(path, like=like, text=text, cache=cache)


def _check_is_table(data: Data, table: TableSettings | None, source: str) -> None:
    """Raise ValueError for settings of tables where the data are no table, unless they have their defaults."""
    if table is not None and table != TableSettings() and data.spec.kind != "table":
        names = ", ".join(table.names())
        raise ValueError(f"{source}: {names} are settings of tables, and this is {data.spec.describe()}")


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
    if like is not None and like.padded:
        return _text_rows(path, path.read_bytes().splitlines(), like)
    return load_text({"train": [path]}, name=path.stem, where=str(path), like=like, settings=text, cache=cache)


def _text_rows(path: Path, texts: Iterable[bytes], like: DataSpec) -> Data:
    """Return texts as the rows of a table with one column."""
    import polars as pl

    from loglik.data.tables import from_frame

    rows = []
    for number, text in enumerate(texts, 1):
        try:
            rows.append(text.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: text {number} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    return from_frame(pl.DataFrame({"text": rows}), name=path.stem or path.name, source=str(path), like=like)


def _load_shards(
    path: Path,
    shards: dict[str, list[Path]],
    *,
    label: str | None,
    seed: int,
    like: DataSpec | None,
    images: ImageSettings | None,
) -> Data:
    from loglik.data.shards import load_shards

    name = path.stem or path.name
    return load_shards(shards, name=name, where=str(path), label=label, seed=seed, like=like, settings=images)


def _load_folder(
    folder: Path,
    files: dict[str, list[Path]],
    roots: dict[str, Path],
    *,
    seed: int,
    like: DataSpec | None,
    text: TextSettings | None,
    images: ImageSettings | None,
    cache: Path | None,
) -> Data:
    """Read a folder of images, or of text if it contains more text files than images."""
    from loglik.data.frames import is_table
    from loglik.data.text import is_text, load_text

    pictures = {s: [p for p in paths if p.suffix.lower() in IMAGES] for s, paths in files.items()}
    texts = {s: [p for p in paths if p.suffix.lower() not in IMAGES and is_text(p)] for s, paths in files.items()}
    n_images, n_texts = (sum(map(len, found.values())) for found in (pictures, texts))
    if not n_images and not n_texts:
        raise ValueError(f"{folder}: no images and no text files in this folder")
    found = pictures if n_images >= n_texts else texts
    every = [path for paths in found.values() for path in paths]
    if all(map(is_table, every)):
        raise ValueError(f"{folder}: a folder of tables: give one file, as {every[0]}, or rename text to .txt")
    _check_splits(found, roots, "images" if found is pictures else "text files")
    if found is pictures:
        from loglik.data.images import load_images

        return load_images(folder, pictures, roots, seed=seed, like=like, settings=images)
    if like is not None and like.padded:
        return _text_rows(folder, [p.read_bytes() for paths in texts.values() for p in paths], like)
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
