"""Diffusion: the schedule, the conversions, and Gaussian data, where bound and samplers have a closed form."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from helpers.densities import check_sums_to_one, events_of
from helpers.exact import Zero
from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.diffusion import Denoiser, Diffusion, LevelDenoiser, LinearBeta, Sampler
from loglik.diffusion.denoiser import time_features, to_data, to_score
from loglik.diffusion.schedule import alpha, sigma
from loglik.diffusion.steps import Level, SamplerState, ddpm, euler_maruyama
from loglik.networks import ResidualMLP

# ---- the schedule


def test_variance_is_preserved(float64):
    logsnr = torch.linspace(-30, 30, 101)
    torch.testing.assert_close(alpha(logsnr).square() + sigma(logsnr).square(), torch.ones(101))
    torch.testing.assert_close((alpha(logsnr) / sigma(logsnr)).square().log(), logsnr)


@pytest.mark.parametrize("schedule", [LinearBeta(), LinearBeta(0.5, 0.5), LinearBeta(0.01, 30, 1e-3)], ids=str)
def test_time_and_log_snr_are_inverse(float64, schedule):
    t = torch.linspace(schedule.t_min, 1, 57)
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t)
    assert (schedule.logsnr(t).diff() < 0).all()
    assert schedule.logsnr(torch.tensor(0.0)) == schedule.logsnr(torch.tensor(schedule.t_min))


def test_noise_is_the_sdes(float64):
    """dα/dt = -½ β α and dσ²/dt = β (1 - σ²), which is the mean and variance of dx = -½ β x dt + √β dW."""
    schedule = LinearBeta()
    t = torch.linspace(1e-3, 1, 50).requires_grad_()
    a, variance = alpha(schedule.logsnr(t)), sigma(schedule.logsnr(t)).square()
    (slope_a,) = torch.autograd.grad(a.sum(), t, retain_graph=True)
    (slope_variance,) = torch.autograd.grad(variance.sum(), t)
    torch.testing.assert_close(slope_a, -0.5 * schedule.beta(t) * a)
    torch.testing.assert_close(slope_variance, schedule.beta(t) * (1 - variance))


def test_noise_is_the_chains(float64):
    """The product of the steps √(1 - β Δt) of a fine DDPM chain is α_t: p(x_t | x_0) = N(√ᾱ x_0, (1 - ᾱ) I)."""
    schedule, steps = LinearBeta(), 200_000
    middles = (torch.arange(steps) + 0.5) / steps
    product = (1 - schedule.beta(middles) / steps).log().cumsum(0).exp()
    at = torch.tensor([0.1, 0.5, 0.9])
    chain = product[(at * steps).long() - 1].sqrt()
    torch.testing.assert_close(alpha(schedule.logsnr(at)), chain, rtol=1e-3, atol=0)


@pytest.mark.parametrize("wrong", [(0.0, 20.0), (2.0, 1.0), (-1.0, 1.0)])
def test_beta_must_rise_from_above_zero(wrong):
    with pytest.raises(ValueError, match="β must not fall and start above 0"):
        LinearBeta(*wrong)


@pytest.mark.parametrize("t_min", [0.0, 1.0])
def test_t_min_must_lie_within(t_min):
    with pytest.raises(ValueError, match="t_min must lie between 0 and 1"):
        LinearBeta(t_min=t_min)


# ---- predictions


@pytest.mark.parametrize("kind", ["noise", "data", "v", "score"])
def test_every_prediction_gives_the_data(float64, kind):
    x, epsilon, logsnr = torch.randn(5, 2, 3), torch.randn(5, 2, 3), 4 * torch.randn(5)
    a, s = alpha(logsnr).view(5, 1, 1), sigma(logsnr).view(5, 1, 1)
    x_t = a * x + s * epsilon
    right = {"noise": epsilon, "data": x, "v": a * epsilon - s * x, "score": -epsilon / s}[kind]
    torch.testing.assert_close(to_data(right, kind, x_t, logsnr), x)
    torch.testing.assert_close(to_score(x, x_t, logsnr), -epsilon / s)

    class Knows(nn.Module):
        def forward(self, given, vector):
            assert given is x_t and vector.shape == (5, 8)
            return right.flatten(1)

    torch.testing.assert_close(Denoiser(Knows(), prediction=kind, features=8)(x_t, logsnr), x)


def test_time_features_tell_times_apart():
    features = time_features(torch.linspace(-10, 13, 200), 32)
    assert features.shape == (200, 32) and features.abs().max() <= 1
    assert (torch.cdist(features, features) + 9 * torch.eye(200)).min() > 0.02


# ---- Gaussian data, with the exact score


MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)


class Exact(nn.Module):
    """E[x | x_t] for x ~ N(m, Σ): m + α Σ (α² Σ + σ² I)⁻¹ (x_t - α m)."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x_t, logsnr, context=None):
        a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
        values, vectors = torch.linalg.eigh(COVARIANCE)
        residual = (x_t - a * MEAN) @ vectors
        return MEAN + (residual * a * values / (a.square() * values + s.square())) @ vectors.T + self.shift


