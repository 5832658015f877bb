"""Observation models of every kind, the ladder, priors and posteriors, and what training chooses."""

import copy
import math

import pytest
import torch
from scipy.stats import betabinom
from torch import nn
from torch.distributions import Normal

from helpers.densities import check_draws_what_it_scores, check_sums_to_one, draw, events_of, perturb, train
from loglik.data.spec import DataSpec
from loglik.density import StandardNormal
from loglik.flows import autoregressions, maf
from loglik.flows.maps import Affine
from loglik.networks import MLP, Pyramid, TopDown
from loglik.recipes.priors import PRIORS, prior_of
from loglik.vae import (
    VAE,
    Bernoulli,
    BetaBinomial,
    Categorical,
    Codes,
    DiscretisedLogistic,
    Gaussian,
    Integers,
    KLWeighting,
    LadderVAE,
    LocalPixels,
    Mixed,
    VampPrior,
)
from loglik.vae.diagnostics import diagnose

SHAPE = (1, 1, 2)
SPEC = DataSpec(kind="image", event_shape=SHAPE, levels=3, classes=("a", "b"))
BITS = DataSpec(kind="image", event_shape=SHAPE, levels=2, classes=("a", "b"))


def local(levels: int = 3, shape=SHAPE) -> LocalPixels:
    return LocalPixels(shape, lambda s: Categorical(s, levels), features=8, radius=1)


# ---- observation models


@pytest.mark.parametrize(
    ("observation", "spec"),
    [
        (Bernoulli(SHAPE), BITS),
        (BetaBinomial(SHAPE, 3), SPEC),
        (Mixed([Categorical((1,), 3), DiscretisedLogistic((1,), 3, 2)]), SPEC),
        (local(), SPEC),
    ],
    ids=["bernoulli", "beta-binomial", "mixed", "local pixels"],
)
def test_sums_to_one_and_draws_what_it_scores(float64, observation, spec):
    torch.manual_seed(2)
    observation = copy.deepcopy(observation).double()
    perturb(observation, 0.5)
    events = events_of(spec).view(-1, *observation.event_shape)
    theta = torch.randn(1, observation.outputs)
    p = observation.log_prob(events, theta.expand(len(events), -1)).exp()
    assert abs(p.sum() - 1) < 1e-9
    drawn = observation.sample(theta.expand(20_000, -1))
    share = (drawn.flatten(1)[:, None] == events.flatten(1)).all(-1).double().mean(0)
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt() + 1e-6).all()
    if not isinstance(observation, (LocalPixels, Mixed)):
        dims = observation.log_prob_dims(events, theta.expand(len(events), -1))
        torch.testing.assert_close(dims.sum(1), p.log())


def test_beta_binomial_is_scipys(float64):
    observation, theta = BetaBinomial((1,), 9), torch.tensor([[0.7, -0.4]])
    alpha, beta = (5 * (theta[0] / 5).tanh()).exp().tolist()
    x = torch.arange(9).unsqueeze(1)
    truth = torch.tensor(betabinom.logpmf(range(9), 8, alpha, beta))
    torch.testing.assert_close(observation.log_prob(x, theta.expand(9, -1)), truth)
    assert abs(observation.mean(theta).item() - 8 * alpha / (alpha + beta)) < 1e-9


def test_beta_binomial_starts_near_the_data():
    x = torch.distributions.Binomial(16, torch.distributions.Beta(2.0, 5.0).sample((4000, 1))).sample()
    observation = BetaBinomial((1,), 17)
    theta = observation.marginal(x.to(torch.uint8)).expand(4000, -1)
    entropy = -torch.tensor(betabinom.pmf(range(17), 16, 2, 5)).clamp_min(1e-12)
    entropy = (entropy * (-entropy).log()).sum()
    assert -observation.log_prob(x.to(torch.uint8), theta).mean() < entropy + 0.05


