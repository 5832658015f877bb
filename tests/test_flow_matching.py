"""Flow matching: its path is a Gaussian one, its loss a weighting of score matching, and Gaussian data are exact."""

import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import loglik
from helpers.densities import SPECS, draw, tiny, train
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound
from loglik.diffusion import (
    ODE,
    Denoiser,
    Diffusion,
    FlowMatching,
    LinearBeta,
    RectifiedFlow,
    Sampler,
    ScoreMatching,
    curvature,
    with_likelihood,
    with_sampler,
)
from loglik.diffusion.denoiser import to_data
from loglik.diffusion.sampler import integrate
from loglik.diffusion.schedule import add_noise, alpha, broadcast_like, flow_time, sigma
from loglik.diffusion.time_grid import time_grid
from loglik.flows import Flow
from loglik.networks import ResidualMLP
from loglik.recipes import build, recipe
from loglik.tasks import fill


class GaussianVelocity(Denoiser):
    r"""The velocity of N(m, diag s²) in flow matching's own coordinates, u(x, τ) = E[ε - x_0 | x_τ = x]."""

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__(nn.Identity(), prediction="velocity")
        self.m, self.s = mean, scale

    def velocity(self, x, tau):
        variance = (1 - tau) ** 2 * self.s**2 + tau**2
        known = x - (1 - tau) * self.m
        return tau / variance * known - self.m - (1 - tau) * self.s**2 / variance * known

    def _predict(self, x_t, logsnr, context, keep=None):
        a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
        return self.velocity(x_t / (a + s), flow_time(logsnr)[:, None])


def gaussian(dims: int) -> tuple[GaussianVelocity, Normal]:
    mean, scale = torch.linspace(-1, 2, dims), torch.linspace(0.3, 1.7, dims)
    return GaussianVelocity(mean, scale), Normal(mean, scale)


# ---- the path and the loss


def test_the_path_is_the_straight_line(float64):
    schedule, x, epsilon = FlowMatching(12.0, -9.0), torch.randn(50, 3), torch.randn(50, 3)
    t = torch.linspace(0, 1, 50)
    logsnr = schedule.logsnr(t)
    tau = flow_time(logsnr)
    torch.testing.assert_close(tau.diff(), (tau[-1] - tau[0]).expand(49) / 49)
    torch.testing.assert_close(torch.stack(schedule.ends(t)), torch.tensor([12.0, -9.0]))
    line = (1 - tau[:, None]) * x + tau[:, None] * epsilon
    noised = add_noise(x, epsilon, logsnr)
    torch.testing.assert_close(noised / (alpha(logsnr) + sigma(logsnr))[:, None], line)
    torch.testing.assert_close(to_data(epsilon - x, "velocity", noised, logsnr), x)


@pytest.mark.parametrize("prediction", ["velocity", "v", "noise", "data"])
def test_its_loss_is_a_weighting_of_score_matching(float64, prediction):
    """½ E ‖û - (ε - x)‖² over uniform τ, for every prediction, on the very draws that `loss` makes."""
    torch.manual_seed(0)
    network = ResidualMLP(2, 2, width=8, depth=1, context=32)
    denoiser, x = Denoiser(network, prediction=prediction), torch.randn(64, 2)
    objective = ScoreMatching("flow-matching", times="time")
    flow = Diffusion(denoiser, (2,), schedule=FlowMatching(), objective=objective)
    torch.manual_seed(1)
    loss = flow.loss(x)
    torch.manual_seed(1)
    t = flow._stratified(64, x)
    logsnr, epsilon = flow.schedule.logsnr(t), torch.randn_like(x)
    tau = flow_time(logsnr)[:, None]
    x_tau = (1 - tau) * x + tau * epsilon
    x_hat = denoiser(x_tau * broadcast_like(alpha(logsnr) + sigma(logsnr), x), logsnr)
    velocity = (x_tau - x_hat) / tau
    torch.testing.assert_close(loss, 0.5 * (velocity - (epsilon - x)).square().sum(1).mean())


