"""The rational-quadratic spline and its gradient on a GPU, one Triton kernel each; tensor operations launch a hundred.

Triton comes with torch's builds for CUDA. The formulas are those of `loglik.flows.spline` and
`loglik.flows.spline_gradient`. M numbers of each of N events, K bins, P = 3 K - 1 raw parameters; `constants` are the
bound, the minimum size of a bin, the free length, the minimum derivative and the raw parameter of derivative 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.cpu.private import is_observed
from loglik.cpu.spline_kernel import compiled_operations, rows_contiguous
from loglik.gpu.launch import jit, tl, triton, works

__all__ = ["fits", "spline", "spline_gradient"]

BLOCK = 256  # numbers that one program maps


def fits(x: Tensor, raw: Tensor) -> bool:
    """Return whether the kernels are there, work on the device of x, and accept these tensors."""
    types = x.dtype == raw.dtype == torch.float32
    return types and works("spline", x.device, _attempt) and (torch.compiler.is_compiling() or not is_observed())


def spline(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], constants: Sequence[float], inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Return the spline of each number, or its inverse, and log|dy/dx| of that map."""
    call = _spline_compiled if torch.compiler.is_compiling() else _spline
    return call(x, raw, constants, inverse)


def spline_gradient(
    x: Float[Tensor, "M N"],
    raw: Float[Tensor, "M P N"],
    grad_y: Float[Tensor, "M N"],
    grad_log_slope: Float[Tensor, "M N"],
    constants: Sequence[float],
    inverse: bool,
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    """Return the gradients by x and by raw, from those by the results of `spline`."""
    call = _gradient_compiled if torch.compiler.is_compiling() else _gradient
    return call(x, raw, grad_y, grad_log_slope, constants, inverse)


def _attempt(device: torch.device) -> None:
    x, raw = torch.zeros(1, 2, device=device), torch.zeros(1, 5, 2, device=device)
    constants = [1.0, 0.002, 1.996, 0.001, 0.5]
    _spline(x, raw, constants, False)
    _gradient(x, raw, x, x, constants, False)


def _spline(x: Tensor, raw: Tensor, constants: Sequence[float], inverse: bool) -> tuple[Tensor, Tensor]:
    x, raw = x.contiguous(), rows_contiguous(raw)
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    _launch(_map_kernel, x, raw, constants, inverse, y, log_slope)
    return y, log_slope


def _gradient(
    x: Tensor, raw: Tensor, grad_y: Tensor, grad_log_slope: Tensor, constants: Sequence[float], inverse: bool
) -> tuple[Tensor, Tensor]:
    x, grad_y, grad_log_slope = (part.contiguous() for part in (x, grad_y, grad_log_slope))
    raw = rows_contiguous(raw)
    grad_x, grad_raw = torch.empty_like(x), raw.new_empty(raw.shape)
    _launch(_gradient_kernel, x, raw, constants, inverse, grad_y, grad_log_slope, grad_x, grad_raw)
    return grad_x, grad_raw


def _launch(kernel: Any, x: Tensor, raw: Tensor, constants: Sequence[float], inverse: bool, *others: Tensor) -> None:
    if x.numel():
        grid, bins = (triton.cdiv(x.numel(), BLOCK),), (raw.shape[1] + 1) // 3
        with torch.cuda.device_of(x):
            kernel[grid](x, raw, *others, x.numel(), x.shape[1], raw.stride(0), *constants, bins, inverse, BLOCK)


_spline_compiled, _gradient_compiled = compiled_operations("_triton", _spline, _gradient)


# ---- the kernels, with names as in native/spline.c


def _softplus(x):  # type: ignore[no-untyped-def]
    e = tl.exp(-tl.abs(x))
    rounded = (1 + e) - 1
    log1p = tl.where(rounded > 0, tl.log(1 + e) * (e / tl.where(rounded > 0, rounded, 1.0)), e)
    return tl.maximum(x, 0.0) + log1p


def _softmax_terms(row, n, mask, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest of K parameters, and one over the sum of the softmax's numerators."""
    top = tl.load(row, mask, other=0.0)
    for k in range(1, BINS):
        top = tl.maximum(top, tl.load(row + k * n, mask, other=0.0))
    total = tl.zeros_like(top)
    for k in range(BINS):
        total += tl.exp(tl.load(row + k * n, mask, other=0.0) - top)
    return top, 1 / total


def _evaluate(  # type: ignore[no-untyped-def]
    unclamped, row, n, mask, bound, min_size, free, min_derivative, unit, BINS: tl.constexpr, INVERSE: tl.constexpr
):
    x = tl.minimum(tl.maximum(unclamped, -bound), bound)
    top_w, inverse_w = _softmax_terms(row, n, mask, BINS)
    top_h, inverse_h = _softmax_terms(row + BINS * n, n, mask, BINS)
    zero = tl.zeros_like(x)
    end_w, end_h = zero - bound, zero - bound
    low_w, low_h, width, height, knot_low, knot_high = zero, zero, zero, zero, zero, zero
    before, index = zero, zero - 1
    for k in range(BINS):
        here = x >= (end_h if INVERSE else end_w)  # the number is in this bin or a higher one
        after = tl.load(row + (2 * BINS + k) * n, mask & (k < BINS - 1), other=0.0)
        size_w = min_size + free * inverse_w * tl.exp(tl.load(row + k * n, mask, other=0.0) - top_w)
        size_h = min_size + free * inverse_h * tl.exp(tl.load(row + (BINS + k) * n, mask, other=0.0) - top_h)
        low_w, low_h = tl.where(here, end_w, low_w), tl.where(here, end_h, low_h)
        width, height = tl.where(here, size_w, width), tl.where(here, size_h, height)
        knot_low, knot_high = tl.where(here, before, knot_low), tl.where(here, after, knot_high)
        end_w += size_w
        end_h += size_h
        index += here.to(tl.float32)
        before = after
    d_low = min_derivative + _softplus(knot_low + unit)
    d_high = min_derivative + _softplus(knot_high + unit)
    slope = height / width
    curvature = d_low + d_high - 2 * slope
    if INVERSE:  # the root in [0, 1] of a xi^2 + b xi + c, in the form without cancellation
        offset = x - low_h
        a = offset * curvature + height * (slope - d_low)
        b = height * d_low - offset * curvature
        c = -slope * offset
        xi = 2 * c / (-b - tl.sqrt(tl.maximum(b * b - 4 * a * c, 0.0)))
    else:
        xi = (x - low_w) / width
    rest = 1 - xi
    denominator = slope + curvature * xi * rest
    fraction = (slope * xi * xi + d_low * xi * rest) / denominator
    numerator = d_high * xi * xi + 2 * slope * xi * rest + d_low * rest * rest
    ratio = slope / denominator
    dy_dx = numerator * ratio * ratio
    place = (x, index, low_w, low_h, width, height, d_low, d_high, top_w, top_h, inverse_w, inverse_h)
    return place, (slope, curvature, xi, denominator, fraction, numerator, dy_dx)


def _map_kernel(  # type: ignore[no-untyped-def]
    x_ptr, raw_ptr, y_ptr, log_ptr, count, n, stride, bound, min_size, free, min_derivative, unit,
    BINS: tl.constexpr, INVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    unclamped = tl.load(x_ptr + i, mask, other=0.0)
    row = raw_ptr + (i // n) * stride + i % n
    place, curve = _evaluate(unclamped, row, n, mask, bound, min_size, free, min_derivative, unit, BINS, INVERSE)
    x, _, low_w, low_h, width, height, _, _, _, _, _, _ = place
    _, _, xi, _, fraction, _, dy_dx = curve
    log_slope = tl.where(x == unclamped, tl.log(dy_dx), 0.0)
    if INVERSE:
        y, log_slope = low_w + xi * width, -log_slope
    else:
        y = low_h + height * fraction
    tl.store(y_ptr + i, y + (unclamped - x), mask)
    tl.store(log_ptr + i, log_slope, mask)


def _gradient_kernel(  # type: ignore[no-untyped-def]
    x_ptr, raw_ptr, grad_y_ptr, grad_log_ptr, grad_x_ptr, grad_raw_ptr, count, n, stride,
    bound, min_size, free, min_derivative, unit, BINS: tl.constexpr, INVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    unclamped = tl.load(x_ptr + i, mask, other=0.0)
    row = raw_ptr + (i // n) * stride + i % n
    place, curve = _evaluate(unclamped, row, n, mask, bound, min_size, free, min_derivative, unit, BINS, INVERSE)
    x, index, low_w, low_h, width, height, d_low, d_high, top_w, top_h, inverse_w, inverse_h = place
    slope, curvature, xi, denominator, fraction, numerator, dy_dx = curve
    inside = x == unclamped
    given_y = tl.load(grad_y_ptr + i, mask, other=0.0)
    grad_y = tl.where(inside, given_y, 0.0)
    grad_log = tl.where(inside, tl.load(grad_log_ptr + i, mask, other=0.0), 0.0)
    if INVERSE:
        grad_log = -grad_log
    rest, middle = 1 - xi, 1 - 2 * xi
    grad_numerator, from_log = grad_log / numerator, 2 * grad_log / denominator
    grad_x = d_high * xi + slope * middle - d_low * rest  # half the numerator's derivative by xi
    grad_x = (2 * grad_numerator * grad_x - from_log * curvature * middle) / width
    if INVERSE:
        grad_value = (grad_y + grad_x) / dy_dx
        grad_y = -grad_value
        grad_x += grad_y * dy_dx
    else:
        grad_x += grad_y * dy_dx
        grad_value = grad_x
    tl.store(grad_x_ptr + i, tl.where(inside, grad_value, given_y), mask)

    grad_top = grad_y * height / denominator
    grad_denominator = -(from_log + grad_top * fraction)
    grad_slope = grad_top * xi * xi + 2 * grad_numerator * xi * rest + 2 * grad_log / slope
    grad_slope = (grad_slope + grad_denominator * (1 - 2 * xi * rest)) / width
    own_w = -(grad_slope * slope + grad_x * xi) * (width - min_size)
    own_h = (grad_slope + grad_y * fraction) * (height - min_size)
    mean_w = own_w - grad_x * (low_w + bound - index * min_size)
    mean_h = own_h + grad_y * (low_h + bound - index * min_size)
    grad_low = (grad_top + grad_denominator) * xi * rest + grad_numerator * rest * rest
    grad_high = grad_denominator * xi * rest + grad_numerator * xi * xi
    grad_low *= 1 - tl.exp(min_derivative - d_low)  # times the slope of softplus
    grad_high *= 1 - tl.exp(min_derivative - d_high)

    out = grad_raw_ptr + (i // n) * ((3 * BINS - 1) * n) + i % n
    for k in range(BINS):
        share_w = inverse_w * tl.exp(tl.load(row + k * n, mask, other=0.0) - top_w)
        share_h = inverse_h * tl.exp(tl.load(row + (BINS + k) * n, mask, other=0.0) - top_h)
        below, here = index > k, index == k
        grad_w = share_w * (tl.where(below, -free * grad_x, 0.0) - mean_w) + tl.where(here, own_w, 0.0)
        grad_h = share_h * (tl.where(below, free * grad_y, 0.0) - mean_h) + tl.where(here, own_h, 0.0)
        tl.store(out + k * n, grad_w, mask)
        tl.store(out + (BINS + k) * n, grad_h, mask)
        knot = tl.where(here, grad_high, tl.where(index == k + 1, grad_low, 0.0))
        tl.store(out + (2 * BINS + k) * n, knot, mask & (k < BINS - 1))


_softplus, _softmax_terms, _evaluate, _map_kernel, _gradient_kernel = jit(
    _softplus, _softmax_terms, _evaluate, _map_kernel, _gradient_kernel
)
