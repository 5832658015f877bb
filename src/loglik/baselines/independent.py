"""Independent: the product of marginal distributions, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.baselines.column import HistogramColumn
from loglik.checks import check_codes, check_levels
from loglik.density import Density
from loglik.transforms.exponential_tails import sample_tails, tail_log_probs

__all__ = ["Independent"]

SMOOTHING = 0.5  # added to the count of a code and of a tail (Krichevsky and Trofimov 1981)
TAIL_SHARE = 0.005  # fraction of a column's values in each tail
EVEN_SHARE = 0.1  # of the widths of bins at quantiles, spread evenly so that repeated values leave no width of 0
BANDWIDTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # in bins


class Independent(Density):
    r"""The density $p(x) = \prod_d p_d(x_d)$ with a histogram $p_d$ of the training data for each dimension.

    A code into C categories has $P(k) = (n_k + \tfrac12) / (N + \tfrac C2)$. A numeric dimension has M bins (integers
    at most one bin for each) between two outer quantiles, and exponential tails beyond. A bin of mass m and width w has
    the density $m_k / w_k$; over integers, each of its w integers has the mass $m_k / w_k$. The masses are counts,
    smoothed with a Gaussian kernel of bandwidth h bins, plus a pseudo-count a per bin:
    $m_k \propto \sum_j n_j W_h(j, k) + a$ with $\sum_k W_h(j, k) = 1$. The leave-one-out likelihood of each dimension
    selects even or quantile-spaced edges, h (0 to 16) and a ($\tfrac12$ or $1/M$). There is no training by gradients.
    Missing values, NaN, are left out, in training and in `log_prob`.

    Args:
        event_shape: of the data, D numbers in total.
        discrete_dims: for each dimension, whether it holds integers.
        levels: K, if each dimension holds integers 0 ... K-1.
        categories: for each dimension, its number of codes 0, 1, ...; 0 for a numeric dimension. None if all are
            numeric.
        bins: M.
        shared: whether all dimensions share one distribution, as for windows of text.

    Raises:
        ValueError: a value outside the levels or codes.
    """

    marginalises = True
    closed_form = True
    discrete_rows: Tensor
    count: Tensor
    size: Tensor
    edges: Tensor
    log_mass: Tensor
    log_tail: Tensor
    tail_scale: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        discrete_dims: Sequence[bool],
        *,
        levels: int | None = None,
        categories: Sequence[int] | None = None,
        bins: int = 64,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.levels, self.shared, self.bins = levels, shared, bins
        self.categories = tuple(categories or ())
        self.discrete = all(discrete_dims)
        rows = 1 if shared else len(discrete_dims)
        count = torch.full((rows,), levels) if levels else torch.tensor(list(categories or [0] * rows)[:rows])
        widest = int(torch.where(count == 0, bins, count).max())
        size = count.clamp_min(1)  # one bin, so that a file may have infinite edges after the last bin
        edges = torch.arange(widest + 1.0, dtype=torch.float64).repeat(rows, 1)
        unused = torch.arange(widest) >= size[:, None]
        edges[:, 1:][unused] = torch.inf
        log_mass = -size.double().log()[:, None].repeat(1, widest)
        self.register_buffer("discrete_rows", torch.tensor(discrete_dims[:rows]), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("size", size)
        self.register_buffer("edges", edges)
        self.register_buffer("log_mass", log_mass.masked_fill(unused, -torch.inf))
        self.register_buffer("log_tail", torch.full((rows, 2), -torch.inf, dtype=torch.float64))
        self.register_buffer("tail_scale", torch.ones(rows, 2, dtype=torch.float64))

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        log_p = self._log_probs(x)
        return log_p.view(-1, *x.shape[:1]).sum(0) if not self.shared else log_p.view(len(x), -1).sum(1)

    def token_log_probs(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T"]:
        """Return log p of each value, in nats."""
        log_p = self._log_probs(x)
        return log_p.view(x.shape) if self.shared else log_p.T

    def _log_probs(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "rows N"]:
        columns = self._columns(x)
        self.check(x)
        k = self._bin_of(columns)
        low, high = self.edges[:, :1], self._upper_edge()
        inside = (self.log_mass - self.edges.diff(dim=1).log()).gather(1, k)
        below, above = tail_log_probs(columns, (low, high), self.tail_scale, self.discrete_rows, self.log_tail)
        log_p = torch.where(columns < low, below, torch.where(columns >= high, above, inside))
        return log_p.masked_fill(columns.isnan(), 0)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        count = n * (torch.Size(self.event_shape).numel() if self.shared else 1)
        weights = torch.cat([self.log_mass, self.log_tail], dim=1).exp()
        k = torch.multinomial(weights, count, replacement=True)
        u = torch.rand_like(k, dtype=torch.float64)
        widest = self.log_mass.shape[1]
        bin_ = k.clamp_max(widest - 1)
        low = self.edges.gather(1, bin_)
        x = low + u * (self.edges.gather(1, bin_ + 1) - low)
        below, above = sample_tails(u, (self.edges[:, :1], self._upper_edge()), self.tail_scale)
        x = torch.where(k == widest, below, torch.where(k == widest + 1, above, x))
        x = torch.where(self.discrete_rows[:, None], x.floor(), x)
        x = x.view(n, -1) if self.shared else x.T
        x = x.reshape(n, *self.event_shape)
        if self.levels is None:
            return x.float()
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)

    def fill_with_log_prob(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Draw the missing values, each from its column's distribution: (rows, log q), as an `Imputer` does."""
        missing = x.isnan()
        filled = torch.where(missing, self.sample(len(x)).to(x.dtype), x)
        return filled, self.log_prob(filled.masked_fill(~missing, torch.nan))

    def column(self, x: Shaped[Tensor, "B D"], d: int, context: Tensor | None = None) -> HistogramColumn:
        """Return the distribution of column d, whatever the other columns of x are."""
        row, size = (0, self.size[0]) if self.shared else (d, self.size[d])
        mass = torch.cat([self.log_tail[row, :1], self.log_mass[row, :size], self.log_tail[row, 1:]]).exp()
        return HistogramColumn(
            self.edges[row, : size + 1], mass / mass.sum(), self.tail_scale[row], bool(self.discrete_rows[row])
        )

    def fill(self, x: Shaped[Tensor, "B D"], context: Tensor | None = None) -> Shaped[Tensor, "B D"]:
        """Draw the missing values of rows, NaN."""
        return torch.where(x.isnan(), self.sample(len(x)).to(x.dtype), x)

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_levels(x, self.levels)
        check_codes(x.flatten(1), self.categories, missing=True)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        columns = self._columns(x)
        self.check(x)
        codes, gaps = self.count > 0, columns.isnan()
        incomplete = gaps.any(1)
        # complete columns together, and each other one by itself
        for rows in (~incomplete, *torch.diag(incomplete)[incomplete]):
            values = columns[rows] if not incomplete[rows].any() else columns[rows][~gaps[rows]][None]
            if values.shape[1] == 0:
                continue  # no value at all
            for of, fit in ((rows & codes, self._count_codes), (rows & ~codes, self._fit_numeric)):
                if of.any():
                    fit(values[of[rows]], of)

    def _count_codes(self, columns: Float[Tensor, "R N"], rows: Shaped[Tensor, " rows"]) -> None:
        """Set P(k) = (n_k + ½) / (N + C/2)."""
        counts = torch.zeros_like(self.log_mass[rows])
        counts.scatter_add_(1, columns.long(), torch.ones_like(columns))
        size = self.count[rows, None]
        log_mass = ((counts + SMOOTHING) / (columns.shape[1] + SMOOTHING * size)).log()
        unused = torch.arange(counts.shape[1], device=counts.device) >= size
        self.log_mass[rows] = log_mass.masked_fill(unused, -torch.inf)

    def _fit_numeric(self, columns: Float[Tensor, "R N"], rows: Shaped[Tensor, " rows"]) -> None:
        """Set each row's edges, smoothing and pseudo-count to those with the highest leave-one-out likelihood."""
        m, integers = self.bins, self.discrete_rows[rows, None]
        index = torch.arange(m, dtype=torch.float64, device=columns.device)
        best = torch.full_like(columns[:, 0], -torch.inf)
        for edges, size in _candidate_edges(columns, integers, m):
            used = index < size
            low, high = edges[:, :1], edges.gather(1, size)
            widths = torch.where(used, edges.diff(dim=1), 1.0)
            k = torch.minimum((torch.searchsorted(edges, columns, right=True) - 1).clamp_min(0), size - 1)
            below, above = columns < low, columns >= high
            counts = torch.zeros_like(widths).scatter_add_(1, k, (~(below | above)).double())
            tails = torch.stack([below.sum(1), above.sum(1)], 1) + SMOOTHING
            excess = torch.stack([(low - columns).clamp_min(0).sum(1), (columns - high).clamp_min(0).sum(1)], 1)
            scale = (excess + SMOOTHING * (high - low) / size) / tails
            log_tails = (tails - SMOOTHING) * (tails.log() - scale.log()) - excess / scale  # both tails' log-likelihood
            for bandwidth in BANDWIDTHS:
                distance = (index[:, None] - index) / (bandwidth or 1e-3)
                kernel = torch.exp(-0.5 * distance.square())
                # the kernel's total over used bins; 0 for a bin far beyond them
                spread = kernel.cumsum(1)[:, size.squeeze(1) - 1].T.clamp_min(1e-300)
                smoothed = (counts / spread) @ kernel
                for pseudo in (torch.full_like(size, SMOOTHING, dtype=torch.float64), 1 / size):
                    total = counts.sum(1, keepdim=True) + pseudo * size + tails.sum(1, keepdim=True)
                    left_out = torch.maximum(smoothed - 1 / spread + pseudo, pseudo) / widths
                    score = torch.xlogy(counts, left_out).sum(1) - columns.shape[1] * total.squeeze(1).log()
                    score = score + log_tails.sum(1)
                    better = score > best
                    best = torch.where(better, score, best)
                    chosen = rows.nonzero().squeeze(1)[better]
                    self.size[chosen] = size.squeeze(1)[better]
                    self.edges[chosen, : m + 1] = edges[better]
                    log_mass = ((smoothed + pseudo) / total).log().masked_fill(~used, -torch.inf)
                    self.log_mass[chosen, :m] = log_mass[better]
                    self.log_tail[chosen] = (tails / total).log()[better]
                    self.tail_scale[chosen] = scale[better]

    def _bin_of(self, columns: Float[Tensor, "rows N"]) -> Shaped[Tensor, "rows N"]:
        k = torch.searchsorted(self.edges, columns.contiguous(), right=True) - 1
        return torch.minimum(k.clamp_min(0), self.size[:, None] - 1)

    def _upper_edge(self) -> Float[Tensor, "rows 1"]:
        return self.edges.gather(1, self.size[:, None])

    def _columns(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "rows N"]:
        rows = x.flatten(1).double()
        return rows.reshape(1, -1) if self.shared else rows.T


