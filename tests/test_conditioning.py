"""Draws under conditions and marginals, against densities whose conditionals are known."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from loglik.conditioning import Condition, HasColumns, NoRows, contains, draw_given, marginal_log_prob
from loglik.density import Bound, Density
from loglik.flows import Flow
from loglik.transforms import Standardise

COVARIANCE = torch.tensor(
    [[1.0, 0.8, 0.3, 0.0], [0.8, 1.0, 0.0, 0.1], [0.3, 0.0, 1.0, 0.6], [0.0, 0.1, 0.6, 1.0]], dtype=torch.float64
)
N = 1000

KINDS = {"discrete": (True, True, True), "categories": (2, 3, 0)}  # of `Counts`


class Gaussian(Density):
    event_shape = (4,)
    truth = MultivariateNormal(torch.zeros(4, dtype=torch.float64), COVARIANCE)

    def log_prob(self, x, context=None, *, samples=1):
        return self.truth.log_prob(x.double())

    def sample(self, n, context=None):
        return self.truth.sample((n,)).float()


class Noisy(Gaussian):
    """An unbiased weight in place of p, as of a VAE."""

    bound, importance_weighted = Bound.LOWER, True

    def log_prob(self, x, context=None, *, samples=1):
        return super().log_prob(x) + 0.7 * torch.randn(len(x)) - 0.7**2 / 2


class Counts(Density):
    """P(a, b, k): two codes, and an integer that depends on both."""

    event_shape, discrete = (3,), True
    p = torch.tensor([[0.3, 0.02, 0.08], [0.05, 0.5, 0.05]], dtype=torch.float64)

    def log_prob(self, x, context=None, *, samples=1):
        a, b, k = x.long().T
        rate = (1.0 + a + 4 * b).double()
        poisson = k * rate.log() - rate - torch.lgamma(k + 1.0)
        return torch.where(k >= 0, self.p[a, b].log() + poisson, -torch.inf)

    def sample(self, n, context=None):
        code = self.p.flatten().multinomial(n, replacement=True)
        a, b = code // 3, code % 3
        return torch.stack([a, b, torch.poisson(1.0 + a + 4 * b)], 1).float()

    def enumerate(self):
        grid = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(60)).float()
        return grid, self.log_prob(grid).exp()


class Column:
    def __init__(self, mean, std):
        self.normal = torch.distributions.Normal(mean, std)

    def log_prob(self, x):
        return self.normal.log_prob(x)

    def probability(self, low, high):
        return self.normal.cdf(high.double()) - self.normal.cdf(low.double())

    def sample_between(self, low, high):
        ends = self.normal.cdf(low.double()), self.normal.cdf(high.double())
        return self.normal.icdf(ends[0] + torch.rand(len(low)) * (ends[1] - ends[0])).float()


class WithColumns(Gaussian):
    """A Gaussian that knows its conditionals; all rows have the same missing columns."""

    def column(self, x, d, context=None):
        known = ~x[0].isnan()
        slope = torch.linalg.lstsq(COVARIANCE[known][:, known], COVARIANCE[known, d]).solution
        variance = COVARIANCE[d, d] - slope @ COVARIANCE[known, d]
        return Column(x[:, known].double() @ slope, variance.sqrt().expand(len(x)))

    def fill(self, x, context=None):
        for d in x[0].isnan().nonzero().flatten().tolist():
            column = self.column(x, d)
            x[:, d] = column.normal.sample().float()
        return x


@cache
def rows_of_truth():
    return torch.randn(2_000_000, 4) @ torch.linalg.cholesky(COVARIANCE).float().T


def true_rows(conditions):
    return rows_of_truth()[contains(conditions, rows_of_truth())]


def ks_distance(a, b):
    """The largest difference of two samples' distribution functions."""
    at = torch.cat([a, b])
    shares = [torch.searchsorted(sample.sort().values, at, right=True) / len(sample) for sample in (a, b)]
    return (shares[0] - shares[1]).abs().max().item()


def largest_distance(x, truth):
    """The largest distance of a column, of a sum and of a difference of two columns."""
    pairs = [(x[:, i], truth[:, i]) for i in range(4)]
    for i, j, sign in [(a, b, sign) for a in range(4) for b in range(a) for sign in (1, -1)]:
        pairs.append((x[:, i] + sign * x[:, j], truth[:, i] + sign * truth[:, j]))
    return max(ks_distance(a, b) for a, b in pairs)


RARE = [Condition(0, ((3.1, math.inf),), False)]  # one row in 1,000
SEVERAL = [Condition(1, ((1.0, 2.0),), False), Condition(2, ((-2.0, -1.5), (1.0, 1.2)), False)]


@pytest.mark.parametrize("conditions", [RARE, SEVERAL])
@pytest.mark.parametrize("kind", [Gaussian, Noisy, WithColumns])
def test_draws_under_rare_ranges_have_the_distribution_of_the_rows_that_meet_them(kind, conditions):
    torch.manual_seed(0)
    truth = true_rows(conditions)
    drawn = draw_given(kind(), conditions, N)
    assert contains(conditions, drawn.x).all() and len(drawn.x) == N
    assert drawn.effective > (900 if kind is Gaussian else 600)
    distance = 1.9 * math.sqrt(1 / N + 1 / len(truth))  # of 16 comparisons of 1,000 independent rows, at 2 %
    assert largest_distance(drawn.x, truth) < distance
    assert abs(drawn.log_mass - math.log(len(truth) / 2_000_000)) < 0.1
    wrong = Gaussian().sample(N)  # the conditioned columns alone are right
    for condition in conditions:
        wrong[:, condition.column] = drawn.x[:, condition.column]
    assert largest_distance(wrong, truth) > distance


