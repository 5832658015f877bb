"""Normal scores: a table's numbers on a scale where each column of the training data is standard normal."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["NormalScores"]

KNOTS = 1.5  # times the cube root of the number of rows
MAX_FITTED_ROWS = 2**16
TAIL = 4.0  # z grows linearly by about so much beyond the outer knots, then as a logarithm
MAX_DECIMALS = 4
SMOOTH_REACH = 2.5  # standard deviations of the outermost quantiles
MIN_REPEATED = 0.25  # the fraction of values that are repeated where a column of real numbers is one of rounded numbers


class NormalScores(nn.Module):
    r"""A monotone map $z = T_d(x)$ of each column, and the cells of columns of integers and of rounded numbers.

    Between M knots at quantiles, T is a rational-quadratic spline with $\Phi(T(x_k)) = F(x_k)$ for the training data's
    distribution function F; beyond the knots it is linear, then logarithmic. A value of a column of integers stands for
    the cell $[x - \tfrac12, x + \tfrac12]$, and a value of a column of numbers with c decimals, if many are equal, for
    the cell of width $w = 10^{-c}$ about it. The density of z gives a cell a probability P; of the latter columns, all
    x in the cell have the density $P / w$. Other columns have the density $p(z) \, T'(x)$.

    Source of the spline: Gregory and Delbourgo 1982, "Piecewise rational quadratic interpolation to monotonic data".

    With `smooth`, F is that of a kernel density with Silverman's bandwidth, and numbers that are not integers are
    continuous: for few rows, whose steps a map would store.

    Args:
        integer: for each column, whether it holds integers.
        knots: M.
        smooth: whether F is smoothed.
    """

    integer: Tensor
    width: Tensor
    size: Tensor
    x: Tensor
    z: Tensor
    slope: Tensor

    def __init__(self, integer: list[bool], knots: int = 64, *, smooth: bool = False) -> None:
        super().__init__()
        self.knots, self.smooth = knots, smooth
        columns = len(integer)
        self.register_buffer("integer", torch.tensor(integer, dtype=torch.bool), persistent=False)
        self.register_buffer("width", torch.tensor(integer, dtype=torch.float64))  # 0 for a continuous column
        self.register_buffer("size", torch.full((columns,), 2))
        ends = torch.full((columns, knots), torch.inf, dtype=torch.float64)
        ends[:, 0], ends[:, 1] = -1, 1
        self.register_buffer("x", ends)
        self.register_buffer("z", ends.clone())
        self.register_buffer("slope", torch.ones(columns, knots, dtype=torch.float64))

    def forward(self, x: Float[Tensor, "B D"], columns: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of each number (B, D): its score, the middle and the width of its cell in z, and the log-determinant.

        The score of a cell is the mean of a standard normal variable in the cell. The width is 0 in a continuous
        column.
        """
        values = x.double().T.contiguous()
        z, log_slope = self._encode(values, columns)
        low, high = self._edges(values, columns)
        cells = self.width[columns, None] > 0
        integer = self.integer[columns, None]
        log_unit = torch.where(cells & ~integer, self.width[columns, None], 1.0).log()
        score = torch.where(cells, _mean_between(low, high), z)
        middle = torch.where(cells, (low + high) / 2, z)
        return score.T, middle.T, (high - low).T, torch.where(cells, -log_unit, log_slope).T

    def transform(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return T of any numbers, whatever their cells."""
        return self._encode(x.double().T.contiguous(), slice(None))[0].T

    def edges(self, x: Float[Tensor, "B D"], columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return T of the lower and the upper edge of each number's cell, which are equal in a continuous column."""
        low, high = self._edges(x.double().T.contiguous(), columns)
        return low.T, high.T

    def _edges(self, values: Float[Tensor, "D B"], columns: slice) -> tuple[Tensor, Tensor]:
        width = self.width[columns, None]
        middle = self._round(values, columns)
        return self._encode(middle - width / 2, columns)[0], self._encode(middle + width / 2, columns)[0]

    def _round(self, values: Float[Tensor, "D B"], columns: slice) -> Tensor:
        """Return the middle of each number's cell; the number in a continuous column."""
        width = self.width[columns, None]
        unit = torch.where(width > 0, width, 1.0)
        return torch.where(width > 0, (values / unit).round() * unit, values)

    def decode(self, z: Float[Tensor, "B D"], columns: slice = slice(None), *, spread: bool = False) -> Tensor:
        """Return the number of each z, (B, D); the middle of its cell, or with `spread` a uniform draw from the cell.

        Integers are never spread.
        """
        values = self._round(self._decode(z.double().T.contiguous(), columns), columns)
        if spread:
            noise = (torch.rand_like(values) - 0.5) * self.width[columns, None]
            values = torch.where(self.integer[columns, None], values, values + noise)
        return values.T

    def _encode(self, x: Float[Tensor, "D B"], columns: slice) -> tuple[Tensor, Tensor]:
        """Return z and log T'(x)."""
        knots_x, knots_z, slopes, last = self.x[columns], self.z[columns], self.slope[columns], self._last(columns)
        k = torch.minimum((torch.searchsorted(knots_x, x, right=True) - 1).clamp_min(0), last - 1)
        (x0, x1), (z0, z1), (d0, d1) = (_ends(knots, k) for knots in (knots_x, knots_z, slopes))
        xi = ((x - x0) / (x1 - x0)).clamp(0, 1)
        s = (z1 - z0) / (x1 - x0)
        across = xi * (1 - xi)
        below = s + (d0 + d1 - 2 * s) * across
        z = z0 + (z1 - z0) * (s * xi.square() + d0 * across) / below
        top = d1 * xi.square() + 2 * s * across + d0 * (1 - xi).square()
        log_slope = 2 * s.log() + top.log() - 2 * below.log()
        outer = torch.where(x < x0, d0, d1)
        excess = torch.where(x < x0, x0 - x, (x - x1).clamp_min(0)) * outer
        beyond = TAIL * torch.log1p(excess / TAIL)
        z = z + torch.where(x < x0, -beyond, beyond)
        return z, torch.where(excess > 0, outer.log() - torch.log1p(excess / TAIL), log_slope)

    def _decode(self, z: Float[Tensor, "D B"], columns: slice) -> Tensor:
        knots_x, knots_z, slopes, last = self.x[columns], self.z[columns], self.slope[columns], self._last(columns)
        k = torch.minimum((torch.searchsorted(knots_z, z, right=True) - 1).clamp_min(0), last - 1)
        (x0, x1), (z0, z1), (d0, d1) = (_ends(knots, k) for knots in (knots_x, knots_z, slopes))
        s = (z1 - z0) / (x1 - x0)
        up = (z - z0).clamp_min(0).minimum(z1 - z0)
        bend = up * (d0 + d1 - 2 * s)
        a, b, c = (z1 - z0) * (s - d0) + bend, (z1 - z0) * d0 - bend, -s * up
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        x = x0 + (x1 - x0) * (-2 * c / (b + root).clamp_min(1e-300)).clamp(0, 1)
        beyond = torch.where(z < z0, z0 - z, (z - z1).clamp_min(0)).clamp_max(80 * TAIL)
        excess = TAIL * torch.expm1(beyond / TAIL) / torch.where(z < z0, d0, d1)
        return x + torch.where(z < z0, -excess, excess)

    def _last(self, columns: slice) -> Tensor:
        return self.size[columns, None] - 1

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N D"]) -> None:
        """Set each column's cells and knots from the training data; missing values are NaN."""
        step = math.ceil(len(x) / MAX_FITTED_ROWS)
        for d, column in enumerate(x[::step].double().cpu().T):
            values = column[column.isfinite()].sort().values
            if not len(values):
                continue
            integer = bool(self.integer[d])
            width = 1.0 if integer else 0.0 if self.smooth else _resolution(values)
            if self.smooth:
                knots_x, p = _smooth_knots(values, self.knots, integer)
            else:
                knots_x, p = _integer_knots(values, width, self.knots) if width else _knots(values, self.knots)
            knots_z = torch.special.ndtri(p)
            size = len(knots_x)
            unused = torch.full((self.knots - size,), torch.inf, dtype=torch.float64)
            self.width[d], self.size[d] = width, size
            self.x[d].copy_(torch.cat([knots_x, unused]))
            self.z[d].copy_(torch.cat([knots_z, unused]))
            self.slope[d].copy_(torch.cat([_slopes(knots_x, knots_z), torch.ones_like(unused)]))


def _ends(knots: Float[Tensor, "D M"], k: Tensor) -> tuple[Tensor, Tensor]:
    return knots.gather(1, k), knots.gather(1, k + 1)


def _mean_between(low: Tensor, high: Tensor) -> Tensor:
    """Return the mean of a standard normal variable between two numbers; their middle where that is more exact."""
    middle = (low + high) / 2
    flip = middle > 0  # both tails are computed in the lower one
    a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
    mass = torch.special.ndtr(b) - torch.special.ndtr(a)
    mean = (torch.exp(-a.square() / 2) - torch.exp(-b.square() / 2)) / math.sqrt(2 * math.pi)
    mean = torch.where(flip, -mean, mean) / mass.clamp_min(1e-300)
    rough = (high - low < 1e-3) | (mass < 1e-9)
    return torch.where(rough, middle, mean)


def _resolution(values: Float[Tensor, " N"]) -> float:
    """Return the width of the cells of real numbers: 10 to the minus their decimals if many are equal, else 0."""
    if 1 - len(values.unique()) / len(values) < MIN_REPEATED:
        return 0.0
    for decimals in range(MAX_DECIMALS + 1):
        scaled = values * 10**decimals
        tolerance = 10**decimals * values.abs() * 2**-23 + 1e-9  # of float32
        if ((scaled - scaled.round()).abs() <= tolerance).all() and bool((tolerance < 0.05).all()):
            return float(10**-decimals)
    return 0.0


def _integer_knots(values: Float[Tensor, " N"], width: float, knots: int) -> tuple[Tensor, Tensor]:
    """Return knots at edges of cells, and the distribution function there."""
    unit, count = (values / width).round().unique(return_counts=True)
    below = count.cumsum(0) - count
    n = len(values)
    if 2 * len(unit) > _count(n, knots):
        ranks = torch.linspace(0, n - 1, _count(n, knots) // 2, dtype=torch.float64).long()
        at = torch.searchsorted(below, ranks, right=True) - 1
        kept = at.unique()
    else:
        kept = torch.arange(len(unit))
    edges = torch.cat([unit[kept] - 0.5, unit[kept] + 0.5])
    p = torch.cat([below[kept], below[kept] + count[kept]]).double()
    edges, order = edges.unique(return_inverse=True)
    p = torch.zeros_like(edges).scatter_(0, order, p)
    return edges * width, _increasing((p + 0.5) / (n + 1), 0.25 / (n + 1))


def _smooth_knots(values: Float[Tensor, " N"], knots: int, integer: bool) -> tuple[Tensor, Tensor]:
    """Return knots at distinct quantiles and beyond, and the distribution function of a kernel density there.

    A broad normal distribution has the weight of one row, which keeps F increasing between clusters.
    """
    n, mean, std = len(values), values.mean(), values.std(correction=0)
    quartiles = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    iqr = (quartiles[1] - quartiles[0]) / 1.34
    bandwidth = 0.9 * torch.where(iqr > 0, torch.minimum(iqr, std), std) * n**-0.2
    bandwidth = bandwidth.clamp_min(0.25 if integer else max(1e-3 * float(std), 1e-4 * float(mean.abs()), 1e-30))
    levels = torch.linspace(-1, 1, knots - 6, dtype=torch.float64) * SMOOTH_REACH
    inner = values.quantile(torch.special.ndtr(levels)).unique()
    inner = inner[torch.cat([torch.ones(1, dtype=torch.bool), inner.diff() > bandwidth / 4])]
    beyond = bandwidth * torch.arange(1, 4)
    x = torch.cat([values[0] - beyond.flip(0), inner, values[-1] + beyond])
    x = x[torch.cat([torch.ones(1, dtype=torch.bool), x.diff() > 0])]
    kernel = torch.special.ndtr((x[:, None] - values) / bandwidth).sum(1)
    return x, (kernel + torch.special.ndtr((x - mean) / (2 * std + 2 * bandwidth))) / (n + 1)


def _count(rows: int, knots: int) -> int:
    return max(4, min(knots, round(KNOTS * rows ** (1 / 3))))


def _increasing(p: Tensor, step: float) -> Tensor:
    """Return p rising by at least `step`, which gives cells without training data a probability; it ends below 1."""
    index = torch.arange(len(p), dtype=p.dtype)
    p = (p - step * index).cummax(0).values + step * index
    return p / max(1.0, (1 + step) * float(p[-1]))


def _knots(values: Float[Tensor, " N"], knots: int) -> tuple[Tensor, Tensor]:
    """Return knots at distinct quantiles, and the distribution function there: the middle of its step."""
    n = len(values)
    m = _count(n, knots)
    # evenly spaced quantiles, and finer ones at both ends
    low, high = torch.tensor([0.5 / n]).logit().item(), torch.tensor([1 - 0.5 / n]).logit().item()
    levels = torch.special.ndtr(torch.linspace(-1, 1, m, dtype=torch.float64) * min(3.0, max(-low, high) / 1.7))
    ranks = (levels * n - 0.5).round().clamp(0, n - 1).long()
    x = values[ranks].unique()
    if len(x) == 1:  # constant: one unit about it, where float32 has numbers to tell apart
        reach = max(0.5 * 10 ** math.floor(math.log10(abs(float(x)) or 1.0)) * 1e-3, 1e-30)
        x = torch.tensor([float(x) - reach, float(x) + reach], dtype=torch.float64)
        return x, torch.tensor([0.5 / (n + 1), 1 - 0.5 / (n + 1)], dtype=torch.float64)
    below = torch.searchsorted(values, x, right=False)
    upto = torch.searchsorted(values, x, right=True)
    return x, ((below + upto) / 2 / n).clamp(0.5 / n, 1 - 0.5 / n)


def _slopes(x: Float[Tensor, " M"], z: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Return slopes at the knots that keep the spline monotone: harmonic means of the neighbouring secants."""
    secant = z.diff() / x.diff()
    inner = 2 / (1 / secant[:-1] + 1 / secant[1:])
    return torch.cat([secant[:1], inner, secant[-1:]])