@pytest.mark.parametrize(("scale", "sigma"), [(0.5, [0.5, 0.5]), ("dim", [2.0, 0.1]), ("shared", None)])
def test_gaussian_scales(float64, scale, sigma):
    x = torch.randn(5000, 2) * torch.tensor([2.0, 0.1]) + 1
    observation = Gaussian((2,), scale).double()
    observation.initialise(x)
    theta = observation.marginal(x).expand(5000, -1)
    sigma = torch.tensor(sigma) if sigma else ((4 + 0.01) / 2) ** 0.5 * torch.ones(2)
    truth = Normal(x.mean(0), sigma).log_prob(x).sum(1)
    torch.testing.assert_close(observation.log_prob(x, theta), truth, atol=0.1, rtol=0.05)
    assert sum(p.numel() for p in observation.parameters()) == {"dim": 2, "shared": 1}.get(scale, 0)


def test_a_fixed_gaussian_is_the_mean_squared_error(float64):
    x, theta = torch.randn(4, 3), torch.randn(4, 3)
    nats = Gaussian((3,), 1.0).log_prob(x, theta)
    mse = (x - theta).square().mean(1)
    torch.testing.assert_close(nats, -1.5 * mse - 1.5 * math.log(2 * math.pi))


def test_mixed_is_the_sum_of_its_columns(float64):
    parts = [Gaussian((2,), "dim").double(), Categorical((1,), 4)]
    mixed = Mixed(parts)
    assert not mixed.discrete and mixed.event_shape == (3,)
    x = torch.cat([torch.randn(50, 2), torch.randint(0, 4, (50, 1))], 1)
    theta = torch.randn(50, mixed.outputs)
    each = parts[0].log_prob(x[:, :2], theta[:, :2]) + parts[1].log_prob(x[:, 2:], theta[:, 2:])
    torch.testing.assert_close(mixed.log_prob(x, theta), each)
    assert mixed.sample(theta).shape == x.shape and mixed.mean(theta).shape == x.shape
    assert mixed.marginal(x).shape == (mixed.outputs,) and mixed.centre(x).abs().max() < 10


def test_a_pixel_sees_only_those_before_it(float64):
    observation = LocalPixels((2, 5, 6), lambda s: Categorical(s, 4), features=6, radius=2).double()
    perturb(observation, 0.5)
    x, theta = torch.randint(0, 4, (1, 2, 5, 6)), torch.randn(1, observation.outputs)
    before = observation._theta(x, theta).view(4, 2, 5, 6)
    other = x.clone()
    other[0, :, 2, 3] = (other[0, :, 2, 3] + 1) % 4
    changed = (observation._theta(other, theta).view(4, 2, 5, 6) != before).any(0).any(0)
    seen = torch.zeros(5, 6, dtype=torch.bool)
    seen[2, 4:6] = True  # to the right in its row, two beside
    seen[3:5, 1:6] = True  # two rows below, two beside
    assert torch.equal(changed, seen)


def test_local_pixels_draw_as_they_score(float64):
    """One pixel after another with the parameters that scoring gives."""
    observation = LocalPixels((1, 4, 3), lambda s: Categorical(s, 2), features=6, radius=2).double()
    perturb(observation, 1.0)
    theta = torch.randn(1, observation.outputs)
    drawn = observation.sample(theta.expand(4000, -1))
    logits = observation._theta(drawn, theta.expand(4000, -1)).view(4000, 2, 12)
    surprise = drawn.flatten(1).double() - logits.softmax(1)[:, 1]  # of mean zero, whatever came before
    assert (surprise.mean(0).abs() < 4.5 * surprise.std(0) / 4000**0.5).all()


@pytest.mark.parametrize("observation", [Bernoulli((2,)), Categorical((2,), 3), BetaBinomial((2,), 3)])
def test_levels_outside_are_named(observation):
    levels = observation.levels
    with pytest.raises(ValueError, match=f"data must hold integers 0 ... {levels - 1}, got 0 ... 7"):
        observation.log_prob(torch.tensor([[0, 7]]), torch.zeros(1, observation.outputs))


# ---- priors, posteriors, the ladder: on two pixels of three levels


def two_pixel_vae(**options) -> VAE:
    latent = 2
    return VAE(MLP(2, 2 * latent, (16,)), MLP(latent, 6, (16,)), Categorical(SHAPE, 3), **options)


