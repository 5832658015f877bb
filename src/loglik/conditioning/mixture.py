r"""A mixture over rows of mixed columns whose conditionals are known: the proposal of importance sampling.

Given its component, numbers are Gaussian in the space of normal scores, with any covariance, and codes are independent:

$q(x) = \sum_k \pi_k\, \mathcal N(s(v); \mu_k, \Sigma_k) \prod_d s_d'(v_d) \prod_c P_{kc}(x_c)$,

where v is the number itself, or x + u with uniform u for an integer x. B rows, S draws of each, D columns, Dn columns
of numbers, K components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from loglik.conditioning.condition import Condition
from loglik.conditioning.em import Fitted, fit_mixture
from loglik.conditioning.normal_scores import NormalScores
from loglik.conditioning.truncated import mass_within, sample_within

__all__ = ["RowMixture"]


class RowMixture:
    """A mixture fitted to weighted rows.

    Args:
        rows: (N, D), without missing values.
        weights: of the rows; they sum to 1.
        discrete: for each column, whether it holds integers or codes.
        categories: for each column, its number of codes; 0 for numbers.
        components: K.
    """

    def __init__(
        self,
        rows: Shaped[Tensor, "N D"],
        weights: Float64[Tensor, " N"],
        discrete: Sequence[bool],
        categories: Sequence[int],
        components: int,
    ) -> None:
        self.numbers = [d for d, size in enumerate(categories) if not size]
        self.codes = [d for d, size in enumerate(categories) if size]
        self.integer = torch.tensor([discrete[d] for d in self.numbers], dtype=torch.bool, device=rows.device)
        values = rows[:, self.numbers].double()
        values = torch.where(self.integer, values + torch.rand_like(values), values)
        self.scores = NormalScores(values, weights)
        sizes = [categories[d] for d in self.codes]
        coded = rows[:, self.codes].long()
        self.fitted: Fitted = fit_mixture(self.scores(values)[0], coded, weights, sizes, components)

    def given(self, x: Shaped[Tensor, "B D"], within: Sequence[Condition] = ()) -> GivenRows:
        """Return the distribution of the missing values, NaN, of rows given the others, within conditions."""
        return GivenRows(self, x, within)


class GivenRows:
    r"""q(missing | observed, conditions) of B rows.

    The ranges of numbers hold in each component, one column after the other, each given those before it (the sampler of
    Geweke, Hajivassiliou and Keane). Densities are of x + u for a missing integer x. As u is uniform, averages of
    weights p / q over x and u are unbiased.

    Args:
        mixture: of all columns.
        x: rows; NaN where a value is missing.
        within: conditions on columns that every row misses.
    """

    def __init__(self, mixture: RowMixture, x: Shaped[Tensor, "B D"], within: Sequence[Condition]) -> None:
        self.mixture, self.x = mixture, x
        self.ranges = {c.column: c for c in within}
        self.known = ~x.isnan()
        log_pi, self.tables = self._codes_given()
        self.gaussian = _Ordered(mixture, x, self.known, self.ranges)
        self.log_pi = (log_pi + self.gaussian.log_known + self.gaussian.log_within).log_softmax(1)

    def draw(self, samples: int) -> tuple[Shaped[Tensor, "B S D"], Float64[Tensor, "B S"]]:
        """Draw the missing values of each row S times; with the log-density of each draw."""
        mixture = self.mixture
        k = torch.multinomial(self.log_pi.exp(), samples, replacement=True)  # (B, S)
        y = self.gaussian.draw(k)
        filled = self.x[:, None].repeat(1, samples, 1)
        for d, table in zip(mixture.codes, self.tables, strict=True):
            known = self.known[:, d, None]
            filled[:, :, d] = torch.where(known, filled[:, :, d], _draw_codes(table, k).to(filled))
        values, log_slope = mixture.scores.inverse(y.flatten(0, 1))
        values = torch.where(mixture.integer, values.floor(), values).view_as(y)
        for j, d in enumerate(mixture.numbers):
            value = values[:, :, j].to(filled)
            value = self.ranges[d].clamp(value.flatten()).view_as(value) if d in self.ranges else value
            filled[:, :, d] = torch.where(self.known[:, d, None], filled[:, :, d], value)
        return filled, self._log_q(y, filled, log_slope.view_as(y))

    def log_prob(self, filled: Shaped[Tensor, "B S D"]) -> Float64[Tensor, "B S"]:
        """Return the log-density of values of each row, with draws of u."""
        numbers = filled[:, :, self.mixture.numbers].double()
        numbers = torch.where(self.mixture.integer, numbers + torch.rand_like(numbers), numbers)
        y, log_slope = self.mixture.scores(numbers.flatten(0, 1))
        y = torch.where(
            self.gaussian.known_scores.isnan()[:, None], y.view_as(numbers), self.gaussian.known_scores[:, None]
        )
        return self._log_q(y, filled, log_slope.view_as(numbers))

    def _log_q(self, y: Tensor, filled: Tensor, log_slope: Tensor) -> Float64[Tensor, "B S"]:
        """Return the log-density of scores and codes, per unit of the numbers."""
        log_component = self.log_pi[:, :, None] + self.gaussian.log_prob(y)  # (B, K, S)
        for d, table in zip(self.mixture.codes, self.tables, strict=True):
            code = filled[:, :, d].long().clamp(0, table.shape[1] - 1)
            log_component = log_component + torch.where(self.known[:, d, None, None], 0.0, table[:, code].movedim(0, 1))
        missing = ~self.known[:, self.mixture.numbers]
        return log_component.logsumexp(1) + (log_slope * missing[:, None]).sum(2)

    def _codes_given(self) -> tuple[Float64[Tensor, "B K"], list[Float64[Tensor, "K _"]]]:
        """Return each component's log-weight given the known codes, and the tables of codes within the conditions."""
        fitted, x = self.mixture.fitted, self.x
        log_pi = fitted.log_weight.repeat(len(self.x), 1)
        tables = []
        for d, table in zip(self.mixture.codes, fitted.log_tables, strict=True):
            if d in self.ranges:
                allowed = torch.full_like(table, -torch.inf)
                allowed[:, self.ranges[d].codes] = 0.0
                mass = (table + allowed).logsumexp(1)
                log_pi, table = log_pi + mass, table + allowed - mass[:, None]
            else:
                code = x[:, d].nan_to_num().long().clamp(0, table.shape[1] - 1)
                log_pi = log_pi + torch.where(self.known[:, d, None], table[:, code].T, 0.0)
            tables.append(table)
        return log_pi, tables


