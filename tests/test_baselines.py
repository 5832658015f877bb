"""Independent: histograms with tails that sum and integrate to one."""

import math

import pytest
import torch

from helpers.densities import check_sums_to_one, events_of
from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.files import read_tensors, write_tensors


def test_known_levels_are_smoothed_counts():
    density = Independent((2,), (True, True), levels=3)
    density.initialise(torch.tensor([[0, 2], [0, 2], [1, 2]], dtype=torch.uint8))
    p = torch.tensor([[2.5, 1.5, 0.5], [0.5, 0.5, 3.5]], dtype=torch.float64) / 4.5
    events = events_of(DataSpec(kind="array", event_shape=(2,), levels=3))
    torch.testing.assert_close(density.log_prob(events).exp(), (p[0][:, None] * p[1]).flatten())
    check_sums_to_one(density, events)
    assert density.discrete and density.bound is Bound.EXACT


def test_without_data_it_is_uniform():
    density = Independent((2,), (True, True), levels=4)
    assert density.log_prob(torch.tensor([[0, 3]])).item() == pytest.approx(-2 * math.log(4))


def test_text_shares_one_histogram():
    density = Independent((3,), (True,) * 3, levels=4, shared=True)
    density.initialise(torch.tensor([[0, 1, 0], [2, 0, 0]], dtype=torch.uint8))
    p = torch.tensor([4.5, 1.5, 1.5, 0.5], dtype=torch.float64) / 8
    x = torch.tensor([[0, 3, 1], [2, 2, 0]], dtype=torch.uint8)
    torch.testing.assert_close(density.log_prob(x), p.log()[x.long()].sum(1))
    check_sums_to_one(density, events_of(DataSpec(kind="text", event_shape=(3,), levels=4)))
    share = torch.bincount(density.sample(5000).flatten().long(), minlength=4) / 15_000
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 15_000).sqrt()).all()


@pytest.mark.parametrize("spread", [0.3, 3.0, 200.0])
def test_open_integers_sum_to_one(spread):
    """The sum runs over all integers with mass, both tails included."""
    density = Independent((1,), (True,), bins=8)
    density.initialise((spread * torch.randn(1000, 1)).round() - 17)
    x = torch.arange(-30_000, 30_000).unsqueeze(1)
    log_p = density.log_prob(x.float())
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_p.isfinite().all() and density.discrete
    below, above = (density.log_prob(torch.tensor([[v]])) for v in (-1e6, 1e6))
    assert below.isfinite() and above.isfinite()


@pytest.mark.parametrize("n", [1, 5, 1000])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e5])
def test_real_numbers_integrate_to_one(spread, n):
    """Bins exactly, tails by quadrature."""
    density = Independent((1,), (False,), bins=16)
    density.initialise(3 * spread + spread * torch.randn(n, 1))
    edges, scale = density.edges[0], density.tail_scale[0]
    middles = (edges[1:] + edges[:-1]) / 2
    inside = (density.log_prob(middles[:, None]).exp() * edges.diff()).sum()
    steps = (torch.arange(40_000, dtype=torch.float64) + 0.5) * 1e-3  # in units of the tail's scale, to e^-40
    below = density.log_prob((edges[0] - scale[0] * steps)[:, None]).exp().sum() * scale[0] * 1e-3
    above = density.log_prob((edges[-1] + scale[1] * steps)[:, None]).exp().sum() * scale[1] * 1e-3
    assert below > 0 and above > 0
    assert (inside + below + above).item() == pytest.approx(1, abs=1e-6)


