"""Checks that data hold only the levels, codes and labels that a density is defined on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

__all__ = ["check_codes", "check_complete", "check_labels", "check_levels", "data_checked", "needs_check"]

_data_checked: ContextVar[bool] = ContextVar("data_checked", default=False)


@contextmanager
def data_checked() -> Iterator[None]:
    """Skip `check_levels` and `check_codes` in a block, whose data were checked before by `Density.check`.

    A check reads numbers on the host, which makes a GPU wait.
    """
    before = _data_checked.get()
    _data_checked.set(True)
    try:
        yield
    finally:
        _data_checked.set(before)


def needs_check(x: Tensor) -> bool:
    """Return whether to check the numbers of x: not in compiled code, on the device meta and within `data_checked`."""
    return x.numel() > 0 and not (torch.compiler.is_compiling() or x.is_meta or _data_checked.get())


def check_levels(x: Shaped[Tensor, "B ..."], levels: int | None, what: str = "data") -> None:
    """Raise ValueError unless x holds 0 ... levels-1 only: outside, a formula returns a meaningless number.

    Skipped within `data_checked`, in compiled code and on the device meta.
    """
    if levels is None or not needs_check(x):
        return
    low, high = torch.stack(x.aminmax()).tolist()
    if not 0 <= low <= high <= levels - 1:
        raise ValueError(f"{what} must hold integers 0 ... {levels - 1}, got {low:g} ... {high:g}")


def check_codes(x: Shaped[Tensor, "B D"], counts: Sequence[int], *, missing: bool = False) -> None:
    """Raise ValueError unless each column d with a count C_d above 0 holds codes 0 ... C_d - 1 only.

    `missing` accepts NaN, a missing value, too. Skipped where `check_levels` is.
    """
    if not any(counts) or not needs_check(x):
        return
    count = torch.tensor(counts, device=x.device)
    wrong = (count > 0) & ~((x >= 0) & (x <= count - 1))
    if missing:
        wrong &= ~x.isnan()
    if wrong.any():
        row, d = wrong.nonzero()[0].tolist()
        raise ValueError(f"column {d} must hold codes 0 ... {counts[d] - 1}, got {x[row, d].item():g}")


def check_complete(x: Shaped[Tensor, "B ..."]) -> None:
    """Raise ValueError for NaN, a missing value. Skipped where `check_levels` is."""
    if not x.is_floating_point() or not needs_check(x):
        return
    missing = x.flatten(1).isnan()
    if missing.any():
        row, d = missing.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, column {d} is NaN, a missing value, and this density is of complete rows: fit it to data with "
            "missing values, or leave such rows out"
        )


def check_labels(network: nn.Module | None, context: Tensor | None) -> None:
    """Raise ValueError unless a context that an `nn.Embedding` reads holds labels that it has a vector for."""
    if isinstance(network, nn.Embedding) and context is not None:
        check_levels(context, network.num_embeddings, "labels")