@pytest.mark.parametrize("times", ["uniform", "time", "importance"])
def test_logit_normal_times_are_a_weighting(float64, times):
    """½ E ‖û - (ε - x)‖² over logit(τ) ~ N(0, 1), whatever the times are drawn from."""
    mean, scale = torch.zeros(1), torch.full((1,), 0.5)
    denoiser = GaussianVelocity(mean, scale)
    schedule = FlowMatching(14.0, -14.0)
    drawn, factor, _ = ScoreMatching("logit-normal", times=times).draw(schedule, (torch.arange(20000) + 0.5) / 20000)
    tau = torch.sigmoid(torch.linspace(-8, 8, 20001))
    density = Normal(0.0, 1.0).log_prob(torch.logit(tau)).exp() / (tau * (1 - tau))

    def error(tau):  # E ‖u - (ε - x)‖² = 1 + s² - E u², and u = gain · x_τ
        variance = (1 - tau) ** 2 * scale**2 + tau**2
        return 1 + scale**2 - (denoiser.velocity(torch.ones(1), tau)).square() * variance

    expected = 0.5 * torch.trapezoid(density * error(tau), tau)
    noise = error(flow_time(drawn)) / (1 + torch.exp(-0.5 * drawn)).square()  # ‖ε - ε̂‖² = (1 - τ)² ‖u - û‖²
    torch.testing.assert_close((0.5 * factor * noise).mean(), expected, rtol=1e-3, atol=0)


# ---- Gaussian data are exact


@pytest.mark.parametrize("dims", [2, 64])
@torch.no_grad()
def test_the_ode_gives_a_gaussians_nats_within_its_error(float64, dims):
    torch.manual_seed(0)
    denoiser, truth = gaussian(dims)
    x = truth.sample((16,))
    flow = Diffusion(denoiser, (dims,), schedule=FlowMatching(22.0, -34.0), likelihood=ODE(80))
    gap = (flow.log_prob(x) - truth.log_prob(x).sum(1)).abs()
    assert (gap <= flow.numerical_error(x) + 1e-6 * dims).all() and gap.max() < 1e-3 * dims
    assert flow.bound is Bound.ESTIMATE
    flow.schedule = FlowMatching()  # cut off where the recipe does
    gap = flow.log_prob(x) - truth.log_prob(x).sum(1)
    assert gap.mean().abs() < 1e-3 * dims


@pytest.mark.parametrize("dims", [2, 64])
@torch.no_grad()
def test_the_bound_is_below_and_tight(float64, dims):
    """What it loses is the prior's KL, and the reconstruction's at λ₀: ½ log(1 + e^-λ₀ / s²)."""
    torch.manual_seed(0)
    denoiser, truth = gaussian(dims)
    flow = Diffusion(denoiser, (dims,), schedule=FlowMatching(4.0, -14.0))
    flow.control.initialise(truth.sample((4096,)))
    flow.control.products.copy_(flow.control.squares)  # the network is the Gaussian's own denoiser
    x = truth.sample((1024,))
    terms = flow.terms(x, samples=16)
    gap = truth.log_prob(x).sum(1) - sum(terms.values())
    lost = 0.5 * torch.log1p(math.exp(-4.0) / truth.scale**2).sum() + _prior_gap(truth, -14.0)
    error = gap.std() / math.sqrt(len(x))
    assert abs(gap.mean() - lost) < 4 * error and error < 2e-3 * dims and lost > 1e-3


def _prior_gap(truth: Normal, low: float) -> torch.Tensor:
    """KL(q(z_1) || N(0, I)) of the marginal at λ₁."""
    low = torch.tensor(low)
    variance = (alpha(low) * truth.scale).square() + sigma(low).square()
    return 0.5 * (variance + (alpha(low) * truth.mean).square() - 1 - variance.log()).sum()


@pytest.mark.parametrize(
    "sampler", [Sampler(method="midpoint", steps=40), Sampler(method="ddim", steps=100, spacing="time"), Sampler()]
)
def test_samples_have_the_moments(float64, sampler):
    torch.manual_seed(0)
    denoiser, truth = gaussian(4)
    x = Diffusion(denoiser, (4,), schedule=FlowMatching(), sampler=sampler).sample(10000)
    torch.testing.assert_close(x.mean(0), truth.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), truth.scale, atol=0, rtol=0.05)


@pytest.mark.parametrize("schedule", [FlowMatching(), LinearBeta(t_min=1e-4)], ids=lambda s: type(s).__name__)
def test_ddim_is_eulers_rule_and_midpoint_is_its_own(float64, schedule):
    """On the network's velocity written as other libraries do, x += dτ u(x, τ), over the same times."""
    denoiser, _ = gaussian(3)
    z = torch.randn(5, 3)
    path = time_grid(schedule, 9, "time", z)
    tau = flow_time(path)
    for method in ("ddim", "midpoint"):
        x = z / (alpha(path[0]) + sigma(path[0]))
        for now, later in zip(tau[:-1], tau[1:], strict=True):
            at, point = now, x
            if method == "midpoint":
                at, point = (now + later) / 2, x + (later - now) / 2 * denoiser.velocity(x, now)
            x = x + (later - now) * denoiser.velocity(point, at)
        drawn = integrate(z, denoiser, schedule, Sampler(method=method, steps=9, spacing="time"))
        torch.testing.assert_close(drawn.x / (alpha(path[-1]) + sigma(path[-1])), x)


