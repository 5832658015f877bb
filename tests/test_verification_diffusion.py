"""The checks of diffusions hold on levels and real numbers, and each fails where its statement is broken."""

import numpy as np
import pytest
import torch

from helpers.verified import broken, outcome, subject_of
from loglik.diffusion import VLB, LinearBeta
from loglik.diffusion import steps as rules
from loglik.diffusion.denoiser import Denoiser
from loglik.verification import diffusion as statements

PLANE = np.random.default_rng(0).normal(size=(300, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 0.3, 0.2], [0.0, 0.0, 1.0]])
NAMES = ["forward-sde", "reverse-order", "score-matching", "posterior-bayes", "elbo-as-kls", "t-steps"]


@pytest.fixture(scope="module")
def real():
    return subject_of("diffusion", PLANE, train=100, width=32, depth=1)


@pytest.fixture(scope="module")
def pixels():
    return subject_of("diffusion:unet", "digits", train=3, width=8, depth=1)


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_real_numbers(real, name):
    assert outcome(name, real) == "holds"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reverse-order"])
def test_holds_for_levels(pixels, name):
    assert outcome(name, pixels) == "holds"


def test_they_do_not_apply_without_a_diffusion():
    flow = subject_of("flow", PLANE, width=16, depth=1)
    assert {outcome(name, flow) for name in NAMES} == {"does not apply"}


def test_forward_sde_fails_with_another_rate_of_noise(real):
    assert (
        outcome("forward-sde", broken(real, LinearBeta, beta=lambda self, t: 1.3 * LinearBeta.beta(self, t))) == "fails"
    )


def test_reverse_order_fails_where_steps_keep_an_error(real, monkeypatch):
    ddim = rules.RULES["ddim"]
    monkeypatch.setitem(rules.RULES, "ddim", lambda x, t, s, state: ddim(x, t, s, state) + 0.1 * (s.logsnr - t.logsnr))
    assert outcome("reverse-order", real) == "fails"


def test_score_matching_fails_where_the_denoiser_hides_its_input(real):
    forward = Denoiser.forward
    hidden = broken(real, Denoiser, forward=lambda self, x_t, *rest: forward(self, x_t.detach(), *rest))
    assert outcome("score-matching", hidden) == "fails"


def test_posterior_fails_with_the_forward_variance(real, monkeypatch):
    posterior = statements.posterior

    def wrong(x_t, x_0, logsnr_t, logsnr_s):
        mean, std = posterior(x_t, x_0, logsnr_t, logsnr_s)
        return mean, 1.01 * std

    monkeypatch.setattr(statements, "posterior", wrong)
    assert outcome("posterior-bayes", real) == "fails"


def test_elbo_fails_with_a_wrong_weight(real, monkeypatch):
    monkeypatch.setattr(statements, "posterior_kl_weight", lambda s, t: torch.exp(s - t))
    assert outcome("elbo-as-kls", real) == "fails"


def test_t_steps_fails_where_the_limit_lies_below(real, monkeypatch):
    inner = VLB._diffusion
    monkeypatch.setattr(
        VLB, "_diffusion", lambda self, model, v, u: inner(self, model, v, u) - (self.steps is None) * 100.0
    )
    assert outcome("t-steps", real) == "fails"
