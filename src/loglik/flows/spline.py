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

from loglik.networks.threads import threads_for

__all__ = ["parameters_per_dim", "rational_quadratic_spline"]

MIN_BIN = 1e-3  # of the whole interval; keeps slopes within [1e-3, 1e3]
MIN_DERIVATIVE = 1e-3
UNIT_DERIVATIVE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it, plus the minimum, is 1
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
        if torch.compiler.is_compiling():
            return _spline(x, raw.to(x.dtype), bound, inverse)[:2]
        return _Spline.apply(x, raw.to(x.dtype), bound, inverse)[:2]


class _Bin(NamedTuple):
    """What is found of each number: whether it lies inside (1 or 0), its bin k, its place ξ there; of x and of y the
    bin's lower end and size; the derivatives at its lower and upper knot; the shares of all bins."""

    inside: Float[Tensor, "M N"]
    k: Float[Tensor, "M N"]
    xi: Float[Tensor, "M N"]
    low: Float[Tensor, "2 M N"]
    size: Float[Tensor, "2 M N"]
    derivatives: Float[Tensor, "2 M N"]
    shares: Float[Tensor, "M 2 K N"]


def _spline(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor, _Bin]:
    """The formula in plain operations.

    What is outside goes through the spline's end, where the slope is 1. Choices are products with 0 and 1, which are
    many times faster than `torch.where`.
    """
    inside = (x.abs() < bound).to(x.dtype)
    clamped = x.clamp(-bound, bound)
    bins = _bins(raw)
    shares = raw[:, : 2 * bins].unflatten(1, (2, bins)).softmax(2)  # of what the smallest bins leave
    ends = _sums(bound, bins, raw) @ shares  # the upper end of each bin: of x in [:, 0], of y in [:, 1]
    found = (clamped.unsqueeze(1) >= ends[:, 1 if inverse else 0, :-1]).sum(1, dtype=torch.uint8)
    k, floating = found.long(), found.to(x.dtype)
    least, free = _split(bound, bins)
    both = _places(k, 2 * bins, torch.stack([k, k + bins]))
    size = torch.add(least, _take(shares, both), alpha=free)
    low = _take(ends, both) - size
    knots = 2 * bins + torch.stack([(k - 1).clamp_min(0), k.clamp_max(bins - 2)])
    derivatives = MIN_DERIVATIVE + F.softplus(_take(raw, _places(k, raw.shape[1], knots)) + UNIT_DERIVATIVE)
    inner = torch.stack([floating, bins - 1 - floating]).clamp_max(1)  # 0 at the interval's own ends, of derivative 1
    derivatives = torch.addcmul(1 - inner, derivatives, inner)
    (x_low, y_low), (width, height), (d_low, d_high) = low.unbind(), size.unbind(), derivatives.unbind()
    slope = height / width
    curve = d_low + d_high - 2 * slope

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
    between, square = xi * rest, xi * xi
    denominator = torch.addcmul(slope, curve, between)
    if inverse:
        result = torch.addcmul(x_low, xi, width)
    else:
        result = torch.addcmul(y_low, height, torch.addcmul(slope * square, d_low, between) / denominator)
    steep = slope / denominator
    log_slope = (_numerator(d_low, d_high, slope, between, square, rest) * (steep * steep)).log() * inside
    if inverse:
        log_slope = -log_slope
    return result + (x - clamped), log_slope, _Bin(inside, floating, xi, low, size, derivatives, shares)


