"""VAEs: observation models that are normalised, the exact posterior's truth, and priors of every kind."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from helpers.densities import check_sums_to_one, draw, events_of, perturb, train
from helpers.exact import Constant
from loglik.data.spec import DataSpec
from loglik.density import Bound, StandardNormal
from loglik.diffusion import Denoiser, Diffusion, Sampler
from loglik.flows import Coupling, Elementwise, Flow, Spline
from loglik.flows.spline import parameters_per_dim
from loglik.networks import MLP, ResidualMLP
from loglik.transforms import Standardise
from loglik.vae import VAE, Categorical, DiscretisedLogistic, Gaussian

SHAPE = (1, 1, 2)
LEVELS = 3
SPEC = DataSpec(kind="image", event_shape=SHAPE, levels=LEVELS, classes=("a", "b"))


def observations(levels: int = LEVELS, shape: tuple[int, ...] = SHAPE) -> list:
    return [Categorical(shape, levels), DiscretisedLogistic(shape, levels, 1), DiscretisedLogistic(shape, levels, 3)]


# ---- observation models alone


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("levels", [2, 3, 17, 256, 300])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_discrete_observations_sum_to_one(float64, kind, levels, scale):
    observation = observations(levels, (1,))[kind]
    x = torch.arange(levels).unsqueeze(1)
    for theta in scale * torch.randn(5, 1, observation.outputs):
        log_p = observation.log_prob(x, theta.expand(levels, -1))
        assert log_p.shape == (levels,) and log_p.isfinite().all()
        assert abs(log_p.exp().sum() - 1) < 1e-9


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_dimensions_are_independent_given_theta(float64, kind):
    """The nine events of two pixels sum to one, and each is the product of its pixels."""
    observation, alone = observations()[kind], observations(shape=(1,))[kind]
    theta = torch.randn(1, observation.outputs)
    x = events_of(SPEC)
    log_p = observation.log_prob(x, theta.expand(9, -1))
    assert abs(log_p.exp().sum() - 1) < 1e-9
    parts = theta.view(1, -1, 2)
    each = sum(alone.log_prob(x.view(9, 2)[:, [d]], parts[..., d].expand(9, -1)) for d in range(2))
    torch.testing.assert_close(log_p, each)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_discrete_observations_draw_what_they_score(float64, kind):
    observation, n = observations(5, (2,))[kind], 20_000
    theta = torch.randn(1, observation.outputs)
    drawn = observation.sample(theta.expand(n, -1))
    assert drawn.shape == (n, 2) and drawn.dtype == torch.uint8
    alone = observations(5, (1,))[kind]
    for d, part in enumerate(theta.view(-1, 2).T):
        p = alone.log_prob(torch.arange(5).unsqueeze(1), part.expand(5, -1)).exp()
        share = torch.bincount(drawn[:, d].long(), minlength=5) / n
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def test_categorical_is_torchs(float64):
    observation, theta = Categorical((4,), 6), torch.randn(7, 24)
    x = torch.randint(0, 6, (7, 4))
    truth = TorchCategorical(logits=theta.view(7, 6, 4).transpose(1, 2))
    torch.testing.assert_close(observation.log_prob(x, theta), truth.log_prob(x).sum(1))
    mean = (truth.probs * torch.arange(6.0)).sum(-1)
    torch.testing.assert_close(observation.mean(theta), mean)


def test_discretised_logistic_is_its_formula(float64):
    """Differences of the logistic's distribution function; the ends take the tails."""
    levels, m = 5, 2
    observation, theta = DiscretisedLogistic((1,), levels, m), torch.randn(1, 3 * m)
    weight, mean, log_scale = theta.view(3, m)
    scale = (7 * (log_scale / 7).tanh()).exp()
    edges = torch.tensor([-torch.inf, -0.75, -0.25, 0.25, 0.75, torch.inf])  # between levels -1, -½, 0, ½, 1
    cdf = ((edges[:, None] - mean) / scale).sigmoid() @ weight.softmax(0)
    log_p = observation.log_prob(torch.arange(levels).unsqueeze(1), theta.expand(levels, -1))
    torch.testing.assert_close(log_p, cdf.diff().log())


def test_gaussian_is_torchs_and_integrates_to_one(float64):
    observation, theta = Gaussian((3,)), torch.randn(5, 6)
    x = torch.randn(5, 3)
    mean, log_scale = theta.view(5, 2, 3).unbind(1)
    truth = Normal(mean, (6 * (log_scale / 6).tanh()).exp())
    torch.testing.assert_close(observation.log_prob(x, theta), truth.log_prob(x).sum(1))
    torch.testing.assert_close(observation.mean(theta), mean)
    grid = torch.linspace(-40, 40, 4001)
    total = Gaussian((1,)).log_prob(grid.unsqueeze(1), theta[:1, ::3].expand(4001, -1)).exp().sum() * grid.diff()[0]
    assert abs(total - 1) < 1e-9
    drawn = observation.sample(theta[:1].expand(20_000, -1))
    assert ((drawn.mean(0) - mean[0]).abs() < 4 * truth.stddev[0] / 20_000**0.5).all()
    assert (drawn.std(0) / truth.stddev[0] - 1).abs().max() < 0.03


