"""NumPy arrays, torch tensors and .npy and .npz files.

The type and the shape of an array decide what it holds:

- 8-bit unsigned or boolean (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1, 3 or 4: images, with 256 levels,
  or one more than the largest value where that is at most 16;
- floating point of these shapes whose values are all k/255, or 2k/255 - 1, up to rounding: images, with 256 levels;
  zeros and ones are images with 2 levels;
- other floating point (N, ...): continuous, float32;
- other integers or booleans (N, ...): discrete, with one level more than the largest value;
- a vector (N,) is N examples of one dimension.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from loglik.data import eight_bit
from loglik.data.array_names import is_examples, named_splits
from loglik.data.dataset import Data, into_splits
from loglik.data.labels import code_labels
from loglik.data.limits import Stream, check_bytes, quote, reading, shorten
from loglik.data.spec import DataSpec

__all__ = [
    "as_array",
    "assemble",
    "channels_first",
    "conform",
    "from_arrays",
    "from_named",
    "has_arrays",
    "infer",
    "is_array",
    "load_array_file",
    "what_was_read",
]

MAX_LEVELS = 65_536
CHANNELS = (1, 3, 4)


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    seed: int = 0,
    name: str = "array",
    like: DataSpec | None = None,
    classes: Sequence[str] | None = None,
    kind: Literal["array"] | None = None,
) -> Data:
    """Return data from arrays, tensors or lists in memory, split 80/10/10 at random.

    Args:
        x: examples (N, ...): see the module for what their type and shape mean.
        y: labels (N,): integers, strings or booleans.
        seed: fixes the split.
        like: the spec of an existing model, which x and y must fit.
        classes: the names of the classes 0, 1, ...; by default the distinct labels, sorted.
        kind: `array` keeps numbers that look like images as they are: real numbers, or integers in an array.

    Raises:
        ValueError: x or y does not fit the rules, or `like`.
    """
    x, y = as_array(x, name), None if y is None else as_array(y, f"{name}: labels")
    if kind not in (None, "array"):
        raise ValueError(f"kind must be array or None, got {quote(kind)}")
    spec = _plain(x, name) if kind and like is None else None
    return assemble(x, y, seed=seed, name=name, spec=spec, like=like, classes=classes)


def from_named(
    arrays: Mapping[str, Any], *, label: str | None = None, seed: int = 0, like: DataSpec | None = None
) -> Data:
    """Return data from a dictionary of arrays, such as {"image": x, "label": y}; see `array_names` for the keys.

    Raises:
        ValueError: the keys are unclear, or an array does not fit the rules, or `like`.
    """
    name = "arrays"
    keys = named_splits([str(key) for key in arrays], label, name, strict=like is None)
    parts = {
        split: (as_array(arrays[x], f"{name}: {x}"), None if y is None else as_array(arrays[y], f"{name}: {y}"))
        for split, (x, y) in keys.items()
    }
    return _of_splits(parts, name=name, where=name, label=label, seed=seed, like=like)


def load_array_file(path: Path, *, label: str | None = None, seed: int = 0, like: DataSpec | None = None) -> Data:
    """Read a .npy file, or a .npz file of examples and labels, of which `array_names` lists the keys.

    Raises:
        ValueError: the file is not readable, holds Python objects, or has other keys.
    """
    return _of_splits(
        _read(path, label, strict=like is None), name=path.stem, where=str(path), label=label, seed=seed, like=like
    )


def _of_splits(
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]],
    *,
    name: str,
    where: str,
    label: str | None,
    seed: int,
    like: DataSpec | None,
) -> Data:
    """Return data from the examples and the labels of each split."""
    if scalar := next((split for split, pair in parts.items() if pair[0].ndim == 0), None):
        raise ValueError(f"{where}: no examples: the {scalar} array is a single value")
    sizes = {split: len(pair[0]) for split, pair in parts.items()}
    shapes = {split: pair[0].shape[1:] for split, pair in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{where}: the splits' examples differ in shape: {shapes}")
    x = np.concatenate([pair[0] for pair in parts.values()]) if len(parts) > 1 else parts["train"][0]
    labels = [pair[1] for pair in parts.values() if pair[1] is not None]
    y = np.concatenate(labels) if labels else None
    data = assemble(x, y, seed=seed, name=name, where=where, like=like, sizes=sizes)
    return data if like is not None else replace(data, spec=replace(data.spec, label=label))


def assemble(
    x: np.ndarray,
    y: np.ndarray | None,
    *,
    seed: int,
    name: str,
    where: str | None = None,
    spec: DataSpec | None = None,
    like: DataSpec | None = None,
    classes: Sequence[str] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Data:
    """Return data from arrays: the last step of every reader of arrays.

    Args:
        where: begins each error; by default the name.
        spec: of x, where the array's type and shape do not determine it.
        sizes: the number of rows of each split that exists already, in order.
    """
    where = where or name
    if x.ndim == 0 or x.size == 0:
        what = "examples" if x.ndim == 0 or len(x) == 0 else "values in the examples"
        raise ValueError(f"{where}: no {what}: the shape is {x.shape}")
    if y is not None and y.ndim == 0:
        raise ValueError(f"{where}: the labels are a single value: give one label an example, (N,)")
    if y is not None and len(y) != len(x):
        raise ValueError(f"{where}: {len(x)} examples but {len(y)} labels: give one label an example")
    spec = like or spec or infer(x, where)
    if like is not None:
        y = y if like.classes else None
        classes = like.classes
    codes = None
    if y is not None:
        codes, found = code_labels(y, lambda row: f"{where}: y[{row}]", classes)
        spec = like or replace(spec, classes=found)
    tensor = conform(x, spec, where)
    data = into_splits(name, spec, tensor, codes, seed=seed, sizes=sizes)
    return replace(data, notes=what_was_read(x.shape, x.dtype, spec))


def what_was_read(shape: tuple[int, ...], dtype: np.dtype[Any], spec: DataSpec) -> tuple[str, ...]:
    """Return what the rules made of an array that could have meant something else, each in one line."""
    notes, size = [], " × ".join(map(str, shape[1:]))
    if spec.kind != "image":
        return ()
    if dtype.kind == "f":
        values = "zeros and ones" if spec.levels == 2 else "multiples of 1/255"
        notes.append(
            f"the floating-point numbers are all {values}: read as images of {spec.levels} levels; "
            'loglik.data.from_arrays(x, kind="array") keeps real numbers'
        )
    if len(shape) == 4 and shape[1] in CHANNELS and shape[3] in CHANNELS:
        first = shape[1:] == spec.event_shape
        notes.append(
            f"arrays of {size} read with their channels {'first' if first else 'last'}: transpose them to (N, C, H, W) "
            "with C = 1 or 3 if they are otherwise"
        )
    elif len(shape) == 4 and shape[1:] != spec.event_shape:
        notes.append(f"arrays of {size} read as images with their channels last")
    return tuple(notes)


def infer(x: np.ndarray, where: str) -> DataSpec:
    """Return the spec of an array by the module's rules."""
    images = channels_first(x)
    shaped = images.ndim == 4 and images.shape[1] in CHANNELS
    if shaped and x.dtype in (np.uint8, np.bool_):
        top = int(x.max()) if x.size else 0
        return DataSpec(kind="image", event_shape=images.shape[1:], levels=256 if top > 16 else max(top + 1, 2))
    if shaped and x.dtype.kind == "f" and (scales := eight_bit.fitting_scales(x)) and x.min() < x.max():
        return DataSpec(kind="image", event_shape=images.shape[1:], levels=eight_bit.levels_of(scales))
    return _plain(x, where)


