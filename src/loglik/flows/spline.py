r"""The monotonic rational-quadratic spline (Durkan et al. 2019, "Neural Spline Flows", section 3.1).

Within bin k, with $\xi = (x - x_k) / w_k$, slope $s_k = h_k / w_k$ and knot derivatives $\delta$:
$y = y_k + h_k \frac{s_k \xi^2 + \delta_k \xi(1-\xi)}{s_k + (\delta_{k+1} + \delta_k - 2 s_k)\,\xi(1-\xi)}$.
Outside $[-B, B]$ the map is the identity, and the derivatives at $\pm B$ are 1. K bins; M numbers of each of N events.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["parameters_per_dim", "rational_quadratic_spline"]

MIN_BIN = 1e-3  # of the whole interval; keeps slopes within [1e-3, 1e3]
MIN_DERIVATIVE = 1e-3
UNIT_DERIVATIVE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it, plus the minimum, is 1


def parameters_per_dim(bins: int) -> int:
    """K widths, K heights and the K-1 inner derivatives."""
    return 3 * bins - 1


def rational_quadratic_spline(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], *, bound: float, inverse: bool = False
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Apply the spline, or its inverse, to each number; return the result and log|dy/dx| of the map applied.

    `raw` holds the P = `parameters_per_dim(K)` unconstrained numbers for each number of x, as K widths, K heights, K-1
    derivatives; zeros give the identity. Every operation on them then runs along contiguous memory.
    """
    with torch.autocast(x.device.type, enabled=False):  # parameters stay in x's precision
        if torch.compiler.is_compiling():
            return _spline(x, raw.to(x.dtype), bound, inverse)[:2]
        return _Spline.apply(x, raw.to(x.dtype), bound, inverse)[:2]


class _Bin(NamedTuple):
    """Each number's bin k, its place ξ in it, lower ends and sizes in (x, y), its knots' derivatives, all shares."""

    k: Int64[Tensor, "M 1 N"]
    xi: Float[Tensor, "M N"]
    low: Float[Tensor, "M 2 N"]
    size: Float[Tensor, "M 2 N"]
    derivatives: Float[Tensor, "M 2 N"]
    shares: Float[Tensor, "M 2 K N"]


def _spline(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor, _Bin]:
    """The formula in plain operations."""
    inside = x.abs() < bound
    clamped = torch.where(inside, x, torch.zeros_like(x))
    bins = _bins(raw)
    shares = raw[:, : 2 * bins].unflatten(1, (2, bins)).softmax(2)  # of what the smallest bins leave
    least, free = _split(bound, bins)
    row = torch.arange(bins, device=raw.device, dtype=raw.dtype)
    sums = free * (row.unsqueeze(1) >= row).to(raw.dtype)  # a cumulative sum, as a product with a triangular matrix
    ends = sums @ shares + (least * (row + 1) - bound).unsqueeze(
        1
    )  # the upper end of each bin: of x in row 0, of y in row 1
    k = (clamped.unsqueeze(1) >= ends[:, 1 if inverse else 0, :-1]).sum(1, keepdim=True, dtype=torch.uint8).long()
    both = k.unsqueeze(1).expand(-1, 2, -1, -1)
    size = torch.add(least, shares.gather(2, both).squeeze(2), alpha=free)
    low = ends.gather(2, both).squeeze(2) - size
    derivatives = MIN_DERIVATIVE + F.softplus(raw[:, 2 * bins :].gather(1, _knots(k, bins)) + UNIT_DERIVATIVE)
    derivatives = torch.where(_ends(k, bins), torch.ones_like(derivatives), derivatives)
    (x_low, y_low), (width, height), (d_low, d_high) = low.unbind(1), size.unbind(1), derivatives.unbind(1)
    slope = height / width
    curve = d_low + d_high - 2 * slope

    if inverse:  # the root in [0, 1] of a ξ² + b ξ + c, in the form without cancellation
        offset = clamped - y_low
        bent = offset * curve
        a = torch.addcmul(bent, height, slope - d_low)
        b = torch.addcmul(-bent, height, d_low)
        c = -slope * offset
        xi = 2 * c / (-b - torch.addcmul(b.square(), a, c, value=-4).clamp_min(0).sqrt())
    else:
        xi = (clamped - x_low) / width
    rest = 1 - xi
    between, square = xi * rest, xi.square()
    denominator = torch.addcmul(slope, curve, between)
    if inverse:
        result = torch.addcmul(x_low, xi, width)
    else:
        result = torch.addcmul(y_low, height, torch.addcmul(slope * square, d_low, between) / denominator)
    log_slope = (_numerator(d_low, d_high, slope, between, square, rest) * (slope / denominator).square()).log()
    if inverse:
        log_slope = -log_slope
    log_slope = torch.where(inside, log_slope, torch.zeros_like(x))
    return torch.where(inside, result, x), log_slope, _Bin(k, xi, low, size, derivatives, shares)


