"""A fitted estimator on disk: a run, and what it learned besides the density.

estimator.json has the arguments and what was learned, and estimator.safetensors those of it that are tensors.

No pickle is read or written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from loglik import files, runs
from loglik.version import __version__

__all__ = ["read", "write"]

FILE, TENSORS = "estimator.json", "estimator.safetensors"
NOT_SAVED = ("run_", "_kernel")  # the run has files of its own, and the kernel density is that of the rows
MAX_BYTES = 2**26


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    """What estimator.json holds; `learned` has attributes by name, arrays as lists with their type."""

    estimator: str
    version: str
    arguments: dict[str, Any]
    learned: dict[str, Any]


class Array(msgspec.Struct, forbid_unknown_fields=True):
    """A one-dimensional array of numbers, booleans or texts."""

    dtype: str
    values: list[bool | int | float | str]


def write(estimator: Any, path: Path) -> None:
    """Write a fitted estimator to a new folder."""
    arguments = estimator.get_params(deep=False)
    if not isinstance(arguments["random_state"], (int, type(None))):
        arguments["random_state"] = estimator._seed
    known = {k: v for k, v in vars(estimator).items() if k not in arguments and k not in NOT_SAVED}
    tensors = {k: v.contiguous() for k, v in known.items() if isinstance(v, Tensor)}
    known = {k: v for k, v in known.items() if k not in tensors}
    learned = {k: _array(v) if isinstance(v, np.ndarray) else v for k, v in known.items()}
    saved = Saved(type(estimator).__name__, __version__, arguments, learned)
    text = msgspec.json.format(msgspec.json.encode(saved, enc_hook=_plain), indent=2)
    run = estimator.run_
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty: choose another path")
    runs.new_folder(path, resumable=False)
    runs.write_config(path, run.config)
    runs.write_weights(path, run.density)
    runs.write_metrics(path, run.history)
    with files.naming(path / FILE):
        (path / FILE).write_bytes(text + b"\n")
        if tensors:
            (path / TENSORS).write_bytes(save(tensors))


def read(cls: type, path: Path) -> Any:
    """Return an estimator of a class from a folder."""
    file = path / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {FILE}: give a folder that {cls.__name__}.save wrote")
    with files.naming(file):
        content = files.read_bytes(file, MAX_BYTES)
        tensors = (path / TENSORS).read_bytes() if (path / TENSORS).is_file() else b""
    try:
        saved = msgspec.json.decode(content, type=Saved)
        arrays = {k: msgspec.convert(v, Array) for k, v in saved.learned.items() if isinstance(v, dict)}
        learned = {k: np.array(arrays[k].values, dtype=arrays[k].dtype) if k in arrays else v
                   for k, v in saved.learned.items()}  # fmt: skip
        if any(array.dtype.hasobject and set(map(type, array)) - {str, bool, int, float}
               for array in learned.values() if isinstance(array, np.ndarray)):  # fmt: skip
            raise ValueError("an array has values of another type")
        learned |= load(tensors) if tensors else {}
    except (msgspec.MsgspecError, SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if saved.estimator != cls.__name__:
        raise ValueError(f"{path} is a {saved.estimator}: read it with {saved.estimator}.load")
    if unknown := sorted(set(saved.arguments) - set(cls._get_param_names())):  # type: ignore[attr-defined]
        raise ValueError(f"{file}: {cls.__name__} has no argument {unknown[0]!r}")
    if strange := sorted(
        name for name in learned if not (name.startswith("_") or name.endswith("_")) or hasattr(cls, name)
    ):
        raise ValueError(f"{file}: {strange[0]!r} is nothing that an estimator learns")
    estimator = cls(**saved.arguments)
    vars(estimator).update(learned)
    estimator.run_ = runs.load(path)
    return estimator


def _array(values: np.ndarray) -> Array:
    return Array("object" if values.dtype.kind == "O" else values.dtype.str, values.tolist())


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"an argument of type {type(value).__name__} cannot be written as JSON")
