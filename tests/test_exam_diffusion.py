"""The identities and numbers of the exam's answers on diffusion: spring 2025, B2, and autumn 2025, B2, question (d).

Expectations are integrals on a grid wherever one dimension is enough, so that equal means equal.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from helpers.exact import MixtureDenoiser
from loglik.diffusion import Chain, Discrete, LinearBeta, LinearLogSNR, ddpm_betas
from loglik.diffusion.chain import posterior, posterior_kl_weight, prior_term, transition
from loglik.diffusion.denoiser import to_score
from loglik.diffusion.reconstruction import gaussian_reconstruction
from loglik.diffusion.schedule import add_noise, alpha, sigma
from loglik.diffusion.score_matching import (
    denoising_score_matching,
    explicit_score_matching,
    score_matching_constant,
)
from loglik.diffusion.sde import diffusion, forward_drift, probability_flow, reverse_drift

BETAS = [0.02, 0.05, 0.1, 0.2, 0.4]
POINTS, WEIGHTS = [-1.0, 0.2, 0.9], [0.5, 0.2, 0.3]  # the data: three numbers and their probabilities
LOGSNRS = [-3.0, 0.4, 3.0]


# ---- spring 2025, B2


@pytest.fixture
def data(float64) -> MixtureDenoiser:
    """E[x_0 | x_t] of the three numbers: p_t is a mixture of three Gaussians."""
    return MixtureDenoiser([[point] for point in POINTS], [0.0] * len(POINTS), WEIGHTS).double()


def marginal(data: MixtureDenoiser, schedule: LinearBeta, x: Tensor, t: Tensor) -> Tensor:
    return data.log_marginal(x, schedule.logsnr(t)).exp()


def slope(values: Tensor, at: Tensor) -> Tensor:
    """The derivative of each value in its own row of `at`."""
    (found,) = torch.autograd.grad(values.sum(), at, create_graph=True)
    return found


def test_the_reverse_drift_is_andersons(float64):
    schedule, x, score, t = LinearBeta(), torch.randn(5, 2), torch.randn(5, 2), torch.rand(5)
    expected = forward_drift(schedule, x, t) - diffusion(schedule, t)[:, None] ** 2 * score
    torch.testing.assert_close(reverse_drift(schedule, x, t, score), expected)


def test_the_three_processes_have_one_density(data):
    """Forward, reverse and ODE solve the same equation of ∂p_t/∂t: Fokker and Planck's, with b, -½g² or no p''."""
    schedule = LinearBeta()
    x = torch.linspace(-2, 2, 41)[:, None].requires_grad_()
    t = torch.linspace(0.2, 0.8, 41).requires_grad_()
    p = marginal(data, schedule, x, t)
    score = to_score(data(x, schedule.logsnr(t)), x, schedule.logsnr(t))
    torch.testing.assert_close(score.squeeze(1), slope(p.log(), x).squeeze(1))
    half = 0.5 * schedule.beta(t) * slope(slope(p, x).squeeze(1), x).squeeze(1)
    drifts = {
        "forward": (forward_drift(schedule, x, t), half),
        "reverse": (reverse_drift(schedule, x, t, score), -half),
        "ode": (probability_flow(schedule, x, t, score), 0.0),
    }
    change = slope(p, t)
    assert change.abs().max() > 0.1
    for drift, second in drifts.values():
        divergence = slope(drift.squeeze(1) * p, x).squeeze(1)
        torch.testing.assert_close(second - divergence, change, rtol=1e-7, atol=1e-9)


