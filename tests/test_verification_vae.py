"""A VAE's statements hold, and each check fails where its statement is broken."""

import math

import numpy as np
import pytest
import torch

import loglik.vae.ladder
import loglik.vae.vae
from helpers.verified import broken, outcome, subject_of
from loglik.data import from_arrays
from loglik.density import StandardNormal
from loglik.diffusion import Diffusion, Sampler
from loglik.flows import Flow
from loglik.vae import VAE
from loglik.vae.kl import gaussian_kl
from loglik.vae.vae import Draw
from loglik.verification import CHECKS, Subject, vae_training
from loglik.verification.verify import run_check

RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(400, 2))
TABLE = LATENT @ RNG.normal(size=(2, 5)) + 0.3 * RNG.normal(size=(400, 5)) + 7
BITS = RNG.integers(0, 2, (300, 1, 2, 3)).astype(np.uint8)
NAMES = ["elbo-gap", "elbo-terms", "closed-kl", "reparameterised-gradient", "posterior-collapse"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The small VAEs are trained for a few steps."""
    monkeypatch.setattr(vae_training, "STEPS", 50)


@pytest.fixture(scope="module")
def table():
    return subject_of("vae", TABLE, train=200, width=32, latent=2, dropout=0.0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def ladder():
    return subject_of("vae", "digits", train=40, width=8, beta=0.05, kl_warmup=0)


@pytest.mark.parametrize("name", [*NAMES, "without-kl"])
def test_a_vae_of_a_table_holds(table, name):
    assert outcome(name, table) == "holds"


@pytest.mark.parametrize("name", [*NAMES, "without-kl"])
def test_a_ladder_holds(ladder, name):
    assert outcome(name, ladder) == "holds"


@pytest.mark.parametrize("prior", ["vamp", "flow", "hierarchical", "diffusion"])
def test_other_priors(prior):
    subject = subject_of(f"vae:{prior}", BITS, train=20, width=16)
    for diffusion in (m for m in subject.density.modules() if isinstance(m, Diffusion)):
        diffusion.sampler = Sampler(steps=5)
    for name in NAMES:
        averaged = prior == "diffusion" and name == "elbo-gap"
        assert outcome(name, subject) == ("does not apply" if name == "closed-kl" or averaged else "holds")


def test_the_reason_names_the_prior():
    row = run_check(CHECKS["closed-kl"], subject_of("vae:vamp", BITS, train=2, width=16))
    assert "VampPrior, not N(0, I)" in row.reason


@pytest.mark.parametrize("name", [*NAMES, "without-kl"])
def test_what_is_no_vae(name):
    data = from_arrays(TABLE)
    assert outcome(name, Subject(StandardNormal((5,)), data)) == "does not apply"


def test_a_conditional_vae_holds():
    y = (TABLE[:, 0] > 7).astype(int)
    subject = subject_of("vae", (TABLE, y), train=30, width=16, conditional=True)
    for name in NAMES:
        assert outcome(name, subject) == "holds"


def test_a_vae_without_a_recipe_is_not_trained_again(table):
    by_hand = Subject(table.density, table.data, "flow", {}, table.split)
    assert outcome("without-kl", by_hand) == "does not apply"


def shifted(by):
    method = VAE.log_prob
    return lambda self, x, context=None, *, samples=1: method(self, x, context, samples=samples) + by


@pytest.mark.parametrize("by", [0.1, -0.1])
def test_elbo_gap_fails_for_a_wrong_constant(table, monkeypatch, by):
    monkeypatch.setattr(VAE, "log_prob", shifted(by))
    assert outcome("elbo-gap", table) == "fails"


def test_elbo_gap_fails_for_a_bound_above_log_p(table):
    assert outcome("elbo-gap", broken(table, VAE, log_prob=shifted(2.0))) == "fails"


def test_elbo_gap_fails_for_a_bound_that_falls(table, ladder):
    def log_prob(self, x, context=None, *, samples=1):
        return VAE.log_prob(self, x, context, samples=samples) - 0.5 * math.log(samples)

    for subject in (table, ladder):
        assert outcome("elbo-gap", broken(subject, VAE, log_prob=log_prob)) == "fails"


def test_elbo_terms_fail_where_one_is_missing(table, ladder):
    def without(kind, name):
        def terms(self, x, context=None, *, samples=1):
            return {k: v for k, v in kind.terms(self, x, context, samples=samples).items() if k != name}

        return terms

    assert outcome("elbo-terms", broken(table, terms=without(Flow, "log-determinant"))) == "fails"
    assert outcome("elbo-terms", broken(ladder, terms=without(type(ladder.density), "-KL"))) == "fails"


def test_elbo_terms_fail_where_one_has_a_part_of_the_other(table):
    def terms(self, x, context=None, *, samples=1):
        found = VAE.terms(self, x, context, samples=samples)
        moved = 0.3 * found["-KL"]
        return {**found, "reconstruction": found["reconstruction"] + moved, "-KL": found["-KL"] - moved}

    assert outcome("elbo-terms", broken(table, VAE, terms=terms)) == "fails"


WRONG = {
    "of the wrong sign": lambda *args: -gaussian_kl(*args),
    "without 1/2": lambda mean, log_scale, *_: mean.square() + (2 * log_scale).exp() - 1 - log_scale,
    "without -1": lambda *args: gaussian_kl(*args) + 0.5,
    "of the other direction": lambda mean, log_scale, *_: gaussian_kl(
        torch.zeros_like(mean), torch.zeros_like(mean), mean, log_scale
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_closed_kl_fails(table, ladder, monkeypatch, wrong):
    for module in (loglik.vae.vae, loglik.vae.ladder):
        monkeypatch.setattr(module, "gaussian_kl", WRONG[wrong])
    assert outcome("closed-kl", table) == "fails"
    if wrong.startswith("without"):  # a ladder that has hardly learned is near its prior: its KL is near 0
        assert outcome("closed-kl", ladder) == "fails"


@pytest.mark.parametrize("detached", ["mean", "scale"])
def test_the_gradient_fails_where_the_noise_is_cut_off(table, detached):
    def draw(self, inferred, context):
        mean, log_scale = inferred
        epsilon = torch.randn_like(mean)
        of_z = mean.detach() if detached == "mean" else mean
        z = of_z + (log_scale.exp().detach() if detached == "scale" else log_scale.exp()) * epsilon
        log_q = -(0.5 * epsilon.square() + log_scale).sum(1) - 0.5 * self.latent * math.log(2 * math.pi)
        return Draw(z, self.parameters_of(z, context), lambda: self.prior.log_prob(z, context) - log_q, None)

    row = run_check(CHECKS["reparameterised-gradient"], broken(table, VAE, _draw=draw))
    by_mean, _, by_scale, *_ = (finding.holds for finding in row.findings)
    assert (by_mean, by_scale) == ((False, True) if detached == "mean" else (True, False))


def test_the_gradient_fails_where_the_score_function_has_less_variance(table, monkeypatch):
    found = vae_training._gradients

    def exchanged(part):
        gradients = found(part)
        return vae_training._Gradients(gradients.plain, gradients.plain, gradients.noise)

    monkeypatch.setattr(vae_training, "_gradients", exchanged)
    assert outcome("reparameterised-gradient", table) == "fails"


def test_posterior_collapse_fails_for_a_kl_below_that_of_the_aggregate(table, monkeypatch):
    monkeypatch.setattr(loglik.vae.vae, "gaussian_kl", lambda *args: 0 * gaussian_kl(*args))
    assert outcome("posterior-collapse", table) == "fails"


def test_posterior_collapse_is_seen(table):
    collapsed = broken(table, VAE, _infer=lambda self, x, context: tuple(torch.zeros(2, len(x), self.latent)))
    row = run_check(CHECKS["posterior-collapse"], collapsed)
    numbers = {finding.computed: finding.value for finding in row.findings}
    assert numbers["active dimensions, of 2"] == 0 and numbers["E KL(q(z | x) ‖ p), nats"] == 0


def test_without_kl_fails_where_beta_is_not_used(table, monkeypatch):
    monkeypatch.setattr(VAE, "_kl_weight", lambda self: 1.0)
    assert outcome("without-kl", table) == "fails"
