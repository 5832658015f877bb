"""AnyOrder: exact for every set of observed columns, on truths that are known."""

import math

import pytest
import torch
from torch import nn

from helpers.densities import MIXED, SPECS, perturb, tiny
from loglik.autoregressive import AnyOrder
from loglik.autoregressive.column_distributions import log_normal_mass
from loglik.autoregressive.copula import GaussianCopula
from loglik.autoregressive.normal_scores import NormalScores
from loglik.networks.mlp import ResidualMLP

NAN = float("nan")


def network(inputs: int, outputs: int) -> nn.Module:
    return ResidualMLP(inputs, outputs, width=16, depth=1)


def codes(counts: tuple[int, ...], seed: int = 0) -> AnyOrder:
    """A perturbed density of columns of codes."""
    torch.manual_seed(seed)
    density = AnyOrder(network, (len(counts),), [True] * len(counts), categories=counts)
    x = torch.stack([torch.randint(count, (200,)) for count in counts], 1).float()
    x[:, 1] = torch.where(torch.rand(200) < 0.7, x[:, 0].clamp_max(counts[1] - 1), x[:, 1])
    density.initialise(x)
    perturb(density, 0.2)
    return density.eval()


def gaussian(rho: float = 0.9, n: int = 4000, **options) -> tuple[AnyOrder, torch.Tensor]:
    """A density initialised with rows of two standard normal columns with a correlation."""
    torch.manual_seed(0)
    u = torch.randn(n, 2)
    x = torch.stack([u[:, 0], rho * u[:, 0] + math.sqrt(1 - rho**2) * u[:, 1]], 1) * torch.tensor([2.0, 0.5]) + 10
    density = AnyOrder(network, (2,), [False, False], **options)
    density.initialise(x)
    return density.eval(), x


def test_the_probability_of_every_set_of_observed_columns_sums_to_one_given_every_other():
    counts = (2, 3, 2)
    density = codes(counts)
    events = torch.cartesian_prod(*[torch.arange(count) for count in counts]).float()
    for observed in torch.cartesian_prod(*[torch.tensor([False, True])] * 3):
        rows = torch.where(observed, events, NAN).unique(dim=0) if observed.any() else torch.full((1, 3), NAN)
        rows = torch.stack(list({tuple(row.nan_to_num(-1).tolist()): row for row in rows}.values()))
        assert density.log_prob(rows).double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    for given in torch.cartesian_prod(*[torch.tensor([False, True])] * 3):
        p = density.conditional_log_prob(events, given).double().exp()
        for values in {tuple(row[given].tolist()) for row in events}:
            same = (events[:, given] == torch.tensor(values)).all(1)
            assert p[same].sum().item() == pytest.approx(1, abs=1e-5)


def test_a_missing_suffix_is_marginalised_exactly():
    counts = (2, 3, 4)
    density = codes(counts)
    events = torch.cartesian_prod(*[torch.arange(count) for count in counts]).float()
    p = density.log_prob(events).double().exp()
    for row in torch.cartesian_prod(torch.arange(2), torch.arange(3)).float():
        marginal = p[(events[:, :2] == row).all(1)].sum().log()
        part = torch.cat([row, torch.tensor([NAN])])[None]
        assert density.log_prob(part).item() == pytest.approx(marginal.item(), abs=1e-4)


def test_the_start_is_the_gaussian_and_its_conditional():
    density, x = gaussian()
    density.start.zero_()
    density.log_rest.fill_(-30.0)
    rho, mean = 0.9, torch.tensor([10.0, 10.0])
    covariance = torch.tensor([[4.0, rho], [rho, 0.25]])
    truth = torch.distributions.MultivariateNormal(mean, covariance)
    assert (density.log_prob(x) - truth.log_prob(x)).mean().abs() < 0.02
    given = torch.tensor([[NAN, 10.3], [NAN, 9.6]])
    conditional = density.column(given, 0)
    expected = 10 + rho * 2 * (given[:, 1] - 10) / 0.5
    torch.testing.assert_close(conditional.mean_value(), expected, atol=0.15, rtol=0)
    wide = 2 * math.sqrt(1 - rho**2)
    normal = torch.distributions.Normal(expected, wide)
    for low, high in ((9.0, 11.0), (10.5, 13.0)):
        p = conditional.probability(torch.full((2,), low), torch.full((2,), high))
        truth_p = normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low))
        torch.testing.assert_close(p.float(), truth_p, atol=0.06, rtol=0)
    assert density.conditional_log_prob(
        torch.tensor([[11.0, 10.3]]), torch.tensor([False, True])
    ).item() == pytest.approx(normal.log_prob(torch.tensor(11.0))[0].item(), abs=0.15)