TRUTH = MultivariateNormal(MEAN, COVARIANCE)


def test_the_bound_is_the_gaussians_density(float64):
    """With the exact score nothing is lost: for each x, the bound's mean is log p(x)."""
    diffusion = Diffusion(Exact(), (2,))
    for x in (MEAN, MEAN + torch.tensor([1.5, -1.0]), torch.tensor([-2.0, 2.0])):
        draws = diffusion.log_prob(x.expand(8000, 2), samples=32)
        error = draws.std() / math.sqrt(8000)
        assert error < 0.05
        assert abs(draws.mean() - TRUTH.log_prob(x)) < 4 * error


def test_the_mean_over_data_is_minus_the_entropy(float64):
    x = TRUTH.sample((16_000,))
    draws = Diffusion(Exact(), (2,)).log_prob(x, samples=32)
    differences = draws - TRUTH.log_prob(x)
    assert abs(differences.mean()) < 4 * differences.std() / math.sqrt(16_000) < 0.1
    one = Diffusion(Exact(), (2,)).log_prob(x)  # one time each, stratified over the batch
    assert abs((one - TRUTH.log_prob(x)).mean()) < 4 * one.std() / math.sqrt(16_000)


def test_a_wrong_score_is_below_the_truth(float64):
    x = TRUTH.sample((4000,))
    wrong = Diffusion(Exact(shift=0.05), (2,)).log_prob(x, samples=8)
    gap = (TRUTH.log_prob(x) - wrong).mean()
    # ½ ∫ SNR ‖δ‖² dλ = ½ ‖δ‖² (e^{λ₀} - e^{λ₁}) is what a constant error δ of the data costs
    high, low = LinearBeta().logsnr(torch.tensor([0.0, 1.0])).exp()
    cost = 0.5 * 2 * 0.05**2 * (high - low)
    error = (TRUTH.log_prob(x) - wrong).std() / math.sqrt(4000)
    assert gap > 100 and abs(gap - cost) < 4 * error


