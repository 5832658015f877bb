"""The EM algorithm for a mixture of Gaussians and codes, of weighted rows.

Reference: Dempster, Laird and Rubin 1977; Cappé et al. 2008, "Adaptive importance sampling in general mixture classes"
(weighted rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["Fitted", "fit_mixture"]

ITERATIONS = 20
PRIOR_ROWS = 4.0  # beside the number of dimensions, that each component's covariance and tables are shrunk with
PRIOR_SCALE = 0.2  # of the covariance of all rows
JITTER = 1e-6
DEFENSIVE = 0.05  # weight of a component wider than all rows, so that no weight p / q is unbounded where rows are


@dataclass(frozen=True)
class Fitted:
    """K components: their log-weights, means and covariances, and a table of log-probabilities for each code column."""

    log_weight: Float64[Tensor, " K"]
    mean: Float64[Tensor, "K D"]
    covariance: Float64[Tensor, "K D D"]
    log_tables: list[Float64[Tensor, "K _"]]


def fit_mixture(
    y: Float64[Tensor, "N D"],
    codes: Int64[Tensor, "N Dc"],
    weights: Float64[Tensor, " N"],
    sizes: Sequence[int],
    components: int,
) -> Fitted:
    """Return the mixture with a high likelihood of rows of numbers and codes; the weights sum to 1."""
    rows, d = 1 / weights.square().sum(), y.shape[1]  # the effective number of rows
    centre = weights @ y
    eye = torch.eye(d, dtype=torch.float64, device=y.device)
    overall = (weights[:, None] * (y - centre)).T @ (y - centre) + JITTER * eye
    shares = [
        (rows * _counts(weights[:, None], codes[:, c], size)[0] + 0.5) / (rows + 0.5 * size)
        for c, size in enumerate(sizes)
    ]
    wide = Fitted(weights.new_zeros(1), centre[None], 2 * overall[None] + 0.01 * eye, [s.log()[None] for s in shares])
    eye_k = torch.eye(components, dtype=torch.float64, device=y.device)
    start = torch.multinomial(weights, components, replacement=components > len(y))
    fitted = Fitted(
        weights.new_zeros(components).log_softmax(0),
        y[start],
        overall.repeat(components, 1, 1),
        [(0.5 * _counts(eye_k, codes[start, c], size) + 0.5 * shares[c]).log() for c, size in enumerate(sizes)],
    )
    squares = (y[:, :, None] * y[:, None, :]).flatten(1)
    for _ in range(ITERATIONS if components > 1 else 1):
        r = _log_joint(fitted, y, squares, codes).softmax(1) * weights[:, None] * rows  # (N, K)
        n = r.sum(0)
        mean = (r.T @ y + PRIOR_ROWS * 0.1 * fitted.mean) / (n + PRIOR_ROWS * 0.1)[:, None]
        scatter = _scatter(squares, y, r, mean)
        prior = PRIOR_ROWS + d
        covariance = (scatter + prior * PRIOR_SCALE * overall) / (n + prior)[:, None, None] + JITTER * eye
        tables = [
            ((_counts(r, codes[:, c], size) + PRIOR_ROWS * shares[c]) / (n + PRIOR_ROWS)[:, None]).log()
            for c, size in enumerate(sizes)
        ]
        fitted = Fitted(((n + 1) / (n + 1).sum()).log(), mean, covariance, tables)
    log_weight = torch.cat([fitted.log_weight, wide.log_weight + torch.tensor(DEFENSIVE / (1 - DEFENSIVE)).log()])
    return Fitted(
        log_weight.log_softmax(0),
        torch.cat([fitted.mean, wide.mean]),
        torch.cat([fitted.covariance, wide.covariance]),
        [torch.cat([a, b]) for a, b in zip(fitted.log_tables, wide.log_tables, strict=True)],
    )


def _counts(r: Float64[Tensor, "N K"], codes: Int64[Tensor, " N"], size: int) -> Float64[Tensor, "K C"]:
    """Return the sum of each component's responsibilities over the rows of each code."""
    return r.new_zeros(size, r.shape[1]).index_add_(0, codes, r).T


def _scatter(
    squares: Float64[Tensor, "N DD"], y: Float64[Tensor, "N D"], r: Float64[Tensor, "N K"], mean: Float64[Tensor, "K D"]
) -> Float64[Tensor, "K D D"]:
    """Return each component's sum of (y - mean)(y - mean)^T, from sums that are matrix products."""
    total = (r.T @ squares).view(r.shape[1], y.shape[1], y.shape[1])
    cross = (r.T @ y)[:, :, None] * mean[:, None, :]
    return total - cross - cross.mT + r.sum(0)[:, None, None] * mean[:, :, None] * mean[:, None, :]


def _log_joint(
    fitted: Fitted, y: Float64[Tensor, "N D"], squares: Float64[Tensor, "N DD"], codes: Int64[Tensor, "N Dc"]
) -> Float64[Tensor, "N K"]:
    """Return log of each component's weight times its density of each row, up to a constant."""
    factor = torch.linalg.cholesky(fitted.covariance)
    precision = torch.cholesky_inverse(factor)
    slope = (precision @ fitted.mean[..., None]).squeeze(-1)
    distance = squares @ precision.flatten(1).T - 2 * (y @ slope.T) + (slope * fitted.mean).sum(1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
    total = fitted.log_weight - log_det - 0.5 * distance.clamp_min(0)
    for c, table in enumerate(fitted.log_tables):
        total = total + table[:, codes[:, c]].T
    return total
