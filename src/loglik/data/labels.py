"""Labels of any kind as codes 0, 1, ... and the names of their classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from loglik.data.limits import quote, some

__all__ = ["check_count", "code_labels", "natural"]


def natural(name: str) -> tuple[int, int, list[str | int]]:
    """Return a key that sorts numbers as numbers, before and within words.

    >>> sorted(["b10", "b9", "10", "-1", "9"], key=natural)
    ['-1', '9', '10', 'b9', 'b10']
    """
    if re.fullmatch(r"-?\d{1,999}", name):
        return 0, int(name), []
    return 1, 0, [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d{1,999})", name))]


def code_labels(
    values: np.ndarray, where: Callable[[int], str], classes: Sequence[str] | None = None, *, rows: int | None = None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Return codes (N,) and class names, which are `classes` or else the distinct labels, sorted.

    Labels are looked up by name. Integers are codes themselves where no class has a number for a name.

    Args:
        values: integers (of a floating-point type too), strings or booleans, (N,).
        where: describes the position of label i, for errors.
        classes: the names to code with.
        rows: the number of labels, where `values` are the distinct ones alone.

    Raises:
        ValueError: a label is not a class, there is only one class, or floating-point numbers are too many for classes.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{where(0)}: labels have the shape {values.shape}: give one label an example, (N,)")
    if values.dtype.kind == "O" and not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where(0)}: labels are of mixed or unknown type: give integers, strings or booleans")
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    found = [_name(value, where(int(row))) for value, row in zip(distinct, first, strict=True)]
    if classes is None:
        classes = sorted(set(found), key=natural)
        if len(classes) < 2:
            raise ValueError(f"{where(0)}: all labels are {quote(found[0])}: give at least two classes, or no labels")
        if values.dtype.kind == "f":
            check_count(classes, rows or len(values), where(0), rows_each=10)
    code = {name: i for i, name in enumerate(classes)}
    if values.dtype.kind in "iuf" and not any(re.fullmatch(r"-?\d+", name) for name in classes):
        code = {str(i): i for i in range(len(classes))}
    for name, row in sorted(zip(found, first, strict=True), key=lambda pair: pair[1]):
        if name not in code:
            raise ValueError(
                f"{where(int(row))}: the label {quote(name)} is none of {some([repr(name) for name in code])}"
            )
    return torch.tensor([code[name] for name in found])[torch.from_numpy(inverse.reshape(-1))], tuple(classes)


def _name(value: object, where: str) -> str:
    if isinstance(value, np.bool_):
        return str(value).lower()
    if isinstance(value, np.floating):
        if not value.is_integer():
            raise ValueError(
                f"{where}: the label {value} is not an integer, so it names no class: leave the label out, and a "
                "density models this column with the others"
            )
        return str(int(value))
    if isinstance(value, str | np.integer):
        return str(value)
    raise ValueError(f"{where}: a label of type {type(value).__name__}: give integers, strings or booleans")


def check_count(classes: Sequence[str], rows: int, where: str, *, rows_each: int) -> None:
    """Raise ValueError for more than 20 classes of fewer than `rows_each` rows on average."""
    if len(classes) > max(20, rows // rows_each):
        raise ValueError(
            f"{where}: {len(classes)} distinct labels in {rows} rows are too many for classes: group them, or leave "
            "the label out, and a density models this column with the others"
        )