def test_a_range_and_a_truncated_draw_agree_with_cdf_and_quantile():
    density, _ = gaussian()
    rows = torch.tensor([[NAN, 10.2]]).repeat(4000, 1)
    torch.manual_seed(1)
    column = density.column(rows, 0)
    low, high = torch.full((4000,), 10.5), torch.full((4000,), 11.5)
    drawn = column.sample_between(low, high)
    assert ((drawn >= 10.5) & (drawn <= 11.5)).all()
    p = column.probability(low, high)
    torch.testing.assert_close(p, column.cdf(high) - column.cdf(low))
    middle = column.probability(low, torch.full((4000,), 11.0)) / p
    assert (drawn <= 11.0).double().mean().item() == pytest.approx(middle[0].item(), abs=4 * 0.5 / 4000**0.5)
    levels = torch.rand(4000)
    torch.testing.assert_close(column.cdf(column.quantile(levels)), levels.double(), atol=1e-4, rtol=0)
    inside = column.sample()
    assert ((inside >= 10.5) & (inside <= 11.5)).double().mean().item() == pytest.approx(p[0].item(), abs=0.04)


def test_fill_draws_from_the_enumerated_conditional():
    counts = (2, 3, 2)
    density = codes(counts)
    events = torch.cartesian_prod(*[torch.arange(count) for count in counts]).float()
    given = torch.tensor([NAN, 2.0, NAN])
    kept = torch.tensor([False, True, False])
    possible = events[events[:, 1] == 2]
    p = density.conditional_log_prob(possible, kept).exp()
    torch.manual_seed(0)
    drawn, log_q = density.fill_with_log_prob(given.repeat(20_000, 1))
    for event, probability in zip(possible, p, strict=True):
        same = (drawn == event).all(1)
        assert same.double().mean().item() == pytest.approx(probability.item(), abs=0.015)
        assert log_q[same][0].exp().item() == pytest.approx(probability.item(), abs=1e-4)
    assert torch.equal(density.fill(possible), possible)


def test_gaps_in_training_rows_leave_the_correlation_and_train():
    torch.manual_seed(0)
    x = torch.randn(3000, 1) + 0.3 * torch.randn(3000, 3)
    x = x.masked_fill(torch.rand(3000, 3) < 0.4, NAN)
    x[0] = NAN
    density = AnyOrder(network, (3,), [False] * 3)
    density.initialise(x)
    std = density.gaussians.copula.covariance.diagonal().sqrt()
    correlation = density.gaussians.copula.covariance / (std[:, None] * std)
    assert correlation[0, 1].item() == pytest.approx(1 / 1.09, abs=0.03)
    density.train()
    loss = density.loss(x[:64])
    loss.backward()
    assert loss.isfinite() and density.network.output.weight.grad.abs().sum() > 0
    density.eval()
    assert density.log_prob(x[:1]).item() == 0  # nothing is observed
    assert not density.impute(x[:5]).isnan().any()


def test_the_loss_in_training_is_unbiased():
    density = codes((2, 3, 2)).train()
    density.in_order = 1.0
    x = torch.tensor([[1.0, 2.0, 0.0]]).repeat(6000, 1)
    torch.manual_seed(0)
    # with the table's order, the expected loss of a fixed row is the mean over k of the weighted rest
    parts = []
    for k in range(3):
        given = torch.arange(3) < k
        columns = density.columns(torch.where(given, x[:1], NAN), [d for d in range(3) if not given[d]])
        rest = [d for d in range(3) if not given[d]]
        parts.append(-3 / (3 - k) * sum(c.log_prob(x[:1, d]) for c, d in zip(columns, rest, strict=True)))
    assert density.loss(x).item() == pytest.approx(torch.stack(parts).mean().item(), rel=0.02)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_constant_repeated_skewed_and_few_values_have_a_finite_density(n):
    torch.manual_seed(0)
    columns = [
        torch.full((n,), 7.5),
        torch.randn(n).exp() ** 3,
        (torch.randn(n) * 10).round() / 10,
        1e9 * torch.rand(n),
    ]
    x = torch.stack(columns, 1)
    density = AnyOrder(network, (4,), [False] * 4)
    density.initialise(x)
    density.eval()
    assert density.log_prob(x).isfinite().all()
    assert density.log_prob(torch.tensor([[-1e30, 1e30, 1e6, 0.0]])).isfinite().all()
    assert density.sample(100).isfinite().all()


def test_integers_have_masses_that_sum_to_one():
    torch.manual_seed(0)
    x = torch.poisson(torch.full((500, 2), 3.0))
    density = AnyOrder(network, (2,), [True, True])
    density.initialise(x)
    perturb(density, 0.1)
    density.eval()
    values = torch.arange(-200.0, 400.0)
    rows = torch.stack([values, torch.full_like(values, NAN)], 1)
    assert density.log_prob(rows).double().exp().sum().item() == pytest.approx(1, abs=1e-3)
    drawn = density.sample(500)
    assert torch.equal(drawn, drawn.round())


