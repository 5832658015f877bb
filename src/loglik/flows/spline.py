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


def _knots(raw: Float[Tensor, "... K"], bound: float) -> Float[Tensor, "... K+1"]:
    """Increasing knots from -B to B."""
    bins = raw.shape[-1]
    sizes = MIN_BIN + (1 - MIN_BIN * bins) * raw.softmax(-1)
    inner = 2 * bound * sizes[..., :-1].cumsum(-1) - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)


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
    x_knots = _knots(raw[..., :bins], bound)
    y_knots = _knots(raw[..., bins : 2 * bins], bound)
    inner = MIN_DERIVATIVE + F.softplus(raw[..., 2 * bins :] + UNIT_DERIVATIVE)
    derivatives = F.pad(inner, (1, 1), value=1.0)

    inside = x.abs() < bound
    clamped = torch.where(inside, x, torch.zeros_like(x)).unsqueeze(-1)
    knots = y_knots if inverse else x_knots
    k = (clamped >= knots[..., 1:-1]).sum(-1, keepdim=True)

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, k).squeeze(-1)

    x_low, y_low = pick(x_knots), pick(y_knots)
    width = x_knots.gather(-1, k + 1).squeeze(-1) - x_low
    height = y_knots.gather(-1, k + 1).squeeze(-1) - y_low
    d_low, d_high = pick(derivatives), derivatives.gather(-1, k + 1).squeeze(-1)
    slope = height / width
    curve = d_low + d_high - 2 * slope
    clamped = clamped.squeeze(-1)

    if inverse:  # the root in [0, 1] of a ξ² + b ξ + c, in the form without cancellation
        offset = clamped - y_low
        a = height * (slope - d_low) + offset * curve
        b = height * d_low - offset * curve
        c = -slope * offset
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
        result = x_low + xi * width
    else:
        xi = (clamped - x_low) / width
    between = xi * (1 - xi)
    denominator = slope + curve * between
    if not inverse:
        result = y_low + height * (slope * xi.square() + d_low * between) / denominator
    log_slope = 2 * slope.log() - 2 * denominator.log()
    log_slope = log_slope + (d_high * xi.square() + 2 * slope * between + d_low * (1 - xi).square()).log()
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, torch.zeros_like(x))
    return torch.where(inside, result, x), log_slope