def _plain(x: np.ndarray, where: str) -> DataSpec:
    """Return the spec of an array that is no images."""
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{where}: an array of type {x.dtype}: loglik reads real numbers, integers, booleans")
    if x.dtype.kind == "f":
        return DataSpec(kind="array", event_shape=x.shape[1:] or (1,))
    top = int(x.max()) if x.size else 0
    if top >= MAX_LEVELS:
        raise ValueError(
            f"{where}: the value {top} at {_where(x == top)}: discrete arrays have at most {MAX_LEVELS:,} "
            "levels; give floating-point numbers for continuous data"
        )
    return DataSpec(kind="array", event_shape=x.shape[1:] or (1,), levels=max(top + 1, 2))


def conform(x: np.ndarray, spec: DataSpec, where: str) -> Shaped[Tensor, "N ..."]:
    """Return x as a tensor that fits the spec, with every value checked."""
    if x.ndim == 1:
        x = x[:, None]
    if spec.kind == "image" and x.shape[1:] != spec.event_shape:
        x = channels_first(x)
    if x.shape[1:] != spec.event_shape:
        raise ValueError(f"{where}: examples of shape {x.shape[1:]}, expected {spec.event_shape}")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{where}: an array of type {x.dtype}, expected numbers")
    if spec.levels is None:
        with np.errstate(over="ignore"):  # what overflows float32 is reported below
            x = x.astype(np.float32)
        if not (finite := np.isfinite(x)).all():
            raise ValueError(f"{where}: NaN or infinity (in float32) at index {_where(~finite)}: remove or replace it")
        _check_codes(x, spec, where)
        return torch.from_numpy(np.ascontiguousarray(x))
    if x.dtype.kind == "f":
        scales = eight_bit.fitting_scales(x) if spec.kind == "image" else set()
        scales = {name for name in scales if eight_bit.SCALES[name][2] == spec.levels - 1}
        if not scales:
            raise ValueError(f"{where}: floating-point numbers, expected integers 0 to {spec.levels - 1}")
        x = eight_bit.encode(x, scales)
    if x.dtype.kind == "i" and (x < 0).any():
        raise ValueError(
            f"{where}: a negative value at index {_where(x < 0)}: integers start at 0; "
            "give floating-point numbers for continuous data"
        )
    if x.dtype.kind != "b" and (x >= spec.levels).any():
        at = _where(x >= spec.levels)
        raise ValueError(f"{where}: the value {x[at]} at index {at} is above {spec.levels - 1}, the highest level")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8 if spec.levels <= 256 else np.int64))