# ---- the recipe

INPUTS = (Column(name="weight", type="numeric"), Column(name="kind", type="categorical", categories=("a", "b")))
REGRESSION = DataSpec(kind="table", event_shape=(3,), columns=SPECS["table"].columns, inputs=INPUTS)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    "name", ["image", "large image", "mixed table", "incomplete table", "real array", "whole array"]
)
def test_it_models_what_a_diffusion_does(name, conditional):
    torch.manual_seed(0)
    density = tiny("diffusion:flow-matching", SPECS[name], conditional=conditional)
    x, y = draw(SPECS[name], 32)
    context = y if conditional else None
    train(density, x, context, steps=3)
    flow = next(module for module in density.modules() if isinstance(module, Diffusion))
    assert type(flow.schedule) is FlowMatching and flow.sampler.method == "midpoint"
    with torch.no_grad():
        assert density.log_prob(x, context).isfinite().all() and density.bound is Bound.LOWER
        assert density.sample(4, None if context is None else context[:4]).shape == (4, *SPECS[name].event_shape)
        if name == "real array":
            assert with_likelihood(density, "ode", 8).log_prob(x, context).isfinite().all()


def test_targets_are_modelled_given_inputs():
    torch.manual_seed(0)
    density = tiny("diffusion:flow-matching", REGRESSION)
    x, context = draw(SPECS["table"], 32)[0], torch.stack([torch.randn(32), torch.randint(2, (32,)).float()], 1)
    train(density, x, context, steps=3)
    assert density.conditional and density.log_prob(x, context).isfinite().all()
    assert density.sample(32, context).shape == (32, 3)


def test_known_values_stay_in_filled_rows():
    density = tiny("diffusion:flow-matching", SPECS["mixed table"])
    x, _ = draw(SPECS["mixed table"], 16)
    train(density, x, steps=2)
    unknown = torch.zeros_like(x, dtype=torch.bool)
    unknown[:, 0] = True
    filled = fill(density, x, unknown)
    assert torch.equal(filled[:, 1:], x[:, 1:]) and (filled[:, 0] != x[:, 0]).any()


def test_the_variant_sets_what_flow_matching_is():
    chosen = recipe("diffusion:flow-matching")
    parsed = chosen.parse({})
    assert (parsed.schedule, parsed.weighting) == ("flow-matching", "flow-matching")
    density = build("diffusion:flow-matching", SPECS["table"], weighting="likelihood", method="ddpm")
    assert isinstance(density, Flow) and density.base.objective.weighting == "likelihood"
    assert density.base.sampler.method == "ddpm"
    with pytest.raises(ValueError, match="beta_max=9 has no effect with schedule=flow-matching"):
        build("diffusion:flow-matching", SPECS["table"], beta_max=9)


# ---- rectified flow


def two_points() -> torch.Tensor:
    """Data at ±2, so that straight lines from noise to random data cross and a flow's paths bend."""
    return 2 * torch.randint(0, 2, (256, 1)).float() - 1 + 0.1 * torch.randn(256, 1)


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """A flow on two clusters, and the rectified flow of its pairs."""
    torch.manual_seed(0)
    data, folder = two_points(), tmp_path_factory.mktemp("flows")
    how = {"progress": False, "max_steps": 120, "validate_every": 120, "batch_size": 64, "learning_rate": 5e-3}
    network = {"width": 32, "depth": 1, "dropout": 0.0}
    first = loglik.fit("diffusion:flow-matching", data, out=folder / "first", **how, **network)
    second = loglik.fit("diffusion:flow-matching", data, out=folder / "second", reflow=str(folder / "first"), **how)
    return first, second, data, folder


def the_flow(density) -> Diffusion:
    return next(module for module in density.modules() if isinstance(module, Diffusion))


def energy(x, y):
    """Twice the squared energy distance of two samples of the same size."""
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()


def test_reflow_straightens_the_paths(flows):
    first, second, data, _ = flows
    torch.manual_seed(0)
    bent, straight = (curvature(the_flow(run.density)).item() for run in (first, second))
    assert straight < 0.2 * bent and bent > 0.1
    for steps in (1, 2, 4):
        far, near = (
            energy(with_sampler(run.density, method="euler", steps=steps).sample(256), data) for run in (first, second)
        )
        assert near < 0.5 * far + 0.01
    assert second.density.base.sampler.steps == 4


