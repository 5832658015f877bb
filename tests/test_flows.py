"""Flows: the spline against its formula, log-determinants against autograd, and densities that integrate to one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.densities import check_draws_what_it_scores, check_sums_to_one, events_of, perturb, tiny, train
from helpers.needs import peer
from loglik.baselines import Independent
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound, StandardNormal
from loglik.flows import Affine, Coupling, Elementwise, Flow, Spline, rational_quadratic_spline
from loglik.flows.spline import parameters_per_dim
from loglik.flows.spline_bins import MIN_BIN, MIN_DERIVATIVE, UNIT_DERIVATIVE
from loglik.networks import MLP
from loglik.transforms import Dequantize, Logit, Reshape, Scale, Standardise
from loglik.vae import VAE, Gaussian
from test_transforms import jacobian_log_det

BINS, INTERVAL = 5, 3.0
P = parameters_per_dim(BINS)


def spline(x, raw, inverse=False):
    """Of numbers (N,), each with its own parameters (N, P)."""
    y, log_slope = rational_quadratic_spline(x.unsqueeze(1), raw.unsqueeze(2), bound=INTERVAL, inverse=inverse)
    return y.squeeze(1), log_slope.squeeze(1)


def literal_spline(x: float, raw: torch.Tensor) -> tuple[float, float]:
    """Durkan et al. 2019, eq. 4 and 5, for one number."""
    widths, heights, slopes = raw[:BINS], raw[BINS : 2 * BINS], raw[2 * BINS :]
    if not -INTERVAL < x < INTERVAL:
        return x, 0.0
    floor = lambda r: MIN_BIN + (1 - MIN_BIN * BINS) * r.exp() / r.exp().sum()  # noqa: E731
    xs = [-INTERVAL + 2 * INTERVAL * floor(widths)[:k].sum().item() for k in range(BINS + 1)]
    ys = [-INTERVAL + 2 * INTERVAL * floor(heights)[:k].sum().item() for k in range(BINS + 1)]
    inner = (MIN_DERIVATIVE + (1 + (slopes + UNIT_DERIVATIVE).exp()).log()).tolist()
    d = [1.0, *inner, 1.0]
    k = max(k for k in range(BINS) if xs[k] <= x)
    s = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])
    xi = (x - xs[k]) / (xs[k + 1] - xs[k])
    below = s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi)
    y = ys[k] + (ys[k + 1] - ys[k]) * (s * xi**2 + d[k] * xi * (1 - xi)) / below
    slope = s**2 * (d[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + d[k] * (1 - xi) ** 2) / below**2
    return y, torch.tensor(slope).log().item()


def test_spline_is_its_formula(float64):
    x = torch.cat([torch.linspace(-4, 4, 41), torch.tensor([-INTERVAL, INTERVAL])])
    raw = 2 * torch.randn(len(x), P)
    y, log_slope = spline(x, raw)
    truth = [literal_spline(x[i].item(), raw[i]) for i in range(len(x))]
    torch.testing.assert_close(y, torch.tensor([t[0] for t in truth]))
    torch.testing.assert_close(log_slope, torch.tensor([t[1] for t in truth]))


def test_spline_is_zukos(float64):
    zuko = peer("zuko.transforms")
    raw, x = torch.randn(50, P), 3.5 * (2 * torch.rand(50) - 1)
    squash = 690.0  # zuko bounds its parameters softly: w / (1 + |2w / log slope|), undone here
    undo = lambda w, factor: w / (1 - (factor * w / squash).abs())  # noqa: E731
    share = lambda r: (MIN_BIN + (1 - MIN_BIN * BINS) * r.softmax(-1)).log()  # noqa: E731
    slopes = (MIN_DERIVATIVE + nn.functional.softplus(raw[:, 2 * BINS :] + UNIT_DERIVATIVE)).log()
    widths, heights = undo(share(raw[:, :BINS]), 2), undo(share(raw[:, BINS : 2 * BINS]), 2)
    theirs = zuko.MonotonicRQSTransform(widths, heights, undo(slopes, 1), bound=INTERVAL, slope=math.exp(-squash))
    y, log_slope = spline(x, raw)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(log_slope, theirs.log_abs_det_jacobian(x, theirs(x)))


def test_zeros_give_the_identity(float64):
    x = torch.linspace(-4, 4, 50)
    y, log_slope = spline(x, torch.zeros(50, P))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros(50), atol=1e-12, rtol=0)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    x=st.floats(-10, 10),
    raw=st.lists(st.floats(-6, 6), min_size=P, max_size=P),
)
def test_spline_inverts(x, raw):
    x, raw = torch.tensor([x], dtype=torch.float64), torch.tensor([raw], dtype=torch.float64)
    y, log_slope = spline(x, raw)
    back, log_slope_back = spline(y, raw, inverse=True)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_slope_back, -log_slope, rtol=1e-4, atol=1e-4)


def test_spline_rises(float64):
    raw = (3 * torch.randn(1, P)).expand(1001, -1)
    y, log_slope = spline(torch.linspace(-3.5, 3.5, 1001), raw)
    assert (y.diff() > 0).all() and log_slope.isfinite().all()


def coupling(context: int = 0) -> Coupling:
    network = MLP(2, 2 * P, (16,), context=context)
    return Coupling([True, False, True, False], network, Spline(BINS, INTERVAL))


def elementwise(context: int = 0) -> Elementwise:
    network = nn.Linear(context, 4 * P) if context else None
    return Elementwise(4, Spline(BINS, INTERVAL), network=network)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("build", [coupling, elementwise])
def test_log_det_is_the_jacobians_and_decode_inverts(float64, build, context):
    transform = build(context)
    perturb(transform, 0.7)
    x, given_ = 1.5 * torch.randn(8, 4), torch.randn(8, context) if context else None
    z, log_det = transform.encode(x, given_)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x, given_), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(transform.decode(z, given_), x, atol=1e-8, rtol=1e-8)


def test_coupling_keeps_its_conditioning_dimensions():
    transform = coupling()
    perturb(transform, 0.7)
    x = torch.randn(5, 4)
    z, _ = transform.encode(x)
    assert torch.equal(z[:, 1::2], x[:, 1::2]) and not torch.equal(z[:, ::2], x[:, ::2])


@pytest.mark.parametrize("mask", [[True, True], [False, False]])
def test_coupling_needs_both_sides(mask):
    with pytest.raises(ValueError, match="a dimension to transform and one to condition on"):
        Coupling(mask, nn.Identity(), Affine())


def real_flow(dims: int = 4) -> Flow:
    """Return the recipe's flow for a table of real columns in different units, with perturbed weights."""
    flow = tiny("flow", DataSpec(kind="table", event_shape=(dims,), columns=(Column(name="a", type="numeric"),) * dims))
    flow.initialise(torch.arange(float(dims)) + (1 + torch.arange(dims)) * torch.randn(500, dims))
    perturb(flow, 0.1)
    return flow.eval()


