"""A linear VAE with a Gaussian observation, where everything has a closed form."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from loglik.vae import VAE, Gaussian

DIMS, LATENT = 5, 2


def linear_vae(scale="shared") -> VAE:
    return VAE(nn.Linear(DIMS, 2 * LATENT), nn.Linear(LATENT, DIMS), Gaussian((DIMS,), scale), latent=LATENT).double()


def parts(vae: VAE):
    """W, b and σ of x = W z + b + σ ε."""
    return vae.decoder.weight, vae.decoder.bias + vae.offset, vae.observation._split(torch.zeros(1, DIMS))[1].exp()


def marginal(vae: VAE) -> MultivariateNormal:
    w, b, sigma = parts(vae)
    return MultivariateNormal(b, w @ w.T + sigma.square() * torch.eye(DIMS))


def true_posterior(vae: VAE, x: torch.Tensor) -> MultivariateNormal:
    w, b, sigma = parts(vae)
    precision = torch.eye(LATENT) + w.T @ w / sigma.square()
    return MultivariateNormal((x - b) @ w @ precision.inverse() / sigma.square(), precision_matrix=precision)


def posterior(vae: VAE, x: torch.Tensor) -> MultivariateNormal:
    mean, log_scale = vae.posterior(x)
    return MultivariateNormal(mean, scale_tril=log_scale.exp().diag_embed())


def cubature(monkeypatch, latent: int = LATENT) -> int:
    """Let ε run through ±√L e_i in turn, over whose 2L points quadratics average to their expectation exactly."""
    points = math.sqrt(latent) * torch.cat([torch.eye(latent), -torch.eye(latent)]).double()
    monkeypatch.setattr(torch, "randn_like", lambda mean: points.repeat_interleave(len(mean) // (2 * latent), 0))
    return 2 * latent


@pytest.fixture
def vae(float64):
    torch.manual_seed(4)
    vae = linear_vae()
    with torch.no_grad():
        vae.encoder.weight.mul_(0.3)
        vae.observation.log_scale.fill_(-0.5)
    return vae


def exact_elbo(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    r"""E log N(x; Wz + b, σ²) in closed form, less the KL."""
    w, b, sigma = parts(vae)
    q = posterior(vae, x)
    spread = (w.T @ w * q.covariance_matrix).sum((1, 2))
    error = (x - q.mean @ w.T - b).square().sum(1) + spread
    reconstruction = -0.5 * error / sigma.square() - DIMS * (sigma.log() + 0.5 * math.log(2 * math.pi))
    return reconstruction - kl_divergence(q, MultivariateNormal(torch.zeros(LATENT), torch.eye(LATENT)))


def test_trained_it_reaches_probabilistic_pca(float64):
    """Within 0.01 nats a dimension of scikit-learn's maximum, by the ELBO as by the marginal itself."""
    torch.manual_seed(0)
    x = torch.randn(600, LATENT) @ (torch.randn(LATENT, DIMS) * 2) + 0.5 * torch.randn(600, DIMS) + 3
    vae = linear_vae()
    vae.initialise(x)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    steps = 1500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        vae.loss(x).backward()
        optimizer.step()
        schedule.step()
    best = PCA(LATENT).fit(x.numpy()).score(x.numpy())
    with torch.no_grad():
        assert abs(marginal(vae).log_prob(x).mean() - best) < 0.01 * DIMS
        assert abs(exact_elbo(vae, x).mean() - best) < 0.01 * DIMS
        assert abs(vae.log_prob(x.repeat(20, 1)).mean() - best) < 0.01 * DIMS


def test_the_gap_is_the_kl_from_the_true_posterior(vae, monkeypatch):
    x = 2 * torch.randn(7, DIMS)
    n = cubature(monkeypatch)
    terms = vae.terms(x.repeat(n, 1))
    elbo = sum(terms.values()).view(n, 7).mean(0)
    torch.testing.assert_close(elbo, exact_elbo(vae, x))
    gap = kl_divergence(posterior(vae, x), true_posterior(vae, x))
    torch.testing.assert_close(marginal(vae).log_prob(x) - elbo, gap, atol=1e-4, rtol=0)
    assert gap.min() > 0.01


def test_the_bound_rises_with_samples_to_the_exact_value(vae):
    x = marginal(vae).sample((20,))
    truth = marginal(vae).log_prob(x).mean()
    bounds = [
        torch.stack([vae.log_prob(x, samples=k) for _ in range(max(2, 2000 // k))]).mean() for k in (1, 4, 16, 64, 4000)
    ]
    assert all(low < high for low, high in zip(bounds, bounds[1:], strict=False))
    assert bounds[0] < truth - 0.1 and abs(bounds[-1] - truth) < 0.01


def test_the_gradient_through_the_noise_is_exact(vae, monkeypatch):
    """Over points that integrate quadratics exactly it is the closed form's gradient, to rounding."""
    x = torch.randn(1, DIMS)
    parameters = list(vae.parameters())
    truth = torch.autograd.grad(-exact_elbo(vae, x).mean(), parameters)
    n = cubature(monkeypatch)
    found = torch.autograd.grad(vae.loss(x.repeat(n, 1)), parameters)
    torch.testing.assert_close(found, truth)


def test_the_score_function_estimator_agrees_with_larger_variance(vae):
    """Of the encoder's bias: ∇ E_q[f] = E_q[f ∇ log q], with f = log p(x, z) - log q(z | x)."""
    x, draws = torch.randn(1, DIMS), 4000
    bias = vae.encoder.bias
    truth = torch.autograd.grad(exact_elbo(vae, x).mean(), bias)[0]
    epsilon = torch.randn(draws, LATENT)
    through, score = [], []
    rows = x.expand(draws, -1)
    w, b, sigma = parts(vae)
    for grads, detached in ((through, False), (score, True)):
        shift = torch.zeros(draws, 2 * LATENT, requires_grad=True)  # a copy of the bias for each draw
        mean, raw = (vae.encoder(rows) + shift).chunk(2, 1)
        log_scale = 6 * (raw / 6).tanh()
        z = mean + log_scale.exp() * epsilon
        z = z.detach() if detached else z
        log_q = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).sum(1)
        log_joint = torch.distributions.Normal(z @ w.T + b, sigma).log_prob(rows).sum(1)
        log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        value = log_joint - log_q
        objective = value.detach() * log_q if detached else value
        grads.append(torch.autograd.grad(objective.sum(), shift)[0])
    for (grad,) in (through, score):
        error = grad.std(0) / math.sqrt(draws)
        assert ((grad.mean(0) - truth).abs() < 5 * error).all()
    assert (score[0].var(0) > 2 * through[0].var(0)).all()