@pytest.mark.parametrize("kind", PRIORS)
def test_every_prior_sums_to_one(kind):
    torch.manual_seed(3)
    encoder, decoder = MLP(2, 4, (16,)), MLP(2, 6, (16,))
    vae = VAE(encoder, decoder, Categorical(SHAPE, 3), prior_of(kind, 2, 16, SHAPE))
    train(vae, draw(SPEC, 256)[0])
    check_sums_to_one(
        vae, events_of(SPEC), draws=20_000 if kind in ("normal", "vamp", "flow", "autoregressive") else 80_000
    )


def test_a_posterior_that_is_a_flow_sums_to_one():
    torch.manual_seed(3)
    encoder = MLP(2, 4 + 3, (16,))  # three numbers for the transforms
    flow = autoregressions(2, Affine(), layers=2, hidden=(8,), context=3)
    vae = VAE(encoder, MLP(2, 6, (16,)), Categorical(SHAPE, 3), latent=2, posterior=flow)
    train(vae, draw(SPEC, 256)[0])
    p = check_sums_to_one(vae, events_of(SPEC))
    check_draws_what_it_scores(vae, events_of(SPEC), p)
    assert vae.encode(events_of(SPEC)).shape == (9, 2) and set(vae.terms(events_of(SPEC))) == {"reconstruction", "-KL"}


def small_ladder(prior=None, **options) -> LadderVAE:
    observation = LocalPixels((1, 4, 4), lambda s: Categorical(s, 3), features=4, radius=1)
    levels = {"widths": [4, 8], "groups": [1, 2]}
    encoder = Pyramid(1, blocks=[1, 1], **levels)
    return LadderVAE(encoder, TopDown(4, 4, 4, latents=[1, 2], **levels), observation, prior, **options)


def test_a_ladder_sums_to_one():
    torch.manual_seed(3)
    levels = {"widths": [4, 4], "groups": [1, 1]}
    observation = LocalPixels(SHAPE, lambda s: Categorical(s, 3), features=4, radius=1)
    vae = LadderVAE(Pyramid(1, blocks=[1, 1], **levels), TopDown(1, 2, 4, latents=[1, 1], **levels), observation)
    train(vae, draw(SPEC, 256)[0], lr=3e-3)
    perturb(vae, 0.1)
    p = check_sums_to_one(vae, events_of(SPEC))
    check_draws_what_it_scores(vae, events_of(SPEC), p)


def test_a_ladders_terms_are_its_log_prob(float64):
    """The closed-form KL is the mean of log q - log p, group by group; encode and decode go through all groups."""
    torch.manual_seed(3)
    vae = small_ladder().double()
    perturb(vae, 0.3)
    x = torch.randint(0, 3, (2, 1, 4, 4)).to(torch.uint8)
    assert vae.shapes == [(2, 1, 1), (2, 1, 1), (1, 2, 2)] and vae.latent == 8
    rows = x.repeat(4000, 1, 1, 1)
    drawn = vae._draw(vae._infer(rows, None), None)
    difference = -drawn.log_ratio - drawn.kl.sum(1)
    assert abs(difference.mean()) < 4.5 * difference.std() / 8000**0.5
    assert vae.encode(x).shape == (2, 8) and vae.reconstruct(x).shape == x.shape
    torch.testing.assert_close(vae.parameters_of(drawn.z[:2]), drawn.theta[:2])
    latents = vae.sample_latents(5)
    assert latents.shape == (5, 8) and vae.decode(latents).shape == (5, 1, 4, 4)


@pytest.mark.parametrize("kind", ["vamp", "flow"])
def test_a_ladder_takes_a_prior_over_its_top(kind):
    vae = small_ladder(prior_of(kind, 2, 8, (1, 4, 4)))
    x = torch.randint(0, 3, (64, 1, 4, 4)).to(torch.uint8)
    train(vae, x, steps=5)
    assert vae.log_prob(x, samples=3).isfinite().all() and vae.sample(3).shape == (3, 1, 4, 4)


