"""Bins: a mixed table's columns as tokens, with a density that integrates and sums to one."""

import itertools

import pytest
import torch
from torch import nn

from helpers.densities import MIXED, perturb
from loglik.autoregressive import Autoregressive
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound
from loglik.networks import CausalTransformer
from loglik.recipes import Unsuitable, build
from loglik.transforms import Bins

NUMERIC, INTEGER, COLOUR, ALIVE = MIXED


def table(*columns: Column, n: int = 400) -> tuple[DataSpec, torch.Tensor]:
    """Dependent columns: heavy tails about 40, counts, codes."""
    base = torch.randn(n, 1)
    rows = base + 0.5 * torch.randn(n, len(columns))
    for d, column in enumerate(columns):
        if column.type == "numeric":
            rows[:, d] = 40 + rows[:, d].exp()
        else:
            rows[:, d] = rows[:, d].mul(2).floor().clamp(0, (len(column.categories) or 30) - 1)
    return DataSpec(kind="table", event_shape=(len(columns),), columns=columns), rows


def grid(density, d: int, column: Column) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points of a column and their quadrature weights: midpoints within bins, codes, or integers."""
    if column.categories:
        return torch.arange(len(column.categories)).double(), torch.ones(len(column.categories)).double()
    bins = density.transforms[0]
    edges, scale = bins.edges[d, : bins.bins + 1], bins.tail_scale[d]
    if column.type == "integer":
        points = torch.arange(int(edges[0] - 60 * scale[0]) - 1, int(edges[-1] + 60 * scale[1]) + 1).double()
        return points, torch.ones_like(points)
    steps = torch.linspace(0, 60, 3000, dtype=torch.float64)
    ends = torch.cat([edges[0] - scale[0] * steps.flip(0), edges[1:-1], edges[-1] + scale[1] * steps])
    return (ends[1:] + ends[:-1]) / 2, ends.diff()


@pytest.mark.parametrize(
    "columns", [(c,) for c in MIXED] + list(itertools.permutations(MIXED, 2)), ids=lambda c: "-".join(x.type for x in c)
)
def test_a_table_of_one_or_two_columns_sums_to_one(float64, columns):
    """The marginal over the second column is the density of the first."""
    spec, x = table(*columns)
    density = build("autoregressive", spec, width=8, depth=1, heads=2, bins=6)
    density.initialise(x)
    perturb(density, 0.3)
    density.eval()
    assert density.bound is Bound.EXACT and density.discrete == all(spec.discrete_dims)
    grids = [grid(density, d, column) for d, column in enumerate(columns)]
    if len(columns) == 1:
        points, weights = grids[0]
        assert abs((density.log_prob(points[:, None]).exp() * weights).sum() - 1) < 1e-4
        return
    # p(x, y) depends on x through its bin only, apart from a factor: a point of each bin for one, all for the other
    total = torch.zeros(())
    (first, weights), (second, inner) = grids
    bins = density.transforms[0]
    k = bins.encode(torch.stack([first, second[:1].expand_as(first)], 1))[0][:, 0]
    for token in k.unique():
        own = k == token
        one = first[own][:1]
        rows = torch.stack([one.expand_as(second), second], 1)
        joint = (density.log_prob(rows).exp() * inner).sum()
        within = torch.stack([first[own], second[:1].expand(int(own.sum()))], 1)
        factor = (density.log_prob(within) - density.log_prob(rows[:1])).exp()
        total += joint * (factor * weights[own]).sum()
    assert abs(total - 1) < 1e-4


def test_every_real_number_has_a_density_and_no_code_beyond_the_categories():
    spec, x = table(*MIXED)
    density = build("autoregressive", spec, width=8, depth=1, heads=2)
    density.initialise(x)
    far = x[:4].clone()
    far[:, 0] = torch.tensor([-1e4, 1e4, 39.0, 1e3])
    far[:, 1] = torch.tensor([-500.0, 900.0, 0.0, 31.0])
    assert density.log_prob(far).isfinite().all()
    far[2, 2] = 3
    with pytest.raises(ValueError, match=r"column 2 must hold codes 0 ... 2, got 3"):
        density.log_prob(far)


def test_samples_follow_the_density(float64):
    """Within each bin of a real column uniformly, and tails with the scale that the data have."""
    _, x = table(NUMERIC, n=5000)
    bins = Bins((1,), (False,), bins=4)
    bins.initialise(x)
    assert bins.levels == 6 and bins.allowed.all()
    for token in range(6):
        z = torch.full((20_000, 1), token)
        drawn = bins.decode(z)
        again, log_p = bins.encode(drawn)
        assert torch.equal(again, z)
        low, high = bins.edges[0, max(token - 1, 0)], bins.edges[0, min(token, 4)]
        if 1 <= token <= 4:
            torch.testing.assert_close(log_p, torch.full_like(log_p, -(high - low).log()))
            assert abs(drawn.mean() - (low + high) / 2) < 0.02 * (high - low)
        else:
            scale = bins.tail_scale[0, int(token > 0)]
            excess = (drawn[:, 0] - low).abs()
            assert abs(excess.mean() / scale - 1) < 0.03
            torch.testing.assert_close(log_p, -excess / scale - scale.log())


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("kind", ["constant", "two", "spike", "wide", "far"])
def test_every_column_gets_its_bins(kind, integer):
    """Edges are ascending and distinct, and as many as requested, for any values."""
    x = {
        "constant": torch.full((50,), 7.0),
        "two": torch.tensor([1.0, 3.0]).repeat(20),
        "spike": torch.cat([torch.zeros(90), torch.arange(1.0, 11.0)]),
        "wide": torch.randn(200).exp() * 1000,
        "far": 1e7 + torch.arange(60.0),
    }[kind]
    x = (x.floor() if integer else x)[:, None]
    bins = Bins((1,), (integer,), bins=16)
    bins.initialise(x)
    edges = bins.edges[0]
    assert edges.shape == (17,) and (edges.diff() > 0).all()
    assert not integer or torch.equal(edges, edges.floor())
    _, log_p = bins.encode(x)
    assert log_p.isfinite().all() and (not integer or (log_p <= 0).all())
    drawn = bins.decode(bins.encode(x)[0])
    assert drawn.shape == x.shape and (not integer or torch.equal(drawn, drawn.floor()))


def test_dependence_between_columns_is_learned():
    """Two equal columns have a higher likelihood together than independently."""
    spec, x = table(NUMERIC, NUMERIC, n=2000)
    density = build("autoregressive", spec, width=32, depth=1, heads=2, bins=16, dropout=0.0)
    density.initialise(x)
    start = density.log_prob(x[1000:]).mean()
    optimizer = torch.optim.Adam(density.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        density.loss(x[:1000]).backward()
        optimizer.step()
    assert density.eval().log_prob(x[1000:]).mean() > start + 0.3


def test_wide_tables_and_wrong_arguments_are_refused():
    wide = DataSpec(kind="array", event_shape=(9, 9))
    with pytest.raises(Unsuitable, match="at most 64 numbers and these have 81; use flow"):
        build("autoregressive", wide)
    with pytest.raises(ValueError, match="use 2 discrete_dims and categories, got 1 and 2"):
        Bins((2,), (True,))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        Bins((1,), (True,), bins=0)
    assert Autoregressive(CausalTransformer(8, 1, 2), (1,), 3, context=nn.Embedding(2, 8)).tokens is None


def mass(bins: Bins, points: torch.Tensor, weights: torch.Tensor | float) -> torch.Tensor:
    """Return the sum over all bins of the probability that each gives to its points."""
    token, log_p = bins.encode(points[:, None])
    return torch.zeros(bins.levels).index_add(0, token[:, 0], log_p.exp() * weights)


@pytest.mark.parametrize("bins", [8, 400])
@pytest.mark.parametrize("integer", [False, True])
def test_repeated_values_have_probabilities_of_their_own(float64, integer, bins):
    """Each bin's distribution sums to one, and samples repeat the values of the data as often as the data do."""
    step = 1.0 if integer else 0.01
    steps = torch.randint(0, 120, (4000,))
    steps[:1500] = 57
    x = (steps * 5 * step).float().double()  # of every five numbers one
    found = Bins((1,), (integer,), bins=bins)
    found.initialise(x[:, None])
    low, high = float(found.edges[0, 0]), float(found.edges[0, bins])
    fine = 1.0 if integer else step / 200
    points = torch.arange(low, high, fine) + (0 if integer else fine / 2)
    total = mass(found, points, fine)[1 : bins + 1]
    assert (total - 1).abs().max() < 0.02
    token, _ = found.encode(x[:, None])
    drawn = found.decode(token)[:, 0]
    inside = (x >= low) & (x < high)
    assert torch.equal(found.encode(drawn[:, None])[0], token)
    assert torch.isin(drawn[inside], x.unique()).double().mean() > 0.95
    assert abs((drawn == 57 * 5 * step).double().mean() - (x == 57 * 5 * step).double().mean()) < 0.01


def test_the_zeros_and_codes_of_a_real_column_are_drawn_exactly(float64):
    """A column of real numbers of which 30 % are 0 and 5 % are 9999, and no other value is repeated."""
    x = torch.rand(2000).mul(50).add(1)
    x[:600], x[600:700] = 0.0, 9999.0
    bins = Bins((1,), (False,), bins=16)
    bins.initialise(x[:, None])
    token, log_p = bins.encode(x[:, None])
    drawn = bins.decode(token)[:, 0]
    assert abs((drawn == 0).double().mean() - 0.3) < 0.01 and abs((drawn == 9999).double().mean() - 0.05) < 0.01
    assert log_p.isfinite().all() and log_p[:600].mean() > log_p[700:].mean() + 1


def test_numbers_that_do_not_repeat_keep_their_bins():
    x = torch.randn(500, 1)
    bins = Bins((1,), (False,), bins=16)
    bins.initialise(x)
    assert (bins.rest == 1).all() and bins.repeated.isinf().all()
    torch.testing.assert_close(
        bins.edges[0, :17].float(), x[:, 0].sort().values[torch.linspace(2.495, 496.505, 17).long()]
    )
