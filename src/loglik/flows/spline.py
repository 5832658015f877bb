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
from jaxtyping import Float, Int64
from torch import Tensor

from loglik.flows import spline_kernel as kernel
from loglik.networks.threads import threads_for

__all__ = ["parameters_per_dim", "rational_quadratic_spline"]

MIN_BIN = 1e-3  # of the whole interval; keeps slopes within [1e-3, 1e3]
MIN_DERIVATIVE = 1e-3
UNIT_DERIVATIVE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it, plus the minimum, is 1
LOG2_E = math.log2(math.e)
PER_PARAMETER = 16  # operations, about


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
        if torch._C._are_functorch_transforms_active():
            return _spline(x, raw.to(x.dtype), bound, inverse)[:2]
        return _Spline.apply(x, raw.to(x.dtype), bound, inverse)


class _Found(NamedTuple):
    """What the formula finds of each number, in its words: whether it lies inside (1 or 0), its bin k, ξ, and so on.

    Pairs are of x and of y: the lower end of its bin, its size, and this without the least one; the weights of all bins
    have the sum 1 / `per`. `lift` is (y - y_k) / h, `steep` dy/dx.
    """

    inside: Float[Tensor, "M N"]
    k: Float[Tensor, "M N"]
    weights: Float[Tensor, "M 2 K N"]
    per: Float[Tensor, "2 M N"]
    low: Float[Tensor, "2 M N"]
    size: Float[Tensor, "2 M N"]
    own: Float[Tensor, "2 M N"]
    derivatives: Float[Tensor, "2 M N"]
    slope: Float[Tensor, "M N"]
    curve: Float[Tensor, "M N"]
    xi: Float[Tensor, "M N"]
    rest: Float[Tensor, "M N"]
    between: Float[Tensor, "M N"]
    square: Float[Tensor, "M N"]
    rest_square: Float[Tensor, "M N"]
    denominator: Float[Tensor, "M N"]
    lift: Float[Tensor, "M N"]
    numerator: Float[Tensor, "M N"]
    steep: Float[Tensor, "M N"]


def _spline(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor, _Found]:
    """The formula in plain operations.

    What is outside goes through the spline's end, where the slope is 1. Choices are products with 0 and 1, which are
    many times faster than `torch.where`.
    """
    bins, (m, n) = _bins(raw), x.shape
    least, free = _split(bound, bins)
    clamped = x.clamp(-bound, bound)
    beyond = x - clamped
    inside = 1 - beyond.detach().sign().abs()
    weights = _exp(raw[:, : 2 * bins].unflatten(1, (2, bins)))
    ends = _sums(bound, bins, raw) @ weights  # the upper end of each bin, times the weights' sum
    per = bound / ends[:, :, -1]  # one over that sum: the last bin ends at the bound
    side = 1 if inverse else 0
    found = ((clamped / per[:, side]).unsqueeze(1) >= ends[:, side, :-1]).sum(1, dtype=torch.uint8)
    k, per = found.to(x.dtype), per.transpose(0, 1)
    at = torch.add(torch.arange(n, device=x.device), found.long(), alpha=n)
    first = torch.arange(m, device=x.device).unsqueeze(1)
    in_bins = torch.add(at, first, alpha=2 * bins * n)
    in_bins = torch.stack([in_bins, in_bins + bins * n])
    own = _take(weights, in_bins) * (free * per)
    size = own + least
    low = _take(ends, in_bins) * per - size
    in_knots = torch.add(at, first, alpha=raw.shape[1] * n) + (2 * bins - 1) * n
    in_knots = torch.stack([in_knots, (in_knots + n).clamp_max(raw.numel() - 1)])
    inner = torch.stack([k, bins - 1 - k]).clamp_max(1)  # 0 at the interval's ends: what was read there is another's
    derivatives = MIN_DERIVATIVE + F.softplus(_take(raw, in_knots) * inner + UNIT_DERIVATIVE)
    (x_low, y_low), (width, height), (d_low, d_high) = low.unbind(), size.unbind(), derivatives.unbind()
    slope = height / width
    curve = torch.sub(d_low + d_high, slope, alpha=2)

    if inverse:  # the root in [0, 1] of a ξ² + b ξ + c, in the form without cancellation
        offset = clamped - y_low
        bent = offset * curve
        a = torch.addcmul(bent, height, slope - d_low)
        b = torch.addcmul(-bent, height, d_low)
        c = -slope * offset
        xi = 2 * c / (-b - torch.addcmul(b * b, a, c, value=-4).clamp_min(0).sqrt())
    else:
        xi = (clamped - x_low) / width
    rest = 1 - xi
    between, square, rest_square = xi * rest, xi * xi, rest * rest
    denominator = torch.addcmul(slope, curve, between)
    lift = torch.addcmul(slope * square, d_low, between) / denominator
    y = torch.addcmul(x_low, xi, width) if inverse else torch.addcmul(y_low, height, lift)
    numerator = torch.addcmul(torch.addcmul(d_high * square, slope, between, value=2), d_low, rest_square)
    steep = slope / denominator
    steep = numerator * (steep * steep)
    log_slope = steep.log() * (-inside if inverse else inside)
    parts = (slope, curve, xi, rest, between, square, rest_square, denominator, lift, numerator, steep)
    return y + beyond, log_slope, _Found(inside, k, weights, per, low, size, own, derivatives, *parts)