@pytest.mark.parametrize("value", [-1e3, -50.0, 50.0, 1e3])
def test_far_parameters_are_finite_and_train(value):
    for observation in [*observations(256), Gaussian(SHAPE)]:
        theta = torch.full((2, observation.outputs), value, requires_grad=True)
        x = torch.tensor([[0, 255], [128, 3]]).view(2, *SHAPE)
        log_p = observation.log_prob(x if observation.discrete else x.float(), theta)
        log_p.sum().backward()
        assert log_p.isfinite().all() and theta.grad.isfinite().all()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_marginal_parameters_fit_each_dimension(kind):
    """They score the data better than any constant distribution of the levels, and near its entropy."""
    observation = observations(8)[kind]
    x = (torch.randn(4000, *SHAPE) + torch.tensor([2.0, 5.0])).round().clamp(0, 7).to(torch.uint8)
    theta = observation.marginal(x)
    nats = observation.log_prob(x, theta.expand(4000, -1)).mean()
    shares = torch.stack([torch.bincount(column, minlength=8) / 4000 for column in x.view(4000, 2).long().T])
    entropy = -(shares * shares.clamp_min(1e-9).log()).sum()
    assert -nats < entropy + (0.01 if kind == 0 else 0.4) < 2 * math.log(8)
    assert -nats > entropy - 1e-4


def test_marginal_of_the_categorical_is_the_smoothed_count(float64):
    x = torch.tensor([[0], [0], [2], [1], [0]])
    theta = Categorical((1,), 3).marginal(x)
    torch.testing.assert_close(theta.double().exp(), torch.tensor([3.5, 1.5, 1.5]) / 6.5, rtol=1e-6, atol=0)


def test_marginal_of_the_gaussian_is_the_mean_and_std():
    x = torch.tensor([3.0, -20.0]) + torch.tensor([0.1, 50.0]) * torch.randn(1000, 2)
    observation = Gaussian((2,))
    theta = observation.marginal(x)
    truth = Normal(x.mean(0), x.std(0, unbiased=False)).log_prob(x).sum(1)
    torch.testing.assert_close(observation.log_prob(x, theta.expand(1000, -1)), truth, rtol=1e-4, atol=1e-3)
    assert observation.marginal(torch.full((9, 2), 5.0)).isfinite().all()


@pytest.mark.parametrize("kind", [Categorical, DiscretisedLogistic])
def test_one_level_is_refused(kind):
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        kind((2,), 1)


# ---- the exact posterior


def linear_gaussian(tilt: float = 0.0) -> tuple[VAE, MultivariateNormal]:
    """x = W z + b + s ε with orthogonal columns of W, so that the true posterior has a diagonal covariance."""
    dims, latent, s = 4, 2, 0.7
    w = torch.linalg.qr(torch.randn(dims, latent)).Q * torch.tensor([2.0, 0.5])
    b = torch.randn(dims)
    precision = 1 + w.square().sum(0) / s**2
    gain = (w / s**2 / precision).T
    squash = lambda log_scale: 6 * (log_scale / 6).atanh()  # noqa: E731  undoes the bound on log-scales
    encoder = Constant(gain, -gain @ b + tilt, squash(-0.5 * precision.log()))
    decoder = Constant(w, b, squash(torch.full((dims,), math.log(s))))
    truth = MultivariateNormal(b, w @ w.T + s**2 * torch.eye(dims))
    return VAE(encoder, decoder, Gaussian((dims,)), latent=latent).double(), truth


def test_with_the_exact_posterior_every_draw_is_the_truth(float64):
    vae, truth = linear_gaussian()
    x = 3 * torch.randn(20, 4)
    for samples in (1, 7):
        torch.testing.assert_close(vae.log_prob(x, samples=samples), truth.log_prob(x), atol=1e-5, rtol=0)
    assert vae.bound is Bound.LOWER and not vae.discrete


def test_with_another_posterior_the_bound_is_lower_by_the_kl(float64):
    vae, truth = linear_gaussian(tilt=0.4)
    x = truth.sample((1,))
    mean, log_scale = vae.posterior(x)
    gap = kl_divergence(Normal(mean, log_scale.exp()), Normal(mean - 0.4, log_scale.exp())).sum()
    draws = vae.log_prob(x.expand(40_000, -1))
    assert abs(draws.mean() - (truth.log_prob(x) - gap)) < 4 * draws.std() / 200
    tightened = vae.log_prob(x, samples=4000)
    assert abs(tightened - truth.log_prob(x)) < 0.05 < gap