def test_a_flow_is_the_change_of_variables(float64):
    flow = real_flow()
    x = torch.arange(4.0) + 2 * torch.randn(6, 4)
    z, log_det = flow.encode(x)
    torch.testing.assert_close(log_det, jacobian_log_det(flow, x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flow.decode(z), x, atol=1e-8, rtol=1e-8)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(x), normal + log_det)
    torch.testing.assert_close(flow.loss(x), -flow.log_prob(x).mean())
    assert flow.bound is Bound.EXACT and not flow.discrete


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_far_events_are_finite(size):
    flow = real_flow()
    x = (size * torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 1]])).requires_grad_()
    log_p = flow.log_prob(x)
    assert log_p.isfinite().all() and (log_p < -100).all()
    log_p.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    assert flow.decode(x.detach()).isfinite().all()


def test_a_flow_integrates_to_one(float64):
    flow = real_flow(2)
    first, second = torch.linspace(-9, 9, 801), torch.linspace(-17, 19, 801)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(first, second)).exp().sum() * first.diff()[0] * second.diff()[0]
    assert abs(total - 1) < 1e-3


@torch.no_grad()
def test_samples_follow_the_density():
    """The share of samples within a box is the density's integral over it."""
    flow = real_flow(2)
    low, high = flow.sample(2_000).quantile(torch.tensor([0.2, 0.8]), dim=0)
    drawn = flow.sample(20_000)
    inside = ((drawn > low) & (drawn < high)).all(1).double().mean()
    step = (high - low) / 400
    middle = torch.cartesian_prod(*(low[d] + step[d] * (torch.arange(400) + 0.5) for d in range(2)))
    mass = flow.log_prob(middle).double().exp().sum() * step.double().prod()
    assert 0.05 < mass < 0.95
    assert abs(inside - mass) < 4 * (mass * (1 - mass) / 20_000).sqrt()


