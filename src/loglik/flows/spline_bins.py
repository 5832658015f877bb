r"""The knots of a rational-quadratic spline, and the bin of each number (Durkan et al. 2019, section 3.1).

K bins divide $[-B, B]$, on the axis of x by their widths and on that of y by their heights. Both are
$m + f\,\text{softmax}(r)$ of K raw parameters r, with the minimum size m and the free length $f = 2 B - K m$. The
derivative at an inner knot is $m' + \text{softplus}(r + u)$, with u such that it is 1 for r = 0; at ±B it is 1.

M numbers of each of N events; "2 M N" holds the axis of x, then that of y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = [
    "LOG2_E",
    "MIN_BIN",
    "MIN_DERIVATIVE",
    "UNIT_DERIVATIVE",
    "Bins",
    "bins_of",
    "find_bins",
    "parameters_per_dim",
    "sizes",
]

MIN_BIN = 1e-3  # of the whole interval; keeps slopes within [1e-3, 1e3]
MIN_DERIVATIVE = 1e-3
UNIT_DERIVATIVE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it, plus the minimum, is 1
LOG2_E = math.log2(math.e)


class Bins(NamedTuple):
    """The bin that each number lies in, on both axes.

    Attributes:
        k: its index, from 0 to K - 1.
        weights: the numerators of the softmax, for all bins.
        inverse_sum: one over the sum of the weights.
        low: the lower end of the bin, x_k or y_k.
        size: its width or height.
        free_size: its size above the minimum.
        derivatives: dy/dx at its lower and at its upper knot.
    """

    k: Float[Tensor, "M N"]
    weights: Float[Tensor, "M 2 K N"]
    inverse_sum: Float[Tensor, "2 M N"]
    low: Float[Tensor, "2 M N"]
    size: Float[Tensor, "2 M N"]
    free_size: Float[Tensor, "2 M N"]
    derivatives: Float[Tensor, "2 M N"]


def parameters_per_dim(bins: int) -> int:
    """Return the number of raw parameters: K widths, K heights and K-1 inner derivatives."""
    return 3 * bins - 1


def bins_of(raw: Float[Tensor, "M P N"]) -> int:
    """Return K, the number of bins that so many parameters describe."""
    return (raw.shape[1] + 1) // 3


def sizes(bound: float, bins: int) -> tuple[float, float]:
    """Return the minimum size of a bin, and the length of the interval that K minimal bins leave free."""
    return 2 * bound * MIN_BIN, 2 * bound * (1 - MIN_BIN * bins)


def find_bins(value: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], bound: float, axis: int) -> Bins:
    """Return the bin of each value in [-B, B], which is an x for axis 0 and a y for axis 1."""
    bins, (m, n) = bins_of(raw), value.shape
    min_size, free = sizes(bound, bins)
    weights = _exp(raw[:, : 2 * bins].unflatten(1, (2, bins)))
    ends = _cumulative_sizes(bound, bins, raw) @ weights  # the upper end of each bin, times the sum of the weights
    inverse_sum = bound / ends[:, :, -1]  # the last bin ends at the bound
    found = ((value / inverse_sum[:, axis]).unsqueeze(1) >= ends[:, axis, :-1]).sum(1, dtype=torch.uint8)
    k, inverse_sum = found.to(value.dtype), inverse_sum.transpose(0, 1)

    # positions in memory: of the bin in `weights` and `ends`, and of its two knots in `raw`
    column = torch.add(torch.arange(n, device=value.device), found.long(), alpha=n)
    row = torch.arange(m, device=value.device).unsqueeze(1)
    in_bins = torch.add(column, row, alpha=2 * bins * n)
    in_bins = torch.stack([in_bins, in_bins + bins * n])
    in_knots = torch.add(column, row, alpha=raw.shape[1] * n) + (2 * bins - 1) * n
    in_knots = torch.stack([in_knots, (in_knots + n).clamp_max(raw.numel() - 1)])

    free_size = _take(weights, in_bins) * (free * inverse_sum)
    size = free_size + min_size
    low = _take(ends, in_bins) * inverse_sum - size
    inner = torch.stack([k, bins - 1 - k]).clamp_max(1)  # 0 at ±B, where a parameter of another knot was read
    derivatives = MIN_DERIVATIVE + F.softplus(_take(raw, in_knots) * inner + UNIT_DERIVATIVE)
    return Bins(k, weights, inverse_sum, low, size, free_size, derivatives)


def _cumulative_sizes(bound: float, bins: int, like: Tensor) -> Float[Tensor, "K K"]:
    """Return the matrix that maps shares, whose sum is 1, to the upper ends of their bins."""
    min_size, free = sizes(bound, bins)
    row = torch.arange(bins, device=like.device, dtype=like.dtype)
    return free * (row.unsqueeze(1) >= row).to(like.dtype) + (min_size * (row + 1) - bound).unsqueeze(1)


def _exp(x: Float[Tensor, "M 2 K N"]) -> Float[Tensor, "M 2 K N"]:
    """Return the numerators of a softmax over K, by powers of 2: torch's `exp` is slow on some CPUs."""
    top = x.detach().amax(2, keepdim=True)
    return torch.add(-LOG2_E * top, x, alpha=LOG2_E).exp2()


def _take(x: Tensor, positions: Int64[Tensor, "2 M N"]) -> Float[Tensor, "2 M N"]:
    return x.reshape(-1).index_select(0, positions.reshape(-1)).view(positions.shape)