def test_mixed_columns_are_a_product():
    """The sum over an integer column times the integral over a real column is one."""
    density = Independent((2,), (True, False), bins=8)
    rows = torch.randn(400, 2) * torch.tensor([3.0, 5.0])
    rows[:, 0] = rows[:, 0].round()
    density.initialise(rows)
    grid = torch.linspace(-150, 150, 6001, dtype=torch.float64)
    integers = torch.arange(-100, 101, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    mass = density.log_prob(torch.cartesian_prod(integers, middle)).exp().sum() * grid.diff()[0]
    assert mass.item() == pytest.approx(1, abs=2e-3) and not density.discrete


@pytest.mark.parametrize("value", [0.0, -3.0, 1e7])
@pytest.mark.parametrize("integer", [True, False])
def test_constant_columns_are_finite(value, integer):
    density = Independent((1,), (integer,), bins=8)
    density.initialise(torch.full((50, 1), value))
    log_p = density.log_prob(torch.tensor([[value], [value + 1], [value - 1e6]]))
    assert log_p.isfinite().all() and log_p[0] > log_p[1] > log_p[2]
    drawn = density.sample(200)
    assert ((drawn - value).abs() < 1).double().mean() > 0.8


def test_samples_are_like_the_data():
    rows = torch.randn(2000, 2) * torch.tensor([3.0, 0.01]) + torch.tensor([100.0, 5.0])
    rows[:, 0] = rows[:, 0].round()
    density = Independent((2,), (True, False))
    density.initialise(rows)
    drawn = density.sample(20_000)
    assert torch.equal(drawn[:, 0], drawn[:, 0].round()) and not torch.equal(drawn[:, 1], drawn[:, 1].round())
    places = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    apart = (drawn.quantile(places, 0) - rows.quantile(places, 0)).abs() / rows.std(0)
    assert apart[:, 0].max() < 0.4 and apart[:, 1].max() < 0.1  # an integer is a third of a standard deviation


def test_samples_follow_the_tails():
    density = Independent((1,), (True,), bins=4)
    density.initialise((3 * torch.randn(500, 1)).round())
    drawn = density.sample(50_000).squeeze(1)
    for value in range(-12, 13):
        p = density.log_prob(torch.tensor([[float(value)]])).exp().item()
        share = (drawn == value).double().mean().item()
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 50_000)


# ---- by hand