def _check_codes(x: np.ndarray, spec: DataSpec, where: str) -> None:
    """Check that a table's discrete columns hold integers, and codes of their categories."""
    for d, column in enumerate(spec.columns):
        values, k = x[:, d], len(column.categories)
        bad = (values != np.floor(values)) | ((values < 0) | (values >= k) if k else False)
        if column.discrete and bad.any():
            row = int(bad.argmax())
            right = f"a code 0 to {k - 1}" if k else "an integer"
            raise ValueError(f"{where}: row {row + 1}, column {quote(column.name)}: {values[row]:g} is not {right}")


def channels_first(x: np.ndarray) -> np.ndarray:
    """Return (N, H, W) and (N, H, W, C) as (N, C, H, W); other arrays unchanged."""
    if x.ndim == 3:
        return x[:, None]
    first = x.ndim == 4 and (x.shape[1] in (1, 3) or (x.shape[1] == 4 and x.shape[3] not in (1, 3)))
    if x.ndim == 4 and x.shape[3] in CHANNELS and not first:
        return x.transpose(0, 3, 1, 2)
    return x


def _where(mask: np.ndarray) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))


def is_array(values: Any) -> bool:
    """Return whether values are an array, a tensor, or a list of numbers or of such lists."""
    if isinstance(values, np.ndarray | Tensor):
        return True
    leaf = values
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    return leaf is not values and isinstance(leaf, bool | int | float | np.generic)


def has_arrays(values: Mapping[Any, Any]) -> bool:
    """Return whether a dictionary holds an array of two or more dimensions under a name for examples."""
    return any(is_examples(str(key)) and len(getattr(values[key], "shape", ())) > 1 for key in values)


def as_array(values: Any, where: str) -> np.ndarray:
    """Return an array, a tensor or lists as an array that may be written to."""
    if isinstance(values, list) and any(isinstance(value, Tensor) for value in values):
        values = [value.detach().cpu().numpy() if isinstance(value, Tensor) else value for value in values]
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype is torch.bfloat16 else values
        values = values.numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise ValueError(f"{where}: the rows of the lists differ in length: give all one shape") from None
    # torch shares the memory and must be able to write to it.
    return array if array.flags.writeable else array.copy()


def _read(path: Path, label: str | None, *, strict: bool) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return the splits in a file, each with examples and labels; only `train` where the file names no splits."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            if label is not None and strict:
                raise ValueError(f"{path}: one array has no {quote(label)} for the label: leave the label out")
            file.seek(0)
            return {"train": (_read_array(file, path, size), None)}
        with reading(path, "NumPy file"):
            archive = zipfile.ZipFile(file)
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        keys = named_splits(list(members), label, path, strict=strict)
        check_bytes(sum(info.file_size for info in members.values()), size, path)

        def array(key: str) -> np.ndarray:
            with reading(path, "NumPy file"):
                member = archive.open(members[key])
            with member:
                return _read_array(member, path, members[key].file_size)

        return {split: (array(x), None if y is None else array(y)) for split, (x, y) in keys.items()}


def _read_array(file: Stream, path: Path, size: int) -> np.ndarray:
    """Read an array in NumPy's format from a file of `size` bytes; its header is checked before memory is taken."""
    with reading(path, "NumPy file"):
        header = _READ_HEADER[np.lib.format.read_magic(file)]
        shape, _, dtype = header(file)
        available = size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{path}: holds Python objects, which loglik never unpickles: save numbers or strings")
    if min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f"{path}: not a readable NumPy file (an array of shape {shape} and type {dtype})")
    if (required := math.prod(shape) * dtype.itemsize) > available:
        raise ValueError(
            f"{path}: not a readable NumPy file (its header says {required:,} bytes, of shape "
            f"{shorten(str(shape))}, but {available:,} follow)"
        )
    with reading(path, "NumPy file"):
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