def test_vamp_is_the_mixture_of_its_posteriors(float64):
    vae = two_pixel_vae(prior=VampPrior(2, SHAPE, 5)).double()
    mean, log_scale = vae._split(vae.encoder(vae.prior.inputs))
    z = torch.randn(7, 2)
    each = Normal(mean, log_scale.exp()).log_prob(z[:, None]).sum(2)
    torch.testing.assert_close(vae.prior.log_prob(z), each.logsumexp(1) - math.log(5))
    copied = copy.deepcopy(vae)
    with torch.no_grad():
        copied.encoder.output.bias.add_(1.0)
    assert not torch.equal(copied.prior.log_prob(z), vae.prior.log_prob(z))  # the copy has the copy's encoder
    assert not any("encoder" in name for name in vae.prior.state_dict())


# ---- training choices


@pytest.mark.parametrize("objective", [KLWeighting(beta=0.1), KLWeighting(free_bits=2.0), KLWeighting(warmup=10)])
def test_training_choices_change_the_loss_and_never_the_likelihood(objective):
    torch.manual_seed(3)
    plain = two_pixel_vae(latent=2)
    chosen = copy.deepcopy(plain)
    chosen.objective = objective
    x = events_of(SPEC)
    values = []
    for vae in (plain, chosen):
        perturb(vae, 0.0)
        torch.manual_seed(0)
        values.append((vae.train().loss(x), vae.eval().log_prob(x, samples=4), sum(vae.terms(x).values())))
    assert not torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1]) and torch.equal(values[0][2], values[1][2])


def test_warm_up_rises_with_the_steps_that_are_taken(float64):
    vae = two_pixel_vae(latent=2, objective=KLWeighting(warmup=4, beta=2.0)).double()
    weights = [float(vae.train()._kl_weight()) for _ in range(6)]
    assert weights == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert vae.eval()._kl_weight() == 2.0 and vae.trained == 6


def test_free_bits_leave_a_dimension_below_them_alone(float64):
    vae = two_pixel_vae(latent=2, objective=KLWeighting(free_bits=100.0)).double()
    vae.eval().loss(events_of(SPEC)).backward()
    reconstruction = vae.encoder.output.weight.grad.clone()
    vae.zero_grad()
    (-vae.terms(events_of(SPEC))["reconstruction"].mean()).backward()
    assert reconstruction.abs().sum() > 0 and vae.encoder.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["beta", "free_bits", "warmup"])
def test_a_negative_choice_is_named(name):
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
        KLWeighting(**{name: -1})


# ---- diagnostics


def test_diagnosis_of_a_known_posterior(float64):
    """z1 follows x, z2 is the prior: one active dimension, and the KL and the gap that they have."""

    class Encoder(nn.Module):
        def forward(self, x):
            zero = torch.zeros(len(x), 1)
            log_scale = 6 * torch.atanh(torch.full((len(x), 1), math.log(0.3)) / 6)
            return torch.cat([x[:, :1], zero, log_scale, zero], 1)

    vae = VAE(Encoder(), nn.Linear(2, 2), Gaussian((1,)), latent=2).double()
    x = torch.randn(2000, 1)
    found = diagnose(vae, x)
    kl = 0.5 * (x.square().mean() + 0.09 - 1) - math.log(0.3)
    torch.testing.assert_close(found.kl, torch.stack([kl, torch.zeros(())]))
    assert found.active.tolist() == [True, False] and found.collapse is None
    gap = 0.5 * (1.09 - 1 - math.log(1.09))  # of N(0, 1.09) from N(0, 1)
    assert abs(found.gap - gap) < 0.05
    assert found.lines()[0].startswith("latents: 1 of 2 dimensions active, KL ")


def test_posterior_collapse_is_named():
    vae = VAE(nn.Linear(3, 4), nn.Linear(2, 6), Gaussian((3,)), latent=2)
    nn.init.zeros_(vae.encoder.weight)
    nn.init.zeros_(vae.encoder.bias)
    found = diagnose(vae, torch.randn(50, 3))
    assert found.collapse.startswith("posterior collapse: none of the 2 latent dimensions is active")
    assert found.lines()[1] == found.collapse
    ladder = small_ladder()
    assert "posterior collapse" in diagnose(ladder, torch.zeros(20, 1, 4, 4, dtype=torch.uint8)).collapse