def test_codes_are_smoothed_counts_and_nothing_else():
    """P(k) = (n_k + 1/2) / (N + C/2), in a product over columns; a code that does not exist is refused."""
    density = Independent((3,), (True, True, True), categories=(2, 3, 1))
    rows = torch.tensor([[0, 2, 0], [1, 2, 0], [1, 0, 0], [1, 2, 0], [1, 2, 0]]).float()
    density.initialise(rows)
    first, second = torch.tensor([1.5, 4.5]).double() / 6, torch.tensor([1.5, 0.5, 4.5]).double() / 6.5
    p = torch.outer(first, second).flatten()
    events = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0), torch.zeros(1))
    torch.testing.assert_close(density.log_prob(events).exp(), p, rtol=0, atol=1e-9)
    assert density.discrete
    drawn = density.sample(20_000)
    share = (drawn[:, None] == events).all(-1).double().mean(0)
    assert share.sum() == 1 and ((share - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()
    with pytest.raises(ValueError, match=r"column 1 must hold codes 0 \.\.\. 2, got 3"):
        density.log_prob(torch.tensor([[0.0, 3.0, 0.0]]))


def leave_one_out_fit(values: list[float], edges: list[float], bandwidth: float, pseudo: float) -> tuple:
    """Return masses of bins, tails, and the leave-one-out score of a fit."""
    m = len(edges) - 1
    bins = [sum(v >= edge for edge in edges) - 1 for v in values]
    counts = [bins.count(k) for k in range(m)]
    below, above = [v for v in values if v < edges[0]], [v for v in values if v >= edges[-1]]

    def weight(j: int, k: int) -> float:
        share = lambda i: math.exp(-0.5 * ((j - i) / (bandwidth or 1e-3)) ** 2)  # noqa: E731
        return share(k) / sum(share(i) for i in range(m))

    kernel = [[weight(j, k) for k in range(m)] for j in range(m)]
    total = sum(counts) + pseudo * m + len(below) + len(above) + 1.0
    masses = [(sum(counts[j] * kernel[j][k] for j in range(m)) + pseudo) / total for k in range(m)]
    score = 0.0
    for k in bins:
        if 0 <= k < m:
            left = sum((counts[j] - (j == k)) * kernel[j][k] for j in range(m)) + pseudo
            score += math.log(left / total / (edges[k + 1] - edges[k]))
    tails = []
    for beyond in ([edges[0] - v for v in below], [v - edges[-1] for v in above]):
        count = len(beyond) + 0.5
        scale = (sum(beyond) + 0.5 * (edges[-1] - edges[0]) / m) / count
        score += len(beyond) * (math.log(count / total) - math.log(scale)) - sum(beyond) / scale
        tails.append((count / total, scale))
    return masses, tails, score


@pytest.mark.parametrize("skewed", [False, True])
def test_a_real_column_is_the_best_of_the_smoothed_histograms(skewed):
    """Masses and tails agree to 1e-9 with a computation in plain loops."""
    m, n = 8, 120
    x = torch.randn(n, 1, dtype=torch.float64)
    values = (x.exp() if skewed else x).float().double()
    density = Independent((1,), (False,), bins=m)
    density.initialise(values)
    ordered = sorted(values.flatten().tolist())
    low, high = ordered[0], ordered[-1]  # half a percent of 120 rows is 0 rows
    even = [low + (high - low) * j / m for j in range(m + 1)]
    quantiles = [0.9 * ordered[round(j / m * (n - 1))] + 0.1 * even[j] for j in range(m + 1)]
    fits = [
        (*leave_one_out_fit(ordered, edges, bandwidth, pseudo), edges)
        for edges in (even, quantiles)
        for bandwidth in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
        for pseudo in (0.5, 1 / m)
    ]
    masses, tails, _, edges = max(fits, key=lambda fit: fit[2])
    assert (edges is quantiles) == skewed
    middles = torch.tensor([[(a + b) / 2] for a, b in zip(edges[:-1], edges[1:], strict=True)], dtype=torch.float64)
    truth = [mass / (b - a) for mass, a, b in zip(masses, edges[:-1], edges[1:], strict=True)]
    assert density.log_prob(middles).exp().tolist() == pytest.approx(truth, abs=1e-9)
    far = torch.tensor([[low - 0.3], [high + 0.7]], dtype=torch.float64)
    truth = [mass / scale * math.exp(-d / scale) for (mass, scale), d in zip(tails, (0.3, 0.7), strict=True)]
    assert density.log_prob(far).exp().tolist() == pytest.approx(truth, abs=1e-9)


def test_an_integer_column_with_gaps_has_a_mass_at_each_integer():
    """With far more rows than integers there is no smoothing: counts, pseudo-counts, and two tails."""
    values = torch.tensor([0.0] * 500 + [5.0] * 300 + [9.0] * 200).unsqueeze(1)
    density = Independent((1,), (True,))
    density.initialise(values)
    x = torch.arange(0.0, 10.0).unsqueeze(1)
    counts = torch.bincount(values.flatten().long(), minlength=10).double()
    truths = [(counts + a) / (1000 + 10 * a + 1.0) for a in (0.5, 0.1)]  # two tails of half a count
    p = density.log_prob(x).exp()
    assert min((p - truth).abs().max() for truth in truths) < 1e-9
    assert density.log_prob(torch.arange(-500.0, 500.0).unsqueeze(1)).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_columns_with_fewer_integers_than_bins_are_read_from_a_file(tmp_path):
    """All columns are integers, so that no fresh edge would be infinite but for the bins that are not used."""
    values = torch.arange(60.0)
    density, fresh = (Independent((2,), (True, True)) for _ in range(2))
    density.initialise(torch.stack([values, values.square()], 1))
    write_tensors(tmp_path / "model.safetensors", density.state_dict())
    fresh.load_state_dict(read_tensors(tmp_path / "model.safetensors", fresh.state_dict()))
    rows = density.sample(100)
    torch.testing.assert_close(fresh.log_prob(rows), density.log_prob(rows))


def test_a_smooth_column_is_nearly_as_well_modelled_as_by_its_own_family():
    """A Gaussian column from 500 rows: at most 0.03 nats from the truth, where 64 raw bins lose 0.06."""
    density = Independent((1,), (False,))
    density.initialise(torch.randn(500, 1))
    x = torch.randn(20_000, 1)
    lost = (torch.distributions.Normal(0.0, 1.0).log_prob(x).squeeze(1) - density.log_prob(x)).mean()
    assert 0 < lost < 0.03
