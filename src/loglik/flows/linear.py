"""Learned linear maps: ActNorm, LULinear (an invertible 1×1 convolution on images) and Whitening."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.devices import full_precision
from loglik.networks.soft_bound import inverse_soft_bound, soft_bound
from loglik.transforms.transform import Transform

__all__ = ["ActNorm", "LULinear", "Whitening", "random_rotation"]

MAX_LOG_SCALE = 12.0  # scales stay within e^±12


class ActNorm(Transform):
    r"""Map $z = (x - b)\, e^{s}$ for each dimension, or channel of an image.

    $\log\det = N \sum_c s_c$ for N positions. The parameters start at values that standardise the training data.

    Reference: Kingma and Dhariwal 2018, "Glow", section 3.1.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dims))
        self.raw_scale = nn.Parameter(torch.zeros(dims))

    def initialise(self, x: Float[Tensor, "B D *N"]) -> None:
        rows = x.transpose(0, 1).flatten(1).double()
        std, floor = rows.std(1, unbiased=False), 1e-6 * rows.abs().amax(1)
        log_scale = torch.where(std > floor, -std.log(), 0.0).clamp(-MAX_LOG_SCALE + 1, MAX_LOG_SCALE - 1)
        with torch.no_grad():
            self.shift.copy_(rows.mean(1))
            self.raw_scale.copy_(inverse_soft_bound(log_scale, MAX_LOG_SCALE))

    def _constants(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.dim() - 2))
        return self.shift.view(shape), soft_bound(self.raw_scale, MAX_LOG_SCALE).view(shape)

    def encode(
        self, x: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> tuple[Float[Tensor, "B D *N"], Float[Tensor, " B"]]:
        shift, log_scale = self._constants(x)
        log_det = math.prod(x.shape[2:]) * log_scale.sum()
        return (x - shift) * log_scale.exp(), log_det.expand(len(x))

    def decode(
        self, z: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> Float[Tensor, "B D *N"]:
        shift, log_scale = self._constants(z)
        return z * (-log_scale).exp() + shift


class LULinear(Transform):
    r"""Map $z = P L U x$ over the dimensions, or over the channels at each position of an image.

    L is lower triangular with ones on its diagonal, U upper triangular with $\pm e^{s}$ on its diagonal, P a fixed
    permutation: $\log\det = N \sum_d s_d$ for N positions, and the inverse is two triangular solves.

    Args:
        start: the initial matrix, (D, D) and invertible, such as `random_rotation(D)`; an integer D stands for the
            identity.

    Raises:
        ValueError: a start that is not invertible.

    Reference: Kingma and Dhariwal 2018, "Glow", section 3.2.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, start: Float[Tensor, "D D"] | int) -> None:
        super().__init__()
        matrix = torch.eye(start) if isinstance(start, int) else start
        permutation, lower, upper = torch.linalg.lu(matrix)
        diagonal = upper.diagonal()
        if not (diagonal.abs() > 1e-6).all():
            raise ValueError("start must be an invertible matrix, got one with a pivot below 1e-6")
        log_scale = diagonal.abs().log()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.raw_scale = nn.Parameter(inverse_soft_bound(log_scale, MAX_LOG_SCALE))

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        log_scale = soft_bound(self.raw_scale, MAX_LOG_SCALE)
        one = torch.eye(len(log_scale), dtype=log_scale.dtype, device=log_scale.device)
        return self.lower.tril(-1) + one, self.upper.triu(1) + torch.diag(self.sign * log_scale.exp()), log_scale

    def encode(
        self, x: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> tuple[Float[Tensor, "B D *N"], Float[Tensor, " B"]]:
        with full_precision(x):  # so that z and the determinant belong to the same matrix
            lower, upper, log_scale = self._factors()
            matrix = self.permutation @ lower @ upper
            z = x @ matrix.T if x.dim() == 2 else matrix @ x.flatten(2)
        log_det = math.prod(x.shape[2:]) * log_scale.sum()
        return z.view(x.shape), log_det.expand(len(x))

    def decode(
        self, z: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> Float[Tensor, "B D *N"]:
        with full_precision(z):
            lower, upper, _ = self._factors()
            channels_first = z.transpose(0, 1)  # events and positions become columns of one system
            columns = self.permutation.T @ channels_first.flatten(1)
            columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
            columns = torch.linalg.solve_triangular(upper, columns, upper=True)
            return columns.view(channels_first.shape).transpose(0, 1)


class Whitening(LULinear):
    r"""An `LULinear` of vectors that starts at $z = L^{-1} x$, where $L L^\top$ is the training data's covariance.

    The covariance is shrunk towards a multiple of the identity, so that it is invertible with fewer rows than
    dimensions.

    Reference: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    """

    def initialise(self, x: Float[Tensor, "N D"]) -> None:
        inverse = torch.linalg.inv(torch.linalg.cholesky(_shrunk_covariance(x.double())))
        log_scale = inverse.diagonal().log().clamp(-MAX_LOG_SCALE + 1, MAX_LOG_SCALE - 1)
        with torch.no_grad():
            self.lower.copy_((inverse / inverse.diagonal()).tril(-1))
            self.upper.zero_()
            self.raw_scale.copy_(inverse_soft_bound(log_scale, MAX_LOG_SCALE))
            self.permutation.copy_(torch.eye(len(log_scale)))
            self.sign.fill_(1)


def _shrunk_covariance(x: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """Return the Ledoit-Wolf estimate of the covariance."""
    n, dims = x.shape
    x = x - x.mean(0)
    covariance = x.T @ x / n
    variance = covariance.diagonal().mean().clamp_min(1e-6)
    target = variance * torch.eye(dims, dtype=x.dtype, device=x.device)
    distance = (covariance - target).square().sum()
    noise = (x.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    shrinkage = (noise / distance.clamp_min(1e-12)).clamp(0, 1)
    return (1 - shrinkage) * covariance + (shrinkage + 1e-4) * target


def random_rotation(dims: int) -> Float[Tensor, "D D"]:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(dims, dims))[0]
