"""The image of each of PyTorch's operations on bounds; see `bounds`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loglik.cpu.private import tree_leaves
from loglik.inspection.bounds import NOTHING, Bounds, compact, join_windows, windows

__all__ = ["CUTS", "MOVES", "POINTWISE", "REPEATABLE", "RULES", "everything", "hull"]

aten = torch.ops.aten


Known = Callable[[Any], Bounds | None]  # the bounds of a tensor; None where it depends on no input


def hull(bounds: Bounds, shape: torch.Size) -> Bounds:
    return bounds.map(lambda end: end.amax().expand(shape), keep=False)


def _over(bounds: Bounds, dims: Sequence[int], shape: torch.Size) -> Bounds:
    """Each element with all others along the dimensions; the formula stays where they saw the same anyway."""

    def rule(end: Tensor) -> Tensor:
        return compact(end).amax(tuple(dims), keepdim=True)

    same = all(bool((rule(end) == compact(end)).all()) for end in bounds.ends)
    return bounds.map(lambda end: rule(end).reshape(_fit(rule(end), shape)).expand(shape), keep=same)


def _fit(x: Tensor, shape: torch.Size) -> list[int]:
    """The shape of a reduction without its kept dimensions, where the result dropped them."""
    if x.dim() == len(shape):
        return list(x.shape)
    kept = list(x.shape)
    for length in list(x.shape):
        if len(kept) > len(shape) and length == 1:
            kept.remove(1)
    return kept


def everything(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds:
    parts = [b for b in map(known, tree_leaves((args, kwargs))) if b is not None]
    ends = [torch.stack([e.amax() for e in end]).amax() for end in zip(*(b.ends for b in parts), strict=True)]
    return Bounds([end.expand(out.shape) for end in ends], None)


def _constant(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    return None  # the shape of a tensor, and not what it holds


def _convolution(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    bounds = known(x)
    if bounds is None:
        return everything(known, args, kwargs, out)
    n = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride, padding, dilation = (list(v) * (n // len(v)) for v in (stride, padding, dilation))

    def rule(end: Tensor) -> Tensor:
        end = compact(end)
        if end.shape[1] > 1:  # the channels of one group see one thing
            shape = (end.shape[0], groups, -1, *end.shape[2:])
            end = end.reshape(shape).amax(2).repeat_interleave(out.shape[1] // groups, 1)
        end = end.expand(*end.shape[:2], *x.shape[2:])
        if not transposed:
            end = windows(end, kernel, stride, padding, dilation, fill=-NOTHING)
        else:  # a convolution over the input with s - 1 holes between its elements
            wide = [(length - 1) * s + 1 for length, s in zip(x.shape[2:], stride, strict=True)]
            holes = end.new_full((*end.shape[:2], *wide), -NOTHING)
            places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
            holes[places] = end
            margin = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            end = windows(holes, kernel, [1] * n, margin, dilation, fill=-NOTHING, outputs=out.shape[2:])
        return end.flatten(-n).amax(-1).expand(out.shape)

    found = bounds.map(rule)
    if transposed and any(s > 1 for s in stride):
        return replace(found, windows=None)
    if bounds.windows is None or len(bounds.windows) != n:
        return replace(found, windows=None)
    steps = zip(bounds.windows, kernel, stride, padding, dilation, strict=True)
    return found.slid([w.slide(k, s, p, d) for w, k, s, p, d in steps])


def _pool(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    x, kernel = args[0], list(args[1])
    bounds = known(x)
    assert bounds is not None
    n = 1 if len(kernel) == 1 and x.dim() == 3 else 3 if x.dim() == 5 else 2
    kernel = kernel * (n // len(kernel))
    given = [list(v) if isinstance(v, (list, tuple)) else [v] for v in args[2:4]]
    stride = (given[0] if given and given[0] else kernel) * n
    padding = (given[1] if len(given) > 1 else [0]) * n
    dilated = len(args) > 4 and isinstance(args[4], (list, tuple))  # a maximum has dilation, a mean has none
    dilation = (list(args[4]) if dilated else [1]) * n

    def rule(end: Tensor) -> Tensor:
        end = compact(end).expand(*compact(end).shape[:-n], *x.shape[-n:])
        taps = windows(end, kernel, stride, padding, dilation, fill=-NOTHING, outputs=out.shape[-n:])
        return taps.flatten(-n).amax(-1).expand(out.shape)

    found = bounds.map(rule)
    axes = len(bounds.windows or ())  # a sequence is pooled as an image of one row
    if bounds.windows is None or any(k > 1 for k in kernel[: len(out.shape[2:]) - axes]):
        return replace(found, windows=None)
    settings = zip(*(v[: out.dim() - 2][-axes:] for v in (kernel, stride, padding, dilation)), strict=True)
    return found.slid([w.slide(*each) for w, each in zip(bounds.windows, settings, strict=True)])


def _upsample(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """The nearest element, for each dimension of places."""
    bounds = known(args[0])
    assert bounds is not None

    def rule(end: Tensor) -> Tensor:
        for dim in range(2, out.dim()):
            nearest = torch.arange(out.shape[dim]) * args[0].shape[dim] // out.shape[dim]
            end = end.index_select(dim, nearest)
        return end

    return bounds.map(rule, keep=False)


def _adaptive(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    assert bounds is not None
    n = len(args[1])

    def rule(end: Tensor) -> Tensor:
        for dim in range(-n, 0):
            size, count = end.shape[dim], out.shape[dim]
            cells = [
                end.narrow(dim, i * size // count, -(-(i + 1) * size // count) - i * size // count).amax(dim)
                for i in range(count)
            ]
            end = torch.stack(cells, dim)
        return end

    same = out.shape == args[0].shape
    return bounds.map(rule, keep=same)


def _reduce(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
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


def _softmax(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, [args[1]], out.shape)


def _layer_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, range(-len(args[1]), 0), out.shape)


def _group_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[0])
    return None if bounds is None else _over(bounds, range(1, args[0].dim()), out.shape)


def _batch_norm(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    return known(args[0])  # in evaluation: each element by itself


def _embedding(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    bounds = known(args[1])
    return None if bounds is None else bounds.map(lambda end: end.unsqueeze(-1).expand(out.shape))


def _matmul(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """Element (i, j) depends on row i of the left and column j of the right factor, and on what is added."""
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


def _attention(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """A query with every key and value that it may see: all, or with `is_causal` those up to its own place."""
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


def _reshape(x: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    return x.reshape(shape)


MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.expand, aten.slice,
    aten.select, aten.unsqueeze, aten.squeeze, aten.cat, aten.stack, aten.split, aten.split_with_sizes, aten.unbind,
    aten.chunk, aten.roll, aten.flip, aten.constant_pad_nd, aten.index_select, aten.alias, aten.detach, aten.repeat,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.unfold, aten.narrow, aten.diagonal,
    aten._reshape_alias, aten.index, aten.reflection_pad2d, aten.replication_pad2d,
}  # fmt: skip
CUTS = {
    aten.slice, aten.select, aten.constant_pad_nd, aten.index_select, aten.index, aten.narrow, aten.unfold,
    aten.roll, aten.flip, aten.reflection_pad2d, aten.replication_pad2d,
}  # fmt: skip
# bounds may be repeated in memory where the tensor is not, and a view of them then has to be a copy
REPEATABLE: dict[Any, Any] = {
    aten.view: torch.reshape,
    aten._unsafe_view: torch.reshape,
    aten._reshape_alias: lambda x, s, _: x.reshape(s),
}
POINTWISE = {
    aten._to_copy,
    aten.clone,
    aten.contiguous,
    aten.native_dropout,
    aten.bernoulli,
    aten.copy_,
    aten.lift_fresh,
}
RULES: dict[Any, Callable[[Known, Any, Any, Tensor], Bounds | None]] = {
    aten.zeros_like: _constant,
    aten.ones_like: _constant,
    aten.full_like: _constant,
    aten.empty_like: _constant,
    aten.new_zeros: _constant,
    aten.new_ones: _constant,
    aten.new_full: _constant,
    aten.new_empty: _constant,
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.mkldnn_convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.max_pool3d_with_indices: _pool,
    aten.max_pool1d: _pool,
    aten.max_pool2d: _pool,
    aten.avg_pool2d: _pool,
    aten.avg_pool3d: _pool,
    aten._adaptive_avg_pool2d: _adaptive,
    aten._adaptive_avg_pool3d: _adaptive,
    aten.upsample_nearest1d: _upsample,
    aten.upsample_nearest2d: _upsample,
    aten.upsample_nearest3d: _upsample,
    aten.mean: _reduce,
    aten.sum: _reduce,
    aten.amax: _reduce,
    aten.amin: _reduce,
    aten.var_mean: _reduce,
    aten._softmax: _softmax,
    aten._log_softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: _group_norm,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten.embedding: _embedding,
    aten.mm: _matmul,
    aten.addmm: _matmul,
    aten.bmm: _matmul,
    aten.baddbmm: _matmul,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
}
