"""PartialOut: near-deterministic columns are replaced by their residuals."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.devices import full_precision
from loglik.transforms.transform import Transform, zeros

__all__ = ["PartialOut"]

MIN_STD = 1e-5  # of a residual, relative to its column's standard deviation; about the resolution of float32


class PartialOut(Transform):
    r"""Replace near-deterministic columns d by residuals $z_d = (x_d - b_d - \sum_{j<d} w_{dj} x_j) / s_d$.

    w is the least-squares fit to the training data, b and s are the mean and standard deviation of its residual. A
    column is replaced if s is below `threshold` times its standard deviation, and the same holds for median absolute
    deviations, so that outliers alone do not count. Other columns are unchanged, and all are with fewer than 10 rows
    per column. Examples are a total beside its parts, shares that sum to 1, and a duplicated column: their residuals
    are of order one, where the relation itself would be too sharp to learn. $\log\det = -\sum_d \log s_d$.

    Args:
        dims: D, the number of columns.
        threshold: the fraction of a column's standard deviation below which its residual replaces it.
    """

    weights: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, dims: int, threshold: float = 0.03) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("weights", torch.zeros(dims, dims))
        self.register_buffer("shift", torch.zeros(dims))
        self.register_buffer("scale", torch.ones(dims))

    def initialise(self, x: Float[Tensor, "N D"]) -> None:
        n, dims = x.shape
        if n < 10 * dims:
            return
        rows = x.double()
        std = rows.std(0, unbiased=False)
        varies = std > 1e-6 * rows.abs().amax(0)
        std = torch.where(varies, std, torch.ones_like(std))
        unit = (rows - rows.mean(0)) / std
        correlation = unit.T @ unit / n + torch.diag(MIN_STD**2 + (~varies).double())
        factor = torch.linalg.cholesky(correlation)
        residual_std = factor.diagonal()  # of x_d given x_<d, relative to the standard deviation of x_d
        residual_of = residual_std.unsqueeze(1) * torch.linalg.inv(factor)  # 1 on the diagonal, -w below
        bulk = _spread(unit @ residual_of.T) < self.threshold * _spread(unit)
        chosen = varies & (residual_std < self.threshold) & bulk
        weights = -residual_of.tril(-1) * std.unsqueeze(1) / std * chosen.unsqueeze(1)
        residual = rows - rows @ weights.T
        scale = torch.maximum(residual.std(0, unbiased=False), MIN_STD * std)
        self.weights.copy_(weights)
        self.shift.copy_(torch.where(chosen, residual.mean(0), torch.zeros_like(std)))
        self.scale.copy_(torch.where(chosen, scale, torch.ones_like(std)))

    def encode(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        with full_precision(x):
            z = (x - x @ self.weights.to(x.dtype).T - self.shift) / self.scale
        return z, zeros(x) - self.scale.log().sum()

    def decode(self, z: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, "B D"]:
        with full_precision(z):
            residual = z * self.scale + self.shift
            matrix = torch.eye(len(self.scale), dtype=z.dtype, device=z.device) - self.weights.to(z.dtype)
            return torch.linalg.solve_triangular(matrix, residual.T, upper=False, unitriangular=True).T

    def complete(
        self, x: Float[Tensor, "B D"], missing: Bool[Tensor, "B D"], like: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B D"]:
        """Return x with missing values from `like`, or from the columns before where these determine them."""
        weights, rows = self.weights.to(x.dtype), x.clone()
        residual = like - like @ weights.T
        for d in range(x.shape[1]):
            rows[:, d] = torch.where(missing[:, d], residual[:, d] + rows @ weights[d], x[:, d])
        return rows


def _spread(x: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """Return the median absolute deviation from the median."""
    return (x - x.median(0).values).abs().median(0).values