class _Spline(torch.autograd.Function):
    """`_spline`, with the gradient worked out: about a third of the operations that recording it would take."""

    @staticmethod
    def forward(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, ...]:
        y, log_slope, found = _spline(x, raw, bound, inverse)
        return y, log_slope, *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: tuple[Tensor, ...]) -> None:
        x, raw, ctx.bound, ctx.inverse = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, raw, *output[2:])

    @staticmethod
    def backward(ctx: Any, to_y: Tensor | None, to_log_slope: Tensor | None, *_: Any) -> Any:
        x, raw, *found = ctx.saved_tensors
        if to_y is None and to_log_slope is None:
            return None, None, None, None
        to_y = torch.zeros_like(x) if to_y is None else to_y
        to_log_slope = torch.zeros_like(x) if to_log_slope is None else to_log_slope
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for
            pull = torch.func.vjp(lambda x, raw: _spline(x, raw, ctx.bound, ctx.inverse)[:2], x, raw)[1]
            return *pull((to_y, to_log_slope)), None, None
        return *_gradients(x, _Bin(*found), to_y, to_log_slope, ctx.bound, ctx.inverse), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, raw: Tensor, bound: float, inverse: bool) -> Any:
        def plain(x: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
            y, log_slope, found = _spline(x, raw, bound, inverse)
            return y, log_slope, *found

        outputs = torch.vmap(plain, in_dims[:2])(x, raw)
        return outputs, (0,) * len(outputs)


def _gradients(
    x: Tensor, found: _Bin, to_y: Tensor, to_log_slope: Tensor, bound: float, inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    r"""The gradients by x and by the raw parameters of a loss whose gradients by y and by log|dy/dx| are given.

    Of the inverse g: with $m = f'$ and $L = \log m$ at the point found, $g' = 1/m$ and $g_\theta = -f_\theta / m$, so
    it is the forward map's with other weights. With shares $p = \text{softmax}(r)$, a gradient l by the bin's lower end
    $\sum_{j<k} p_j$ and s by its size $p_k$, that by $r_j$ is
    $p_j (l [j < k] + s [j = k] - \sum_{i<k} p_i l - p_k s)$.
    """
    k, xi, low, size, derivatives, shares = found
    inside = x.abs() < bound
    by_y, by_log = torch.where(inside, to_y, 0), torch.where(inside, to_log_slope, 0)
    (width, height), (d_low, d_high) = size.unbind(1), derivatives.unbind(1)
    slope, rest, square = height / width, 1 - xi, xi.square()
    between, middle = xi * rest, 1 - 2 * xi
    curve = d_low + d_high - 2 * slope
    denominator = torch.addcmul(slope, curve, between)
    lift = torch.addcmul(slope * square, d_low, between) / denominator  # (y - y_k) / h
    numerator = _numerator(d_low, d_high, slope, between, square, rest)
    inner = 1 - 2 * between
    per = 1 / denominator
    per_numerator = 1 / numerator
    steep = numerator * (slope * per).square()
    bend = torch.addcmul(torch.addcmul(d_high * xi, slope, middle), d_low, rest, value=-1) * per_numerator
    bend = 2 * torch.addcmul(bend, curve * middle, per, value=-1)  # ∂L/∂ξ
    if inverse:
        by_log = -by_log
        to_x = torch.addcdiv(by_y, by_log * bend, width) / steep
        by_y = -to_x
    scaled = by_y * height * per
    by_slope = torch.addcmul(
        scaled * torch.addcmul(square, lift, inner, value=-1),
        by_log,
        2 * (between * per_numerator + 1 / slope - inner * per),
    )
    pull = torch.addcmul(scaled * lift, by_log, per, value=2) * between
    by_d_low = torch.addcmul(scaled * between, by_log * rest.square(), per_numerator) - pull
    by_d_high = by_log * square * per_numerator - pull
    by_x = torch.addcmul(by_log * bend / width, by_y, steep)
    spread = by_slope / width
    by_width = -torch.addcmul(spread * slope, by_x, xi)
    by_height = torch.addcmul(spread, by_y, lift)
    bins = shares.shape[2]
    least, free = _split(bound, bins)
    by_low, by_size = torch.stack([-by_x, by_y], 1), torch.stack([by_width, by_height], 1)
    own = size - least
    mean = (low + bound - least * k) * by_low + own * by_size
    below = (torch.arange(bins, device=x.device).unsqueeze(1) < k).to(x.dtype)
    by_raw = x.new_zeros(len(x), parameters_per_dim(bins), x.shape[1])
    terms = by_raw[:, : 2 * bins].unflatten(1, (2, bins))
    torch.addcmul(-mean.unsqueeze(2), below.unsqueeze(1), (free * by_low).unsqueeze(2), out=terms)
    terms *= shares
    terms.scatter_(2, k.unsqueeze(1).expand(-1, 2, -1, -1), (own * (by_size - mean / free)).unsqueeze(2))
    by_knots = torch.stack([by_d_low, by_d_high], 1) * -torch.expm1(MIN_DERIVATIVE - derivatives)  # softplus' slope
    by_raw[:, 2 * bins :].scatter_add_(1, _knots(k, bins), by_knots.masked_fill_(_ends(k, bins), 0))
    by_point = torch.where(inside, to_x if inverse else by_x, to_y)
    return by_point, by_raw


def _numerator(d_low: Tensor, d_high: Tensor, slope: Tensor, between: Tensor, square: Tensor, rest: Tensor) -> Tensor:
    """dy/dx is this times (slope / denominator)²."""
    return torch.addcmul(torch.addcmul(d_high * square, slope, between, value=2), d_low, rest.square())


def _bins(raw: Tensor) -> int:
    return (raw.shape[1] + 1) // 3


def _split(bound: float, bins: int) -> tuple[float, float]:
    """The least size of a bin, and what the least sizes leave of the interval."""
    return 2 * bound * MIN_BIN, 2 * bound * (1 - MIN_BIN * bins)


def _knots(k: Int64[Tensor, "M 1 N"], bins: int) -> Int64[Tensor, "M 2 N"]:
    """The rows of the inner derivatives at a bin's lower and upper knot."""
    return torch.cat([(k - 1).clamp_min(0), k.clamp_max(bins - 2)], dim=1)


def _ends(k: Int64[Tensor, "M 1 N"], bins: int) -> Bool[Tensor, "M 2 N"]:
    """Whether the bin's lower and upper knot are the interval's, where the derivative is 1."""
    return torch.cat([k == 0, k == bins - 1], dim=1)