def test_a_rectified_flow_has_the_odes_density_alone(flows):
    first, second, data, folder = flows
    assert second.density.bound is Bound.ESTIMATE and first.density.bound is Bound.LOWER
    numbers = [loglik.evaluate(run, data[:32], method="ode", samples=1).nats for run in (first, second)]
    assert numbers[1] == pytest.approx(numbers[0], abs=0.3)
    loaded = loglik.load(folder / "second")
    torch.testing.assert_close(loaded.density.log_prob(data[:8]), second.density.log_prob(data[:8]))
    assert loaded.density.loss(data[:8]).isfinite()
    for call in (
        lambda: loglik.evaluate(loaded, data[:8], method="vlb"),
        lambda: with_sampler(loaded.density, method="ddpm"),
        lambda: the_flow(loaded.density).inpaint(data[:2], data[:2] > 0),
        lambda: loaded.density.train().loss(data[:8]),
    ):
        with pytest.raises(ValueError, match="rectified flow") as error:
            call()
        assert "\n" not in str(error.value)


def test_its_density_integrates_to_one(flows):
    """The ODE's density over a grid, which is what few steps of the sampler draw from."""
    _, second, _, _ = flows
    grid = torch.linspace(-3, 3, 241)[:, None]
    total = torch.trapezoid(second.density.log_prob(grid).exp(), grid[:, 0]).item()
    assert total == pytest.approx(1, abs=0.02)


def test_lines_pass_through_the_noise_that_the_ode_starts_from(flows):
    first, _, _, _ = flows
    flow, noise = the_flow(first.density), torch.randn(16, 1)
    rectified = RectifiedFlow(flow.denoiser, (1,), schedule=FlowMatching(13.8))
    rectified.rectify(first.density)
    v, epsilon = rectified.first.pairs(noise, None)
    low = flow.schedule.ends(noise)[1].expand(16)
    torch.testing.assert_close(add_noise(v, epsilon, low), noise)


def test_training_resumes_and_keeps_the_last_weights(flows, tmp_path):
    _, _, data, folder = flows
    how = {"progress": False, "batch_size": 16, "validate_every": 2, "reflow": str(folder / "first")}
    stages = [
        loglik.fit("diffusion:flow-matching", data[:40], out=tmp_path / "run", max_steps=steps, resume=steps > 2, **how)
        for steps in (2, 4)
    ]
    assert stages[1].steps == 4 and [row["step"] for row in stages[1].history] == [2, 4]
    first, last = (run.density.state_dict() for run in stages)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    stored = loglik.load(tmp_path / "run").density.state_dict()
    assert all(torch.equal(stored[name], last[name]) for name in last)


@pytest.mark.parametrize("spec", ["image", "large image", "mixed table", "whole array"])
def test_it_rectifies_what_flow_matching_models(spec):
    torch.manual_seed(0)
    first, second = (tiny("diffusion:flow-matching", SPECS[spec], conditional=True, **o) for o in ({}, {"reflow": "x"}))
    x, y = draw(SPECS[spec], 10)
    first.initialise(x, y)
    the_flow(second).rectify(first)
    train(second, x, y, steps=2)
    assert second.sample(3, y[:3]).shape == (3, *SPECS[spec].event_shape)
    with torch.no_grad():
        assert second.log_prob(x[:2], y[:2]).isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weighting": "likelihood"}, "reflow minimises the loss of flow matching: use the model diffusion:flow-match"),
        ({"T": 10}, "reflow minimises the loss of flow matching"),
        ({"method": "ddpm"}, "reflow has no score for method=ddpm: use method=euler, midpoint or unipc"),
    ],
)
def test_wrong_options_of_reflow_are_one_line(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build("diffusion:flow-matching", SPECS["table"], reflow="run", **options)


def test_wrong_first_flows_are_one_line(flows, tmp_path):
    _, _, data, folder = flows
    how = {"progress": False, "max_steps": 1, "reflow": str(folder / "first")}
    with pytest.raises(ValueError, match="was trained on other data: train on the same, with the same seed"):
        loglik.fit("diffusion:flow-matching", torch.cat([data, data], 1), **how)
    with pytest.raises(ValueError, match="reflow needs the network of the first flow: leave out options of the netw"):
        loglik.fit("diffusion:flow-matching", data, width=8, **how)
    with pytest.raises(FileNotFoundError, match="does not exist: a run is a folder"):
        loglik.fit("diffusion:flow-matching", data, **how | {"reflow": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="reflow needs complete rows"):
        build("diffusion:flow-matching", SPECS["incomplete table"], reflow="run")