class _Spline(torch.autograd.Function):
    """`_spline`, with the gradient worked out: about a third of the operations that recording it would take."""

    @staticmethod
    def forward(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, ...]:
        with threads_for(PER_PARAMETER * raw.numel()):
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
        with threads_for(PER_PARAMETER * raw.numel()):
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
    inside, k, xi, low, size, derivatives, shares = found
    by_y, by_log = to_y * inside, to_log_slope * inside
    outside = to_y - by_y
    (width, height), (d_low, d_high) = size.unbind(), derivatives.unbind()
    slope, rest, square = height / width, 1 - xi, xi * xi
    between, middle = xi * rest, 1 - 2 * xi
    curve = d_low + d_high - 2 * slope
    per = 1 / torch.addcmul(slope, curve, between)
    lift = torch.addcmul(slope * square, d_low, between) * per  # (y - y_k) / h
    numerator = _numerator(d_low, d_high, slope, between, square, rest)
    inner = 1 - 2 * between
    per_numerator = 1 / numerator
    steep = slope * per
    steep = numerator * (steep * steep)
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
    by_d_low = torch.addcmul(scaled * between, by_log * (rest * rest), per_numerator) - pull
    by_d_high = by_log * square * per_numerator - pull
    by_x = torch.addcmul(by_log * bend / width, by_y, steep)
    spread = by_slope / width
    by_width = -torch.addcmul(spread * slope, by_x, xi)
    by_height = torch.addcmul(spread, by_y, lift)
    bins = shares.shape[2]
    least, free = _split(bound, bins)
    by_low, by_size = torch.stack([-by_x, by_y]), torch.stack([by_width, by_height])
    own = size - least
    mean = torch.addcmul(torch.sub(low + bound, k, alpha=least) * by_low, own, by_size)
    row = torch.arange(bins + 1, device=x.device, dtype=x.dtype).unsqueeze(1)
    reached = (k.unsqueeze(1) - row + 1).clamp_(0, 1)  # whether a bin is the number's or below it, 1 or 0
    below, here = reached[:, 1:], reached[:, :-1] - reached[:, 1:]
    by_raw = x.new_empty(len(x), parameters_per_dim(bins), x.shape[1])
    terms = by_raw[:, : 2 * bins].unflatten(1, (2, bins))
    torch.addcmul(_by_row(-mean), below.unsqueeze(1), _by_row(free * by_low), out=terms)
    terms.mul_(shares).addcmul_(here.unsqueeze(1), _by_row(own * by_size))
    by_knots = torch.stack([by_d_low, by_d_high]) * -torch.expm1(MIN_DERIVATIVE - derivatives)  # softplus' slope
    torch.mul(here[:, 1:], by_knots[0].unsqueeze(1), out=by_raw[:, 2 * bins :])
    by_raw[:, 2 * bins :].addcmul_(here[:, :-1], by_knots[1].unsqueeze(1))
    return (to_x if inverse else by_x) + outside, by_raw


def _numerator(d_low: Tensor, d_high: Tensor, slope: Tensor, between: Tensor, square: Tensor, rest: Tensor) -> Tensor:
    """dy/dx is this times (slope / denominator)²."""
    return torch.addcmul(torch.addcmul(d_high * square, slope, between, value=2), d_low, rest * rest)


def _bins(raw: Tensor) -> int:
    return (raw.shape[1] + 1) // 3


def _split(bound: float, bins: int) -> tuple[float, float]:
    """The least size of a bin, and what the least sizes leave of the interval."""
    return 2 * bound * MIN_BIN, 2 * bound * (1 - MIN_BIN * bins)


def _sums(bound: float, bins: int, like: Tensor) -> Float[Tensor, "K K"]:
    r"""The matrix that takes shares, whose sum is 1, to the upper ends of their bins: a cumulative sum of the sizes."""
    least, free = _split(bound, bins)
    row = torch.arange(bins, device=like.device, dtype=like.dtype)
    return free * (row.unsqueeze(1) >= row).to(like.dtype) + (least * (row + 1) - bound).unsqueeze(1)


def _places(k: Int64[Tensor, "M N"], rows: int, row: Int64[Tensor, "2 M N"]) -> Int64[Tensor, "2 M N"]:
    """Where (m, row, n) stands in the memory of a contiguous (M, rows, N)."""
    m, n = k.shape
    first = rows * n * torch.arange(m, device=k.device).unsqueeze(1) + torch.arange(n, device=k.device)
    return torch.add(first, row, alpha=n)


def _take(x: Tensor, places: Int64[Tensor, "2 M N"]) -> Float[Tensor, "2 M N"]:
    return x.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)


def _by_row(x: Float[Tensor, "2 M N"]) -> Float[Tensor, "M 2 1 N"]:
    return x.transpose(0, 1).unsqueeze(2)