# ---- what a user may do wrong


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two_pixel_vae(prior=StandardNormal((3,)), latent=2), r"over events of shape \(2,\), got \(3,\)"),
        (lambda: two_pixel_vae(prior=two_pixel_vae(latent=2)), r"over events of shape \(L,\), got \(1, 1, 2\)"),
        (lambda: Gaussian((2,), "one"), "scale must be example, dim, shared or a number above 0, got 'one'"),
        (lambda: Gaussian((2,), -1.0), "scale must be .* got -1.0"),
        (lambda: Mixed([]), "at least one part"),
        (lambda: Mixed([Gaussian((2, 2))]), r"events of shape \(D,\), got \(2, 2\)"),
        (lambda: local(shape=(4,)), r"needs images \(C, H, W\), got events of shape \(4,\)"),
        (lambda: VampPrior(2, (3,), 0), "components must be at least 1, got 0"),
        (lambda: VampPrior(2, (3,)).log_prob(torch.zeros(1, 2)), "needs the encoder of a VAE"),
        (lambda: two_pixel_vae(prior=VampPrior(2, SHAPE), posterior=maf(2)), "leave the posterior's transforms out"),
        (
            lambda: VAE(MLP(2, 4), MLP(2, 5), Categorical(SHAPE, 3), latent=2).sample(1),
            "return 6 values.* returned 5",
        ),
        (lambda: prior_of("vampire", 2, 8, SHAPE), "unknown prior 'vampire': use normal, vamp"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_codes_are_one_hot_for_an_encoder_and_their_mean_is_a_code():
    codes = Codes((2,), 3)
    x = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert codes.inputs == 6 and codes.centre(x).tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
    theta = torch.tensor([[2.0, 0.0, 1.0, 3.0, 0.0, 1.0]])  # (K, D): column 0 has logits 2, 1, 0
    assert codes.mean(theta).tolist() == [[0, 1]]
    assert Codes((1,), 1).log_prob(torch.zeros(4, 1), torch.randn(4, 1)).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"must hold integers 0 \.\.\. 2, got 0 \.\.\. 3"):
        codes.centre(torch.tensor([[0.0, 3.0]]))


@pytest.mark.parametrize("spread", [0.0, 0.6, 30.0])
def test_integers_sum_to_one_over_an_open_range(float64, spread):
    """Anywhere on the line, constant columns too; samples are integers that come as often as they are probable."""
    integers = Integers((1,))
    x = (spread * torch.randn(500, 1)).round() - 1000
    integers.initialise(x)
    theta = integers.marginal(x).unsqueeze(0) + 0.3 * torch.randn(1, integers.outputs)
    every = torch.arange(-2000.0, 0.0).unsqueeze(1)
    p = integers.log_prob(every, theta.expand(len(every), -1)).exp()
    assert abs(p.sum() - 1) < 1e-9
    drawn = integers.sample(theta.expand(20_000, -1))
    assert torch.equal(drawn, drawn.round())
    share = torch.bincount((drawn.squeeze(1) + 2000).long(), minlength=2000)[:2000].double() / 20_000
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-4).all()


def test_mixed_keeps_the_columns_order():
    """Columns of one kind need not be neighbours."""
    mixed = Mixed([Gaussian((2,), scale=1.0), Codes((1,), 3)], [[0, 2], [1]])
    x = torch.tensor([[0.3, 2.0, -0.7]])
    theta = torch.tensor([[0.1, 0.2, 0.0, 1.0, 2.0]])
    truth = Gaussian((2,), scale=1.0).log_prob(x[:, [0, 2]], theta[:, :2])
    truth = truth + theta[0, 2:].log_softmax(0)[2]
    torch.testing.assert_close(mixed.log_prob(x, theta), truth)
    assert mixed.mean(theta).tolist() == [[pytest.approx(0.1), 2, pytest.approx(0.2)]]
    assert mixed.centre(x).tolist() == [[pytest.approx(0.3), pytest.approx(-0.7), 0, 0, 1]]
    drawn = mixed.sample(theta.expand(100, -1))
    assert set(drawn[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match=r"columns must be 0 \.\.\. 2 in groups of \[2, 1\]"):
        Mixed([Gaussian((2,)), Codes((1,), 3)], [[0, 1], [1]])
