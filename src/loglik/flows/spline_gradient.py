r"""The gradient of the rational-quadratic spline, worked out by hand; see `loglik.flows.spline` for the formula.

The raw parameters r of the sizes enter through the shares $p = \text{softmax}(r)$. Where l is the gradient by the
bin's lower end, $\sum_{j<k} p_j$, and s that by its size, $p_k$, the gradient by $r_j$ is
$p_j \left(l\,[j < k] + s\,[j = k] - \sum_{i<k} p_i\,l - p_k\,s\right)$.

For the inverse g of the map f, with $m = f'$ and $L = \log m$ at the point found, $g' = 1/m$ and
$g_\theta = -f_\theta / m$: the gradient is that of f, with other gradients by y and by L.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.flows.spline_bins import LOG2_E, MIN_DERIVATIVE, Bins, parameters_per_dim, sizes

__all__ = ["Curve", "spline_gradient"]


class Curve(NamedTuple):
    """The values of the formula at each number, within its bin.

    Attributes:
        inside: 1 in [-B, B], else 0.
        slope: s, height over width.
        curvature: δ_{k+1} + δ_k - 2 s.
        xi: ξ, the position in the bin, from 0 to 1.
        denominator: s + curvature ξ (1 - ξ).
        fraction: (y - y_k) / h_k.
        numerator: δ_{k+1} ξ² + 2 s ξ (1 - ξ) + δ_k (1 - ξ)², of dy/dx without s².
        dy_dx: the derivative of the map from x to y.
    """

    inside: Float[Tensor, "M N"]
    slope: Float[Tensor, "M N"]
    curvature: Float[Tensor, "M N"]
    xi: Float[Tensor, "M N"]
    denominator: Float[Tensor, "M N"]
    fraction: Float[Tensor, "M N"]
    numerator: Float[Tensor, "M N"]
    dy_dx: Float[Tensor, "M N"]


def spline_gradient(
    bins: Bins,
    curve: Curve,
    grad_y: Float[Tensor, "M N"],
    grad_log_slope: Float[Tensor, "M N"],
    bound: float,
    inverse: bool,
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    """Return the gradients by x and by the raw parameters, from those by the two results of the spline."""
    inside, slope, curvature, xi, denominator, fraction, numerator, dy_dx = curve
    (width, height), (d_k, d_next) = bins.size.unbind(), bins.derivatives.unbind()
    rest = 1 - xi
    xi_rest = xi * rest
    square = xi * xi
    d_xi_rest = torch.rsub(xi, 1, alpha=2)  # by ξ

    # log dy/dx = log numerator + 2 log slope - 2 log denominator
    grad_outside = torch.addcmul(grad_y, grad_y, inside, value=-1)
    grad_y, grad_log = grad_y * inside, grad_log_slope * (-inside if inverse else inside)
    twice = 2 * grad_log
    grad_numerator, twice_per_denominator = grad_log / numerator, twice / denominator
    grad_x = torch.addcmul(torch.addcmul(d_next * xi, slope, d_xi_rest), d_k, rest, value=-1)  # half of ∂numerator/∂ξ
    grad_x = torch.addcmul(-twice_per_denominator * curvature * d_xi_rest, grad_numerator, grad_x, value=2) / width
    if inverse:
        grad_value = (grad_y + grad_x) / dy_dx
        grad_y = -grad_value
    grad_x = torch.addcmul(grad_x, grad_y, dy_dx)
    if not inverse:
        grad_value = grad_x

    # fraction = top / denominator
    grad_top = grad_y * height / denominator
    grad_denominator = -torch.addcmul(twice_per_denominator, grad_top, fraction)
    grad_slope = torch.addcmul(grad_top * square, grad_numerator, xi_rest, value=2)
    grad_slope = torch.addcdiv(grad_slope, twice, slope)
    grad_slope = torch.addcmul(grad_slope, grad_denominator, torch.rsub(xi_rest, 1, alpha=2))
    grad_d_k = torch.addcmul((grad_top + grad_denominator) * xi_rest, grad_numerator, rest * rest)
    grad_d_next = torch.addcmul(grad_denominator * xi_rest, grad_numerator, square)
    grad_slope = grad_slope / width
    grad_width = -torch.addcmul(grad_slope * slope, grad_x, xi)
    grad_height = torch.addcmul(grad_slope, grad_y, fraction)

    grad_low, grad_size = torch.stack([-grad_x, grad_y]), torch.stack([grad_width, grad_height])
    # stacked anew: torch 2.13's compiler overwrites a part that was saved while it still needs the whole
    softplus_slope = 1 - torch.exp2(LOG2_E * (MIN_DERIVATIVE - torch.stack([d_k, d_next])))
    grad_knots = torch.stack([grad_d_k, grad_d_next]) * softplus_slope
    return grad_value + grad_outside, _raw_gradient(bins, grad_low, grad_size, grad_knots, bound)


def _raw_gradient(
    bins: Bins,
    grad_low: Float[Tensor, "2 M N"],
    grad_size: Float[Tensor, "2 M N"],
    grad_knots: Float[Tensor, "2 M N"],
    bound: float,
) -> Float[Tensor, "M P N"]:
    """Return the gradient by the raw parameters from those by the bin's lower ends, sizes and raw derivatives."""
    k, count = bins.k, bins.weights.shape[2]
    min_size, free = sizes(bound, count)
    own = grad_size * bins.free_size
    mean = torch.addcmul(own, torch.sub(bins.low + bound, k, alpha=min_size), grad_low)
    row = torch.arange(count + 1, device=k.device, dtype=k.dtype).unsqueeze(1)
    reached = ((k + 1).unsqueeze(1) - row).clamp_(0, 1)  # 1 where row j is at most the number's bin k, else 0
    below, here = reached[:, 1:], reached[:, :-1] - reached[:, 1:]  # [j < k] and [j = k]
    grad_raw = k.new_empty(len(k), parameters_per_dim(count), k.shape[1])
    shares, knots = grad_raw[:, : 2 * count].unflatten(1, (2, count)), grad_raw[:, 2 * count :]
    shares.copy_(_rows_first(mean * -bins.inverse_sum))
    shares.addcmul_(below.unsqueeze(1), _rows_first(grad_low * (free * bins.inverse_sum)))
    shares.mul_(bins.weights).addcmul_(here.unsqueeze(1), _rows_first(own))
    lower, upper = grad_knots.unsqueeze(2).unbind()
    knots.zero_().addcmul_(here[:, 1:], lower).addcmul_(here[:, :-1], upper)
    return grad_raw


def _rows_first(x: Float[Tensor, "2 M N"]) -> Float[Tensor, "M 2 1 N"]:
    return x.transpose(0, 1).unsqueeze(2)