def test_a_real_number_is_set_exactly():
    torch.manual_seed(0)
    conditions = [Condition(0, ((2.0, 2.0),), False), Condition(3, ((-1.0, -1.0),), False)]
    known = torch.tensor([True, False, False, True])
    slope = torch.linalg.solve(COVARIANCE[known][:, known], COVARIANCE[known][:, ~known])
    mean = torch.tensor([2.0, -1.0], dtype=torch.float64) @ slope
    covariance = COVARIANCE[~known][:, ~known] - COVARIANCE[~known][:, known] @ slope
    for kind in (Gaussian, Noisy, WithColumns):
        drawn = draw_given(kind(), conditions, N)
        assert (drawn.x[:, 0] == 2).all() and (drawn.x[:, 3] == -1).all()
        rest = drawn.x[:, 1:3].double()
        assert ((rest.mean(0) - mean).abs() < 4 * (covariance.diag() / N).sqrt()).all()
        assert (rest.T.cov() - covariance).abs().max() < 0.15 * covariance.max()
    truth = MultivariateNormal(torch.zeros(2).double(), COVARIANCE[known][:, known])
    assert abs(drawn.log_mass - truth.log_prob(torch.tensor([2.0, -1.0]).double()).item()) < 0.1


def test_several_values_have_the_probabilities_of_their_densities():
    torch.manual_seed(0)
    drawn = draw_given(Gaussian(), [Condition(0, ((0.0, 0.0), (1.0, 1.0)), False)], 4000)
    share = (drawn.x[:, 0] == 1).double().mean().item()
    assert abs(share - math.exp(-0.5) / (1 + math.exp(-0.5))) < 0.035


def test_a_flow_proposes_among_the_variables_of_its_base():
    """A change of units before a base with a rough log p: the weights do not depend on the flow."""
    torch.manual_seed(0)
    flow = Flow([Standardise((4,))], Gaussian())
    flow.transforms[0].mean.fill_(100.0)
    flow.transforms[0].std.fill_(10.0)
    truth = true_rows(RARE)
    drawn = draw_given(flow, [Condition(0, ((131.0, math.inf),), False)], N)
    assert largest_distance((drawn.x - 100) / 10, truth) < 1.9 * math.sqrt(1 / N + 1 / len(truth))


@pytest.mark.parametrize(
    "conditions",
    [
        [Condition(0, ((0, 0),), True), Condition(2, ((9, 11), (13, 14)), True)],  # one row in 1,000
        [Condition(1, ((1, 2),), True), Condition(2, ((20, math.inf),), True)],
        [Condition(0, ((1, 1),), True), Condition(1, ((0, 0), (2, 2)), True), Condition(2, ((9, 9),), True)],
    ],
)
def test_codes_and_integers_are_drawn_as_enumerated(conditions):
    torch.manual_seed(0)
    grid, p = Counts().enumerate()
    p = p * contains(conditions, grid)
    drawn = draw_given(Counts(), conditions, 4000, **KINDS)
    assert contains(conditions, drawn.x).all()
    assert abs(drawn.log_mass - p.sum().log().item()) < 0.15
    found = (drawn.x[:, None] == grid[p > 0]).all(2).double().mean(0)
    expected = p[p > 0] / p.sum()
    error = (expected * (1 - expected) / min(4000, drawn.effective)).sqrt()
    assert ((found - expected).abs() < 4 * error + 1e-3).all()


def test_what_no_row_meets_is_an_error():
    for conditions in ([Condition(0, ((50.0, math.inf),), False)], [Condition(0, ((50.0, 50.0),), False)]):
        with pytest.raises(NoRows):
            draw_given(Gaussian(), conditions, 10)
    with pytest.raises(NoRows):
        draw_given(Counts(), [Condition(2, ((-3, -1),), True)], 10, **KINDS)


def test_marginals_of_a_gaussian():
    torch.manual_seed(0)
    x = Gaussian().sample(64)
    missing = torch.rand(x.shape) < 0.4
    missing[0], missing[1] = False, True
    result = marginal_log_prob(Gaussian(), x.masked_fill(missing, torch.nan))
    for row, gaps, log_p in zip(x.double(), missing, result.log_prob, strict=True):
        kept = ~gaps
        truth = torch.tensor(0.0).double()
        if kept.any():
            truth = MultivariateNormal(torch.zeros(int(kept.sum())).double(), COVARIANCE[kept][:, kept]).log_prob(
                row[kept]
            )
        assert abs(log_p - truth) < 0.1
    assert result.effective.min() > 100 and (result.stderr < 0.1).all() and result.stderr[0] == 0
    noisy = marginal_log_prob(Noisy(), x.masked_fill(missing, torch.nan))
    assert abs((noisy.log_prob - result.log_prob)[2:].mean()) < 0.03


def test_marginals_of_codes_and_integers():
    torch.manual_seed(0)
    grid, p = Counts().enumerate()
    x = torch.tensor([[0, torch.nan, 3], [torch.nan, 1, torch.nan], [torch.nan, torch.nan, 8], [1, 2, torch.nan]])
    result = marginal_log_prob(Counts(), x, samples=2000, **KINDS)
    for row, log_p, stderr in zip(x, result.log_prob, result.stderr, strict=True):
        met = ((grid == row) | row.isnan()).all(1)
        assert abs(log_p - p[met].sum().log()) < 4 * stderr + 1e-3


def test_only_densities_with_columns_are_exact():
    assert isinstance(WithColumns(), HasColumns) and not isinstance(Gaussian(), HasColumns)
    torch.manual_seed(0)
    assert draw_given(WithColumns(), RARE, 5).method == "exact"
    assert draw_given(Gaussian(), [Condition(0, ((0.0, np.inf),), False)], 5).method == "rejection"
