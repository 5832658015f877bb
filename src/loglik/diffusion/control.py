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

where the first integral has a closed form and the second varies as much as the network differs from a Gaussian's
denoiser.
$c = \mathbb E f g / \mathbb E g^2$ minimises the second moment of the rest, and $p \propto$ its root minimises the
variance. Both are constant in each of `BINS` equal parts of the log-SNR, and learned from the draws of training.

With $y = \lambda + \log s$ and ς the logistic function, $w / (1 + w) = \varsigma(y)$. Hence
$g_e = \varsigma(y)^2 (e^{-\lambda/2} u_e / s - \eta_e)^2$ and
$\mathbb E_\epsilon\, g_e = \varsigma(y)\,\varsigma(-y)\, u_e^2 / s + \varsigma(y)^2$, whose integral from a to b is
$[\varsigma(y)]_a^b\, u_e^2 / s + [\log(1 + e^y) - \varsigma(y)]_a^b$.

A dimension with few distinct values is known exactly at a higher noise level than its Gaussian would be, so such
dimensions have a covariance and coefficients of their own.

Sources: Owen 2013, "Monte Carlo theory, methods and examples", chapters 8.9 and 9; Kingma et al. 2021, "Variational
diffusion models", appendix I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from loglik.constants import kept
from loglik.cpu import private
from loglik.devices import full_precision
from loglik.diffusion.schedule import NoiseSchedule

__all__ = ["Control", "Draw", "Ends", "Nodes", "Tables", "bins_of", "pick", "split"]

Ends = tuple[Float[Tensor, ""], Float[Tensor, ""]]  # a schedule's highest and lowest log-SNR
Nodes = tuple[Float[Tensor, " N"], Float[Tensor, " N"]]  # log-SNRs, and their weights in a sum

BINS = 32
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