class _Spline(torch.autograd.Function):
    """The kernel where it fits; else `_spline`, with a third of the operations that recording it would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
        ctx.bound, ctx.inverse = bound, inverse
        ctx.set_materialize_grads(False)
        if kernel.fits(x, raw):
            ctx.save_for_backward(x, raw)
            return kernel.spline(x, raw, _constants(raw, bound), inverse)
        with threads_for(PER_PARAMETER * raw.numel()):
            y, log_slope, found = _spline(x, raw, bound, inverse)
        ctx.save_for_backward(x, raw, *found)
        return y, log_slope

    @staticmethod
    def backward(ctx: Any, to_y: Tensor | None, to_log_slope: Tensor | None) -> Any:
        x, raw, *found = ctx.saved_tensors
        if to_y is None and to_log_slope is None:
            return None, None, None, None
        to_y = torch.zeros_like(x) if to_y is None else to_y
        to_log_slope = torch.zeros_like(x) if to_log_slope is None else to_log_slope
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for
            pull = torch.func.vjp(lambda x, raw: _spline(x, raw, ctx.bound, ctx.inverse)[:2], x, raw)[1]
            return *pull((to_y, to_log_slope)), None, None
        if not found:
            constants = _constants(raw, ctx.bound)
            return *kernel.gradient(x, raw, to_y, to_log_slope, constants, ctx.inverse), None, None
        with threads_for(PER_PARAMETER * raw.numel()):
            return *_gradients(_Found(*found), to_y, to_log_slope, ctx.bound, ctx.inverse), None, None


def _gradients(
    f: _Found, to_y: Tensor, to_log_slope: Tensor, bound: float, inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    r"""The gradients by x and by the raw parameters of a loss whose gradients by y and by log|dy/dx| are given.

    Of the inverse g: with $m = f'$ and $L = \log m$ at the point found, $g' = 1/m$ and $g_\theta = -f_\theta / m$, so
    it is the forward map's with other weights. With shares $p = \text{softmax}(r)$, a gradient l by the bin's lower end
    $\sum_{j<k} p_j$ and s by its size $p_k$, that by $r_j$ is
    $p_j (l [j < k] + s [j = k] - \sum_{i<k} p_i l - p_k s)$.
    """
    by_y, by_log = to_y * f.inside, to_log_slope * (-f.inside if inverse else f.inside)
    outside = torch.addcmul(to_y, to_y, f.inside, value=-1)
    (width, height), (d_low, d_high) = f.size.unbind(), f.derivatives.unbind()
    middle, inner = torch.rsub(f.xi, 1, alpha=2), torch.rsub(f.between, 1, alpha=2)
    twice = 2 * by_log
    by_numerator, per_denominator = by_log / f.numerator, twice / f.denominator
    by_x = torch.addcmul(torch.addcmul(d_high * f.xi, f.slope, middle), d_low, f.rest, value=-1)  # half the numerator's
    by_x = torch.addcmul(-per_denominator * f.curve * middle, by_numerator, by_x, value=2) / width
    if inverse:
        to_x = (by_y + by_x) / f.steep
        by_y = -to_x
    by_x = torch.addcmul(by_x, by_y, f.steep)
    by_top = by_y * height / f.denominator  # of the lift, a fraction
    by_bottom = -torch.addcmul(per_denominator, by_top, f.lift)
    by_slope = torch.addcmul(by_top * f.square, by_numerator, f.between, value=2)
    by_slope = torch.addcmul(torch.addcdiv(by_slope, twice, f.slope), by_bottom, inner)
    by_d_low = torch.addcmul((by_top + by_bottom) * f.between, by_numerator, f.rest_square)
    by_d_high = torch.addcmul(by_bottom * f.between, by_numerator, f.square)
    spread = by_slope / width
    by_width = -torch.addcmul(spread * f.slope, by_x, f.xi)
    by_height = torch.addcmul(spread, by_y, f.lift)
    bins = f.weights.shape[2]
    least, free = _split(bound, bins)
    by_low, by_own = torch.stack([-by_x, by_y]), torch.stack([by_width, by_height]) * f.own
    mean = torch.addcmul(by_own, torch.sub(f.low + bound, f.k, alpha=least), by_low)
    row = torch.arange(bins + 1, device=f.k.device, dtype=f.k.dtype).unsqueeze(1)
    reached = ((f.k + 1).unsqueeze(1) - row).clamp_(0, 1)  # whether a bin is the number's or below it, 1 or 0
    below, here = reached[:, 1:], reached[:, :-1] - reached[:, 1:]
    by_raw = f.k.new_empty(len(f.k), parameters_per_dim(bins), f.k.shape[1])
    terms, knots = by_raw[:, : 2 * bins].unflatten(1, (2, bins)), by_raw[:, 2 * bins :]
    terms.copy_(_by_row(mean * -f.per)).addcmul_(below.unsqueeze(1), _by_row(by_low * (free * f.per)))
    terms.mul_(f.weights).addcmul_(here.unsqueeze(1), _by_row(by_own))
    # stacked anew: the compiler overwrites a part that was saved while it still needs the whole (torch 2.13)
    softplus_slope = 1 - torch.exp2(LOG2_E * (MIN_DERIVATIVE - torch.stack([d_low, d_high])))
    by_lower, by_upper = (torch.stack([by_d_low, by_d_high]) * softplus_slope).unsqueeze(2).unbind()
    knots.zero_().addcmul_(here[:, 1:], by_lower).addcmul_(here[:, :-1], by_upper)
    return (to_x if inverse else by_x) + outside, by_raw


def _bins(raw: Tensor) -> int:
    return (raw.shape[1] + 1) // 3


def _split(bound: float, bins: int) -> tuple[float, float]:
    """The least size of a bin, and what the least sizes leave of the interval."""
    return 2 * bound * MIN_BIN, 2 * bound * (1 - MIN_BIN * bins)


def _constants(raw: Tensor, bound: float) -> list[float]:
    return [bound, *_split(bound, _bins(raw)), MIN_DERIVATIVE, UNIT_DERIVATIVE]


def _sums(bound: float, bins: int, like: Tensor) -> Float[Tensor, "K K"]:
    r"""The matrix that takes shares, whose sum is 1, to the upper ends of their bins: a cumulative sum of the sizes."""
    least, free = _split(bound, bins)
    row = torch.arange(bins, device=like.device, dtype=like.dtype)
    return free * (row.unsqueeze(1) >= row).to(like.dtype) + (least * (row + 1) - bound).unsqueeze(1)


def _exp(x: Float[Tensor, "M 2 K N"]) -> Float[Tensor, "M 2 K N"]:
    """Numerators of a softmax over K, by powers of 2: of torch's exponentials the one that is fast everywhere."""
    top = x.detach().amax(2, keepdim=True)
    return torch.add(-LOG2_E * top, x, alpha=LOG2_E).exp2()


def _take(x: Tensor, places: Int64[Tensor, "2 M N"]) -> Float[Tensor, "2 M N"]:
    """The numbers at these places of a contiguous tensor's memory."""
    return x.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)


def _by_row(x: Float[Tensor, "2 M N"]) -> Float[Tensor, "M 2 1 N"]:
    return x.transpose(0, 1).unsqueeze(2)