def test_units_are_counted(float64):
    """With the same data in other units, log-densities differ by the log of the unit."""
    x = torch.randn(400, 2)
    here, there = Flow([Standardise((2,))], StandardNormal((2,))), Flow([Standardise((2,))], StandardNormal((2,)))
    here.initialise(x)
    there.initialise(1000 * x)
    torch.testing.assert_close(there.log_prob(1000 * x), here.log_prob(x) - 2 * torch.tensor(1000.0).log())


def test_initialise_receives_each_transforms_input():
    x = torch.randint(0, 256, (300, 1, 2, 2), dtype=torch.uint8)
    transforms = [Dequantize(256), Scale(1 / 256), Reshape((1, 2, 2), (4,)), Standardise((4,))]
    flow = Flow(transforms, StandardNormal((4,)))
    flow.initialise(x)
    z, _ = flow.encode(x)
    assert flow.event_shape == (1, 2, 2) and z.shape == (300, 4)
    assert z.mean(0).abs().max() < 0.02 and (z.std(0) - 1).abs().max() < 0.02


def test_a_flow_without_transforms_is_its_base():
    x = torch.randn(5, 3)
    flow = Flow([], StandardNormal((3,)))
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))
    assert flow.encode(x)[1].shape == (5,)


@pytest.mark.parametrize(
    ("transforms", "discrete", "bound"),
    [
        ([Scale(2)], False, Bound.EXACT),
        ([Dequantize(4)], True, Bound.LOWER),
        ([Dequantize(discrete=[True, False])], False, Bound.LOWER),
        ([Dequantize(discrete=[True, True])], True, Bound.LOWER),
    ],
)
def test_discreteness_and_bound_of_a_flow(transforms, discrete, bound):
    flow = Flow(transforms, StandardNormal((2,)))
    assert (flow.discrete, flow.bound) == (discrete, bound) and flow.importance_weighted


def test_any_density_is_a_base():
    """A flow over a histogram of integers is discrete and exact."""
    spec = DataSpec(kind="array", event_shape=(2,), levels=3)
    base = Independent((2,), (True, True), levels=3)
    base.initialise(torch.randint(0, 3, (50, 2)))
    flow = Flow([Reshape((1, 1, 2), (2,))], base)
    assert flow.discrete and flow.bound is Bound.EXACT
    check_sums_to_one(flow, events_of(spec).view(-1, 1, 1, 2))


@pytest.mark.parametrize("std", [1.0, 2.3])
@pytest.mark.parametrize("levels", [2, 3])
def test_dequantized_flow_sums_to_one(levels, std):
    """Over images of two pixels; a wide base has mass beyond the logit's margin, which belongs to the end levels."""
    spec = DataSpec(kind="image", event_shape=(1, 1, 2), levels=levels)
    logit = [Dequantize(levels), Reshape((1, 1, 2), (2,)), Scale(1 / levels), Logit()]
    flow = Flow([*logit, Scale(1 / std)], StandardNormal((2,)))
    events = events_of(spec)
    check_draws_what_it_scores(flow, events, check_sums_to_one(flow, events))


def test_a_dequantized_vae_sums_to_one():
    """Its Gaussians reach beyond the levels, and the end levels have that mass; samples agree."""
    torch.manual_seed(2)
    vae = VAE(MLP(2, 4, (8,)), MLP(2, 4, (8,)), Gaussian((2,)), latent=2)
    flow = Flow([Dequantize(3), Standardise((2,))], vae)
    train(flow, torch.randint(0, 3, (200, 2)), steps=40)
    events = events_of(DataSpec(kind="array", event_shape=(2,), levels=3))
    check_draws_what_it_scores(flow, events, check_sums_to_one(flow, events))


def test_open_range_sums_to_one():
    """An integer column without known levels: over all integers that could matter."""
    spec = DataSpec(kind="table", event_shape=(1,), columns=(Column(name="count", type="integer"),))
    flow = tiny("flow", spec)
    x = torch.randn(300, 1).mul(2).floor()
    train(flow, x, steps=30)
    check_sums_to_one(flow, torch.arange(-40.0, 40.0).unsqueeze(1), draws=5_000)
