"""NumPy arrays, torch tensors and .npy and .npz files.

The type and the shape of an array decide what it holds:

- floating point (N, ...): continuous, float32;
- 8-bit unsigned or boolean (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3: images, with 256 levels,
  or one more than the largest value where that is at most 16;
- other integers or booleans (N, ...): discrete, with one level more than the largest value;
- a vector (N,) is N examples of one dimension.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from loglik.data.dataset import Data, into_splits
from loglik.data.labels import code_labels
from loglik.data.limits import Stream, check_bytes, quote, reading, shorten, some
from loglik.data.spec import DataSpec

__all__ = ["assemble", "channels_first", "conform", "from_arrays", "infer", "load_array_file"]

MAX_LEVELS = 65_536


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    seed: int = 0,
    name: str = "array",
    like: DataSpec | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """Return data from arrays or tensors in memory, split 80/10/10 at random.

    Args:
        x: examples (N, ...): see the module for what their type and shape mean.
        y: labels (N,): integers, strings or booleans.
        seed: fixes the split.
        like: the spec of an existing model, which x and y must fit.
        classes: the names of the classes 0, 1, ...; by default the distinct labels, sorted.

    Raises:
        ValueError: x or y does not fit the rules, or `like`.
    """
    return assemble(_numpy(x), None if y is None else _numpy(y), seed=seed, name=name, like=like, classes=classes)


def load_array_file(path: Path, *, seed: int = 0, like: DataSpec | None = None) -> Data:
    """Read a .npy file, or a .npz file with x and optional y, or with x_train, x_test and optional labels.

    Raises:
        ValueError: the file is not readable, holds Python objects, or has other keys.
    """
    parts = _read(path)
    if scalar := next((split for split, pair in parts.items() if pair[0].ndim == 0), None):
        raise ValueError(f"{path}: no examples: the {scalar} array is a single value")
    sizes = {split: len(pair[0]) for split, pair in parts.items()}
    shapes = {split: pair[0].shape[1:] for split, pair in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{path}: the splits' examples differ in shape: {shapes}")
    x = np.concatenate([pair[0] for pair in parts.values()]) if len(parts) > 1 else parts["train"][0]
    labels = [pair[1] for pair in parts.values() if pair[1] is not None]
    y = np.concatenate(labels) if labels else None
    return assemble(x, y, seed=seed, name=path.stem, where=str(path), like=like, sizes=sizes)


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
    return into_splits(name, spec, tensor, codes, seed=seed, sizes=sizes)


def infer(x: np.ndarray, where: str) -> DataSpec:
    """Return the spec of an array by the module's rules."""
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{where}: an array of type {x.dtype}: loglik reads real numbers, integers, booleans")
    if x.dtype.kind == "f":
        return DataSpec(kind="array", event_shape=x.shape[1:] or (1,))
    top = int(x.max()) if x.size else 0
    images = channels_first(x)
    if x.dtype in (np.uint8, np.bool_) and images.ndim == 4 and images.shape[1] in (1, 3):
        return DataSpec(kind="image", event_shape=images.shape[1:], levels=256 if top > 16 else max(top + 1, 2))
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
        raise ValueError(f"{where}: floating-point numbers, expected integers 0 to {spec.levels - 1}")
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
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    return x


def _where(mask: np.ndarray) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))


def _numpy(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype is torch.bfloat16 else values
        values = values.numpy()
    array = np.asarray(values)
    # torch shares the memory and must be able to write to it.
    return array if array.flags.writeable else array.copy()


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return the splits in a file, each with examples and labels; only `train` where the file names no splits."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {"train": (_read_array(file, path, size), None)}
        with reading(path, "NumPy file"):
            archive = zipfile.ZipFile(file)
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        _check_keys(list(members), path)
        check_bytes(sum(info.file_size for info in members.values()), size, path)
        arrays = {}
        for key, info in members.items():
            with reading(path, "NumPy file"):
                member = archive.open(info)
            with member:
                arrays[key] = _read_array(member, path, info.file_size)
    if len(arrays) == 1:
        return {"train": (next(iter(arrays.values())), None)}
    if "x" in arrays:
        return {"train": (arrays["x"], arrays["y"])}
    return {s: (arrays[f"x_{s}"], arrays.get(f"y_{s}")) for s in ("train", "test")}


def _check_keys(keys: list[str], path: Path) -> None:
    if len(keys) == 1 or set(keys) in ({"x", "y"}, {"x_train", "x_test"}, {"x_train", "y_train", "x_test", "y_test"}):
        return
    raise ValueError(
        f"{path}: found the keys {some(sorted(keys)) or '(none)'}; expected one array, or x and y, "
        "or x_train, y_train, x_test and y_test"
    )


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
