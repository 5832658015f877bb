"""Labels of any kind as codes 0, 1, ... and the names of their classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["code_labels", "natural"]


def natural(name: str) -> tuple[int, int, list[str | int]]:
    """A key that sorts numbers as numbers, before and within words.

    >>> sorted(["b10", "b9", "10", "-1", "9"], key=natural)
    ['-1', '9', '10', 'b9', 'b10']
    """
    if re.fullmatch(r"-?\d+", name):
        return 0, int(name), []
    return 1, 0, [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name))]


def code_labels(
    values: np.ndarray, where: Callable[[int], str], classes: Sequence[str] | None = None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Codes (N,) into class names, which are `classes` or else the distinct labels, sorted.

    Labels are looked up by name. Whole numbers are codes themselves where no class has a number for a name.

    Args:
        values: whole numbers, strings or booleans, (N,).
        where: the words that say where label i stands, for errors.
        classes: the names to code with.

    Raises:
        ValueError: a label is not a class, or there is only one class.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"labels have the shape {values.shape}: give one label an example, (N,)")
    if values.dtype.kind == "O" and not all(isinstance(value, str) for value in values):
        raise ValueError("labels are of mixed or unknown type: give whole numbers, strings or booleans")
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    found = [_name(value, where(int(row))) for value, row in zip(distinct, first, strict=True)]
    if classes is None:
        classes = sorted(set(found), key=natural)
        if len(classes) < 2:
            raise ValueError(f"{where(0)}: all labels are {found[0]!r}: give at least two classes, or no labels")
    code = {name: i for i, name in enumerate(classes)}
    if values.dtype.kind in "iuf" and not any(re.fullmatch(r"-?\d+", name) for name in classes):
        code = {str(i): i for i in range(len(classes))}
    for name, row in sorted(zip(found, first, strict=True), key=lambda pair: pair[1]):
        if name not in code:
            raise ValueError(f"{where(int(row))}: the label {name!r} is none of {_some(list(code))}")
    return torch.tensor([code[name] for name in found])[torch.from_numpy(inverse.reshape(-1))], tuple(classes)


def _name(value: object, where: str) -> str:
    if isinstance(value, np.bool_):
        return str(value).lower()
    if isinstance(value, np.floating):
        if not value.is_integer():
            raise ValueError(
                f"{where}: the label {value} is not a whole number: labels are classes; "
                "leave a real number among the columns"
            )
        return str(int(value))
    if isinstance(value, str | np.integer):
        return str(value)
    raise ValueError(f"{where}: a label of type {type(value).__name__}: give whole numbers, strings or booleans")


def _some(words: Sequence[str]) -> str:
    """The first ten words, quoted.

    >>> _some(["a", "b"])
    "'a', 'b'"
    """
    return ", ".join(map(repr, words[:10])) + (f", ... ({len(words)} in all)" if len(words) > 10 else "")
