"""Score matching on a mixture of Gaussians, whose p_t and score are known at every noise level."""

import math

import pytest
import torch
from torch import Tensor

from helpers.exact import GaussianDenoiser, two_moons_like
from loglik.diffusion import Cosine, LinearBeta, ScoreMatching
from loglik.diffusion.denoiser import to_score
from loglik.diffusion.schedule import add_noise, alpha, sigma
from loglik.diffusion.score_matching import (
    WEIGHTINGS,
    denoising_score_matching,
    explicit_score_matching,
    score_matching_constant,
    score_weight,
)

LOGSNRS = [-4.0, 0.4, 3.0]
N = 120_000


def true_score(x_t: Tensor, logsnr: Tensor) -> Tensor:
    return to_score(two_moons_like()(x_t, logsnr), x_t, logsnr)


def network(weight: Tensor):
    return lambda x_t, logsnr: torch.tanh(x_t @ weight) - x_t


def draws(logsnr: float) -> tuple[Tensor, Tensor, Tensor]:
    x_0 = two_moons_like().truth.sample((N,))
    return x_0, torch.randn_like(x_0), torch.full((N,), logsnr)


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_the_true_score_is_the_gradient_of_the_log_density(float64, logsnr):
    x_0, epsilon, level = (part[:50] for part in draws(logsnr))
    x_t = add_noise(x_0, epsilon, level).requires_grad_()
    (gradient,) = torch.autograd.grad(two_moons_like().log_marginal(x_t, level).sum(), x_t)
    torch.testing.assert_close(true_score(x_t, level), gradient)


@pytest.mark.parametrize("logsnr", LOGSNRS)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_denoising_is_explicit_plus_the_constant(float64, logsnr, scale):
    """The two losses are computed from independent draws, so nothing cancels by construction."""
    score = network(scale * torch.tensor([[0.3, -0.2], [0.5, 0.1]]))
    x_0, epsilon, level = draws(logsnr)
    denoising, error_d = mean_and_stderr(denoising_score_matching(score, x_0, epsilon, level))
    x_0, epsilon, level = draws(logsnr)
    x_t = add_noise(x_0, epsilon, level)
    explicit, error_e = mean_and_stderr(explicit_score_matching(score, true_score, x_t, level))
    x_0, epsilon, level = draws(logsnr)
    constant, error_c = mean_and_stderr(score_matching_constant(true_score, x_0, epsilon, level))
    error = math.sqrt(error_d**2 + error_e**2 + error_c**2)
    assert error < 0.02 * denoising
    assert abs(denoising - explicit - constant) < 4 * error
    assert constant > 20 * error_c  # an equality without the constant would fail


def test_at_the_true_score_the_denoising_loss_is_the_constant(float64):
    """The minimum of the denoising loss is not zero."""
    x_0, epsilon, level = draws(0.4)
    assert explicit_score_matching(true_score, true_score, x_0, level).abs().max() == 0
    gap = denoising_score_matching(true_score, x_0, epsilon, level)
    gap = gap - score_matching_constant(true_score, x_0, epsilon, level)
    mean, error = mean_and_stderr(gap)
    assert abs(mean) < 4 * error


def test_denoising_and_explicit_score_matching_have_equal_gradients(float64):
    """Their difference is a constant: E‖∇log p(x_t|x)‖² - E‖∇log p_t(x_t)‖², whatever the network."""
    x_0, epsilon, level = draws(0.4)
    x_t, s = add_noise(x_0, epsilon, level), sigma(level)[0]
    constant = score_matching_constant(true_score, x_0, epsilon, level).mean()
    gradients, gaps = [], []
    for scale in (1.0, -0.5):
        weight = (scale * torch.tensor([[0.3, -0.2], [0.5, 0.1]])).requires_grad_()
        score = network(weight)
        losses = [
            denoising_score_matching(score, x_0, epsilon, level),
            explicit_score_matching(score, true_score, x_t, level),
        ]
        both = torch.stack([torch.autograd.grad(loss.mean(), weight, retain_graph=True)[0] for loss in losses])
        each = torch.autograd.grad((losses[0] - losses[1]).mean(), weight)[0]
        error = 4 * 2 * (epsilon / s + true_score(x_t, level)).norm(dim=1).std() / math.sqrt(N) + 4e-3
        assert both[0].norm() > 0.1
        assert each.abs().max() < error, (each, error)
        gradients.append(both)
        gaps.append((losses[0] - losses[1]).mean())
    for gap in gaps:
        assert abs(gap - constant) < 0.03 * constant
    assert (gradients[0][0] - gradients[1][0]).norm() > 0.1


@pytest.mark.parametrize("logsnr", LOGSNRS)
def test_the_constant_of_a_gaussian_has_a_closed_form(float64, logsnr):
    """Of N(m, s²I) in D dimensions: D/σ² - D/(α²s² + σ²), times the weight."""
    exact, dims, scale = GaussianDenoiser(0.7, 0.4), 3, 0.4
    x_0, level = 0.7 + scale * torch.randn(N, dims), torch.full((N,), logsnr)
    values = score_matching_constant(
        lambda x_t, lam: to_score(exact(x_t, lam), x_t, lam), x_0, torch.randn_like(x_0), level, torch.full((N,), 2.0)
    )
    mean, error = mean_and_stderr(values)
    a, s = alpha(level)[0], sigma(level)[0]
    truth = 2 * dims * (1 / s**2 - 1 / (a**2 * scale**2 + s**2))
    assert abs(mean - truth) < 4 * error
    assert error < 0.2 * truth


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [Cosine(6.0, -6.0), LinearBeta(0.1, 12.0)], ids=lambda s: type(s).__name__)
def test_what_training_minimises_is_denoising_score_matching(float64, weighting, schedule):
    """Each example's loss, times drawn uniformly: λ(t) ‖s - ∇log p(x_t|x_0)‖² = factor · ½‖ε - ε̂‖²."""
    t = (torch.arange(100) + 0.5) / 100
    x_0, epsilon = torch.randn(2, 100, 2)
    score = network(torch.tensor([[0.3, -0.2], [0.5, 0.1]]))
    logsnr, factor, _ = ScoreMatching(weighting, times="time").draw(schedule, t)
    noise = -sigma(logsnr)[:, None] * score(add_noise(x_0, epsilon, logsnr), logsnr)  # ε̂ = -σ s
    trained = factor * 0.5 * (epsilon - noise).square().sum(1)
    weight = score_weight(weighting, logsnr, schedule.rate(t))
    torch.testing.assert_close(denoising_score_matching(score, x_0, epsilon, logsnr, weight), trained)


def test_the_weights_that_have_names(float64):
    """λ(t) is β(t)/2 for the likelihood and σ_t²/2 for DDPM's simple loss."""
    schedule, t = LinearBeta(), torch.linspace(0.05, 1, 20)
    logsnr, rate = schedule.logsnr(t), schedule.rate(t)
    torch.testing.assert_close(score_weight("likelihood", logsnr, rate), schedule.beta(t) / 2)
    torch.testing.assert_close(score_weight("simple", logsnr, rate), schedule.sigma(t).square() / 2)
