"""Rules of operations on the positions of an image: convolution, pooling and upsampling; see `bounds`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loglik.inspection.bounds import NOTHING, Bounds, compact, windows
from loglik.inspection.mixing_rules import Known, everything

__all__ = ["adaptive_pool", "convolution", "pool", "upsample"]


def convolution(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    bounds = known(x)
    if bounds is None:
        return everything(known, args, kwargs, out)
    n = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride, padding, dilation = (list(v) * (n // len(v)) for v in (stride, padding, dilation))

    def rule(end: Tensor) -> Tensor:
        end = compact(end)
        if end.shape[1] > 1:  # the channels of a group have the same bounds
            shape = (end.shape[0], groups, -1, *end.shape[2:])
            end = end.reshape(shape).amax(2).repeat_interleave(out.shape[1] // groups, 1)
        end = end.expand(*end.shape[:2], *x.shape[2:])
        if not transposed:
            end = windows(end, kernel, stride, padding, dilation, fill=-NOTHING)
        else:  # a convolution over the input with s - 1 holes between its elements
            spread = [(length - 1) * s + 1 for length, s in zip(x.shape[2:], stride, strict=True)]
            holes = end.new_full((*end.shape[:2], *spread), -NOTHING)
            elements: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
            holes[elements] = end
            margin = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            end = windows(holes, kernel, [1] * n, margin, dilation, fill=-NOTHING, outputs=out.shape[2:])
        return end.flatten(-n).amax(-1).expand(out.shape)

    result = bounds.map(rule)
    if transposed and any(s > 1 for s in stride):
        return replace(result, windows=None)
    if bounds.windows is None or len(bounds.windows) != n:
        return replace(result, windows=None)
    steps = zip(bounds.windows, kernel, stride, padding, dilation, strict=True)
    return result.with_windows([w.slide(k, s, p, d) for w, k, s, p, d in steps])


def pool(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    x, kernel = args[0], list(args[1])
    bounds = known(x)
    assert bounds is not None
    n = 1 if len(kernel) == 1 and x.dim() == 3 else 3 if x.dim() == 5 else 2
    kernel = kernel * (n // len(kernel))
    options = [list(v) if isinstance(v, (list, tuple)) else [v] for v in args[2:4]]
    stride = (options[0] if options and options[0] else kernel) * n
    padding = (options[1] if len(options) > 1 else [0]) * n
    dilated = len(args) > 4 and isinstance(
        args[4], (list, tuple)
    )  # max pooling has a dilation, average pooling has not
    dilation = (list(args[4]) if dilated else [1]) * n

    def rule(end: Tensor) -> Tensor:
        end = compact(end).expand(*compact(end).shape[:-n], *x.shape[-n:])
        taps = windows(end, kernel, stride, padding, dilation, fill=-NOTHING, outputs=out.shape[-n:])
        return taps.flatten(-n).amax(-1).expand(out.shape)

    result = bounds.map(rule)
    axes = len(bounds.windows or ())  # a sequence is pooled as an image of one row
    if bounds.windows is None or any(k > 1 for k in kernel[: len(out.shape[2:]) - axes]):
        return replace(result, windows=None)
    settings = zip(*(v[: out.dim() - 2][-axes:] for v in (kernel, stride, padding, dilation)), strict=True)
    return result.with_windows([w.slide(*each) for w, each in zip(bounds.windows, settings, strict=True)])


def upsample(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
    """Let each element depend on the nearest of the input."""
    bounds = known(args[0])
    assert bounds is not None

    def rule(end: Tensor) -> Tensor:
        for dim in range(2, out.dim()):
            nearest = torch.arange(out.shape[dim]) * args[0].shape[dim] // out.shape[dim]
            end = end.index_select(dim, nearest)
        return end

    return bounds.map(rule, keep=False)


def adaptive_pool(known: Known, args: Any, kwargs: Any, out: Tensor) -> Bounds | None:
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
