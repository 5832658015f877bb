"""Triton, where it is: torch's builds for CUDA bring it. Whether its kernels work is tried once on each GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

__all__ = ["jit", "works"]

triton: Any = import_module("triton") if find_spec("triton") else None
tl: Any = import_module("triton.language") if triton else None
_works: dict[tuple[str, torch.device], bool] = {}


def jit(*kernels: Callable[..., Any]) -> Any:
    """Return the kernels for launching; as they are without Triton.

    They are unwrapped, since Triton reads their source, which a checker of signatures would hide.
    """
    return tuple(kernel if triton is None else triton.jit(inspect.unwrap(kernel)) for kernel in kernels)


def works(name: str, device: torch.device, attempt: Callable[[torch.device], Any]) -> bool:
    """Return whether a kernel runs on a CUDA GPU: an attempt is made once, outside of the compiler.

    Triton compiles kernels with the system's C compiler, which may be missing.
    """
    if triton is None or device.type != "cuda":
        return False
    if (name, device) not in _works and not torch.compiler.is_compiling():
        try:
            attempt(device)
            _works[name, device] = True
        except Exception:
            _works[name, device] = False
    return _works.get((name, device), False)
