"""Independent: each dimension by itself. Every other density is read against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.density import Density, check_levels

__all__ = ["Independent"]

SMOOTHING = 0.5  # added to each bin's count (Krichevsky and Trofimov 1981)


class Independent(Density):
    r"""$p(x) = \prod_d p_d(x_d)$, each $p_d$ a smoothed histogram with exponential tails, counted on the data.

    A dimension of whole numbers has bins with whole-number edges, and $P_d(x) = F_d(x + 1) - F_d(x)$ with F the
    histogram's distribution function; with one bin a level this is a categorical. A real dimension has equal
    bins between two outer quantiles of the training data, and exponential tails beyond. Nothing is trained.

    Args:
        event_shape: of the data, D numbers in all.
        discrete_dims: for each dimension, whether it holds whole numbers.
        levels: K, where whole numbers are known to be 0 ... K-1 in every dimension; no tails then.
        bins: of a dimension without known levels.
        shared: one histogram for all dimensions, for sequences whose positions have no meaning of their own.
    """

    whole: Tensor
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
        bins: int = 64,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.levels, self.shared = levels, shared
        self.discrete = all(discrete_dims)
        rows = 1 if shared else len(discrete_dims)
        self.bins = levels or bins
        self.register_buffer("whole", torch.tensor(discrete_dims[:rows]), persistent=False)
        self.register_buffer("edges", torch.arange(self.bins + 1.0, dtype=torch.float64).repeat(rows, 1))
        self.register_buffer("log_mass", torch.full((rows, self.bins), 1.0 / self.bins).log().double())
        self.register_buffer("log_tail", torch.full((rows, 2), -torch.inf, dtype=torch.float64))
        self.register_buffer("tail_scale", torch.ones(rows, 2, dtype=torch.float64))

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        log_p = self._log_probs(x)
        return log_p.view(-1, *x.shape[:1]).sum(0) if not self.shared else log_p.view(len(x), -1).sum(1)

    def token_log_probs(
        self, x: Shaped[Tensor, "B T"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T"]:
        """Log p of each number by itself, in nats."""
        log_p = self._log_probs(x)
        return log_p.view(x.shape) if self.shared else log_p.T

    def _log_probs(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "rows N"]:
        check_levels(x, self.levels)
        columns = self._columns(x)
        low, high = self.edges[:, :1], self.edges[:, -1:]
        k = torch.searchsorted(self.edges, columns.contiguous(), right=True) - 1
        k = k.clamp(0, self.bins - 1)
        widths = self.edges.diff(dim=1)
        inside = (self.log_mass - widths.log()).gather(1, k)
        # of a tail with scale s: density e^{-d/s}/s, and mass e^{-d/s}(1 - e^{-1/s}) of a whole number
        unit = torch.where(self.whole[:, None], torch.log(-torch.expm1(-1 / self.tail_scale)), -self.tail_scale.log())
        below = (
            self.log_tail[:, :1]
            + unit[:, :1]
            - (low - columns - self.whole[:, None].double()).clamp_min(0) / self.tail_scale[:, :1]
        )
        above = self.log_tail[:, 1:] + unit[:, 1:] - (columns - high).clamp_min(0) / self.tail_scale[:, 1:]
        return torch.where(columns < low, below, torch.where(columns >= high, above, inside))

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        count = n * (torch.Size(self.event_shape).numel() if self.shared else 1)
        weights = torch.cat([self.log_mass, self.log_tail], dim=1).exp()
        k = torch.multinomial(weights, count, replacement=True)
        u = torch.rand_like(k, dtype=torch.float64)
        bin_ = k.clamp_max(self.bins - 1)
        low = self.edges.gather(1, bin_)
        x = low + u * (self.edges.gather(1, bin_ + 1) - low)
        jump = -(-u).log1p()
        x = torch.where(k == self.bins, self.edges[:, :1] - jump * self.tail_scale[:, :1], x)
        x = torch.where(k == self.bins + 1, self.edges[:, -1:] + jump * self.tail_scale[:, 1:], x)
        x = torch.where(self.whole[:, None], x.floor(), x)
        x = x.view(n, -1) if self.shared else x.T
        x = x.reshape(n, *self.event_shape)
        if self.levels is None:
            return x.float()
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        columns = self._columns(x)
        if self.levels is None:
            self._place_edges(columns)
        low, high = self.edges[:, :1], self.edges[:, -1:]
        k = torch.searchsorted(self.edges, columns.contiguous(), right=True) - 1
        inside = (columns >= low) & (columns < high)
        counts = torch.zeros_like(self.log_mass)
        counts.scatter_add_(1, k.clamp(0, self.bins - 1), inside.double())
        counts += SMOOTHING
        if self.levels is None:
            tails = torch.stack([(columns < low).sum(1), (columns >= high).sum(1)], dim=1) + SMOOTHING
            excess = torch.stack([(low - columns).clamp_min(0).sum(1), (columns - high).clamp_min(0).sum(1)], dim=1)
            width = (high - low) / self.bins  # the scale that an empty tail falls back to
            self.tail_scale.copy_((excess + SMOOTHING * width) / tails)
        else:
            tails = torch.zeros_like(self.log_tail)
        total = counts.sum(1, keepdim=True) + tails.sum(1, keepdim=True)
        self.log_mass.copy_(counts.log() - total.log())
        self.log_tail.copy_(tails.log() - total.log())

    def _place_edges(self, columns: Float[Tensor, "rows N"]) -> None:
        """Equal bins between the 0.5 % and 99.5 % quantiles; whole-number edges where numbers are whole."""
        sorted_ = columns.sort(dim=1).values
        cut = int(0.005 * columns.shape[1])
        low, high = sorted_[:, cut], sorted_[:, -1 - cut]
        flat = high <= low  # the quantiles agree: take all the data
        low, high = torch.where(flat, sorted_[:, 0], low), torch.where(flat, sorted_[:, -1], high)
        step = (high - low) / self.bins
        step = torch.where(step > 1e-12 * high.abs() + 1e-30, step, torch.full_like(step, 1.0 / self.bins))
        whole_step = ((high - low + 1) / self.bins).ceil().clamp_min(1)
        step = torch.where(self.whole, whole_step, step)
        self.edges.copy_(low[:, None] + step[:, None] * torch.arange(self.bins + 1, device=columns.device))

    def _columns(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "rows N"]:
        rows = x.flatten(1).double()
        return rows.reshape(1, -1) if self.shared else rows.T
