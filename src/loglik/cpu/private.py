"""The private names of torch that loglik uses. No other file touches one.

A private name can move or go in any release of torch. Each is looked up once, here; where torch lacks it, the function
that stands for it computes the same with public torch, more slowly. tests/test_cpu_private.py checks both; it was run
with torch 2.13. Earlier loglik, with the same names, also trained with torch 2.11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "HAS_ONEDNN",
    "TorchDispatchMode",
    "allow_compilations",
    "copy_each_",
    "is_observed",
    "keep_saved_tensors",
    "lerp_each_",
    "move_each_",
    "onednn_linear",
    "scale_each_",
    "subtract_each_",
    "transforms_active",
    "tensors_of",
    "tree_leaves",
    "tree_map",
    "version",
]


def _find(module: str, name: str) -> Any:
    """Return a name of a module, or None where this torch lacks it."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


_transforms_active = _find("torch._C", "_are_functorch_transforms_active")
_in_dispatch_mode = _find("torch.utils._python_dispatch", "is_in_torch_dispatch_mode")
_tree_leaves = _find("torch.utils._pytree", "tree_leaves")
_tree_map = _find("torch.utils._pytree", "tree_map")
_foreach_lerp = _find("torch", "_foreach_lerp_")
_foreach_copy = _find("torch", "_foreach_copy_")
_foreach_sub = _find("torch", "_foreach_sub")
_foreach_sub_ = _find("torch", "_foreach_sub_")
_foreach_mul = _find("torch", "_foreach_mul_")
_foreach_add = _find("torch", "_foreach_add_")
_linear_pointwise: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

HAS_ONEDNN = torch.backends.mkldnn.is_available() and _linear_pointwise is not None
"""Whether `onednn_linear` runs by oneDNN."""

# torch's own counter of FLOPs is built on the same class, wherever that is
TorchDispatchMode: Any = _find("torch.utils._python_dispatch", "TorchDispatchMode") or _find(
    "torch.utils.flop_counter", "TorchDispatchMode"
)


def transforms_active() -> bool:
    """Return whether a transform of `torch.func` (vmap, grad, jvp) runs; True where torch does not tell."""
    return True if _transforms_active is None else _transforms_active()


def is_observed() -> bool:
    """Return whether a dispatch mode or a transform sees each operation; True where torch does not tell."""
    return transforms_active() or _in_dispatch_mode is None or _in_dispatch_mode()


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers, without a search where the module has no parts."""
    own: list[Any] = [getattr(module, name, None) for name in ("_parameters", "_buffers")]
    if None in own or next(module.children(), None) is not None:
        return [*module.parameters(), *module.buffers()]
    return [tensor for tensors in own for tensor in tensors.values() if tensor is not None]


def version(tensor: Tensor) -> int | None:
    """Return a number that grows with each write to the tensor; None where torch does not count."""
    return None if tensor.is_inference() else getattr(tensor, "_version", None)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return X Wᵀ + b by the operation that torch's compiler uses for a linear map on CPUs."""
    if not HAS_ONEDNN:
        return F.linear(x, weight, bias)
    return _linear_pointwise(x, weight, bias, "none", [], "")


def keep_saved_tensors() -> AbstractContextManager[Any]:
    """Keep the compiler from writing over tensors that are saved for the backward pass."""
    patch = _find("torch._functorch.config", "patch")
    known = _find("torch._functorch.config", "donated_buffer") is not None
    return patch(donated_buffer=False) if patch is not None and known else nullcontext()


def allow_compilations(count: int) -> AbstractContextManager[Any]:
    """Let the compiler compile the same code for this many structures and shapes, instead of torch's own limit."""
    patch = _find("torch._dynamo.config", "patch")
    known = _find("torch._dynamo.config", "recompile_limit") is not None
    return patch(recompile_limit=count) if patch is not None and known else nullcontext()


def lerp_each_(means: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    """Move each mean towards its value by this weight, in place."""
    if _foreach_lerp is not None:
        _foreach_lerp(means, values, weight)
    else:
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(value, weight)


def move_each_(means: Sequence[Tensor], values: Sequence[Tensor], weight: Tensor) -> None:
    """Move each mean towards its value by a weight that is a tensor without dimensions, in place."""
    if _foreach_sub is not None and _foreach_mul is not None and _foreach_add is not None:
        gaps = _foreach_sub(values, means)
        _foreach_mul(gaps, weight)
        _foreach_add(means, gaps)
    else:
        for mean, value in zip(means, values, strict=True):
            mean.add_((value - mean) * weight)


def copy_each_(copies: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value, in place."""
    if _foreach_copy is not None:
        _foreach_copy(copies, values)
    else:
        for copy, value in zip(copies, values, strict=True):
            copy.copy_(value)


def scale_each_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply each tensor by a factor, in place."""
    if _foreach_mul is not None:
        _foreach_mul(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def subtract_each_(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Subtract its value from each tensor, in place."""
    if _foreach_sub_ is not None:
        _foreach_sub_(tensors, values)
    else:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.sub_(value)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts; None is a leaf."""
    if _tree_leaves is not None:
        return _tree_leaves(tree)
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the tree with the function applied to each leaf."""
    if _tree_map is not None:
        return _tree_map(function, tree)
    if isinstance(tree, dict):
        return type(tree)((key, tree_map(function, value)) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        parts = [tree_map(function, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree)