class _Ordered:
    """The Gaussians of a mixture with the columns of each row in the order known, within a range, free.

    So the Cholesky factor gives the density of the known values, and draws each other column given those before it.
    """

    def __init__(self, mixture: RowMixture, x: Tensor, known: Tensor, ranges: dict[int, Condition]) -> None:
        numbers, device = mixture.numbers, x.device
        values = x[:, numbers].double().nan_to_num() + 0.5 * mixture.integer
        scores = mixture.scores(values)[0]
        known = known[:, numbers]
        in_range = torch.tensor([d in ranges for d in numbers], dtype=torch.bool, device=device)
        self.order = torch.where(known, 0, torch.where(in_range, 1, 2)).argsort(dim=1, stable=True)
        self.known = known.gather(1, self.order)
        self.y = scores.gather(1, self.order)
        self.known_scores = scores.masked_fill(~known, torch.nan)
        alike = slice(0, 1) if len(x) and (known == known[:1]).all() else slice(None)  # one factor for all rows
        order = self.order[alike]
        self.mean = mixture.fitted.mean[:, order].movedim(0, 1)  # (B or 1, K, Dn)
        covariance = mixture.fitted.covariance[:, order[:, :, None], order[:, None, :]].movedim(0, 1)
        self.factor = torch.linalg.cholesky(covariance)
        self.scale = self.factor.diagonal(dim1=-2, dim2=-1)
        gap = torch.where(self.known, self.y, 0.0)[:, None] - self.mean
        self.e = self._solve(gap.unsqueeze(-1)).squeeze(-1)
        self.log_known = (_log_normal(self.e, self.scale) * self.known[:, None]).sum(2)
        # ranges are on columns that all rows miss, so they have the same places in every order of one pattern
        self.bounds: dict[int, tuple[Tensor, Tensor]] = {}
        for j, d in enumerate(numbers):
            if d in ranges:
                places = (self.order == j).nonzero()[:, 1].unique().tolist()
                assert len(places) == 1, "rows with ranges have the same missing columns"
                self.bounds[places[0]] = _score_bounds(mixture, j, ranges[d])
        self.log_within = self._log_within()

    def _log_within(self) -> Float64[Tensor, "B K"]:
        """Return a guess of log P(ranges | known) of each component: of each range given the known values alone."""
        total = torch.zeros_like(self.log_known)
        for i, (low, high) in self.bounds.items():
            row = self.factor[:, :, i]
            known = self.known[:, None]
            mean = self.mean[:, :, i] + (row * self.e * known).sum(2)
            std = (row.square() * ~known).sum(2).sqrt()
            total = total + _log_mass(low, high, mean, std)
        return total

    def _solve(self, gap: Float64[Tensor, "B K Dn S"]) -> Float64[Tensor, "B K Dn S"]:
        """Return e with L e = gap."""
        if len(self.factor) == len(gap):
            return torch.linalg.solve_triangular(self.factor, gap, upper=False)
        b, k, d, s = gap.shape
        e = torch.linalg.solve_triangular(self.factor[0], gap.permute(1, 2, 0, 3).reshape(k, d, b * s), upper=False)
        return e.view(k, d, b, s).permute(2, 0, 1, 3)

    def draw(self, k: Int64[Tensor, "B S"]) -> Float64[Tensor, "B S Dn"]:
        """Draw scores from each chosen component, in the order of the columns."""
        at = torch.arange(len(k), device=k.device)[:, None]
        own = at if len(self.factor) == len(k) else torch.zeros_like(at)
        factor, mean, known = self.factor[own, k], self.mean[own, k], self.known[:, None]
        e = torch.where(known, self.e[at, k], torch.randn_like(mean))
        for i, (low, high) in sorted(self.bounds.items()):
            centre = mean[:, :, i] + (factor[:, :, i, :i] * e[:, :, :i]).sum(2)
            scale = factor[:, :, i, i]
            e[:, :, i] = sample_within(*((bound - centre[..., None]) / scale[..., None] for bound in (low, high)))
        y = torch.where(known, self.y[:, None], mean + (factor @ e.unsqueeze(-1)).squeeze(-1))
        return torch.empty_like(y).scatter_(2, self.order[:, None].expand_as(y), y)

    def log_prob(self, y: Float64[Tensor, "B S Dn"]) -> Float64[Tensor, "B K S"]:
        """Return each component's log-density of the missing scores given the known ones, within the ranges."""
        y = y.gather(2, self.order[:, None].expand_as(y))
        e = self._solve(y.transpose(1, 2)[:, None] - self.mean.unsqueeze(-1))
        log_p = (_log_normal(e, self.scale.unsqueeze(-1)) * ~self.known[:, None, :, None]).sum(2)
        for i, (low, high) in self.bounds.items():
            scale = self.scale[:, :, i, None]
            log_p = log_p - _log_mass(low, high, y[:, None, :, i] - scale * e[:, :, i], scale)
        return log_p


