"""The mixture density: it is normalised, marginalises, and its marginals are those of its samples."""

from __future__ import annotations

import pytest
import torch

from loglik.data.spec import Column, DataSpec
from loglik.mixture import Mixture
from loglik.mixture.asinh import Asinh
from loglik.mixture.normal import interval_log_prob
from loglik.networks.columns import ColumnFeatures
from loglik.recipes import Unsuitable, build


def mixed(n: int = 500) -> torch.Tensor:
    torch.manual_seed(0)
    code = torch.randint(3, (n,)).float()
    return torch.stack([torch.randn(n).exp() * (code + 1), torch.poisson(2 + 3 * code), code], 1)


def trained(density: Mixture, x: torch.Tensor, context: torch.Tensor | None = None, steps: int = 60) -> Mixture:
    density.initialise(x, context)
    optimizer = torch.optim.Adam(density.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        density.loss(x, context).backward()
        optimizer.step()
    return density.eval()


@pytest.fixture(scope="module")
def joint() -> Mixture:
    torch.manual_seed(3)
    return trained(Mixture((False, True, True), (0, 0, 3), components=6), mixed())


@pytest.fixture(scope="module")
def conditional() -> Mixture:
    torch.manual_seed(4)
    x = mixed()
    inputs = ColumnFeatures([3], bins=4)
    return trained(Mixture((False, True), (0, 0), inputs=inputs, members=3, width=16), x[:, :2], x[:, 2:])


def test_the_probabilities_of_a_mixture_integrate_to_one(joint: Mixture) -> None:
    grid, counts = torch.linspace(-20, 80, 1501), torch.arange(-8.0, 30.0)
    total = 0.0
    for code in range(3):
        for count in counts:
            x = torch.stack([grid, torch.full_like(grid, count), torch.full_like(grid, float(code))], 1)
            total += torch.trapezoid(joint.log_prob(x).double().exp(), grid.double()).item()
    assert total == pytest.approx(1.0, abs=0.02)


def test_missing_values_are_marginalised(joint: Mixture) -> None:
    x = mixed(6)
    hidden = x.clone()
    hidden[:, 2] = torch.nan
    by_code = torch.stack([x.clone().index_fill_(1, torch.tensor([2]), c) for c in range(3)])
    expected = torch.stack([joint.log_prob(rows) for rows in by_code]).logsumexp(0)
    assert torch.allclose(joint.log_prob(hidden), expected, atol=1e-4)
    counts = torch.arange(-30.0, 90.0)
    rows = x[:1].repeat(len(counts), 1)
    rows[:, 1] = counts
    x[0, 1] = torch.nan
    assert joint.log_prob(x[:1]).item() == pytest.approx(joint.log_prob(rows).logsumexp(0).item(), abs=1e-3)
    assert joint.log_prob(torch.full((1, 3), torch.nan)).item() == pytest.approx(0.0, abs=1e-5)


def test_missing_values_leave_finite_gradients(joint: Mixture) -> None:
    x = mixed(8)
    x[0, 0] = x[1, 1] = x[2, 2] = torch.nan
    joint.zero_grad()
    joint.loss(x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in joint.parameters())


def test_the_ensemble_is_the_mean_of_the_members(conditional: Mixture) -> None:
    x = mixed(5)
    members = conditional._by_member(x[:, :2], x[:, 2:])
    assert members.shape == (3, 5)
    assert torch.allclose(conditional.log_prob(x[:, :2], x[:, 2:]).exp(), members.exp().mean(0), rtol=1e-4)


def test_the_marginals_are_those_of_the_samples(conditional: Mixture) -> None:
    torch.manual_seed(7)
    context = torch.full((20_000, 1), 1.0)
    with torch.no_grad():
        drawn = conditional.sample(20_000, context).double()
    one = context[:1]
    quantiles = conditional.marginal_quantiles(1, [0.1, 0.5, 0.9], one)[0]
    mean, std = (moment[0] for moment in conditional.marginal_moments(1, one))
    cdf = conditional.marginal_cdf(drawn[:1], one)[0]
    assert torch.allclose((drawn <= drawn[:1]).double().mean(0), cdf, atol=0.015)
    assert torch.allclose(
        (drawn[:, :1] <= quantiles[:, 0]).double().mean(0), torch.tensor([0.1, 0.5, 0.9]).double(), atol=0.015
    )
    assert torch.allclose(drawn.mean(0), mean, rtol=0.05) and torch.allclose(drawn.std(0), std, rtol=0.15)
    assert torch.equal(drawn[:, 1], drawn[:, 1].round()) and torch.equal(quantiles[:, 1], quantiles[:, 1].round())


def test_probabilities_of_codes_sum_to_one(joint: Mixture) -> None:
    p = joint.marginal_probabilities(2)[2]
    assert p.shape == (2, 3) and torch.allclose(p.sum(1), torch.ones(2, dtype=p.dtype))
    x = torch.full((3, 3), torch.nan)
    x[:, 2] = torch.arange(3)
    assert torch.allclose(joint.log_prob(x).double().exp(), p[0], atol=1e-5)


def test_the_map_inverts_and_its_slope_is_right() -> None:
    torch.manual_seed(0)
    y = torch.randn(300, 2, dtype=torch.float64).exp()
    map = Asinh(2)
    map.initialise(y)
    u, log_slope = map.encode(y)
    assert torch.allclose(map.decode(u), y)
    (grad,) = torch.autograd.grad(map.encode(y.requires_grad_())[0].sum(), y)
    assert torch.allclose(grad.log(), log_slope)
    assert map.width[0] < 0.2 * (y.max() - y.min())  # a lognormal is nearly normal after a logarithm


def test_a_constant_column_has_finite_gradients() -> None:
    density = Mixture([True, False], [0, 0], components=4)
    x = torch.stack([torch.full((50,), 2013.0), torch.randn(50)], 1)
    density.initialise(x)
    density.loss(x).backward()
    assert density.offsets.grad is not None and density.offsets.grad.isfinite().all()
    assert (density.sample(100)[:, 0] - 2013).abs().max() <= 5


def test_the_components_of_a_joint_mixture_are_stored_once(joint: Mixture) -> None:
    """Not once for each row: 16,384 rows of a category with 4,043 levels took 16 GB."""
    parts = joint.mixture(1000)
    for part in (parts.log_weight, parts.mean, *parts.log_codes):
        assert part.shape[1] == 1000 and part.stride(1) == 0


def test_the_mass_of_an_interval_keeps_its_digits() -> None:
    low = torch.tensor([-40.0, -0.1, 30.0, 2.0])
    high = low + torch.tensor([1.0, 0.2, 1.0, 1e-3])
    exact = torch.special.ndtr(high.double()) - torch.special.ndtr(low.double())
    found = interval_log_prob(low, high)
    assert found.isfinite().all()
    assert torch.allclose(found[[1, 3]].double(), exact[[1, 3]].log(), atol=2e-3)


def test_calibration_raises_the_validation_likelihood(conditional: Mixture) -> None:
    x = mixed(300)
    before = conditional.log_prob(x[:, :2], x[:, 2:]).mean().item()
    conditional.calibrate(x[:, :2], x[:, 2:])
    after = conditional.log_prob(x[:, :2], x[:, 2:]).mean().item()
    conditional.log_temperature.zero_()
    assert after >= before


def test_the_recipe_refuses_images() -> None:
    with pytest.raises(Unsuitable, match="mixture models tables"):
        build("mixture", DataSpec(kind="image", event_shape=(1, 8, 8), levels=17))
    table = DataSpec(kind="table", event_shape=(1,), columns=(Column(name="a", type="numeric"),))
    assert build("mixture", table).marginalises


def repeated(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs whose rows come in pairs, and targets that only the other row of a pair tells."""
    torch.manual_seed(5)
    inputs = torch.randn(n // 2, 3).repeat(2, 1)
    targets = torch.stack([torch.randn(n // 2), torch.randint(3, (n // 2,)).float()], 1).repeat(2, 1)
    return targets, inputs


def remembering(targets: torch.Tensor, inputs: torch.Tensor, rows: int = 256) -> Mixture:
    torch.manual_seed(6)
    features = ColumnFeatures([0, 0, 0], bins=4)
    density = Mixture(
        (False, True), (0, 3), inputs=features, members=2, width=8, neighbours=rows, input_columns=3, components=2
    )
    density.initialise(targets, inputs)
    return density.eval()


def test_neighbours_are_used_where_rows_repeat() -> None:
    targets, inputs = repeated()
    density = remembering(targets[:200], inputs[:200])
    alone = density.log_prob(targets[200:], inputs[200:])
    density.calibrate(targets[200:], inputs[200:])
    assert density.neighbours is not None and density.neighbours.used
    assert density.log_prob(targets[200:], inputs[200:]).mean() > alone.mean() + 1
    grid = torch.linspace(-8, 8, 4001)
    rows = [torch.stack([grid, torch.full_like(grid, float(code))], 1) for code in range(3)]
    context = inputs[:1].expand(len(grid), -1)
    total = sum(torch.trapezoid(density.log_prob(x, context).double().exp(), grid.double()).item() for x in rows)
    assert total == pytest.approx(1.0, abs=0.01)
    p = density.marginal_probabilities(1, inputs[:1])[1]
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5) and p.argmax().item() == int(targets[0, 1])
    drawn = density.sample_each(1, 4000, inputs[:1])[0]
    share = (drawn[:, 0] <= targets[0, 0]).double().mean()
    assert share.item() == pytest.approx(density.marginal_cdf(targets[:1], inputs[:1])[0, 0].item(), abs=0.03)


def test_neighbours_are_left_out_where_they_tell_nothing() -> None:
    targets, inputs = repeated()
    density = remembering(targets[:200], inputs[:200])
    density.calibrate(targets[200:].roll(1, 0), inputs[200:])
    assert density.neighbours is not None and not density.neighbours.used


def test_neighbours_are_saved_with_the_weights() -> None:
    targets, inputs = repeated()
    density = remembering(targets[:200], inputs[:200])
    density.calibrate(targets[200:], inputs[200:])
    other = remembering(targets[:200].roll(1, 0), inputs[:200])
    other.load_state_dict(density.state_dict())
    assert torch.equal(other.log_prob(targets[200:], inputs[200:]), density.log_prob(targets[200:], inputs[200:]))
    other.initialise(targets[:200], inputs[:200])
    assert other.neighbours is not None and not other.neighbours.used


def test_more_rows_than_fit_are_remembered_evenly() -> None:
    targets, inputs = repeated()
    density = remembering(targets, inputs, rows=150)
    assert density.neighbours is not None
    assert torch.equal(density.neighbours.x[:134], inputs[::3]) and density.neighbours.count == 134
    distance, near = density._neighbours(inputs[3:4])
    assert near[0, 0] == 1 and distance[0, 0] == 0
