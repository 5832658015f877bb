"""Conditionals that densities know exactly, against enumeration: any-order, mixtures, and targets given inputs."""

import math

import polars as pl
import pytest
import torch

import loglik
from loglik.autoregressive import AnyOrder
from loglik.conditioning import Condition, HasColumns, contains, draw_given
from loglik.mixture import Mixture
from loglik.networks.mlp import ResidualMLP
from loglik.tasks import evaluate_given, log_prob_given, sample_given

NAN = torch.nan
SIZES = (3, 2, 4)


def codes(n):
    a = torch.randint(3, (n,))
    b = (torch.rand(n) < 0.2 + 0.3 * a).long()
    return torch.stack([a, b, (a + b + torch.randint(2, (n,))) % 4], 1).float()


def trained(kind):
    torch.manual_seed(0)
    x = codes(500)
    if kind == "any-order":
        network = lambda i, o: ResidualMLP(i, o, width=16, depth=1)  # noqa: E731
        density = AnyOrder(network, (3,), [True] * 3, categories=SIZES)
    else:
        density = Mixture([True] * 3, SIZES, components=5)
    density.initialise(x)
    optimiser = torch.optim.Adam(density.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        density.loss(x).backward()
        optimiser.step()
    return density.eval()


@pytest.mark.parametrize("kind", ["any-order", "mixture"])
@pytest.mark.parametrize(
    "conditions",
    [
        [Condition(1, ((1, 1),), True)],
        [Condition(0, ((0, 1),), True), Condition(2, ((0, 0), (3, 3)), True)],
        [Condition(2, ((1, math.inf),), True), Condition(1, ((0, 0),), True)],
    ],
)
def test_draws_under_conditions_are_those_of_the_enumerated_table(kind, conditions):
    density = trained(kind)
    assert isinstance(density, HasColumns)
    grid = torch.cartesian_prod(*[torch.arange(float(size)) for size in SIZES])
    first = [c.column for c in sorted(conditions, key=lambda c: (not c.is_value, c.column))]
    order = [*first, *[d for d in range(3) if d not in first]]
    log_p = torch.zeros(len(grid), dtype=torch.float64)
    for i, d in enumerate(order):  # the order in which the columns are drawn
        known = torch.full_like(grid, NAN)
        known[:, order[:i]] = grid[:, order[:i]]
        log_p += density.column(known, d).log_prob(grid[:, d]).double()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    p = log_p.exp() * contains(conditions, grid)
    torch.manual_seed(1)
    drawn = draw_given(density, conditions, 4000, discrete=[True] * 3, categories=SIZES)
    assert contains(conditions, drawn.x).all()
    assert drawn.log_mass == pytest.approx(p.sum().log().item(), abs=0.1)
    found = (drawn.x[:, None] == grid[p > 0]).all(2).double().mean(0)
    expected = p[p > 0] / p.sum()
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


def test_a_mixture_of_numbers_knows_its_conditionals():
    """Bayes' rule by its own marginals, and probabilities by its own samples."""
    torch.manual_seed(0)
    z = torch.randn(800)
    x = torch.stack([z, (3 * z + torch.randn(800)).round(), (z > 0).float()], 1)
    density = Mixture([False, True, True], [0, 0, 2], components=6)
    density.initialise(x)
    density.eval()
    rows = x[:50]
    for d in range(3):
        others = rows.clone()
        others[:, d] = NAN
        expected = density.log_prob(rows) - density.log_prob(others)
        torch.testing.assert_close(density.column(rows, d).log_prob(rows[:, d]).float(), expected, atol=1e-4, rtol=1e-4)
    samples = density.sample(20_000)
    for d, low, high in ((0, -0.5, 0.7), (1, 1.0, 4.0), (2, 1.0, 1.0)):
        column = density.column(torch.full((1, 3), NAN), d)
        p = column.probability(torch.tensor([low]), torch.tensor([high])).item()
        share = ((samples[:, d] >= low) & (samples[:, d] <= high)).double().mean().item()
        assert abs(p - share) < 4 * math.sqrt(p * (1 - p) / 20_000)
    gaps = rows.masked_fill(torch.rand(50, 3) < 0.5, NAN)
    filled = density.fill(gaps)
    assert torch.equal(filled[~gaps.isnan()], gaps[~gaps.isnan()]) and filled.isfinite().all()


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(0)
    z = torch.randn(400)
    kind = ["ab"[int(v > 0)] for v in z]
    return pl.DataFrame({"x": z.tolist(), "kind": kind, "y": (2 * z + 0.1 * torch.randn(400)).tolist()})


def test_targets_are_drawn_given_all_inputs(table):
    run = loglik.fit("mixture", table, target="y", max_steps=30, progress=False)
    drawn = sample_given(run, 200, {"x": 1.0, "kind": "b"})
    assert drawn.x.shape == (200, 1) and drawn.draws.method == "exact"
    assert (sample_given(run, 50, {"x": 1.0, "kind": "b", "y": (0, None)}).x >= 0).all()
    for given, message in (
        ({"x": 1.0}, "give each input a value; without one are kind"),
        ({"x": (0, 1), "kind": "b"}, "column 'x' is an input of this run: give it one value"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_given(run, 5, given)


def test_columns_of_an_any_order_run_are_scored_exactly(table):
    run = loglik.fit("autoregressive:any-order", table, max_steps=20, width=16, progress=False)
    score = evaluate_given(run, table, given=["x"], of=["y"])
    assert score.bound == "exact" and score.effective is None
    x = run.data_for(table).split("all").x[:20]
    x[0, 0] = NAN
    known = log_prob_given(run, x, given=["x"])
    given = torch.tensor([c.name == "x" for c in run.spec.columns])
    torch.testing.assert_close(known, run.density.conditional_log_prob(x, given).double())
    drawn = sample_given(run, 100, {"x": 0.5, "kind": "a"})
    assert drawn.draws.method == "exact" and (drawn.x[:, 0] == 0.5).all()
