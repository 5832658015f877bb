"""log_prob three ways: closed forms, the hierarchical VAE's ELBO written out, and what each says of itself."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from helpers.densities import check_sums_to_one, events_of
from helpers.exact import GaussianDenoiser, Zero, two_moons_like
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.diffusion import (
    ODE,
    VLB,
    Chain,
    Denoiser,
    Diffusion,
    Discrete,
    LevelDenoiser,
    LinearBeta,
    LinearLogSNR,
    ScoreMatching,
    ddpm_betas,
    with_likelihood,
)
from loglik.diffusion.ode import adams, solve
from loglik.diffusion.schedule import alpha, sigma
from loglik.networks import ResidualMLP


@pytest.fixture(params=["gaussian", "mixture"])
def exact(request, float64):
    """A diffusion with the exact score, and the density of its data."""
    if request.param == "gaussian":
        truth = MultivariateNormal(torch.full((3,), 0.7), 0.4**2 * torch.eye(3))
        return Diffusion(GaussianDenoiser(0.7, 0.4), (3,)), truth
    mixture = two_moons_like()
    return Diffusion(mixture, (2,)), mixture.truth


@torch.no_grad()
def test_the_ode_is_the_closed_form(exact):
    """For each x, where the noisiest variable is N(0, I); the VP-SDE's α₁ = 0.007 shows in single x, not on average."""
    diffusion, truth = exact
    x = truth.sample((64,))
    for schedule, each in ((LinearBeta(beta_max=40.0), True), (LinearBeta(), False)):
        diffusion.schedule, diffusion.likelihood = schedule, ODE()
        gap = (diffusion.log_prob(x) - truth.log_prob(x)) / diffusion.dims
        assert (gap.abs().max() if each else gap.mean().abs()) < 1e-3
        assert diffusion.bound is Bound.ESTIMATE


@torch.no_grad()
def test_the_solvers_error_is_known(exact):
    """The reported error is above the true one, against a much finer solution, and below the tolerance."""
    diffusion, truth = exact
    x = truth.sample((64,))
    diffusion.likelihood = ODE(steps=640, tolerance=100.0)
    finest = diffusion.log_prob(x)
    for tolerance in (1e-2, 1e-4):
        diffusion.likelihood = ODE(steps=20, tolerance=tolerance)
        reported = diffusion.numerical_error(x)
        assert ((diffusion.log_prob(x) - finest).abs() <= reported + 1e-9).float().mean() > 0.95
        assert reported.max() <= tolerance * diffusion.dims
    diffusion.likelihood = VLB()
    assert diffusion.numerical_error(x) is None


@torch.no_grad()
def test_random_probes_are_right_on_average(float64):
    mixture = two_moons_like()
    x = mixture.truth.sample((4,)).repeat(500, 1)
    diffusion = Diffusion(mixture, (2,), likelihood=ODE(steps=20))
    exact = diffusion.log_prob(x[:4])
    diffusion.likelihood = ODE(steps=20, probes=1)
    draws = diffusion.log_prob(x).view(500, 4)
    error = draws.std(0) / math.sqrt(500)
    assert ((draws.mean(0) - exact).abs() < 4 * error + 1e-9).all() and error.max() > 0
    diffusion.likelihood = ODE(steps=20, probes=4)
    assert (diffusion.log_prob(x).view(500, 4).std(0) < 0.7 * draws.std(0)).all()


@torch.no_grad()
def test_the_bounds_are_below_and_the_continuous_one_is_tight(exact):
    """With the exact score the continuous bound is log p; T steps lose what T steps must."""
    diffusion, truth = exact
    x = truth.sample((2000,))
    for likelihood, samples in ((VLB(), 64), (VLB(steps=100, whole=True), 1), (VLB(steps=1000, whole=True), 1)):
        diffusion.likelihood = likelihood
        gap = diffusion.log_prob(x, samples=samples) - truth.log_prob(x)
        error = gap.std().item() / math.sqrt(len(x))
        assert diffusion.bound is Bound.LOWER and gap.mean() < 4 * error
        if likelihood.steps is None:
            assert gap.mean() > -4 * error and error < 0.07


# ---- T steps are a hierarchical VAE


class Rough(nn.Module):
    """Some denoiser: what it says does not matter."""

    def forward(self, x_t, logsnr, context=None):
        return torch.tanh(x_t) * torch.sigmoid(logsnr)[:, None] + 0.1 * torch.sin(3 * x_t)