def over_noise(logsnr: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every x_0 with every ε of a grid: x_0, ε, the noise levels, and the weights of the expectation."""
    epsilon = torch.linspace(-9, 9, 2001)
    density = Normal(0.0, 1.0).log_prob(epsilon).exp() * (epsilon[1] - epsilon[0])
    x_0 = torch.tensor(POINTS).repeat_interleave(len(epsilon))[:, None]
    weights = (torch.tensor(WEIGHTS)[:, None] * density).flatten()
    return x_0, epsilon.repeat(len(POINTS))[:, None], torch.full((len(weights),), logsnr), weights


def over_marginal(data: MixtureDenoiser, logsnr: float) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of x_t, the noise levels, and the weights of the expectation over p_t."""
    x_t = torch.linspace(-10, 10, 4001)[:, None]
    level = torch.full((len(x_t),), logsnr)
    return x_t, level, data.log_marginal(x_t, level).exp() * (x_t[1] - x_t[0])


def networks():
    return [lambda x, lam: torch.tanh(2 * x) - x, lambda x, lam: 0.3 - x.square() / (1 + x.square())]


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_the_score_is_the_mean_of_the_conditional_scores(data, logsnr):
    """∇log p_t(x_t) = E[∇log p(x_t | x_0) | x_t], the step from which the proof follows."""
    x_t, level, _ = over_marginal(data, logsnr)
    a, s = alpha(level), sigma(level)
    each = torch.stack([-(x_t[:, 0] - a * point) / s**2 for point in POINTS], 1)
    joint = torch.stack(
        [Normal(a * point, s).log_prob(x_t[:, 0]) + math.log(w) for point, w in zip(POINTS, WEIGHTS, strict=True)], 1
    )
    mean = (joint.softmax(1) * each).sum(1)
    torch.testing.assert_close(mean, to_score(data(x_t, level), x_t, level)[:, 0])


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_the_cross_terms_are_equal(data, logsnr):
    """E⟨s, ∇log p_t(x_t)⟩ over p_t is E⟨s, ∇log p(x_t | x_0)⟩ over x_0 and x_t."""
    x_0, epsilon, level, weights = over_noise(logsnr)
    grid, at, mass = over_marginal(data, logsnr)
    noised = add_noise(x_0, epsilon, level)
    for network in networks():
        explicit = (mass[:, None] * network(grid, at) * to_score(data(grid, at), grid, at)).sum()
        denoising = (weights[:, None] * network(noised, level) * -epsilon / sigma(level)[:, None]).sum()
        torch.testing.assert_close(explicit, denoising, rtol=1e-9, atol=0)
        assert explicit.abs() > 0.01


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_the_two_losses_differ_by_a_constant_below_zero(data, logsnr):
    """Explicit = denoising + C for every network, with C = E‖∇log p_t‖² - E‖∇log p(x_t | x_0)‖²."""
    x_0, epsilon, level, weights = over_noise(logsnr)
    grid, at, mass = over_marginal(data, logsnr)

    def true_score(x_t: Tensor, lam: Tensor) -> Tensor:
        return to_score(data(x_t, lam), x_t, lam)

    constant = (mass * true_score(grid, at).square().sum(1)).sum() - 1 / sigma(at)[0] ** 2
    for network in networks():
        explicit = (mass * explicit_score_matching(network, true_score, grid, at)).sum()
        denoising = (weights * denoising_score_matching(network, x_0, epsilon, level)).sum()
        torch.testing.assert_close(explicit, denoising + constant, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        -(weights * score_matching_constant(true_score, x_0, epsilon, level)).sum(), constant, rtol=1e-9, atol=1e-9
    )
    rest = -epsilon / sigma(level)[:, None] - true_score(add_noise(x_0, epsilon, level), level)
    variance = (weights * rest.square().sum(1)).sum()  # of the conditional score given x_t
    torch.testing.assert_close(constant, -variance, rtol=1e-9, atol=1e-9)
    assert constant < 0


def test_the_conditional_kernel_is_the_integrating_factors(float64):
    """α_t = exp(-½∫β), and Itô's isometry gives σ_t² = ∫ β(s) exp(-∫_s^t β) ds = 1 - α_t²: by quadrature."""
    schedule = LinearBeta()
    for t in (0.1, 0.4, 1.0):
        s = torch.linspace(0, t, 100_001)
        beta = 0.1 + 19.9 * s
        area = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(beta, s)])
        mean, variance = torch.exp(-0.5 * area[-1]), torch.trapezoid(beta * torch.exp(area - area[-1]), s)
        logsnr = schedule.logsnr(torch.tensor(t))
        torch.testing.assert_close(alpha(logsnr), mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(sigma(logsnr).square(), variance, rtol=1e-6, atol=0)
    assert alpha(logsnr).square() == pytest.approx(math.exp(-10.05), rel=1e-6)  # ᾱ at t = 1: 4.3e-5 of the data is left


@pytest.mark.parametrize(
    ("t", "area", "mean", "variance"),
    [(0.1, 0.1095, 0.9467, 0.1037), (0.5, 2.5375, 0.2812, 0.9209), (1.0, 10.05, 0.0066, 0.99996)],
)
def test_the_kernels_numbers(float64, t, area, mean, variance):
    """The table of part (c), to the digits that it prints."""
    schedule, at = LinearBeta(), torch.tensor(t)
    assert schedule.integral(at).item() == pytest.approx(area, abs=5e-5)
    assert schedule.alpha(at).item() == pytest.approx(mean, abs=5e-5)
    assert schedule.sigma(at).square().item() == pytest.approx(variance, abs=5e-5)


def test_the_constant_of_normal_data(float64):
    """Of N(0, 1) it is 1 - 1/σ_t² in each dimension: -8.64 at t = 0.1."""
    logsnr = LinearBeta().logsnr(torch.tensor(0.1))
    epsilon = torch.linspace(-9, 9, 1001)
    density = Normal(0.0, 1.0).log_prob(epsilon).exp() * (epsilon[1] - epsilon[0])
    x_0, noise = (v.reshape(-1, 1) for v in torch.meshgrid(epsilon, epsilon, indexing="ij"))
    weights = (density[:, None] * density).flatten()
    each = score_matching_constant(lambda x, lam: -x, x_0, noise, logsnr.expand(len(x_0)))
    constant = -(weights * each).sum()
    torch.testing.assert_close(constant, 1 - 1 / sigma(logsnr).square(), rtol=1e-9, atol=0)
    assert constant.item() == pytest.approx(-8.64, abs=0.005)


def test_the_final_loss_is_the_error_of_the_noise(float64):
    """With s = -ε̂/σ: λ(t)‖s - ∇log p(x_t | x_0)‖² = λ(t)/σ² ‖ε - ε̂‖², and ‖ε - ε̂‖² where λ(t) = σ²."""
    x_0, epsilon, level = torch.randn(50, 3), torch.randn(50, 3), torch.linspace(-6, 6, 50)

    def noise(x_t: Tensor, lam: Tensor) -> Tensor:
        return torch.tanh(x_t) * torch.sigmoid(-lam)[:, None]

    def score(x_t: Tensor, lam: Tensor) -> Tensor:
        return -noise(x_t, lam) / sigma(lam)[:, None]

    error = (epsilon - noise(add_noise(x_0, epsilon, level), level)).square().sum(1)
    plain = denoising_score_matching(score, x_0, epsilon, level)
    torch.testing.assert_close(plain, error / sigma(level).square())
    torch.testing.assert_close(denoising_score_matching(score, x_0, epsilon, level, sigma(level).square()), error)


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_both_losses_have_one_minimiser(data, logsnr):
    """The coefficients of four features that fit -ε/σ best are those that fit the score of p_t best."""

    def features(x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x), x, torch.tanh(x), torch.exp(-x.square())], 1)

    def fit(x: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        weighted = weights[:, None] * features(x)
        return torch.linalg.solve(weighted.T @ features(x), weighted.T @ target)

    x_0, epsilon, level, weights = over_noise(logsnr)
    grid, at, mass = over_marginal(data, logsnr)
    denoising = fit(add_noise(x_0, epsilon, level), -epsilon / sigma(level)[:, None], weights)
    explicit = fit(grid, to_score(data(grid, at), grid, at), mass)
    torch.testing.assert_close(denoising, explicit, rtol=1e-6, atol=1e-8)
    assert explicit.abs().max() > 0.1


# ---- autumn 2025, B2, question (d)


@pytest.fixture
def chain(float64) -> Chain:
    return Chain.of(Discrete(BETAS), len(BETAS), torch.empty(()))


def test_the_noise_of_the_steps_adds_up(chain):
    """Var(x_t | x_0) = Σ_s β_s Π_{r > s} α_r = 1 - ᾱ_t."""
    betas, alphas = torch.tensor(BETAS), 1 - torch.tensor(BETAS)
    for t in range(len(BETAS)):
        total = sum(betas[s] * alphas[s + 1 : t + 1].prod() for s in range(t + 1))
        torch.testing.assert_close(total, 1 - chain.alpha_bar[t])


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_completing_the_square_gives_the_posterior(chain, t):
    """The exponent is -½(A x² - 2 B x) with A = α_t/β_t + 1/(1 - ᾱ_{t-1}): mean B/A, variance 1/A."""
    x_t, x_0 = torch.randn(2, 4, 3)
    beta, before = chain.betas[t], chain.alpha_bar[t - 1]
    a = (1 - beta) / beta + 1 / (1 - before)
    b = (1 - beta).sqrt() / beta * x_t + before.sqrt() / (1 - before) * x_0
    mean, std = posterior(x_t, x_0, chain.logsnr[t], chain.logsnr[t - 1])
    torch.testing.assert_close(mean, b / a)
    torch.testing.assert_close(std.square(), 1 / a)


def denoised(x_t: Tensor, logsnr: Tensor) -> Tensor:
    """Some denoiser."""
    return torch.tanh(x_t) * torch.sigmoid(logsnr) + 0.1 * torch.sin(3 * x_t)


def paths(chain: Chain, x_0: Tensor) -> list[Tensor]:
    """x_1, ..., x_T drawn by the forward process."""
    first = add_noise(x_0, torch.randn_like(x_0), chain.logsnr[0].expand(len(x_0)))
    found = [first]
    for s, t in zip(chain.logsnr[:-1], chain.logsnr[1:], strict=True):
        mean, std = transition(found[-1], s, t)
        found.append(mean + std * torch.randn_like(mean))
    return found


def steps_of(chain: Chain, x_0: Tensor, xs: list[Tensor]) -> list[tuple[Normal, Normal, Normal, Tensor, Tensor]]:
    """For t = 2, ..., T: q(x_t | x_{t-1}), q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t), and x_{t-1} and x_t."""
    found = []
    for t in range(1, len(xs)):
        high, low = chain.logsnr[t - 1], chain.logsnr[t]
        forward = Normal(*transition(xs[t - 1], high, low))
        q, p = (Normal(*posterior(xs[t], x, low, high)) for x in (x_0, denoised(xs[t], low)))
        found.append((forward, q, p, xs[t - 1], xs[t]))
    return found


def literal(chain: Chain, x_0: Tensor, xs: list[Tensor]) -> Tensor:
    """log p(x_{0:T}) - log q(x_{1:T} | x_0) from the definitions of the two, with p(x_0 | x_1) = N(x_1 / √ᾱ_1, ...)."""
    first = chain.alpha_bar[0]
    decoder = Normal(xs[0] / first.sqrt(), ((1 - first) / first).sqrt()).log_prob(x_0)
    log_p = Normal(0.0, 1.0).log_prob(xs[-1]) + decoder
    log_q = Normal(first.sqrt() * x_0, (1 - first).sqrt()).log_prob(xs[0])
    for forward, _, p, x_s, x_t in steps_of(chain, x_0, xs):
        log_p, log_q = log_p + p.log_prob(x_s), log_q + forward.log_prob(x_t)
    return (log_p - log_q).sum(1)


def test_the_log_ratio_telescopes_on_every_path(chain):
    """Bayes' rule in every factor leaves log p(x_T)/q(x_T|x_0) + Σ log p/q(x_{t-1}|x_t, x_0) + log p(x_0|x_1)."""
    x_0 = torch.randn(20, 3)
    xs = paths(chain, x_0)
    first, last = chain.alpha_bar[0], chain.alpha_bar[-1]
    total = Normal(0.0, 1.0).log_prob(xs[-1]) - Normal(last.sqrt() * x_0, (1 - last).sqrt()).log_prob(xs[-1])
    for _, q, p, x_s, _ in steps_of(chain, x_0, xs):
        total = total + p.log_prob(x_s) - q.log_prob(x_s)
    total = total + Normal(xs[0] / first.sqrt(), ((1 - first) / first).sqrt()).log_prob(x_0)
    torch.testing.assert_close(total.sum(1), literal(chain, x_0, xs))


def test_the_elbo_is_the_displayed_formula(chain):
    """The mean of the log-ratio is -KL_T - Σ E KL + E log p(x_0 | x_1), from independent draws."""
    n = 40_000
    x_0 = torch.tensor([[0.8, -0.3]]).repeat(n, 1)
    left = literal(chain, x_0, paths(chain, x_0))
    xs = paths(chain, x_0)
    kls = sum(kl_divergence(q, p).sum(1) for _, q, p, _, _ in steps_of(chain, x_0, xs))
    right = prior_term(x_0, chain.logsnr[-1]) - kls + gaussian_reconstruction(2, chain.logsnr[0])
    error = math.sqrt((left.var() + right.var()).item() / n)
    assert error < 0.02
    assert abs(left.mean() - right.mean()) < 4 * error


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_a_kl_in_its_four_forms(chain, t):
    """In the means, in the data (SNRs), in the noise, and in the score: denoising score matching."""
    x_0, x_hat, epsilon = torch.randn(3, 4, 3)
    beta, bar, (low, high) = chain.betas[t], chain.alpha_bar, (chain.logsnr[t], chain.logsnr[t - 1])
    x_t = add_noise(x_0, epsilon, low.expand(4))
    q, p = (Normal(*posterior(x_t, x, low, high)) for x in (x_0, x_hat))
    kl = kl_divergence(q, p).sum(1)

    def squares(x: Tensor) -> Tensor:
        return x.square().sum(1)

    variance = (1 - bar[t - 1]) / (1 - bar[t]) * beta
    torch.testing.assert_close(squares(q.mean - p.mean) / (2 * variance), kl)
    torch.testing.assert_close(0.5 * (high.exp() - low.exp()) * squares(x_0 - x_hat), kl)
    noise = (x_t - bar[t].sqrt() * x_hat) / (1 - bar[t]).sqrt()
    torch.testing.assert_close(0.5 * posterior_kl_weight(high, low) * squares(epsilon - noise), kl)
    alpha_t = 1 - beta
    torch.testing.assert_close(beta / (2 * alpha_t * (1 - bar[t - 1])) * squares(epsilon - noise), kl)
    level = low.expand(4)
    matching = denoising_score_matching(lambda x, lam: to_score(x_hat, x, lam), x_0, epsilon, level)
    torch.testing.assert_close(0.5 * posterior_kl_weight(high, low) * (1 - bar[t]) * matching, kl)


def test_ddpms_chain_ends_in_noise(float64):
    """L_T of DDPM's 1,000 steps is below 1e-4 nats per dimension for data of unit size."""
    chain = Chain.of(Discrete(ddpm_betas()), 1000, torch.empty(()))
    assert chain.alpha_bar[-1].item() == pytest.approx(4.04e-5, rel=0.01)
    assert 0 < -prior_term(torch.ones(1, 1), chain.logsnr[-1]).item() < 1e-4


def test_more_steps_come_nearer_to_the_log_density_at_order_one(float64):
    """Data N(0, s²) with the exact denoiser: the gap of the bound to -H halves as T doubles, and stays above zero."""
    scale, gaps = 0.5, []
    schedule = LinearLogSNR(9.0, -9.0)
    for steps in (50, 100, 200, 400, 800):
        levels = Chain.of(schedule, steps, torch.empty(())).logsnr
        error = scale**2 / (1 + scale**2 * levels[1:].exp())  # E‖x_0 - x̂‖² at t = 2, ..., T
        kls = 0.5 * ((levels[:-1].exp() - levels[1:].exp()) * error).sum()
        prior = prior_term(torch.tensor([[scale]]), levels[-1]).squeeze()  # E x_0² = s²
        bound = prior - kls + gaussian_reconstruction(1, levels[0])
        gaps.append((-0.5 * math.log(2 * math.pi * math.e * scale**2) - bound).item())
    assert all(gap > 0 for gap in gaps)
    for before, after in zip(gaps[:-1], gaps[1:], strict=True):
        assert before / after == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_the_best_variance_of_the_decoder(chain, t):
    """It is the posterior's for data that are one point and β_t for N(0, 1): there the expected KL has no slope."""
    low, high, bar = chain.logsnr[t], chain.logsnr[t - 1], chain.alpha_bar
    factor, std = posterior(torch.zeros(1), torch.ones(1), low, high)  # of x_0 in the mean
    for error, best in ((torch.zeros(1), std.square()), (1 - bar[t], chain.betas[t])):  # E(x_0 - x̂)²
        gap = factor.square() * error
        torch.testing.assert_close(std.square() + gap, best.expand(1))
        variance = best.expand(1).clone().requires_grad_()
        kl = 0.5 * (variance / std.square()).log() - 0.5 + (std.square() + gap) / (2 * variance)
        (slope_there,) = torch.autograd.grad(kl.sum(), variance)
        assert slope_there.abs().max() < 1e-9


def test_a_chain_of_two_steps_in_numbers(float64):
    """The worked example: β = (0.2, 0.3), data N(0, 1), the exact denoiser √ᾱ_t x_t."""
    chain = Chain.of(Discrete([0.2, 0.3]), 2, torch.empty(()))
    first, last = chain.logsnr
    torch.testing.assert_close(chain.alpha_bar, torch.tensor([0.8, 0.56]))
    zero, one = torch.zeros(1), torch.ones(1)
    of_data, std = posterior(zero, one, last, first)
    of_noised, _ = posterior(one, zero, last, first)
    assert of_data.item() == pytest.approx(0.610, abs=5e-4)
    assert of_noised.item() == pytest.approx(0.380, abs=5e-4)
    assert std.square().item() == pytest.approx(0.136, abs=5e-4)
    prior = -prior_term(one[:, None], last).item()  # E x_0² = 1
    kl = (0.5 * (first.exp() - last.exp()) * (1 - chain.alpha_bar[1])).item()
    reconstruction = gaussian_reconstruction(1, first).item()
    assert (prior, kl, reconstruction) == pytest.approx((0.4105, 0.6, -0.7258), abs=5e-5)
    assert -prior - kl + reconstruction == pytest.approx(-1.7363, abs=1e-4)
    assert -0.5 * math.log(2 * math.pi * math.e) == pytest.approx(-1.4189, abs=5e-5)
