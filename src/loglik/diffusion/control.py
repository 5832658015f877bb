r"""A control variate for the bound's diffusion term: the denoiser of Gaussian data, whose part has a closed form.

The term is $\tfrac12 \int \mathbb E_\epsilon f \, d\lambda$ with $f = \lVert r \rVert^2$ and
$r = e^{\lambda/2}(x - \hat x(x_\lambda)) = \hat\epsilon - \epsilon$. For data $\mathcal N(m, Q S Q^\top)$ the best
denoiser is linear in the noise. With $u = Q^\top(x - m)$, $\eta = Q^\top \epsilon$ and $w = s\,e^\lambda$ the squares
of its residual are

$g_e = \left(\frac{e^{\lambda/2} u_e - w_e \eta_e}{1 + w_e}\right)^2, \qquad
\mathbb E_\epsilon\, g_e = \frac{e^\lambda u_e^2 + w_e^2}{(1 + w_e)^2}$,

so for any coefficients $c(\lambda)$ that do not depend on the noise

$\tfrac12 \int \mathbb E f\,d\lambda = \tfrac12 \int c\, \mathbb E\, g\,d\lambda
+ \tfrac12\, \mathbb E_{\lambda \sim p,\, \epsilon}\left[\frac{f - c\,g}{p(\lambda)}\right]$,

where the first integral is exact and the second varies as much as the network differs from a Gaussian's denoiser.
$c = \mathbb E f g / \mathbb E g^2$ minimises the second moment of the rest, and $p \propto$ its root minimises the
variance. Both are constant in each of `BINS` equal parts of the log-SNR, and learned from the draws of training.

A dimension with few distinct values is known exactly at a higher noise level than its Gaussian would be, so such
dimensions have a covariance and coefficients of their own.

Sources: Owen 2013, "Monte Carlo theory, methods and examples", chapters 8.9 and 9; Kingma et al. 2021, "Variational
diffusion models", appendix I.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from loglik.devices import full_precision

__all__ = ["Control", "Draw", "Ends", "pick", "quadrature"]

Ends = tuple[Float[Tensor, ""], Float[Tensor, ""]]  # a schedule's highest and lowest log-SNR

BINS = 32
NODES, WEIGHTS = (
    values.tolist() for values in np.polynomial.legendre.leggauss(4)
)  # in each bin: the integrands have poles π from the real line, so an error of 1e-9 is left
MAX_CORRELATED = 256  # dimensions; above it the covariance is taken as diagonal
ROWS = 2**14  # from which the moments are estimated
MEMORY = 256.0  # draws over which the averages of a bin decay
EVEN = 0.2  # fraction of the draws that is uniform in the log-SNR


@dataclass(frozen=True)
class Draw:
    r"""One draw of ε per example at its log-SNR λ, and the denoiser's residual r."""

    v: Float[Tensor, "B ..."]
    logsnr: Float[Tensor, " B"]
    epsilon: Float[Tensor, "B ..."]
    residual: Float[Tensor, "B ..."]

    @property
    def error(self) -> Float[Tensor, " B"]:
        r"""$f = \lVert r \rVert^2 = \lVert \epsilon - \hat\epsilon \rVert^2$."""
        return self.residual.flatten(1).square().sum(1)


class Shares(NamedTuple):
    """f and g, each for the dimensions with many and with few distinct values, and the bin of the log-SNR."""

    f: Float[Tensor, "B 2"]
    g: Float[Tensor, "B 2"]
    bins: Int64[Tensor, " B"]