class Tables(NamedTuple):
    r"""What the control variate needs besides the draws; it changes with the moments and with a schedule's ends.

    `high` and `low` the ends, `edges` of the bins but the first and the last, `log_variance` $\log s$, `basis` Q,
    `scaled` $Q / s$, both None where Q is I, `inverse` $1/s$, `groups` 1 for the dimensions with many and with few
    distinct values, `slope` and `offset` the integral of $\mathbb E g$ over each bin, as factors of $(u/s)^2$ and of 1.
    """

    high: Float[Tensor, ""]
    low: Float[Tensor, ""]
    edges: Float[Tensor, " edges"]
    log_variance: Float[Tensor, " D"]
    basis: Float[Tensor, "D D"] | None
    scaled: Float[Tensor, "D D"] | None
    inverse: Float[Tensor, " D"]
    groups: Float[Tensor, "D 2"]
    slope: Float[Tensor, "bins 2 D"]
    offset: Float[Tensor, "bins 2"]


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

    def integral(self, schedule: NoiseSchedule, like: Float[Tensor, "..."]) -> Tables:
        """Return the tables of the integral over a schedule's log-SNRs, which are kept between calls."""

        def compute() -> Tables:
            return self.tables(schedule.ends(like))

        moments = [self.mean, self.variance, self.repeated, self.basis]
        sources = [tensor for tensor in moments if tensor is not None] + private.tensors_of(schedule)
        return kept(self, (schedule, like.dtype, like.device), sources, compute)

    def tables(self, ends: Ends, nodes: Nodes | None = None) -> Tables:
        """Return the tables of the integral between the ends, or of a sum over log-SNRs λ_n with weights a_n."""
        high, low = ends
        variance, repeated = self.variance.to(high), self.repeated.to(high)
        basis = None if self.basis is None else self.basis.to(high)
        log_variance, groups = variance.log(), torch.stack([1 - repeated, repeated], 1)
        width = (high - low) / BINS
        starts = low + width * torch.arange(BINS, device=high.device)
        if nodes is None:
            y = starts.unsqueeze(1) + log_variance
            below = torch.sigmoid(y)
            rise = -torch.expm1(-width) * torch.sigmoid(y + width) * torch.sigmoid(-y)  # ς(y + width) - ς(y)
            slope, offset = rise * variance, torch.log1p(below * torch.expm1(width)) - rise
        else:
            levels, weights = nodes[0].unsqueeze(1), nodes[1].unsqueeze(1)
            y = levels + log_variance
            terms = torch.stack([torch.sigmoid(y) * torch.sigmoid(-y) * variance, torch.sigmoid(y).square()])
            zeros, bins = torch.zeros_like(starts).view(1, -1, 1), bins_of(nodes[0], starts[1:])
            slope, offset = (zeros + 0 * log_variance).expand(2, -1, -1).index_add(1, bins, terms * weights).unbind()
        return Tables(
            high=high,
            low=low,
            edges=starts[1:].contiguous(),
            log_variance=log_variance,
            basis=basis,
            scaled=None if basis is None else basis / variance,
            inverse=1 / variance,
            groups=groups,
            slope=slope.unsqueeze(1) * groups.t(),
            offset=(offset.unsqueeze(1) * groups.t()).sum(-1),
        )

    def project(self, v: Float[Tensor, "B ..."], tables: Tables) -> Float[Tensor, "B D"]:
        """Return u/s of data."""
        centred = v.flatten(1) - self.mean
        return centred * tables.inverse if tables.scaled is None else _product(centred, tables.scaled)

    def expected(self, u: Float[Tensor, "B D"], tables: Tables) -> Float[Tensor, " B"]:
        r"""Return $\int c(\lambda)\, \mathbb E_\epsilon\, g\, d\lambda$, or the sum of the tables, from u/s of data."""
        c = self.coefficients.to(u)
        return (u.square() * (c.unsqueeze(2) * tables.slope).sum((0, 1))).sum(1) + (c * tables.offset).sum()

    def variates(self, u: Float[Tensor, "B D"], draw: Draw, tables: Tables) -> Float[Tensor, "B 2"]:
        """Return g of each example of a draw from u/s, for dimensions with many and with few distinct values."""
        eta = draw.epsilon.flatten(1)
        eta = eta if tables.basis is None else _product(eta, tables.basis)
        p = torch.sigmoid(draw.logsnr.unsqueeze(1) + tables.log_variance)
        noise = torch.addcmul(eta, u, torch.exp(-0.5 * draw.logsnr).unsqueeze(1), value=-1)
        return split((p * noise).square(), tables)

    def rest(self, f: Float[Tensor, " B"], g: Float[Tensor, "B 2"], bins: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
        r"""Return $f - c\,g$ of each example, which is estimated from draws."""
        return f - (self.coefficients.to(g).index_select(0, bins) * g).sum(1)

    @torch.no_grad()
    def learn(
        self,
        f: Float[Tensor, "B 2"],
        g: Float[Tensor, "B 2"],
        bins: Int64[Tensor, " B"],
        rest: Float[Tensor, " B"],
    ) -> None:
        """Update the coefficients and the density with f and g of draws, split alike, and their `rest`."""
        f, g, left = (value.to(self.squares) for value in (f, g, rest.unsqueeze(1)))
        seen = torch.cat([f * g, g.square(), left.square(), torch.ones_like(left)], 1)
        sums = seen.new_zeros(BINS, 6).index_add_(0, bins, seen)
        count = sums[:, 5:]
        means, rate = sums / count.clamp_min(1), count / (count + MEMORY)
        for buffer, part in ((self.products, (0, 2)), (self.squares, (2, 4)), (self.left.unsqueeze(1), (4, 5))):
            buffer.lerp_(means[:, slice(*part)], rate)

    def draw(self, u: Float[Tensor, " B"], ends: Ends) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return log-SNRs from uniform draws u, and their density p."""
        high, low = ends
        part, within, probability = pick(self.left.sqrt().to(u), u, EVEN)
        return low + (high - low) * (part + within) / BINS, probability * BINS / (high - low)

    def choose(
        self, nodes: Nodes, u: Float[Tensor, " B"], tables: Tables
    ) -> tuple[Int64[Tensor, " B"], Float[Tensor, " B"]]:
        """Return indices into N weighted log-SNRs from uniform draws u, and their probabilities."""
        levels, weights = nodes
        importance = self.left.sqrt().to(u)[bins_of(levels, tables.edges)] * weights.detach()
        index, _, probability = pick(importance, u, EVEN)
        return index, probability


def bins_of(logsnr: Float[Tensor, " N"], edges: Float[Tensor, " edges"]) -> Int64[Tensor, " N"]:
    """Return the bin of each log-SNR, between edges that rise."""
    return torch.bucketize(logsnr.detach().contiguous(), edges.detach(), right=True)


def split(squares: Float[Tensor, "B D"], tables: Tables) -> Float[Tensor, "B 2"]:
    """Sum over the dimensions with many and over those with few distinct values."""
    return _product(squares, tables.groups)


def _product(rows: Float[Tensor, "B D"], matrix: Float[Tensor, "D E"]) -> Float[Tensor, "B E"]:
    with full_precision(rows):  # rounded, the noise would have another variance, and g another mean
        return rows @ matrix


def pick(importance: Float[Tensor, " N"], u: Float[Tensor, " B"], even: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the part that each uniform draw falls in, the position in it from 0 to 1, and its probability."""
    relative = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
    probability = (1 - even) * relative + even
    probability = probability / probability.sum()
    edges = torch.cat([probability.new_zeros(1), probability.cumsum(0)])
    part = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, len(probability) - 1)
    within = ((u - edges[part]) / probability[part]).clamp(0, 1)
    return part, within, probability[part]
