"""The interface: bounds, the standard normal, and how draws of a bound combine."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from helpers.densities import CASES, ready
from loglik.checks import data_checked
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density, StandardNormal, evaluation_mode
from loglik.draws import draw_terms, draw_weights, expand_context
from loglik.recipes import build


def test_the_weakest_bound_wins():
    exact, lower, estimate = Bound.EXACT, Bound.LOWER, Bound.ESTIMATE
    assert Bound.weakest() is exact
    assert Bound.weakest(exact, lower) is lower
    assert Bound.weakest(lower, estimate, exact) is estimate


def test_a_bound_is_its_name_in_json():
    assert [b.value for b in Bound] == ["exact", "lower", "estimate"] and Bound("lower") is Bound.LOWER


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 4)])
def test_standard_normal_is_torchs(float64, shape):
    x = 3 * torch.randn(7, *shape)
    truth = Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(StandardNormal(shape).log_prob(x), truth)


def test_standard_normal_integrates_to_one(float64):
    grid = torch.linspace(-8, 8, 401)
    points = torch.cartesian_prod(grid, grid)
    total = StandardNormal((2,)).log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
    assert abs(total - 1) < 1e-9


def test_standard_normal_samples():
    drawn = StandardNormal((3,)).double().sample(20_000)
    assert drawn.shape == (20_000, 3) and drawn.dtype == torch.float64
    assert drawn.mean(0).abs().max() < 4 / math.sqrt(20_000)
    assert (drawn.cov() if drawn.dim() == 1 else drawn.T.cov() - torch.eye(3)).abs().max() < 0.05


def test_loss_is_minus_the_mean_by_default():
    normal, x = StandardNormal((2,)), torch.randn(9, 2)
    assert normal.loss(x) == -normal.log_prob(x).mean()
    assert normal.terms(x) == {} and normal.importance_weighted and normal.bound is Bound.EXACT


def test_a_density_must_say_what_it_is():
    class Half(Density):
        def log_prob(self, x, context=None, *, samples=1):
            return x.sum(1)

    with pytest.raises(TypeError, match="sample"):
        Half()


def test_context_is_repeated_with_samples_innermost():
    context = torch.tensor([[1, 2], [3, 4]])
    assert expand_context(context, 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert expand_context(None, 5) is None


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
@pytest.mark.parametrize("importance_weighted", [True, False])
def test_draws_combine(float64, importance_weighted, at_once):
    """The log of the mean weight, or the mean of the log-weights, however the draws are cut into calls."""
    table = torch.randn(5, 3)
    draws = [iter(column) for column in table.T]

    def log_weight(rows, context):
        assert torch.equal(rows[:, 0], context)  # every row keeps its own context
        return torch.stack([next(draws[int(row[0])]) for row in rows])

    x = torch.arange(3.0).unsqueeze(1)
    combined = draw_weights(log_weight, x, x[:, 0], 5, importance_weighted=importance_weighted, at_once=at_once)
    truth = table.exp().mean(0).log() if importance_weighted else table.mean(0)
    torch.testing.assert_close(combined, truth)
    draws = [iter(column) for column in table.T]
    terms = draw_terms(
        lambda rows, context: {"a": 3 * (weights := log_weight(rows, context)), "b": -2 * weights},
        x,
        x[:, 0],
        5,
        importance_weighted=importance_weighted,
        at_once=at_once,
    )
    torch.testing.assert_close(terms["b"], -2 * table.mean(0))
    torch.testing.assert_close(sum(terms.values()), truth)
    assert len(terms) == 2 + importance_weighted


def test_arrays_are_converted_to_the_densitys_own_dtype():
    normal = StandardNormal((2,))
    assert normal.log_prob(np.zeros((3, 2))).dtype == torch.float32
    assert normal.double().log_prob([[0, 1], [2, 3]]).dtype == torch.float64
    assert normal.log_prob(np.zeros((3, 2), dtype=">f2")).shape == (3,)
    x = torch.ones(1, 2, requires_grad=True)
    normal.log_prob(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, -torch.ones(1, 2))
    with pytest.raises(ValueError, match="expected numbers, got an array of type <U1: pass each example as numbers"):
        normal.log_prob([["a", "b"]])


def test_a_users_own_density_accepts_arrays_and_samples_without_a_graph():
    class Shifted(Density):
        def __init__(self):
            super().__init__()
            self.event_shape, self.shift = (2,), nn.Parameter(torch.zeros(2))

        def log_prob(self, x, context=None, *, samples=1):
            assert x.dtype is self.shift.dtype and context.dtype is torch.int64
            return -((x - self.shift).square().sum(1))

        def sample(self, n, context=None):
            assert context.dtype is torch.int64
            return self.shift + torch.randn(n, 2)

    density, labels = Shifted(), np.array([0, 1], dtype=np.uint8)
    assert density.loss(np.ones((2, 2)), labels).item() == 2
    assert not density.sample(2, labels).requires_grad
    each = torch.func.vmap(torch.func.grad(lambda row: density.log_prob(row[None], labels[:1])[0]))
    assert torch.equal(each(torch.ones(3, 2)), torch.full((3, 2), -2.0))


def test_no_samples_is_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        draw_weights(lambda x, c: x.sum(1), torch.ones(2, 1), None, 0, importance_weighted=True, at_once=1)


@pytest.mark.parametrize("family", ["independent", "autoregressive", "flow", "vae", "diffusion"])
def test_values_outside_the_levels_are_refused(family):
    """A number for an event that cannot happen would mean nothing."""
    model = build(family, DataSpec(kind="image", event_shape=(1, 2, 2), levels=5))
    right = torch.full((3, 1, 2, 2), 4, dtype=torch.uint8)
    model.initialise(right)
    assert model.log_prob(right).shape == (3,)
    with pytest.raises(ValueError, match=r"data must hold integers 0 \.\.\. 4, got 4 \.\.\. 5"):
        model.log_prob(torch.cat([right, right + 1]))


def test_within_data_checked_no_number_is_read():
    model = build("flow", DataSpec(kind="image", event_shape=(1, 2, 2), levels=5))
    wrong = torch.full((3, 1, 2, 2), 5, dtype=torch.uint8)
    with data_checked():
        model.check(wrong)
        assert model.loss(wrong).shape == ()
        with data_checked():
            pass
        model.check(wrong)
    with pytest.raises(ValueError, match="got 5"):
        model.check(wrong)
    with pytest.raises(RuntimeError, match="inside"), data_checked():
        raise RuntimeError("inside")
    with pytest.raises(ValueError, match="got 5"):
        model.loss(wrong)


@pytest.mark.parametrize("case", [case for case in CASES if case.needs_context or "mixed" in case.spec], ids=str)
def test_labels_and_codes_are_checked_by_every_density(case):
    density, event, context = ready(case)
    density.check(event, context)
    if case.needs_context:
        wrong = (torch.full_like(event, 3), context) if density.event == "y" else (event, torch.full_like(context, 3))
        with pytest.raises(ValueError, match=r"labels must hold integers 0 \.\.\. 2, got 3 \.\.\. 3"):
            density.check(*wrong)
        if density.event == "x":
            with pytest.raises(ValueError, match=r"labels must hold"):
                density.sample(16, wrong[1])
    if case.spec == "mixed table":
        rows = (context if density.event == "y" else event).clone()
        rows[1, 2] = 3
        with pytest.raises(ValueError, match=r"must hold (codes|integers) 0 \.\.\. 2, got "):
            density.check(*((event, rows) if density.event == "y" else (rows, context)))


def test_evaluation_mode_restores_each_part():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    network[1].eval()
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(network):
        assert not any(part.training for part in network.modules())
        raise RuntimeError("inside")
    assert [part.training for part in network.modules()] == [True, True, False, False]