def _log_normal(e: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * e.square() - scale.log() - 0.5 * math.log(2 * math.pi)


def _log_mass(low: Tensor, high: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the log-probability of a union of intervals under normal distributions."""
    ends = ((bound - mean[..., None]) / scale[..., None] for bound in (low, high))
    return mass_within(*ends).sum(-1).log()


def _score_bounds(mixture: RowMixture, j: int, condition: Condition) -> tuple[Tensor, Tensor]:
    """Return the normal scores of the ends of a condition's intervals on column number j of the numbers."""
    ends = torch.tensor(condition.intervals, dtype=torch.float64, device=mixture.integer.device)
    if condition.discrete:
        ends[:, 1] += 1  # x + u of the highest integer x
    values = torch.zeros(ends.numel(), len(mixture.numbers), dtype=torch.float64, device=ends.device)
    values[:, j] = ends.flatten()
    low, high = mixture.scores(values)[0][:, j].view_as(ends).T
    return low, high


def _draw_codes(log_table: Float64[Tensor, "K C"], k: Int64[Tensor, "B S"]) -> Int64[Tensor, "B S"]:
    """Draw a code from the table of each chosen component."""
    drawn = torch.zeros_like(k)
    for component in k.unique().tolist():
        chosen = k == component
        p = log_table[component].exp()
        drawn[chosen] = torch.multinomial(p, int(chosen.sum()), replacement=True)
    return drawn
