"""Tensors that follow from others which rarely change, and are kept instead of computed at each step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from loglik.cpu import private

__all__ = ["kept"]

Values = TypeVar("Values", bound="tuple[Tensor | None, ...]")


class _Kept(dict[Hashable, Any]):
    """The kept tensors of a module. A copy of the module begins without any."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def kept(module: nn.Module, key: Hashable, sources: Sequence[Tensor], compute: Callable[[], Values]) -> Values:
    """Return `compute()`, kept on the module until a source tensor is replaced or written.

    New values are written over the old ones, since a CUDA graph may read these. Nothing is kept if a source has a
    gradient, in compiled code, and where transforms of functions or others observe the operations.

    Args:
        module: its copies, and the module on another device or with another dtype, compute their own.
        key: tells one such tuple of a module from the others.
        sources: what `compute` reads, beside numbers that never change.
        compute: returns a tuple of tensors.
    """
    if torch.compiler.is_compiling() or private.is_observed():
        return compute()
    versions = [None if source.requires_grad else private.version(source) for source in sources]
    if None in versions:
        return compute()
    store: _Kept = module.__dict__.setdefault("_kept", _Kept())
    found = store.get(key)
    if found is not None and found[1] == versions and all(a is b for a, b in zip(found[0], sources, strict=True)):
        values: Values = found[2]
        return values
    with torch.inference_mode(False), torch.no_grad():  # training cannot use what inference mode made
        values = compute()
        if any(value is not None and value.is_cuda for value in values) and torch.cuda.is_current_stream_capturing():
            return values  # the memory is the graph's
        if found is not None and _alike(found[2], values):
            for old, new in zip(found[2], values, strict=True):
                if old is not None:
                    old.copy_(new)
            values = found[2]
    store[key] = list(sources), versions, values
    return values


def _alike(old: Sequence[Tensor | None], new: Sequence[Tensor | None]) -> bool:
    """Return whether values can be written over one another."""

    def signature(value: Tensor | None) -> Any:
        return None if value is None else (value.shape, value.dtype, value.device)

    return [*map(signature, old)] == [*map(signature, new)]
