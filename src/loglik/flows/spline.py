r"""The monotonic rational-quadratic spline (Durkan et al. 2019, "Neural Spline Flows", section 3.1).

Bin k starts at $(x_k, y_k)$ and has the width $w_k$ and the height $h_k$; $\delta_k$ is the derivative at knot k. With
$\xi = (x - x_k) / w_k$ and the slope $s_k = h_k / w_k$:

$$y = y_k + h_k \frac{s_k \xi^2 + \delta_k \xi(1-\xi)}{s_k + (\delta_{k+1} + \delta_k - 2 s_k)\,\xi(1-\xi)}, \qquad
\frac{dy}{dx} = \frac{s_k^2 \left(\delta_{k+1} \xi^2 + 2 s_k \xi(1-\xi) + \delta_k (1-\xi)^2\right)}
{\left(s_k + (\delta_{k+1} + \delta_k - 2 s_k)\,\xi(1-\xi)\right)^2}.$$

The inverse solves a quadratic equation for ξ. Outside $[-B, B]$ the map is the identity, and the derivatives at ±B are
1. M numbers of each of N events, K bins, P = 3 K - 1 raw parameters for each number.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.cpu import spline_kernel
from loglik.cpu.private import transforms_active
from loglik.cpu.threads import threads_for
from loglik.devices import full_precision
from loglik.flows.spline_bins import (
    MIN_DERIVATIVE,
    UNIT_DERIVATIVE,
    Bins,
    bins_of,
    find_bins,
    parameters_per_dim,
    sizes,
)
from loglik.flows.spline_gradient import Curve, spline_gradient

__all__ = ["parameters_per_dim", "rational_quadratic_spline", "spline_formula"]

FLOPS_PER_PARAMETER = 32  # about


def rational_quadratic_spline(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], *, bound: float, inverse: bool = False
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Apply the spline, or its inverse, to each number; return the result and log|dy/dx| of the map applied.

    Args:
        x: the numbers.
        raw: unconstrained parameters of each number: K widths, K heights, K-1 derivatives. Zeros give the identity.
            With events last, every operation on them runs along contiguous memory.
        bound: B.
        inverse: whether to apply the inverse.
    """
    with full_precision(x):  # parameters stay in x's precision
        if transforms_active():
            return spline_formula(x, raw.to(x.dtype), bound, inverse)[:2]
        return _Spline.apply(x, raw.to(x.dtype), bound, inverse)


def spline_formula(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], bound: float, inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"], Bins, Curve]:
    """Return what `rational_quadratic_spline` does, and the values that its gradient needs.

    A number outside [-B, B] moves with the end of the interval, where the slope is 1. Products with 0 and 1 select
    values, since they are many times faster than `torch.where`.
    """
    clamped = x.clamp(-bound, bound)
    beyond = x - clamped
    inside = 1 - beyond.detach().sign().abs()
    bins = find_bins(clamped, raw, bound, axis=1 if inverse else 0)
    (x_k, y_k), (width, height), (d_k, d_next) = bins.low.unbind(), bins.size.unbind(), bins.derivatives.unbind()
    slope = height / width
    curvature = torch.sub(d_k + d_next, slope, alpha=2)

    if inverse:  # the root in [0, 1] of a ξ² + b ξ + c, in the form without cancellation (eqs. 6 to 8)
        offset = clamped - y_k
        offset_curvature = offset * curvature
        a = torch.addcmul(offset_curvature, height, slope - d_k)
        b = torch.addcmul(-offset_curvature, height, d_k)
        c = -slope * offset
        xi = 2 * c / (-b - torch.addcmul(b * b, a, c, value=-4).clamp_min(0).sqrt())
    else:
        xi = (clamped - x_k) / width

    rest = 1 - xi
    xi_rest = xi * rest
    square = xi * xi
    denominator = torch.addcmul(slope, curvature, xi_rest)
    fraction = torch.addcmul(slope * square, d_k, xi_rest) / denominator  # (y - y_k) / h_k, eq. 4
    y = torch.addcmul(x_k, xi, width) if inverse else torch.addcmul(y_k, height, fraction)

    numerator = torch.addcmul(torch.addcmul(d_next * square, slope, xi_rest, value=2), d_k, rest * rest)
    ratio = slope / denominator
    dy_dx = numerator * (ratio * ratio)  # eq. 5
    log_slope = dy_dx.log() * (-inside if inverse else inside)
    return y + beyond, log_slope, bins, Curve(inside, slope, curvature, xi, denominator, fraction, numerator, dy_dx)


class _Spline(torch.autograd.Function):
    """The spline with its gradient worked out: by the C kernel where it fits, else by `spline_formula`.

    Recording the formula would take three times the operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
        ctx.bound, ctx.inverse = bound, inverse
        ctx.set_materialize_grads(False)
        if spline_kernel.fits(x, raw):
            ctx.save_for_backward(x, raw)
            return spline_kernel.spline(x, raw, _constants(raw, bound), inverse)
        with threads_for(FLOPS_PER_PARAMETER * raw.numel()):
            y, log_slope, bins, curve = spline_formula(x, raw, bound, inverse)
        ctx.save_for_backward(x, raw, *bins, *curve)
        return y, log_slope

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_log_slope: Tensor | None) -> Any:
        x, raw, *saved = ctx.saved_tensors
        if grad_y is None and grad_log_slope is None:
            return None, None, None, None
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y
        grad_log_slope = torch.zeros_like(x) if grad_log_slope is None else grad_log_slope
        if torch.is_grad_enabled():  # the gradient is itself differentiated
            pull = torch.func.vjp(lambda x, raw: spline_formula(x, raw, ctx.bound, ctx.inverse)[:2], x, raw)[1]
            return *pull((grad_y, grad_log_slope)), None, None
        if not saved:
            constants = _constants(raw, ctx.bound)
            return *spline_kernel.spline_gradient(x, raw, grad_y, grad_log_slope, constants, ctx.inverse), None, None
        bins, curve = Bins(*saved[: len(Bins._fields)]), Curve(*saved[len(Bins._fields) :])
        with threads_for(FLOPS_PER_PARAMETER * raw.numel()):
            return *spline_gradient(bins, curve, grad_y, grad_log_slope, ctx.bound, ctx.inverse), None, None


def _constants(raw: Tensor, bound: float) -> list[float]:
    return [bound, *sizes(bound, bins_of(raw)), MIN_DERIVATIVE, UNIT_DERIVATIVE]
