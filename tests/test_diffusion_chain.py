"""The DDPM chain against the formulas in β_t and ᾱ_t, from a given list of β."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from loglik.diffusion import Chain, Discrete
from loglik.diffusion.chain import posterior, posterior_kl_weight, prior_term, transition

BETAS = [0.02, 0.05, 0.1, 0.2, 0.4]


@pytest.fixture
def chain(float64):
    return Chain.of(Discrete(BETAS), len(BETAS), torch.empty(()))


def test_the_chain_is_its_list(chain):
    betas = torch.tensor(BETAS)
    torch.testing.assert_close(chain.betas, betas)
    torch.testing.assert_close(chain.alpha_bar, torch.cumprod(1 - betas, 0))


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_a_transition_is_its_formula(chain, t):
    """q(x_t | x_{t-1}) = N(√(1 - β_t) x_{t-1}, β_t I), and two in a row are one."""
    x = torch.randn(4, 3)
    mean, std = transition(x, chain.logsnr[t - 1], chain.logsnr[t])
    torch.testing.assert_close(mean, math.sqrt(1 - BETAS[t]) * x)
    torch.testing.assert_close(std.square(), torch.tensor(BETAS[t]))
    whole_mean, whole_std = transition(x, chain.logsnr[0], chain.logsnr[t])
    first_mean, first_std = transition(x, chain.logsnr[0], chain.logsnr[t - 1])
    then_mean, then_std = transition(first_mean, chain.logsnr[t - 1], chain.logsnr[t])
    torch.testing.assert_close(whole_mean, then_mean)
    torch.testing.assert_close(whole_std.square(), (1 - BETAS[t]) * first_std.square() + then_std.square())


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_the_posterior_is_its_formula_and_bayes_rule(chain, t):
    x_t, x_0 = torch.randn(2, 4, 3)
    beta, bar = chain.betas[t], chain.alpha_bar
    mean, std = posterior(x_t, x_0, chain.logsnr[t], chain.logsnr[t - 1])
    expected = ((1 - beta).sqrt() * (1 - bar[t - 1]) * x_t + bar[t - 1].sqrt() * beta * x_0) / (1 - bar[t])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(std.square(), (1 - bar[t - 1]) / (1 - bar[t]) * beta)
    x_s = torch.randn(4, 3)  # q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0)
    forward = Normal(*transition(x_s, chain.logsnr[t - 1], chain.logsnr[t])).log_prob(x_t)
    prior, evidence = (
        Normal(bar[i].sqrt() * x_0, (1 - bar[i]).sqrt()).log_prob(x) for i, x in ((t - 1, x_s), (t, x_t))
    )
    torch.testing.assert_close(Normal(mean, std).log_prob(x_s), forward + prior - evidence)


@pytest.mark.parametrize("t", range(1, len(BETAS)))
def test_a_term_of_the_bound_is_its_kl(chain, t):
    """L_{t-1} = ½ weight ‖ε - ε̂‖², and the weight in ᾱ is (ᾱ_s/(1-ᾱ_s))·((1-ᾱ_t)/ᾱ_t) - 1."""
    x_0, x_hat, epsilon = torch.randn(3, 4, 3)
    bar, levels = chain.alpha_bar, (chain.logsnr[t], chain.logsnr[t - 1])
    x_t = bar[t].sqrt() * x_0 + (1 - bar[t]).sqrt() * epsilon
    kl = kl_divergence(Normal(*posterior(x_t, x_0, *levels)), Normal(*posterior(x_t, x_hat, *levels))).sum(1)
    noise = (x_t - bar[t].sqrt() * x_hat) / (1 - bar[t]).sqrt()
    weight = posterior_kl_weight(chain.logsnr[t - 1], chain.logsnr[t])
    torch.testing.assert_close(0.5 * weight * (epsilon - noise).square().sum(1), kl)
    torch.testing.assert_close(weight, bar[t - 1] / (1 - bar[t - 1]) * (1 - bar[t]) / bar[t] - 1)


def test_the_last_term_of_the_bound_is_its_kl(chain):
    x_0, bar = torch.randn(4, 3), chain.alpha_bar[-1]
    kl = kl_divergence(Normal(bar.sqrt() * x_0, (1 - bar).sqrt()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_term(x_0, chain.logsnr[-1]), -kl)