def elbo_by_its_gaussians(diffusion: Diffusion, x: torch.Tensor, steps: int) -> torch.Tensor:
    """-KL(q(x_T|x) ‖ p) - Σ KL(q(x_{t-1}|x_t, x) ‖ p(x_{t-1}|x_t)) + E log p(x|x_1), from the chain's β alone.

    The posterior is that of the joint Gaussian of x_{t-1} and x_t given x; the decoder is it with x̂ for x.
    """
    betas = Chain.of(diffusion.schedule, steps, x).betas
    alpha_bar = torch.cumprod(1 - betas, 0)
    total = -kl_divergence(Normal(alpha_bar[-1].sqrt() * x, (1 - alpha_bar[-1]).sqrt()), Normal(0.0, 1.0)).sum(1)
    for t in range(1, steps):  # the level t + 1 in the notes' counting
        before, now, beta = alpha_bar[t - 1], alpha_bar[t], betas[t]
        x_t = now.sqrt() * x + (1 - now).sqrt() * torch.randn_like(x)
        deviation = ((1 - before) / (1 - now) * beta).sqrt()

        def mean(of, x_t=x_t, before=before, now=now, beta=beta):
            own = (1 - beta).sqrt() * (1 - before) / (1 - now)
            return before.sqrt() * beta / (1 - now) * of + own * x_t

        x_hat = diffusion.denoiser(x_t, torch.log(now / (1 - now)).expand(len(x)))
        total = total - kl_divergence(Normal(mean(x), deviation), Normal(mean(x_hat), deviation)).sum(1)
    spread = ((1 - alpha_bar[0]) / alpha_bar[0]).sqrt()  # p(x | x_1) = N(x_1 / √ᾱ_1, spread²), its mean over q
    return total + (Normal(0.0, spread).log_prob(torch.zeros(())) - 0.5) * x.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("steps", [10, 1000])
def test_the_t_step_sum_is_the_hierarchical_vaes_elbo(float64, steps):
    schedule = Discrete(ddpm_betas(steps, *((1e-4, 0.02) if steps == 1000 else (1e-2, 0.6))))
    diffusion = Diffusion(Rough(), (3,), schedule=schedule, likelihood=VLB(steps=steps, whole=True))
    x = torch.randn(5, 3)
    torch.manual_seed(3)
    diffusion._stratified(5, x)  # times, which a whole sum does not use
    literal = elbo_by_its_gaussians(diffusion, x, steps)
    torch.manual_seed(3)
    torch.testing.assert_close(diffusion.log_prob(x), literal, rtol=1e-8, atol=0)


@torch.no_grad()
def test_sampled_and_whole_sums_agree(float64):
    x = torch.randn(2, 3).repeat(2000, 1)
    diffusion = Diffusion(Rough(), (3,), schedule=LinearLogSNR(6.0, -6.0), likelihood=VLB(steps=10))
    sampled = diffusion.log_prob(x, samples=9).view(2000, 2)
    diffusion.likelihood = VLB(steps=10, whole=True)
    whole = diffusion.log_prob(x).view(2000, 2)
    error = ((sampled.var(0) + whole.var(0)) / 2000).sqrt()
    assert ((sampled.mean(0) - whole.mean(0)).abs() < 4 * error).all()


@torch.no_grad()
def test_more_steps_rise_towards_the_continuous_bound(float64):
    mixture = two_moons_like()
    x = mixture.truth.sample((1000,))
    diffusion = Diffusion(mixture, (2,), schedule=LinearLogSNR(9.0, -9.0))
    values = []
    for steps in (10, 30, 100, 300, 1000):
        diffusion.likelihood = VLB(steps=steps, whole=True)
        values.append(diffusion.log_prob(x).mean().item())
    diffusion.likelihood = VLB()
    continuous = diffusion.log_prob(x, samples=256)
    error = continuous.std().item() / math.sqrt(1000)
    assert values == sorted(values)
    assert continuous.mean() - values[1] > 0.3 and abs(continuous.mean() - values[4]) < 4 * error + 0.02


@torch.no_grad()
def test_few_steps_are_best_even_in_the_log_snr(float64):
    mixture = two_moons_like()
    x = mixture.truth.sample((300,))
    diffusion = Diffusion(mixture, (2,), schedule=LinearBeta(t_min=1e-4))
    continuous = diffusion.log_prob(x, samples=256).mean()
    values = {}
    for spacing in ("time", "logsnr"):
        diffusion.likelihood = VLB(steps=100, whole=True, spacing=spacing)
        values[spacing] = diffusion.log_prob(x).mean()
    assert values["time"] < continuous - 20
    assert continuous - 1.5 < values["logsnr"] < continuous


def test_a_chain_of_so_many_steps_keeps_its_own_levels():
    def spacing(diffusion, steps):
        return with_likelihood(diffusion, "vlb", steps).likelihood.spacing

    chain = Diffusion(Rough(), (3,), schedule=Discrete(ddpm_betas(50)))
    assert (spacing(chain, 50), spacing(chain, 10)) == ("time", "logsnr")
    trained = Diffusion(Rough(), (3,), objective=ScoreMatching("simple", steps=20))
    assert (spacing(trained, 20), spacing(trained, 50)) == ("time", "logsnr")


# ---- integers


