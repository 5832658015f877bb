r"""A kernel density of rows: a Gaussian around each row of reference, with one bandwidth for all columns.

With N rows of reference $r_i$ and D columns, in units in which two rows differ by 2 in the mean square of each column,

$p(x) = \frac1N \sum_i \prod_d k_h(x_d, r_{id})$

with $k_h(x, r) = \mathcal N(x; r, h^2)$ for a number, and $k_h(x, r) \propto e^{-s^2 [x \ne r] / h^2}$ for a category,
where $s^2 = 1 / P(\text{two rows differ})$. The bandwidth h maximises the leave-one-out likelihood. A missing value
counts as the mean of the values that are not missing, as in scikit-learn's `nan_euclidean_distances`.

Since it is a mixture of products, each column given the others is exact:
$\log p(x_d \mid x_{-d}) = \log \sum_i \prod_e k_h(x_e, r_{ie}) - \log \sum_i \prod_{e \ne d} k_h(x_e, r_{ie})$.

Reference: Parzen 1962, "On estimation of a probability density function and mode"; Breunig et al. 2000; Livernoche et
al. 2023, "On diffusion modeling for anomaly detection", whose DTE-NP is a noise level's posterior under this density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from loglik.data.dataset import Split

__all__ = ["KernelDensity", "place_of", "reference_rows"]

MAX_ROWS = 2**13  # of reference
MAX_CHOOSING = 512  # rows whose leave-one-out likelihood chooses the bandwidth
MAX_BLOCK = 2**22  # distances in memory
BANDWIDTHS = 24
ROUNDING = 1e-9  # relative, of sums of kernels that are equal


def reference_rows(split: Split) -> tuple[Int64[Tensor, " M"], Shaped[Tensor, "M D"]]:
    """Return at most `MAX_ROWS` rows of a split, drawn at random, and their indices in it."""
    at = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:MAX_ROWS]
    return at, split.batch(at)[0].flatten(1)


def place_of(at: Int64[Tensor, " M"], n: int) -> Int64[Tensor, " N"]:
    """Return where each of n rows is among the rows of reference, whose indices are `at`; -1 where it is not."""
    place = torch.full((n,), -1)
    place[at] = torch.arange(len(at))
    return place


class KernelDensity:
    """The kernel density of rows.

    Args:
        rows: of reference; NaN is a missing value.
        categories: for each column, its number of codes 0, 1, ...; 0 for numbers.

    Attributes:
        bandwidth: h.

    Shape: rows (N, D).
    """

    def __init__(self, rows: Shaped[Tensor, "N D"], categories: Sequence[int]) -> None:
        if len(rows) < 2:
            raise ValueError(f"a kernel density needs at least 2 rows, got {len(rows)}")
        count = torch.tensor(list(categories))
        self.codes = count > 0
        x = rows.double()
        self.mean, self.scale = self._units(x)
        self.reference, self.known = self._standardised(x)
        self.log_others = count.clamp_min(1).double().log()  # an unseen category beside the C that are known
        self.bandwidth = self._bandwidth()

    def _units(self, x: Float64[Tensor, "N D"]) -> tuple[Float64[Tensor, " D"], Float64[Tensor, " D"]]:
        """Return each number's mean and standard deviation, and 0 and 1/s of a category."""
        mean = x.nanmean(0).nan_to_num()
        scale = (x - mean).square().nanmean(0).nan_to_num().sqrt()
        for d in self.codes.nonzero().flatten().tolist():
            counts = torch.bincount(x[:, d][~x[:, d].isnan()].long()).double()
            share = counts / counts.sum().clamp_min(1)
            mean[d], scale[d] = 0.0, (1 - share.square().sum()).clamp_min(0).sqrt()
        rounding = 1e-12 * mean.abs()
        return mean, torch.where(scale > rounding, scale, 1.0)

    def _standardised(self, x: Shaped[Tensor, "B D"]) -> tuple[Float64[Tensor, "B D"], Bool[Tensor, "B D"]]:
        """Return rows in the units of the distances, 0 where a value is missing, and what is not missing."""
        x = x.double()
        z = torch.where(self.codes, x, (x - self.mean) / self.scale)
        return z.nan_to_num(), ~x.isnan()

    def _squares(self, z: Float64[Tensor, "B D"], known: Bool[Tensor, "B D"]) -> Float64[Tensor, "B N"]:
        """Return squared distances to the rows of reference; missing values count as the mean of the others."""
        numbers = ~self.codes
        a, m = z[:, numbers], known[:, numbers].double()
        b, n = self.reference[:, numbers], self.known[:, numbers].double()
        total = (m * a.square()) @ n.T - 2 * (m * a) @ (n * b).T + m @ (n * b.square()).T
        for d in self.codes.nonzero().flatten().tolist():
            total += self._column(z, known, d)
        if known.all() and self.known.all():
            return total.clamp_min(0)
        shared = known.double() @ self.known.double().T
        columns = len(self.codes)  # two rows that share no value differ as two rows do on average
        return torch.where(shared > 0, total.clamp_min(0) * columns / shared.clamp_min(1), 2.0 * columns)

    def _column(self, z: Float64[Tensor, "B D"], known: Bool[Tensor, "B D"], d: int) -> Float64[Tensor, "B N"]:
        """Return one column's part of the squared distances."""
        a, b = z[:, d, None], self.reference[None, :, d]
        squares = 2 / self.scale[d].square() * (a != b).double() if self.codes[d] else (a - b).square()
        return squares.masked_fill(~(known[:, d, None] & self.known[None, :, d]), 0.0)

    def _log_constants(self, h: float) -> Float64[Tensor, " D"]:
        """Return the logarithm of each column's normalising constant."""
        others = (self.log_others - (h * self.scale).square().reciprocal()).exp().log1p()
        return torch.where(self.codes, others, math.log(h) + 0.5 * math.log(2 * math.pi))

    def _bandwidth(self) -> float:
        """Return the bandwidth of a grid with the largest leave-one-out likelihood of at most `MAX_CHOOSING` rows."""
        some = torch.randperm(len(self.reference), generator=torch.Generator().manual_seed(0))[:MAX_CHOOSING]
        squares = self._squares(self.reference[some], self.known[some])
        squares[torch.arange(len(some)), some] = torch.inf
        width = math.sqrt(len(self.codes))
        grid = [width * 10 ** (-2 + 2 * step / (BANDWIDTHS - 1)) for step in range(BANDWIDTHS)]

        def likelihood(h: float) -> float:
            log_p = (-squares / (2 * h * h)).logsumexp(1) - self._log_constants(h).sum()
            return log_p.nan_to_num(neginf=-1e300).mean().item()

        return max(grid, key=likelihood)

    def log_prob(self, x: Shaped[Tensor, "B D"], *, own: Int64[Tensor, " B"] | None = None) -> Float64[Tensor, " B"]:
        """Return log p of rows, in nats of standardised columns.

        Args:
            x: rows.
            own: the index of each row among the rows of reference, which is then left out; -1 for other rows.
        """
        blocks = [self._log_prob(x[part], None if own is None else own[part]) for part in self._blocks(len(x))]
        return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)

    def column_log_probs(
        self, x: Shaped[Tensor, "B D"], *, own: Int64[Tensor, " B"] | None = None
    ) -> Float64[Tensor, "B D"]:
        """Return log p of each value given the other values of its row, in nats; 0 for a missing value."""
        found = []
        constants = self._log_constants(self.bandwidth)
        for part in self._blocks(len(x)):
            z, known = self._standardised(x[part])
            squares = self._left_out(self._squares(z, known), None if own is None else own[part])
            whole = self._log_kernels(squares).logsumexp(1)
            rest = [
                self._log_kernels((squares - self._column(z, known, d)).clamp_min(0)).logsumexp(1)
                for d in range(x.shape[1])
            ]
            log_p = whole[:, None] - torch.stack(rest, 1) - constants
            found.append(log_p.masked_fill(~known, 0.0))
        return torch.cat(found) if found else torch.zeros(0, x.shape[1], dtype=torch.float64)

    def squared_distances(self, x: Shaped[Tensor, "B D"]) -> Float64[Tensor, "B N"]:
        """Return squared distances to the rows of reference, in units in which each column of two rows differs by 2."""
        return torch.cat([self._squares(*self._standardised(x[part])) for part in self._blocks(len(x))])

    def ranks(
        self, x: Shaped[Tensor, "B D"], *, own: Int64[Tensor, " B"] | None = None
    ) -> tuple[Float64[Tensor, " B"], Int64[Tensor, " B"], Int64[Tensor, " B"]]:
        r"""Return each row's `log_prob`, how many rows of reference are less likely, and how many are as likely.

        All are treated alike: with the row x added to the N rows of reference, each of the N + 1 has the density of the
        N others there. So $\sum_{j \ne i} k(r_i, r_j) + k(r_i, x)$ is compared with $\sum_j k(x, r_j)$.

        Args:
            x: rows.
            own: as for `log_prob`; a row of reference is compared with the other N - 1.
        """
        within = self._others_log_sum
        log_p, less, equal = [], [], []
        for part in self._blocks(len(x)):
            at = torch.full((part.stop - part.start,), -1) if own is None else own[part]
            kernels = self._log_kernels(self._squares(*self._standardised(x[part])))
            mine = torch.where(at >= 0, within[at], kernels.logsumexp(1))[:, None]
            others = torch.where(at[:, None] >= 0, within, torch.logaddexp(within, kernels))
            tie = (others - mine).abs() <= ROUNDING * mine.abs().clamp_min(1)
            count = len(self.reference) - (at >= 0).double()
            log_p.append(mine[:, 0] - count.log() - self._log_constants(self.bandwidth).sum())
            less.append(((others < mine) & ~tie).sum(1))
            equal.append(tie.sum(1) - (at >= 0).long())
        return torch.cat(log_p), torch.cat(less), torch.cat(equal)

    @cached_property
    def _others_log_sum(self) -> Float64[Tensor, " N"]:
        """Return for each row of reference the log of the sum of the others' kernels."""
        found = []
        for part in self._blocks(len(self.reference)):
            squares = self._squares(self.reference[part], self.known[part])
            found.append(self._log_kernels(self._left_out(squares, torch.arange(part.start, part.stop))).logsumexp(1))
        return torch.cat(found)

    def _log_prob(self, x: Tensor, own: Tensor | None) -> Float64[Tensor, " B"]:
        squares = self._left_out(self._squares(*self._standardised(x)), own)
        count = torch.full((len(x),), len(self.reference), dtype=torch.float64)
        if own is not None:
            count -= (own >= 0).double()
        return self._log_kernels(squares).logsumexp(1) - count.log() - self._log_constants(self.bandwidth).sum()

    def _log_kernels(self, squares: Float64[Tensor, "B N"]) -> Float64[Tensor, "B N"]:
        return -squares / (2 * self.bandwidth**2)

    def _left_out(self, squares: Float64[Tensor, "B N"], own: Tensor | None) -> Float64[Tensor, "B N"]:
        if own is not None:
            at = (own >= 0).nonzero().flatten()
            squares[at, own[at]] = torch.inf
        return squares

    def _blocks(self, n: int) -> list[slice]:
        size = max(1, MAX_BLOCK // len(self.reference))
        return [slice(start, min(n, start + size)) for start in range(0, n, size)]
