"""Entropy, cross-entropy and KL against closed forms, and the identity that ties them."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.distributions import kl_divergence as closed_kl

import loglik
from loglik.baselines import Independent
from loglik.density import StandardNormal
from loglik.divergence import cross_entropy, entropy, kl_divergence
from loglik.flows import Flow
from loglik.transforms import Standardise
from loglik.vae.kl import gaussian_kl

P = ([0.5, -1.0, 2.0], [0.7, 1.5, 0.4])
Q = ([0.0, -0.5, 2.2], [1.0, 1.1, 0.6])


def gaussian(mean: list[float], std: list[float]) -> Flow:
    """N(m, s²) in each dimension, as a flow over N(0, I)."""
    transform = Standardise((len(mean),))
    transform.mean.copy_(torch.tensor(mean))
    transform.std.copy_(torch.tensor(std))
    return Flow([transform], StandardNormal((len(mean),)))


def normal(parameters: tuple[list[float], list[float]]) -> Normal:
    return Normal(*(torch.tensor(values) for values in parameters))


def categorical(weights: Tensor) -> Independent:
    """One integer with these probabilities, up to the density's smoothing."""
    density = Independent((1,), (True,), levels=len(weights))
    density.initialise(torch.repeat_interleave(torch.arange(len(weights)), (1000 * weights).round().long())[:, None])
    return density


def probabilities(density: Independent, levels: int) -> Tensor:
    return density.log_prob(torch.arange(levels)[:, None]).double().exp()


def within(estimate, truth: Tensor, *, relative: float) -> None:
    assert estimate.stderr < relative * abs(truth)
    assert abs(estimate.nats - truth) < 4 * estimate.stderr


def test_the_kl_of_gaussians_is_the_closed_form():
    truth = closed_kl(normal(P), normal(Q)).sum()
    within(kl_divergence(gaussian(*P), gaussian(*Q), 20_000), truth, relative=0.05)
    mean, std = (torch.tensor(values) for values in P)
    prior_mean, prior_std = (torch.tensor(values) for values in Q)
    torch.testing.assert_close(gaussian_kl(mean, std.log(), prior_mean, prior_std.log()).sum(), truth)


def test_the_kl_is_no_distance():
    """KL(p ‖ q) and KL(q ‖ p) differ, and both are above 0."""
    there, back = (kl_divergence(gaussian(*a), gaussian(*b), 20_000) for a, b in ((P, Q), (Q, P)))
    assert min(there.nats - 4 * there.stderr, back.nats - 4 * back.stderr) > 0
    assert abs(there.nats - back.nats) > 4 * math.hypot(there.stderr, back.stderr)


def test_the_entropy_of_a_gaussian_is_the_closed_form():
    within(entropy(gaussian(*P), 20_000), normal(P).entropy().sum(), relative=0.05)
    half = 0.5 * math.log(2 * math.pi * math.e)
    within(entropy(StandardNormal((4,)), 20_000), torch.tensor(4 * half), relative=0.05)


def test_cross_entropy_is_entropy_plus_kl():
    """Of the same draws to rounding, and of closed forms within the error."""
    p, q = gaussian(*P), gaussian(*Q)
    values = []
    for estimate in (lambda: cross_entropy(p, q, 5000), lambda: entropy(p, 5000), lambda: kl_divergence(p, q, 5000)):
        torch.manual_seed(3)
        values.append(estimate().nats)
    assert values[0] == pytest.approx(values[1] + values[2], abs=1e-5)
    truth = normal(P).entropy().sum() + closed_kl(normal(P), normal(Q)).sum()
    within(cross_entropy(p, q, 20_000), truth, relative=0.05)


def test_the_loss_is_the_cross_entropy_and_its_minimum_is_the_entropy():
    """Maximum likelihood is minimal KL: q(x | m) has the least loss on draws of p at p's own mean, and it is H(p)."""
    p, means = gaussian([0.3], [0.8]), torch.linspace(-0.7, 1.3, 21)
    x = p.sample(40_000)
    losses = torch.stack([gaussian([m.item()], [0.8]).loss(x) for m in means])
    divergences = 0.5 * ((means - 0.3) / 0.8) ** 2
    assert means[losses.argmin()] == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(losses - losses.min(), divergences, atol=0.03, rtol=0)
    assert losses.min().item() == pytest.approx(normal(([0.3], [0.8])).entropy().item(), abs=0.02)


def test_of_integers_all_three_are_sums():
    p, q = categorical(torch.tensor([0.5, 0.3, 0.2])), categorical(torch.tensor([0.2, 0.2, 0.6]))
    a, b = probabilities(p, 3), probabilities(q, 3)
    within(kl_divergence(p, q, 20_000), closed_kl(Categorical(a), Categorical(b)), relative=0.05)
    within(entropy(p, 20_000), Categorical(a).entropy(), relative=0.05)
    within(cross_entropy(p, q, 20_000), -(a * b.log()).sum(), relative=0.05)


def test_a_context_has_a_row_for_each_draw():
    """p(x | c) = N(c, 1) and N(0, 1): the divergence is the mean of c²/2."""

    class Shifted(StandardNormal):
        conditional = True

        def log_prob(self, x, context=None, *, samples=1):
            return super().log_prob(x - context)

        def sample(self, n, context=None):
            return super().sample(n) + context

    context = torch.linspace(-1, 2, 3000)[:, None]
    estimate = kl_divergence(Shifted((1,)), StandardNormal((1,)), 3000, context=context)
    within(estimate, 0.5 * context.square().mean(), relative=0.1)
    with pytest.raises(ValueError, match="one row per draw: 10, got 3000"):
        kl_divergence(Shifted((1,)), StandardNormal((1,)), 10, context=context)


def test_the_standard_error_is_that_of_the_mean():
    """Estimates repeated 200 times spread as they say."""
    p, q = gaussian(*P), gaussian(*Q)
    estimates = [kl_divergence(p, q, 300) for _ in range(200)]
    spread = torch.tensor([e.nats for e in estimates]).std()
    assert spread == pytest.approx(sum(e.stderr for e in estimates) / 200, rel=0.25)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"same events, got real events of shape \(2,\) and real .* \(3,\)"):
        kl_divergence(StandardNormal((2,)), StandardNormal((3,)))
    with pytest.raises(ValueError, match=r"real events of shape \(1,\) and discrete events of shape \(1,\)"):
        kl_divergence(StandardNormal((1,)), categorical(torch.tensor([0.5, 0.5])))
    with pytest.raises(ValueError, match="at least 2 for a standard error, got 1"):
        entropy(StandardNormal((2,)), 1)


def test_it_is_public():
    assert loglik.kl_divergence is kl_divergence and loglik.divergence.entropy is entropy