def test_the_prior_term_is_its_kl(float64):
    diffusion, x = Diffusion(Exact(), (2,)), torch.randn(6, 2)
    last = LinearBeta().logsnr(torch.tensor(1.0))
    kl = kl_divergence(Normal(alpha(last) * x, sigma(last)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(diffusion.terms(x)["prior"], -kl, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("method", ["ddpm", "euler-maruyama"])
def test_samplers_reproduce_the_gaussian(float64, method):
    n = 20_000
    drawn = Diffusion(Exact(), (2,), sampler=Sampler(method=method, steps=300)).sample(n)
    assert drawn.dtype == torch.float64
    assert ((drawn.mean(0) - MEAN).abs() < 4 * COVARIANCE.diag().sqrt() / math.sqrt(n) + 0.005).all()
    assert (drawn.T.cov() - COVARIANCE).abs().max() < 0.04


def two_levels(schedule, *times):
    return [Level(t, schedule.logsnr(t)) for t in times]


def walk_to(x, schedule):
    """A walk whose denoiser always says x."""
    return SamplerState(lambda z, _: x.expand_as(z), schedule, torch.randn_like)


def test_ancestral_step_is_the_posterior_of_the_chain(float64):
    """q(x_s | x_t, x) by conditioning the joint Gaussian of x_s and x_t given x."""
    schedule, x = LinearBeta(), torch.tensor([[0.3]])
    s, t = torch.tensor(0.4), torch.tensor(0.45)
    a_s, a_t = alpha(schedule.logsnr(s)), alpha(schedule.logsnr(t))
    var_s, var_t = 1 - a_s**2, 1 - a_t**2
    step = a_t / a_s  # x_t = step · x_s + noise
    x_t = torch.tensor([[0.9]])
    gain = step * var_s / var_t
    mean, variance = a_s * x + gain * (x_t - a_t * x), var_s - gain * step * var_s
    drawn = ddpm(x_t.expand(40_000, 1), *two_levels(schedule, t, s), walk_to(x, schedule))
    assert abs(drawn.mean() - mean) < 4 * (variance / 40_000).sqrt()
    assert abs(drawn.var() / variance - 1) < 4 * math.sqrt(2 / 40_000)


def test_euler_maruyama_step_is_its_formula(float64):
    schedule, x_t, x_hat = LinearBeta(), torch.tensor([[0.9]]), torch.tensor([[0.3]])
    t, s = torch.tensor(0.45), torch.tensor(0.44)
    a, variance = alpha(schedule.logsnr(t)), sigma(schedule.logsnr(t)) ** 2
    beta = 0.1 + 19.9 * 0.45
    mean = x_t + 0.01 * (0.5 * beta * x_t + beta * (a * x_hat - x_t) / variance)
    drawn = euler_maruyama(x_t.expand(40_000, 1), *two_levels(schedule, t, s), walk_to(x_hat, schedule))
    assert abs(drawn.mean() - mean) < 4 * math.sqrt(0.01 * beta / 40_000)
    assert abs(drawn.var() / (0.01 * beta) - 1) < 4 * math.sqrt(2 / 40_000)


def test_unknown_sampler_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="unknown sampler 'sde': use ddpm, ddim"):
        Sampler(method="sde")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Sampler(steps=0)
    with pytest.raises(ValueError, match="unknown spacing 'even': use logsnr"):
        Sampler(spacing="even")
    with pytest.raises(ValueError, match="eta lies from 0 to 1 and is ddim's, got 1 for heun"):
        Sampler(method="heun", eta=1)


# ---- integers


def level_diffusion(levels: int, shape=(1, 1, 2), network=None) -> Diffusion:
    network = network or Zero(math.prod(shape) * levels)
    return Diffusion(LevelDenoiser(network, levels, shape), shape, levels=levels, schedule=LinearBeta(t_min=1e-4))


def test_with_the_marginals_the_bound_is_the_independent_density(float64):
    """For each of the nine events, and so their sum is one."""
    spec = DataSpec(kind="image", event_shape=(1, 1, 2), levels=3)
    x = (torch.rand(200, 1, 1, 2) * torch.tensor([1.5, 3.0])).long()
    diffusion, independent = level_diffusion(3), Independent((1, 1, 2), (True, True), levels=3)
    diffusion.initialise(x)
    independent.initialise(x)
    events = events_of(spec)
    truth = independent.log_prob(events)
    draws = diffusion.log_prob(events.repeat(4000, 1, 1, 1), samples=8).view(4000, 9)
    error = draws.std(0) / math.sqrt(4000)
    assert error.max() < 0.1
    assert ((draws.mean(0) - truth).abs() < 4.5 * error).all()
    assert check_sums_to_one(diffusion, events).sum().item() == pytest.approx(1, abs=0.1)
    assert diffusion.bound is Bound.LOWER and diffusion.discrete and not diffusion.importance_weighted


def test_level_denoiser_is_bayes_rule(float64):
    levels, logits = torch.linspace(-1, 1, 4), torch.randn(2, 4)
    denoiser = LevelDenoiser(Zero(8), 4, (2,))
    denoiser.offset.copy_(logits)
    x_t, logsnr = torch.randn(3, 2), torch.tensor([-2.0, 0.5, 3.0])
    for b in range(3):
        for d in range(2):
            likelihood = Normal(alpha(logsnr[b]) * levels, sigma(logsnr[b])).log_prob(x_t[b, d]).exp()
            p = logits[d].exp() * likelihood
            p = p / p.sum()
            torch.testing.assert_close(denoiser(x_t, logsnr)[b, d], p @ levels)
            torch.testing.assert_close(denoiser.logits(x_t, logsnr)[b, d].softmax(-1), p)


def test_the_window_of_levels_leaves_nothing_out(float64):
    """The reconstruction over near levels is that over all 256."""
    diffusion = Diffusion(Denoiser(Zero(3)), (3,), levels=256)
    assert 2 * diffusion.reconstruction.near + 1 < 256
    x = torch.tensor([[0, 1, 2], [128, 254, 255], [77, 3, 200]])
    torch.manual_seed(1)
    near = diffusion.terms(x)["reconstruction"]
    diffusion.reconstruction.near = 256
    torch.manual_seed(1)
    torch.testing.assert_close(near, diffusion.terms(x)["reconstruction"])
    assert (near <= 0).all()


def test_reconstruction_is_normalised_over_levels(float64):
    """Where neighbours overlap (much noise), p(x | z₀) is the softmax over levels: Monte Carlo against quadrature."""
    levels, schedule = 3, LinearBeta(t_min=0.3)
    diffusion = Diffusion(Denoiser(Zero(1)), (1,), levels=levels, schedule=schedule)
    noise = torch.exp(-0.5 * schedule.logsnr(torch.tensor(0.0)))
    points = torch.linspace(-1, 1, levels)
    for k in range(levels):
        z = points[k] + noise * torch.linspace(-8, 8, 2001)
        log_posterior = Normal(points, noise).log_prob(z[:, None]).log_softmax(-1)[:, k]
        weight = Normal(points[k], noise).log_prob(z).exp()
        truth = (weight * log_posterior).sum() / weight.sum()
        draws = diffusion.terms(torch.full((40_000, 1), k))["reconstruction"]
        assert truth < -0.1
        assert abs(draws.mean() - truth) < 4 * draws.std() / 200


def test_samples_of_the_marginals_follow_them():
    x = (torch.rand(200, 1, 1, 2) * torch.tensor([1.5, 3.0])).long()
    diffusion, independent = level_diffusion(3), Independent((1, 1, 2), (True, True), levels=3)
    diffusion.initialise(x)
    independent.initialise(x)
    drawn = diffusion.sample(5000)
    assert drawn.dtype == torch.uint8 and drawn.shape == (5000, 1, 1, 2)
    shares = torch.stack([torch.bincount(c, minlength=3) / 5000 for c in drawn.view(-1, 2).long().T])
    assert (shares - independent.log_mass.exp()).abs().max() < 0.03


def test_condition_reaches_the_denoiser():
    network = ResidualMLP(2, 2, width=8, depth=1, context=12)
    diffusion = Diffusion(Denoiser(network, features=8, context=nn.Embedding(3, 4)), (2,))
    assert diffusion.conditional
    nn.init.normal_(network.blocks[0].second.weight)
    x_t, logsnr = torch.randn(1, 2).expand(3, 2), torch.zeros(3)
    given = diffusion.denoiser(x_t, logsnr, torch.arange(3))
    assert not torch.allclose(given[0], given[1]) and not torch.allclose(given[1], given[2])


def test_v_prediction_starts_as_the_gaussian_of_the_datas_moments(float64):
    mean, scale = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 0.1, 1.5])
    x = mean + scale * torch.randn(4000, 3)
    diffusion = Diffusion(Denoiser(Zero(3), event_shape=(3,)), (3,), schedule=LinearBeta(t_min=1e-5))
    diffusion.initialise(x)
    fitted = Normal(x.mean(0), x.std(0, correction=0))
    got, truth = diffusion.log_prob(x, samples=64), fitted.log_prob(x).sum(1)
    assert (got.mean() - truth.mean()).abs() < 0.2  # four standard deviations over seeds
    plain = Diffusion(Denoiser(Zero(3)), (3,), schedule=LinearBeta(t_min=1e-5))
    assert plain.log_prob(x, samples=64).mean() < truth.mean() - 1
