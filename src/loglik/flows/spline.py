r"""The monotonic rational-quadratic spline (Durkan et al. 2019, "Neural Spline Flows", section 3.1).

Within bin k, with $\xi = (x - x_k) / w_k$, slope $s_k = h_k / w_k$ and knot derivatives $\delta$:
$y = y_k + h_k \frac{s_k \xi^2 + \delta_k \xi(1-\xi)}{s_k + (\delta_{k+1} + \delta_k - 2 s_k)\,\xi(1-\xi)}$.
Outside $[-B, B]$ the map is the identity, and the derivatives at $\pm B$ are 1. K bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["parameters_per_dim", "rational_quadratic_spline"]

MIN_BIN = 1e-3  # of the whole interval; keeps slopes within [1e-3, 1e3]
MIN_DERIVATIVE = 1e-3
UNIT_DERIVATIVE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it, plus the minimum, is 1


def parameters_per_dim(bins: int) -> int:
    """K widths, K heights and the K-1 inner derivatives."""
    return 3 * bins - 1


def rational_quadratic_spline(
    x: Float[Tensor, "..."],
    raw: Float[Tensor, "... P"],
    *,
    bins: int,
    bound: float,
    inverse: bool = False,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Apply the spline, or its inverse, to each number; return the result and log|dy/dx| of the map applied.

    `raw` holds `parameters_per_dim(bins)` unconstrained numbers for each number of x; zeros give the identity.
    """
    raw = raw.movedim(-1, 0).contiguous()  # bins first: every operation then runs along contiguous memory
    sizes = 2 * bound * (MIN_BIN + (1 - MIN_BIN * bins) * raw[: 2 * bins].unflatten(0, (2, bins)).softmax(1))
    ends = sizes.cumsum(1) - bound  # the upper end of each bin: of x in row 0, of y in row 1
    inner = MIN_DERIVATIVE + F.softplus(raw[2 * bins :] + UNIT_DERIVATIVE)
    one = torch.ones_like(inner[:1])
    derivatives = torch.cat([one, inner, one])

    inside = x.abs() < bound
    clamped = torch.where(inside, x, torch.zeros_like(x))
    k = (clamped >= ends[1 if inverse else 0, :-1]).sum(0, keepdim=True)
    both = k.expand(2, 1, *x.shape)
    width, height = sizes.gather(1, both).squeeze(1)
    x_low, y_low = ends.gather(1, both).squeeze(1) - torch.stack([width, height])
    d_low, d_high = derivatives.gather(0, torch.cat([k, k + 1]))
    slope = height / width
    curve = d_low + d_high - 2 * slope

    if inverse:  # the root in [0, 1] of a ξ² + b ξ + c, in the form without cancellation
        offset = clamped - y_low
        a = height * (slope - d_low) + offset * curve
        b = height * d_low - offset * curve
        c = -slope * offset
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
    else:
        xi = (clamped - x_low) / width
    rest = 1 - xi
    between = xi * rest
    denominator = slope + curve * between
    if inverse:
        result = x_low + xi * width
    else:
        result = y_low + height * (slope * xi.square() + d_low * between) / denominator
    numerator = d_high * xi.square() + 2 * slope * between + d_low * rest.square()
    log_slope = torch.log(numerator * (slope / denominator).square())
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, torch.zeros_like(x))
    return torch.where(inside, result, x), log_slope