def test_terms_are_the_reconstruction_the_kl_and_what_weights_add(float64):
    vae, _ = linear_gaussian(tilt=0.4)
    x = torch.randn(6, 4)
    mean, log_scale = vae.posterior(x)
    q, p = Normal(mean, log_scale.exp()), Normal(0.0, 1.0)
    torch.manual_seed(3)
    terms = vae.terms(x)
    torch.manual_seed(3)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    torch.testing.assert_close(terms["reconstruction"], vae.observation.log_prob(x, vae.parameters_of(z)))
    torch.testing.assert_close(terms["-KL"], (p.log_prob(z) - q.log_prob(z)).sum(1))
    terms = vae.terms(x, samples=20_000)
    torch.testing.assert_close(terms["-KL"], -kl_divergence(q, p).sum(1), rtol=0, atol=0.05)
    assert set(terms) == {"reconstruction", "-KL", "tightening (K = 20000)"}
    assert terms["tightening (K = 20000)"].min() > 0


def test_reconstruct_is_the_decoder_at_the_posterior_mean(float64):
    vae, truth = linear_gaussian()
    x = torch.randn(6, 4)
    mean, _ = vae.posterior(x)
    torch.testing.assert_close(vae.reconstruct(x), mean @ vae.decoder.weight.T + truth.mean)


def test_samples_follow_the_model(float64):
    vae, truth = linear_gaussian()
    drawn = vae.sample(20_000)
    assert ((drawn.mean(0) - truth.mean).abs() < 4 * truth.stddev / 20_000**0.5).all()
    assert (drawn.T.cov() - truth.covariance_matrix).abs().max() < 0.05 * truth.covariance_matrix.max()


# ---- sums to one, over every observation and prior


def small_vae(observation, prior=None, latent: int | None = 2) -> VAE:
    inputs = observation.dims
    latent = prior.event_shape[0] if prior else latent
    return VAE(
        MLP(inputs, 2 * latent, (16,)), MLP(latent, observation.outputs, (16,)), observation, prior, latent=latent
    )


def flow_prior() -> Flow:
    coupling = Coupling([True, False], MLP(1, parameters_per_dim(4), (16,)), Spline(4, 4.0))
    prior = Flow([Elementwise(2, Spline(4, 4.0)), coupling], StandardNormal((2,)))
    perturb(prior, 0.3)
    return prior


def diffusion_prior() -> Diffusion:
    return Diffusion(
        Denoiser(ResidualMLP(2, 2, width=16, depth=1, context=8), features=8), (2,), sampler=Sampler(steps=8)
    )


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_vae_sums_to_one(kind):
    x, _ = draw(SPEC, 256)
    vae = small_vae(observations()[kind])
    train(vae, x)
    check_sums_to_one(vae, events_of(SPEC))


def test_vae_over_a_flow_sums_to_one():
    vae = small_vae(observations()[0], flow_prior())
    train(vae, draw(SPEC, 256)[0])
    assert vae.bound is Bound.LOWER and vae.importance_weighted
    check_sums_to_one(vae, events_of(SPEC))


def test_hierarchical_vae_sums_to_one():
    prior = small_vae(Gaussian((2,)), latent=1)
    vae = small_vae(observations()[0], prior)
    train(vae, draw(SPEC, 256)[0])
    assert vae.bound is Bound.LOWER and vae.importance_weighted
    check_sums_to_one(vae, events_of(SPEC))


def test_latent_diffusion_is_a_bound():
    vae = small_vae(observations()[0], diffusion_prior())
    train(vae, draw(SPEC, 256)[0])
    assert vae.bound is Bound.LOWER and not vae.importance_weighted
    check_sums_to_one(vae, events_of(SPEC), draws=80_000)
    assert vae.sample(5).shape == (5, *SHAPE)


def test_a_vae_in_odd_units_is_a_flow_over_a_vae():
    x = torch.tensor([1e4, 1e-3]) * torch.randn(300, 2)
    whole = Flow([Standardise((2,))], small_vae(Gaussian((2,))))
    whole.initialise(x)
    assert whole.bound is Bound.LOWER and whole.importance_weighted
    inside = whole.transforms[0].encode(x)[0]
    torch.manual_seed(5)
    total = whole.log_prob(x)
    torch.manual_seed(5)
    log_unit = whole.transforms[0].std.log().sum()
    torch.testing.assert_close(total, whole.base.log_prob(inside) - log_unit)


# ---- what a user may do wrong


def test_latent_must_be_known():
    with pytest.raises(ValueError, match="pass a prior, or latent=L"):
        VAE(nn.Identity(), nn.Identity(), Gaussian((2,)))


def test_prior_must_be_over_vectors():
    with pytest.raises(ValueError, match=r"over events of shape \(L,\), got \(2, 3\)"):
        VAE(nn.Identity(), nn.Identity(), Gaussian((2,)), StandardNormal((2, 3)))


def test_encoder_of_the_wrong_width_is_named():
    vae = VAE(nn.Linear(2, 3), nn.Linear(2, 4), Gaussian((2,)), latent=2)
    with pytest.raises(ValueError, match=r"the encoder must return 2·2 values.* it returned 3"):
        vae.log_prob(torch.randn(5, 2))
