"""Bins: a table's columns as tokens, with a distribution of each value within its bin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from loglik.checks import check_codes
from loglik.transforms.exponential_tails import sample_tails, tail_log_probs
from loglik.transforms.repeated import MAX_VALUES, Repeated, edges_between, repeated_values
from loglik.transforms.transform import Transform

__all__ = ["Bins"]

TAIL_SHARE = 0.005  # fraction of a column's values in each tail


class Bins(Transform):
    r"""Map each value to the index of its bin: $p(x) = P(k) \prod_d p_d(x_d \mid k_d)$, over all real numbers.

    `encode` returns the bins' indices k, and $\sum_d \log p_d(x_d \mid k_d)$ as the log-determinant; `decode` draws x
    from $p_d(\cdot \mid k_d)$. The result is exact, as x has one k. Within a bin, $p_d$ is uniform: $1/w$ over the
    width w of a real column, and over the w integers of an integer column. The first and the last bin are exponential
    tails (geometric over integers) with the mean excess of the training data. A categorical code is its own token.

    Values that the training data repeat (`repeated_values`) have probabilities of their own:
    $p_d(x \mid k) = (1 - \varepsilon_k) P(v \mid k) / c + \varepsilon_k / w$ for x in the cell of width c about the
    repeated value v. $P(v \mid k)$ are frequencies, and $\varepsilon_k$ is the fraction of the bin's other values, with
    half a count added. `decode` returns v itself, rather than a point of its cell.

    The tokens of all columns are numbered consecutively, 0 ... `levels`-1; those of column d are `allowed[d]`.

    Args:
        event_shape: of the data, D numbers in total.
        discrete_dims: for each dimension, whether it holds integers.
        categories: for each dimension, its number of codes; 0 for numbers of unlimited range.
        bins: number of bins between the tails of a numeric column, at quantiles of the training data.

    Raises:
        ValueError: arguments of other lengths than D; bins below 1; a code beyond its categories.
    """

    integer_dims: Tensor
    numeric: Tensor
    start: Tensor
    size: Tensor
    edges: Tensor
    tail_scale: Tensor
    repeated: Tensor
    total: Tensor
    cell: Tensor
    rest: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        discrete_dims: Sequence[bool],
        *,
        categories: Sequence[int] | None = None,
        bins: int = 64,
    ) -> None:
        super().__init__()
        dims = math.prod(event_shape)
        categories = categories or [0] * dims
        if len(discrete_dims) != dims or len(categories) != dims:
            raise ValueError(f"use {dims} discrete_dims and categories, got {len(discrete_dims)} and {len(categories)}")
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.event_shape, self.bins, self.all_integers = tuple(event_shape), bins, all(discrete_dims)
        self.categories = list(categories)
        size = torch.tensor([c or bins + 2 for c in categories])
        self.levels = int(size.sum())
        self.register_buffer("integer_dims", torch.tensor(list(discrete_dims)), persistent=False)
        self.register_buffer("numeric", torch.tensor([c == 0 for c in categories]), persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)
        self.register_buffer("size", size, persistent=False)
        max_bins = max([c for c in categories if c] + [bins] * (0 in categories))
        edges = torch.arange(max_bins + 1.0, dtype=torch.float64).repeat(dims, 1)
        for d, c in enumerate(categories):
            edges[d, (c or bins) + 1 :] = torch.inf
        self.register_buffer("edges", edges)
        self.register_buffer("tail_scale", torch.ones(dims, 2, dtype=torch.float64))
        values = MAX_VALUES if 0 in categories else 0
        self.register_buffer("repeated", torch.full((dims, values), torch.inf, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(dims, values + 1, dtype=torch.float64))  # rows of the values before
        self.register_buffer("cell", torch.ones(dims, dtype=torch.float64))
        self.register_buffer("rest", torch.ones(dims, max_bins, dtype=torch.float64))

    @property
    def allowed(self) -> Bool[Tensor, "D levels"]:
        """Return which tokens each column can have."""
        token = torch.arange(self.levels, device=self.start.device)
        return (token >= self.start[:, None]) & (token < (self.start + self.size)[:, None])

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Int64[Tensor, "B D"], Float[Tensor, " B"]]:
        self.check(x)
        columns = x.flatten(1).double().T.contiguous()
        k = torch.searchsorted(self.edges, columns, right=True)  # number of edges up to x
        k = torch.where(self.numeric[:, None], k.clamp_max(self.bins + 1), k - 1)
        inside = self._log_inside(columns, (k - 1).clamp(0, self.edges.shape[1] - 2))
        below, above = tail_log_probs(columns, self._tail_edges, self.tail_scale, self.integer_dims)
        log_p = torch.where(k == 0, below, torch.where(k == self.bins + 1, above, inside))
        log_p = torch.where(self.numeric[:, None], log_p, 0.0)
        return (k + self.start[:, None]).T, log_p.sum(0).to(torch.get_default_dtype())

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        check_codes(x.flatten(1), self.categories)

    def decode(
        self, z: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        k = z.T.long() - self.start[:, None]
        u = torch.rand(k.shape, dtype=torch.float64, device=k.device)
        inner = (k - 1).clamp(0, self.edges.shape[1] - 2)
        x = self._draw_inside(u, inner)
        below, above = sample_tails(u, self._tail_edges, self.tail_scale)
        x = torch.where(k == 0, below, torch.where(k == self.bins + 1, above, x))
        x = torch.where(self.integer_dims[:, None], x.floor(), x)
        x = torch.where(self.numeric[:, None], x, k.double())
        return x.T.reshape(-1, *self.event_shape).to(torch.get_default_dtype())

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.event_shape

    def decoded_discrete(self, discrete: bool) -> bool:
        return self.all_integers

    def _log_inside(self, x: Float[Tensor, "D N"], k: Int64[Tensor, "D N"]) -> Float[Tensor, "D N"]:
        """Return log p of values within their bins."""
        uniform = (self.rest.log() - torch.log(self.edges.diff(dim=1))).gather(1, k)
        if not self.repeated.shape[1]:
            return uniform
        half = self.cell[:, None] / 2
        i = torch.searchsorted(self.repeated + half, x, right=True).clamp_max(self.repeated.shape[1] - 1)
        first, last = self._repeated_in(k)
        rows = self.total.gather(1, i + 1) - self.total.gather(1, i)
        own = (x >= self.repeated.gather(1, i) - half) & (i >= first) & (i < last)
        mass = (1 - self.rest.gather(1, k)) * rows / (self.total.gather(1, last) - self.total.gather(1, first))
        both = torch.logaddexp(uniform, mass.log() - self.cell.log()[:, None])
        both = torch.where(self.integer_dims[:, None], both.clamp_max(0), both)  # rounding
        return torch.where(own, both, uniform)

    def _draw_inside(self, u: Float[Tensor, "D N"], k: Int64[Tensor, "D N"]) -> Float[Tensor, "D N"]:
        """Return values within bins, for uniform u: of the rest if u is below its share, else repeated ones."""
        low, rest = self.edges.gather(1, k), self.rest.gather(1, k)
        x = low + u / rest * (self.edges.gather(1, k + 1) - low)
        if not self.repeated.shape[1]:
            return x
        first, last = self._repeated_in(k)
        before = self.total.gather(1, first)
        target = before + (u - rest) / (1 - rest).clamp_min(1e-300) * (self.total.gather(1, last) - before)
        i = torch.searchsorted(self.total[:, 1:].contiguous(), target, right=True)
        own = self.repeated.gather(1, torch.minimum(i, last - 1).clamp_min(0))
        return torch.where(u < rest, x, own)

    def _repeated_in(self, k: Int64[Tensor, "D N"]) -> tuple[Int64[Tensor, "D N"], Int64[Tensor, "D N"]]:
        """Return the indices of the first repeated value of bins, and of the one after the last."""
        edges = torch.searchsorted(self.repeated, self.edges)
        return edges.gather(1, k), edges.gather(1, k + 1)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        """Set the edges to quantiles, and each tail's scale to the mean excess over its edge."""
        columns = x.flatten(1).double().T
        for d in self.numeric.nonzero().flatten().tolist():
            integer = bool(self.integer_dims[d])
            found = repeated_values(columns[d], integer=integer)
            if found is None:
                edges = _edges(columns[d].sort().values, self.bins, integer)
            else:
                edges = edges_between(found, self.bins, TAIL_SHARE, integer=integer)
            self.edges[d, : self.bins + 1] = edges
            self._set_repeated(d, columns[d], found)
            width = (edges[-1] - edges[0]) / self.bins  # scale of an empty tail, up to a factor
            for side, excess in enumerate((edges[0] - columns[d] - float(integer), columns[d] - edges[-1])):
                beyond = excess[excess >= 0] if side or integer else excess[excess > 0]
                self.tail_scale[d, side] = (beyond.sum() + 0.5 * width) / (len(beyond) + 0.5)

    def _set_repeated(self, d: int, column: Float[Tensor, " N"], found: Repeated | None) -> None:
        """Set the repeated values of a column, and each bin's share of other values."""
        self.repeated[d], self.total[d], self.cell[d], self.rest[d] = torch.inf, 0.0, 1.0, 1.0
        if found is None:
            return
        edges = self.edges[d, : self.bins + 1]
        kept = found.kept[(found.values[found.kept] >= edges[0]) & (found.values[found.kept] < edges[-1])]
        values, counts = found.values[kept], found.counts[kept].double()
        self.repeated[d, : len(values)] = values
        self.total[d, 1:] = counts.sum()
        self.total[d, 1 : len(values) + 1] = counts.cumsum(0)
        self.cell[d] = found.cell
        of_bin = self.total[d][torch.searchsorted(self.repeated[d], edges)].diff()
        rows = torch.histogram(column.cpu(), edges.cpu()).hist.to(column.device)
        self.rest[d, : self.bins] = torch.where(of_bin > 0, (rows - of_bin + 0.5).clamp_min(0.5) / (rows + 1), 1.0)

    @property
    def _tail_edges(self) -> tuple[Float[Tensor, "D 1"], Float[Tensor, "D 1"]]:
        """Return each column's first and last edge."""
        last = torch.where(self.numeric, self.bins, self.size)[:, None]
        return self.edges[:, :1], self.edges.gather(1, last)


def _edges(values: Float[Tensor, " N"], bins: int, integer: bool) -> Float[Tensor, " edges"]:
    """Return the edges of `bins` bins: distinct quantiles of the sorted values, then halves of the widest bins."""
    last = len(values) - 1
    ranks = torch.linspace(TAIL_SHARE * last, (1 - TAIL_SHARE) * last, bins + 1, dtype=torch.float64).long()
    edges = sorted(set(values[ranks.to(values.device)].tolist()))
    if len(edges) == 1:  # all quantiles are equal: use the whole range
        edges = sorted({values[0].item(), edges[0], values[-1].item()})
    if integer:
        edges = sorted({math.floor(edge) for edge in edges})
    if integer or len(edges) == 1:
        edges.append(edges[-1] + 1)
    while len(edges) <= bins:
        widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
        widest = max(range(len(widths)), key=widths.__getitem__)
        if integer and widths[widest] < 2:
            edges.append(edges[-1] + 1)
        else:
            middle = edges[widest] + widths[widest] / 2
            edges.insert(widest + 1, math.floor(middle) if integer else middle)
    return torch.tensor(edges[: bins + 1], dtype=torch.float64, device=values.device)
