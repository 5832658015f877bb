"""Rules of operations that mix elements: reductions, norms, matrix products and attention; see `bounds`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loglik.cpu.private import tree_leaves
from loglik.inspection.bounds import NOTHING, Bounds, compact, join_windows

__all__ = [
    "Known", "attention", "batch_norm", "constant", "embedding", "everything", "group_norm", "hull", "layer_norm",
    "matmul", "reduce", "softmax",
]  # fmt: skip

Known = Callable[[Any], Bounds | None]  # returns the bounds of a tensor; None if it depends on no input


def hull(bounds: Bounds, shape: torch.Size) -> Bounds:
    """Return bounds for which every element depends on all that any element depends on."""
    return bounds.map(lambda end: end.amax().expand(shape), keep=False)


def _over(bounds: Bounds, dims: Sequence[int], shape: torch.Size) -> Bounds:
    """Join each element with all others along `dims`; keep the formula if they have the same bounds already."""

    def rule(end: Tensor) -> Tensor:
        return compact(end).amax(tuple(dims), keepdim=True)

    same = all(bool((rule(end) == compact(end)).all()) for end in bounds.ends)
    return bounds.map(lambda end: rule(end).reshape(_fit(rule(end), shape)).expand(shape), keep=same)


def _fit(x: Tensor, shape: torch.Size) -> list[int]:
    """Return the shape of x without as many dimensions of length 1 as the result dropped."""
    if x.dim() == len(shape):
        return list(x.shape)
    kept = list(x.shape)
    for length in list(x.shape):
        if len(kept) > len(shape) and length == 1:
            kept.remove(1)
    return kept


def everything(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds:
    """Let every output depend on every input, for an operation without a rule."""
    parts = [b for b in map(known, tree_leaves((args, kwargs))) if b is not None]
    ends = [torch.stack([e.amax() for e in end]).amax() for end in zip(*(b.ends for b in parts), strict=True)]
    return Bounds([end.expand(out.shape) for end in ends], None)


def constant(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    return None  # the output depends on the shape of the input only


def reduce(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    x = args[0]
    bounds = known(x)
    assert bounds is not None
    dims = args[1] if len(args) > 1 and args[1] is not None else kwargs.get("dim")
    if not isinstance(dims, (list, tuple)):
        dims = list(range(x.dim())) if dims is None or isinstance(dims, bool) else [dims]
    dims = sorted(d % x.dim() for d in (dims or range(x.dim())))
    keepdim = out.dim() == x.dim()
    found = _over(bounds, dims, torch.Size([1 if i in dims else s for i, s in enumerate(x.shape)]))
    return found if keepdim else found.map(lambda end: end.amax(tuple(dims)).expand(out.shape))


def softmax(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, [args[1]], out.shape)


def layer_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, range(-len(args[1]), 0), out.shape)


def group_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, range(1, args[0].dim()), out.shape)


def batch_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    return known(args[0])  # elementwise in evaluation mode


def embedding(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[1])
    return None if bounds is None else bounds.map(lambda end: end.unsqueeze(-1).expand(out.shape))


def matmul(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """Let element (i, j) depend on row i of the left factor, column j of the right, and the added term."""
    *added, left, right = [a for a in args if isinstance(a, Tensor)]
    parts = []
    for factor, dim in ((left, -1), (right, -2)):
        bounds = known(factor)
        if bounds is not None:
            shape = list(out.shape)
            shape[dim] = 1
            parts.append(_over(bounds, [dim], torch.Size(shape)))
    parts += [b for b in map(known, added) if b is not None]
    total = []
    for ends in zip(*(p.ends for p in parts), strict=True):
        value = compact(ends[0])
        for end in ends[1:]:
            value = torch.maximum(value, compact(end))
        total.append(value.expand(out.shape))
    return Bounds(total, join_windows(parts))


def attention(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """Let a query depend on every key and value that it sees; with `is_causal`, on those up to its own position."""
    q, k, v = (known(a) for a in args[:3])
    causal = any(a is True for a in args[3:]) or kwargs.get("is_causal", False)
    ends = []
    count = max(len(b.ends) for b in (q, k, v) if b is not None)
    for i in range(count):
        seen = [b.ends[i].amax(-1, keepdim=True) for b in (k, v) if b is not None]
        keys = torch.stack(seen).amax(0) if seen else torch.full((1,), -NOTHING, dtype=torch.int32)
        if seen:
            keys = keys.cummax(-2).values if causal else keys.amax(-2, keepdim=True)
        if causal and seen and keys.shape[-2] != args[0].shape[-2]:
            keys = keys.amax(-2, keepdim=True)
        own = [] if q is None else [q.ends[i].amax(-1, keepdim=True)]
        total = torch.maximum(keys, own[0]) if own else keys
        ends.append(total.expand(out.shape))
    return Bounds(ends, None)