def _candidate_edges(
    columns: Float[Tensor, "R N"], integers: Shaped[Tensor, "R 1"], bins: int
) -> list[tuple[Float[Tensor, "R edges"], Shaped[Tensor, "R 1"]]]:
    """Return even and quantile-spaced edges between the 0.5 % and 99.5 % quantiles, and the number of bins.

    Edges after the last bin are infinite. Integers have integer edges, the last one above the highest integer.
    """
    n = columns.shape[1]
    ordered = columns.sort(dim=1).values
    cut = int(TAIL_SHARE * n)
    low, high = ordered[:, cut, None], ordered[:, -1 - cut, None]
    flat = high <= low  # all quantiles are equal: use the whole range
    low, high = torch.where(flat, ordered[:, :1], low), torch.where(flat, ordered[:, -1:], high)
    index = torch.arange(bins + 1, dtype=torch.float64, device=columns.device)
    step = (high - low) / bins
    step = torch.where(step > 1e-12 * high.abs() + 1e-30, step, torch.full_like(step, 1.0 / bins))
    span = high - low + 1  # number of integers
    per_bin = (span / bins).ceil()
    even = low + torch.where(integers, per_bin, step) * index
    ranks = cut + (index / bins * (n - 1 - 2 * cut)).round().long()
    quantiles = torch.maximum(torch.minimum(ordered[:, ranks], high), low)
    mixed = (1 - EVEN_SHARE) * quantiles + EVEN_SHARE * (low + step * index)
    rising = (mixed.floor() - index).cummax(1).values + index  # at least one integer per bin
    size = span.clamp_max(bins)
    rising = torch.maximum(torch.minimum(rising, high + 1 - (size - index)), low + index)
    sizes = [torch.where(integers, number, bins).long() for number in ((span / per_bin).ceil(), size)]
    candidates = zip([even, torch.where(integers, rising, mixed)], sizes, strict=True)
    return [(edges.masked_fill(index > number, torch.inf), number) for edges, number in candidates]