class Control(nn.Module):
    """Hold the Gaussian's moments, the coefficients c and the density p over log-SNRs.

    Until `initialise` is called the Gaussian is N(0, I).

    Args:
        dims: D.
        coefficient: the initial c: 1 for a denoiser that starts as the Gaussian's, else 0.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None
    repeated: Tensor
    products: Tensor
    squares: Tensor
    left: Tensor

    def __init__(self, dims: int, coefficient: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("variance", torch.ones(dims))
        self.register_buffer("basis", torch.eye(dims) if dims <= MAX_CORRELATED else None)
        self.register_buffer("repeated", torch.zeros(dims))
        start = 1e-6  # outweighed by the first draws
        self.register_buffer("products", torch.full((BINS, 2), start * coefficient))
        self.register_buffer("squares", torch.full((BINS, 2), start))
        self.register_buffer("left", torch.zeros(BINS))

    @property
    def coefficients(self) -> Float[Tensor, "bins 2"]:
        """Return c of each bin, for dimensions with many and with few distinct values."""
        return self.products / self.squares

    @torch.no_grad()
    def initialise(self, v: Float[Tensor, "N D"]) -> None:
        """Estimate the moments from data.

        The covariance is shrunk towards its diagonal, as if D more rows had shown no correlation. The standard
        deviation of each direction is at least 1/100 of the largest.
        """
        v = v[:: -(-len(v) // ROWS)].double()
        variance, mean = torch.var_mean(v, 0, correction=0)
        self.mean.copy_(mean)
        ordered = v.sort(0).values
        values = 1 + (ordered[1:] > ordered[:-1]).sum(0)
        self.repeated.copy_((values < 0.1 * len(v)).to(self.repeated))
        if self.basis is not None:
            self.basis.zero_()
            covariance = torch.cov(v.T, correction=0).reshape(v.shape[1], -1)
            covariance = covariance * (len(v) / (len(v) + v.shape[1]))
            covariance.diagonal().copy_(variance)
            for group in (0, 1):
                rows = (self.repeated == group).nonzero().squeeze(1)
                values, vectors = torch.linalg.eigh(covariance[rows][:, rows])
                variance[rows] = values
                self.basis[rows.unsqueeze(1), rows] = vectors.to(self.basis)
        self.variance.copy_(variance.clamp_min(1e-4 * variance.max().item() or 1.0))

    def expected(
        self,
        v: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " N"],
        weights: Float[Tensor, " N"],
        ends: Ends,
    ) -> Float[Tensor, " B"]:
        r"""Sum $a_n\, c(\lambda_n)\, \mathbb E_\epsilon\, g$ over log-SNRs λ_n with weights a_n, in closed form."""
        snr, w = self._snr(logsnr)
        scaled = weights.unsqueeze(1) * self._per_dim(self.coefficients[self._bin(logsnr, ends)]) / (1 + w).square()
        u = self._directions(v.flatten(1) - self.mean)
        return (u.square() * (scaled * snr).sum(0)).sum(1) + (scaled * w.square()).sum()

    def shares(self, draw: Draw, ends: Ends) -> Shares:
        """Split f and g of each example of a draw."""
        snr, w = self._snr(draw.logsnr)
        u, eta = (self._directions(rows) for rows in (draw.v.flatten(1) - self.mean, draw.epsilon.flatten(1)))
        g = ((snr.sqrt() * u - w * eta) / (1 + w)).square()
        return Shares(self._split(draw.residual.flatten(1).square()), self._split(g), self._bin(draw.logsnr, ends))

    def rest(self, shares: Shares) -> Float[Tensor, " B"]:
        r"""Return $f - c\,g$ of each example, which is estimated from draws."""
        return (shares.f - self.coefficients[shares.bins].to(shares.g) * shares.g).sum(1)

    @torch.no_grad()
    def learn(self, shares: Shares, rest: Float[Tensor, " B"]) -> None:
        """Update the coefficients and the density with draws and their `rest`."""
        f, g, left = (value.to(self.squares) for value in (shares.f, shares.g, rest.square().unsqueeze(1)))
        seen = torch.cat([f * g, g.square(), left, torch.ones_like(left)], 1)
        *sums, count = seen.new_zeros(BINS, 6).index_add_(0, shares.bins, seen).split([2, 2, 1, 1], 1)
        rate = count / (count + MEMORY)
        for buffer, total in zip((self.products, self.squares, self.left.unsqueeze(1)), sums, strict=True):
            buffer.lerp_(total / count.clamp_min(1), rate)

    def draw(self, u: Float[Tensor, " B"], ends: Ends) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return log-SNRs from uniform draws u, and their density p."""
        high, low = ends
        part, within, probability = pick(self.left.sqrt().to(u), u, EVEN)
        return low + (high - low) * (part + within) / BINS, probability * BINS / (high - low)

    def choose(
        self, levels: Float[Tensor, " N"], weights: Float[Tensor, " N"], u: Float[Tensor, " B"], ends: Ends
    ) -> tuple[Int64[Tensor, " B"], Float[Tensor, " B"]]:
        """Return indices into N weighted log-SNRs from uniform draws u, and their probabilities."""
        importance = self.left.sqrt().to(u)[self._bin(levels, ends)] * weights.detach()
        index, _, probability = pick(importance, u, EVEN)
        return index, probability

    def _bin(self, logsnr: Tensor, ends: Ends) -> Int64[Tensor, "..."]:
        high, low = ends
        return ((logsnr.detach() - low) / (high - low) * BINS).long().clamp(0, BINS - 1)

    def _per_dim(self, values: Float[Tensor, "N 2"]) -> Float[Tensor, "N D"]:
        many, few = values.unsqueeze(-1).unbind(1)
        return many + (few - many) * self.repeated

    def _snr(self, logsnr: Float[Tensor, " N"]) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N D"]]:
        snr = logsnr.exp().unsqueeze(1)
        return snr, snr * self.variance

    def _directions(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if self.basis is None:
            return rows
        with full_precision(rows):  # rounded, the noise would have another variance
            return rows @ self.basis.to(rows)

    def _split(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B 2"]:
        return torch.stack([(values * (1 - self.repeated)).sum(1), (values * self.repeated).sum(1)], 1)


def quadrature(ends: Ends) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return log-SNRs and weights of the Gauss-Legendre rule between the ends, in each bin."""
    high, low = ends
    rule = _rule if torch.compiler.is_compiling() else _cached_rule
    nodes, weights = rule(high.dtype, high.device).unbind()
    width = (high - low) / BINS
    within = torch.arange(BINS, device=high.device).unsqueeze(1) + (nodes + 1) / 2
    return (low + width * within).flatten(), (0.5 * width * weights).repeat(BINS)


def _rule(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 N"]:
    """Return the nodes and the weights of the rule on [-1, 1]."""
    return torch.tensor([NODES, WEIGHTS], dtype=dtype, device=device)


@functools.lru_cache(maxsize=16)
def _cached_rule(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 N"]:
    """Keep the rule on the device: a GPU would wait for a copy at each step."""
    with torch.inference_mode(False):  # training cannot use a tensor that was made in inference mode
        return _rule(dtype, device)


def pick(importance: Float[Tensor, " N"], u: Float[Tensor, " B"], even: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the part that each uniform draw falls in, the position in it from 0 to 1, and its probability."""
    relative = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
    probability = (1 - even) * relative + even
    probability = probability / probability.sum()
    edges = torch.cat([probability.new_zeros(1), probability.cumsum(0)])
    part = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, len(probability) - 1)
    within = ((u - edges[part]) / probability[part]).clamp(0, 1)
    return part, within, probability[part]