@torch.no_grad()
def test_dequantized_with_its_cost_counted(float64):
    """Two pixels of three levels, independent: the ODE's estimate is the log-probability less the small cost of z₀."""
    x = (torch.rand(200, 1, 1, 2) * torch.tensor([1.5, 3.0])).long()
    denoiser = LevelDenoiser(Zero(6), 3, (1, 1, 2))
    diffusion = Diffusion(
        denoiser, (1, 1, 2), levels=3, schedule=LinearBeta(t_min=1e-3), likelihood=ODE(tolerance=1e-3)
    )
    diffusion.initialise(x)
    events = events_of(DataSpec(kind="image", event_shape=(1, 1, 2), levels=3))
    estimate = diffusion.log_prob(events)
    truth = denoiser.offset.log_softmax(-1)
    truth = truth[0, events.long().view(9, 2)[:, 0]] + truth[1, events.long().view(9, 2)[:, 1]]
    assert diffusion.discrete and diffusion.bound is Bound.ESTIMATE and not diffusion.importance_weighted
    assert (estimate - truth).abs().max() < 0.05
    assert set(diffusion.terms(events)) == {"prior", "log-determinant", "dequantization"}


def test_the_t_step_bound_of_whole_numbers_sums_to_at_most_one():
    denoiser = LevelDenoiser(Zero(6), 3, (1, 1, 2))
    diffusion = Diffusion(denoiser, (1, 1, 2), levels=3, schedule=LinearBeta(t_min=1e-3), likelihood=VLB(steps=50))
    diffusion.initialise((torch.rand(200, 1, 1, 2) * torch.tensor([1.5, 3.0])).long())
    total = check_sums_to_one(
        diffusion, events_of(DataSpec(kind="image", event_shape=(1, 1, 2), levels=3)), draws=10_000
    )
    assert 0.1 < total.sum() < 1.02


# ---- what a user may ask, and what leaves nothing behind


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: VLB(steps=0), "steps must be at least 2, or None for continuous time, got 0"),
        (lambda: VLB(10, spacing="even"), "unknown spacing 'even': use logsnr, time, quadratic, karras"),
        (lambda: VLB(whole=True), "continuous time has no whole sum: pass steps"),
        (lambda: ODE(steps=0), "steps must be at least 2, got 0"),
        (lambda: ODE(probes=0), "probes must be at least 1, or None, got 0"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("dims", [2, 40])
def test_the_ode_of_a_network(dims):
    """Exact and probed traces; the parameters get no gradient, in either mode, and the number is finite."""
    network = ResidualMLP(dims, dims, width=16, depth=1, context=8)
    diffusion = Diffusion(Denoiser(network, features=8), (dims,), likelihood=ODE(steps=6, tolerance=1.0))
    log_p = diffusion.log_prob(torch.randn(3, dims), samples=2)
    assert log_p.shape == (3,) and log_p.isfinite().all() and not log_p.requires_grad
    assert all(p.grad is None for p in diffusion.parameters())
    assert diffusion.loss(torch.randn(3, dims)).requires_grad


# ---- the solvers


def test_adams_has_its_order_and_knows_its_error(float64):
    """x' = cos(u) x: x = exp(sin u), with ∫ x du beside it, on uneven points."""
    fine = torch.linspace(0, 4, 100_001)
    area = torch.trapezoid(fine.sin().exp(), fine)
    errors = []
    for n in (40, 80):
        grid = torch.linspace(0, 1, n) ** 1.3 * 4
        end, integral, error = adams(
            lambda x, u: (u.cos()[:, None] * x, x[:, 0], torch.ones_like(x)), torch.ones(2, 1), grid
        )
        errors.append((end - math.exp(math.sin(4))).abs().max() + (integral - area).abs().max())
        assert errors[-1] < 3 * error[0] < 0.3
    assert errors[0] / errors[1] > 2**3.5


def test_the_adaptive_solver_steps_for_each_example(float64):
    """x' = -x² from 1 and from 300, whose start is steep: x = x_0 / (1 + x_0 u)."""
    start, ends = torch.tensor([[1.0], [300.0]]), (torch.tensor(0.0), torch.tensor(1.0))
    found = solve(lambda x, u: -x.square(), start, *ends, tolerance=1e-8)
    assert (found.x - start / (1 + start)).abs().max() < 1e-6 and found.rows < 1.7 * found.evaluations
    with pytest.raises(ValueError, match="more than 3 steps"):
        solve(lambda x, u: -x.square(), start, *ends, tolerance=1e-12, max_steps=3)


def test_the_flow_and_the_marginals_agree(float64):
    """∂p/∂λ = -div(f p) on a mixture, by differences: what makes the ODE's density that of the SDE."""
    mixture, h = two_moons_like(), 1e-4
    x, lam = torch.randn(20, 2), torch.full((20,), 1.3)

    def velocity(x):
        a = alpha(lam)[:, None]
        return 0.5 * a * (mixture(x, lam) - a * x)

    slope = (mixture.log_marginal(x, lam + h) - mixture.log_marginal(x, lam - h)) / (2 * h)
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda r: 0.5 * alpha(lam[0]) * (mixture(r[None], lam[:1])[0] - alpha(lam[0]) * r))
    )(x)
    score = (alpha(lam)[:, None] * mixture(x, lam) - x) / sigma(lam)[:, None] ** 2
    divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(slope, -divergence - (velocity(x) * score).sum(1), rtol=1e-5, atol=1e-6)