def test_rounded_numbers_have_a_density_that_integrates_to_one():
    torch.manual_seed(0)
    x = (torch.randn(1000, 1) * 0.3).round(decimals=1)
    scores = NormalScores([False])
    scores.initialise(x)
    assert scores.width.item() == pytest.approx(0.1)
    density = AnyOrder(network, (1,), [False])
    density.initialise(x)
    grid = torch.arange(-5.0, 5.0, 0.01)[:, None] + 0.005
    assert (density.eval().log_prob(grid).double().exp().sum() * 0.01).item() == pytest.approx(1, abs=1e-3)


def test_thousands_of_categories_are_embedded():
    torch.manual_seed(0)
    k = torch.randint(4000, (3000,))
    x = torch.stack([k.float(), (k % 7).float(), torch.randn(3000)], 1)
    density = AnyOrder(network, (3,), [True, True, False], categories=(4000, 7, 0))
    density.initialise(x)
    assert sum(p.numel() for p in density.parameters()) < 120_000
    assert density.eval().log_prob(x[:8]).isfinite().all()
    assert density.sample(8).shape == (8, 3)


def test_scores_are_monotone_and_decode_inverts_them():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300).exp(), torch.zeros(40)])[:, None]
    scores = NormalScores([False], knots=16)
    scores.initialise(x)
    grid = torch.cat([-(10 ** torch.linspace(4, -3, 50)), 10 ** torch.linspace(-3, 4, 80)]).double()[:, None]
    z, _, _, log_det = scores(grid)
    assert (z.diff(dim=0) > 0).all()
    torch.testing.assert_close(scores.decode(z), grid, rtol=1e-6, atol=1e-8)
    numeric = (scores(grid + 1e-7)[0] - scores(grid - 1e-7)[0]) / 2e-7
    torch.testing.assert_close(log_det.exp(), numeric, rtol=2e-2, atol=1e-6)


def test_the_mass_of_an_interval_is_right_in_both_tails_and_has_gradients():
    middle = torch.tensor([0.0, 2.0, -3.0, 8.0, 40.0, -300.0, 1e6, 0.5], dtype=torch.float64, requires_grad=True)
    width = torch.tensor([1.0, 1e-6, 0.5, 1.0, 0.3, 10.0, 1e-3, 0.0], dtype=torch.float64, requires_grad=True)
    log_mass = log_normal_mass(middle, width)
    log_mass.sum().backward()
    assert log_mass.isfinite().all() and middle.grad.isfinite().all() and width.grad.isfinite().all()
    normal = torch.distributions.Normal(0.0, 1.0)
    for i in (0, 2):
        m, w = middle[i].detach(), width[i].detach()
        assert log_mass[i].item() == pytest.approx(
            (normal.cdf(m + w / 2) - normal.cdf(m - w / 2)).log().item(), abs=1e-6
        )
    assert log_mass[1].item() == pytest.approx(normal.log_prob(torch.tensor(2.0)).item() + math.log(1e-6), abs=1e-5)
    assert log_mass[7].item() == pytest.approx(normal.log_prob(torch.tensor(0.5)).item(), abs=1e-6)


def test_the_gaussian_of_shared_sets_is_that_of_each_row():
    torch.manual_seed(0)
    copula = GaussianCopula(4)
    z = torch.randn(60, 1) + torch.randn(60, 4)
    copula.initialise(z, torch.ones(60, 4, dtype=torch.bool))
    observed = torch.tensor([True, False, True, False]).expand(60, 4)
    shared = copula(z, observed)
    alone = [copula(row[None], seen[None]) for row, seen in zip(z, observed, strict=True)]
    for part, rows in zip(shared, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(part, torch.cat(rows))


def test_what_it_refuses():
    density = tiny("autoregressive:any-order", SPECS["mixed table"])
    with pytest.raises(ValueError, match="column 2 must hold codes"):
        density.log_prob(torch.tensor([[1.0, 2.0, 5.0, 0.0]]))
    assert [column.name for column in MIXED][2] == "colour"
    with pytest.raises(ValueError, match=r"any-order models tables and arrays.*use autoregressive"):
        tiny("autoregressive:any-order", SPECS["text"])


def test_the_linear_gaussian_knows_the_sum_of_skewed_columns():
    torch.manual_seed(0)
    x = torch.randn(2000, 2).exp()
    x = torch.cat([x, x.sum(1, keepdim=True) + 0.05 * torch.randn(2000, 1)], 1)
    density = AnyOrder(network, (3,), [False] * 3)
    density.initialise(x)
    rows = x[:500].clone()
    rows[:, 2] = NAN
    prediction = density.eval()._predict(density._encode(rows), ~rows.isnan(), None).gaussians
    errors = [
        (density.scores.decode(z)[:, 2] - x[:500, 2]).abs().median() for z in (prediction.linear_mean, prediction.mean)
    ]
    assert errors[0] < 0.1 and errors[1] > 3 * errors[0]
    fitted = density.log_prob(x).mean()
    density.gaussians.log_odds.fill_(-20.0)
    assert fitted > density.log_prob(x).mean() + 0.05
