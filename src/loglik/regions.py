"""Regions: the repeated parts of networks and flows, which torch.compile compiles one by one.

A whole loss would be compiled anew for each depth, in time that grows with it. The regions of one class share compiled
code wherever their structure and the shapes of their inputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["compiled_regions", "observed_regions", "region"]

Method = TypeVar("Method", bound=Callable[..., Any])

# arguments of torch.compile; "fallback_random": the same noise as without the compiler
COMPILER: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}


class _State:
    """How regions run now: plainly, compiled, or noting each distinct one."""

    compiled = False
    seen: set[Any] | None = None
    functions: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}  # compiled: one for all instances


def region(method: Method) -> Method:
    """Declare a method as a region: compiled within `compiled_regions`, and called as it is elsewhere."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not (_State.compiled or _State.seen is not None):
            return method(*args, **kwargs)
        if _State.compiled:
            if method not in _State.functions:
                _State.functions[method] = torch.compile(method, **COMPILER)
            return _State.functions[method](*args, **kwargs)
        seen, _State.seen = _State.seen, None  # the regions within this one are compiled as parts of it
        try:
            assert seen is not None
            seen.add((method, *map(_signature, [*args, *kwargs.values()])))
            return method(*args, **kwargs)
        finally:
            _State.seen = seen

    return call  # type: ignore[return-value]


@contextmanager
def compiled_regions() -> Iterator[None]:
    """Run regions compiled within this block."""
    before, _State.compiled = _State.compiled, True
    try:
        yield
    finally:
        _State.compiled = before


@contextmanager
def observed_regions() -> Iterator[set[Any]]:
    """Collect the distinct regions that run within this block: by code, structure and shapes of their inputs."""
    before, _State.seen = _State.seen, set()
    try:
        yield _State.seen
    finally:
        _State.seen = before


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.requires_grad)
    return (repr(value), value.training) if isinstance(value, nn.Module) else repr(value)
