"""Datasets of PyTorch, and lists, read once, item by item: into memory, or into a store on disk if they are large.

An item is x, (x,), (x, y) or a dict with them; x is a tensor, an array or a PIL image, y a label. The rules for arrays
say what x is; PIL images are read as image files are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loglik.data import eight_bit
from loglik.data.array_names import EXAMPLES, label_key
from loglik.data.arrays import assemble, channels_first, conform, infer, what_was_read
from loglik.data.dataset import Data, into_splits
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.image_settings import ImageSettings
from loglik.data.labels import code_labels
from loglik.data.limits import first_line, some
from loglik.data.pixels import Sample
from loglik.data.spec import DataSpec
from loglik.data.store import Writer, is_large, temporary

__all__ = ["load_items"]

BLOCK = 1024  # items


class _Block(NamedTuple):
    x: np.ndarray
    y: list[Any]


def load_items(
    dataset: Any,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    images: ImageSettings | None = None,
) -> Data:
    """Return data from the items of a Dataset or a list, in order.

    Items are read once; PIL images of several sizes twice.

    Args:
        label: the key of the labels, where items are dicts.

    Raises:
        ValueError: there are no items, they differ in shape or type, or break the rules for arrays or images.
    """
    name = type(dataset).__name__
    items = _items(dataset, name)
    first = next(items, None)
    if first is None:
        raise ValueError(f"{name}: no items")
    items = chain([first], items)
    if like is not None and not (isinstance(first, Mapping) and label in first):
        label = None  # which the run's own data had
    if isinstance(_pair(first, label, f"{name}[0]")[0], Image.Image):
        return load_image_set(_pictures(dataset, items, name, label), seed=seed, like=like, settings=images)
    data = _of_arrays(_blocks(items, name, label), name, seed, like, _classes(dataset))
    return data if like is not None else replace(data, spec=replace(data.spec, label=label))


def _classes(dataset: Any) -> list[str] | None:
    """Return the names of the classes that a dataset of torchvision has; None if it has none."""
    names = getattr(dataset, "classes", None)
    return list(names) if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else None


def _pictures(dataset: Any, items: Iterator[Any], name: str, label: str | None) -> ImageSet:
    """Return the PIL images of a dataset, whose items were begun to be read."""
    begun = [items]

    def samples() -> Iterator[Sample]:
        for number, item in enumerate(begun.pop() if begun else _items(dataset, name)):
            where = f"{name}[{number}]"
            x, y = _pair(item, label, where)
            if not isinstance(x, Image.Image):
                raise ValueError(f"{where} is {type(x).__name__}, but {name}[0] is a PIL image: give images only")
            y = _label(y)
            if not (y is None or isinstance(y, str | int)):
                raise ValueError(f"{where}: a label of type {type(y).__name__}: give integers, strings or booleans")
            yield Sample(where, x.copy, x.width * x.height * len(x.getbands()), y)

    count = len(dataset) if hasattr(dataset, "__len__") else None
    classes = _classes(dataset)
    return ImageSet(name, name, samples, on_disk=0, count=count, classes=classes, label=label, lasting=False)


def _of_arrays(
    blocks: Iterator[_Block], name: str, seed: int, like: DataSpec | None, classes: list[str] | None
) -> Data:
    """Return data from items that are arrays."""
    first: list[_Block] = []
    while (block := next(blocks, None)) is not None:
        first.append(block)
        if is_large(sum(block.x.nbytes for block in first)):
            return _from_store(chain(first, blocks), name, seed, like, classes)
    x, y = np.concatenate([block.x for block in first]), [label for block in first for label in block.y]
    return assemble(x, np.array(y) if y else None, seed=seed, name=name, like=like, classes=classes)


def _from_store(
    blocks: Iterator[_Block], name: str, seed: int, like: DataSpec | None, classes: list[str] | None
) -> Data:
    labels: list[Any] = []
    found: list[DataSpec] = []
    notes: list[tuple[str, ...]] = []

    def write(writer: Writer) -> None:
        low, high, start, scales = np.inf, -np.inf, 0, set(eight_bit.SCALES)
        for block in blocks:
            x, where = block.x, f"{name}: items from {start} on"
            if like is not None:
                x = conform(x, like, where).numpy()
            elif x.dtype.kind == "f":
                scales = eight_bit.fitting_scales(x) & scales if scales else scales
                x = conform(x, DataSpec(kind="array", event_shape=x.shape[1:] or (1,)), where).numpy()
            else:
                if x.dtype.kind == "i" and (x < 0).any():
                    conform(x, infer(x, where), where)  # raises
                x = channels_first(x) if x.dtype in (np.uint8, np.bool_) else x
            low, high = min(low, block.x.min().item()), max(high, block.x.max().item())
            writer.append(x=x)
            labels.extend(block.y)
            start += len(x)
        spec = like or _of_store(block.x, low, high, scales, name)
        real = block.x.dtype.kind == "f"
        if like is None and real and spec.kind == "image":
            writer.change("x", lambda rows: channels_first(eight_bit.encode(rows, scales)))
        elif like is None and not real and conform(x, spec, name).numpy().dtype != x.dtype:
            writer.change("x", lambda rows: conform(rows, spec, name).numpy())
        found.append(spec)
        notes.append(what_was_read(block.x.shape, block.x.dtype, spec))

    x = temporary(write).rows("x")
    spec, codes, names = found[0], None, tuple[str, ...]()
    if labels and not (like is not None and not like.classes):
        known = like.classes if like else classes
        codes, names = code_labels(np.array(labels), lambda row: f"{name}: y[{row}]", known)
    return replace(into_splits(name, like or replace(spec, classes=names), x, codes, seed=seed), notes=notes[0])


def _of_store(last: np.ndarray, low: float, high: float, scales: set[str], name: str) -> DataSpec:
    """Return the spec of blocks like the last, between two values; all real numbers fit the scales."""
    ends = np.stack([np.full(last.shape[1:], value, last.dtype) for value in (low, high)])
    spec = infer(ends, name)
    if last.dtype.kind != "f" or spec.kind != "image":
        return spec
    if not scales:
        return DataSpec(kind="array", event_shape=last.shape[1:])
    return replace(spec, levels=eight_bit.levels_of(scales))


def _blocks(items: Iterator[Any], name: str, label: str | None) -> Iterator[_Block]:
    """Yield items in blocks, as arrays of one shape and type."""
    shape, start = None, 0
    while part := list(islice(items, BLOCK)):
        pairs = [_pair(item, label, f"{name}[{start + i}]") for i, item in enumerate(part)]
        arrays = [_array(x, f"{name}[{start + i}]") for i, (x, _) in enumerate(pairs)]
        labels = [_label(y) for _, y in pairs if y is not None]
        shape = shape or (arrays[0].shape, arrays[0].dtype, bool(labels))
        for i, array in enumerate(arrays):
            if (array.shape, array.dtype) != shape[:2]:
                raise ValueError(
                    f"{name}[{start + i}] has the shape {array.shape} and the type {array.dtype}, but {name}[0] has "
                    f"{shape[0]} and {shape[1]}: give all items one shape and type, or PIL images and resize=64"
                )
        if len(labels) != (len(arrays) if shape[2] else 0):
            raise ValueError(f"{name}: some items have a label and some have none: label all items, or none")
        yield _Block(np.stack(arrays), labels)
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


def _pair(item: Any, label: str | None, where: str) -> tuple[Any, Any]:
    """Return the x and the label of an item; None where it has no label."""
    if isinstance(item, Mapping):
        picture = next((name for name in EXAMPLES if name in item), None)
        if picture is None:
            raise ValueError(f"{where} has none of the keys {', '.join(EXAMPLES)}; found {some(list(item))}")
        key = label_key(list(item), label, where)
        return item[picture], None if key is None else item[key]
    if label is not None:
        raise ValueError(f'{where} is no dict, so it has no key label="{label}": leave the label out, or give dicts')
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ValueError(f"{where} is a {type(item).__name__} of {len(item)}: give x, (x,), (x, y) or a dict")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _array(x: Any, where: str) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype is torch.bfloat16 else x).numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: an x of type {type(x).__name__}: give a tensor, an array or a PIL image")
    return array


def _label(y: Any) -> Any:
    return y.item() if isinstance(y, Tensor | np.ndarray | np.generic) and y.ndim == 0 else y
