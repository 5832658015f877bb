"""Datasets of PyTorch, read once, item by item: into memory, or into a store on disk if they are large.

An item is x, (x,), (x, y) or a dict with them; x is a tensor, an array or an 8-bit PIL image, y a label. The rules for
arrays say what x is; PIL images have 256 levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loglik.data.arrays import assemble, channels_first, conform, infer
from loglik.data.dataset import Data, into_splits
from loglik.data.labels import code_labels
from loglik.data.limits import first_line, some
from loglik.data.pixels import read
from loglik.data.spec import DataSpec
from loglik.data.store import Writer, is_large, temporary

__all__ = ["load_items"]

INPUTS = ("image", "img", "x")  # of a dict
LABELS = ("label", "labels", "y")
BLOCK = 1024  # items


class _Block(NamedTuple):
    x: np.ndarray
    y: list[Any]
    pictures: bool  # whether x were PIL images


def load_items(dataset: Any, *, seed: int = 0, like: DataSpec | None = None) -> Data:
    """Return data from the items of a Dataset, in order; an IterableDataset is iterated once.

    Raises:
        ValueError: there are no items, they differ in shape or type, or break the rules for arrays.
    """
    name = type(dataset).__name__
    blocks = _blocks(dataset, name)
    first: list[_Block] = []
    while (block := next(blocks, None)) is not None:
        first.append(block)
        if is_large(sum(block.x.nbytes for block in first)):
            return _from_store(chain(first, blocks), name, seed, like)
    if not first:
        raise ValueError(f"{name}: no items")
    x, y = np.concatenate([block.x for block in first]), [label for block in first for label in block.y]
    spec = _of_pictures(first[0])
    return assemble(x, np.array(y) if y else None, seed=seed, name=name, spec=spec, like=like)


def _of_pictures(block: _Block) -> DataSpec | None:
    return DataSpec(kind="image", event_shape=block.x.shape[1:], levels=256) if block.pictures else None


def _from_store(blocks: Iterator[_Block], name: str, seed: int, like: DataSpec | None) -> Data:
    labels: list[Any] = []
    found: list[DataSpec] = []

    def write(writer: Writer) -> None:
        top, start, spec = 0, 0, like
        for block in blocks:
            x, where = block.x, f"{name}: items from {start} on"
            spec = spec or _of_pictures(block) or (infer(x, where) if x.dtype.kind == "f" else None)
            if spec is not None:
                x = conform(x, spec, where).numpy()
            else:  # the number of levels is known at the end
                if x.dtype.kind == "i" and (x < 0).any():
                    conform(x, infer(x, where), where)  # raises
                top = max(top, int(x.max()))
                x = channels_first(x) if x.dtype in (np.uint8, np.bool_) else x
            writer.append(x=x)
            labels.extend(block.y)
            start += len(x)
        if spec is None:
            whole = np.full((1, *x.shape[1:]), top, x.dtype)
            spec = infer(whole, name)
            if conform(whole, spec, name).numpy().dtype != x.dtype:
                writer.change("x", lambda block: conform(block, spec, name).numpy())
        found.append(spec)

    x = temporary(write).rows("x")
    spec, codes, classes = found[0], None, tuple[str, ...]()
    if labels and not (like is not None and not like.classes):
        codes, classes = code_labels(np.array(labels), lambda row: f"{name}: y[{row}]", like.classes if like else None)
    if like is None:
        spec = DataSpec(kind=spec.kind, event_shape=spec.event_shape, levels=spec.levels, classes=classes)
    return into_splits(name, spec, x, codes, seed=seed)


def _blocks(dataset: Any, name: str) -> Iterator[_Block]:
    """Yield items in blocks, as arrays of one shape and type."""
    items, shape, start = _items(dataset, name), None, 0
    while part := list(islice(items, BLOCK)):
        pairs = [_pair(item, f"{name}[{start + i}]") for i, item in enumerate(part)]
        arrays = [_array(x, f"{name}[{start + i}]") for i, (x, _) in enumerate(pairs)]
        labels = [_label(y) for _, y in pairs if y is not None]
        shape = shape or (arrays[0].shape, arrays[0].dtype, bool(labels))
        for i, array in enumerate(arrays):
            if (array.shape, array.dtype) != shape[:2]:
                raise ValueError(
                    f"{name}[{start + i}] has the shape {array.shape} and the type {array.dtype}, but {name}[0] has "
                    f"{shape[0]} and {shape[1]}: give all items one shape and type"
                )
        if len(labels) != (len(arrays) if shape[2] else 0):
            raise ValueError(f"{name}: some items have a label and some have none: label all items, or none")
        yield _Block(np.stack(arrays), labels, isinstance(pairs[0][0], Image.Image))
        start += len(arrays)


def _items(dataset: Any, name: str) -> Iterator[Any]:
    """Yield the items of a dataset; what it raises is a ValueError that names the item."""
    number, items = 0, None if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") else iter(dataset)
    while items is not None or number < len(dataset):
        try:
            item = dataset[number] if items is None else next(items)
        except StopIteration:
            return
        except Exception as error:
            raise ValueError(f"{name}[{number}]: {type(error).__name__}: {first_line(error)}") from error
        yield item
        number += 1


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    """Return the x and the label of an item; None where it has no label."""
    if isinstance(item, Mapping):
        names = [next((name for name in known if name in item), None) for known in (INPUTS, LABELS)]
        if names[0] is None:
            raise ValueError(f"{where} has none of the keys {', '.join(INPUTS)}; found {some(list(item))}")
        return item[names[0]], None if names[1] is None else item[names[1]]
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ValueError(f"{where} is a {type(item).__name__} of {len(item)}: give x, (x,), (x, y) or a dict")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _array(x: Any, where: str) -> np.ndarray:
    if isinstance(x, Image.Image):
        pixels = read(where, x)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype is torch.bfloat16 else x).numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: an x of type {type(x).__name__}: give a tensor, an array or a PIL image")
    return array


def _label(y: Any) -> Any:
    return y.item() if isinstance(y, Tensor | np.ndarray | np.generic) and y.ndim == 0 else y
