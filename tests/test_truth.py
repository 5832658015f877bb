"""What must be true of the numbers: they sum to one, agree with closed forms, and carry honest errors."""

import itertools
import math

import pytest
import torch
from torch import nn

from helpers.exact import CorrelatedDenoiser
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.diffusion import Denoiser, Diffusion, LinearBeta, Sampler
from loglik.diffusion.schedule import alpha, sigma
from loglik.evaluation import log_probs, mean_and_stderr
from loglik.recipes import RECIPES, build
from loglik.vae import VAE, Categorical, DiscretisedLogistic

PIXELS = DataSpec(kind="image", event_shape=(1, 1, 2), levels=3, classes=("a", "b"))
EVENTS = torch.tensor(list(itertools.product(range(3), repeat=2)), dtype=torch.uint8).view(9, 1, 1, 2)
SEEN = torch.tensor([0, 1, 1, 4, 5, 8, 8, 8])
GENERATIVE = [name for name in RECIPES if name != "classifier"]


def moved(density):
    """The density away from its start: all parameters moved at random, but not wildly."""
    with torch.no_grad():
        for parameter in density.parameters():
            scale = 0.25 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return density.eval()


def perturbed(name: str, **options):
    """A density over two pixels with three levels, away from its start."""
    density = build(name, PIXELS, **options)
    density.initialise(EVENTS[SEEN], torch.arange(8) % 2 if density.conditional else None)
    return moved(density)


@torch.no_grad()
def total(density, draws: int, context=None) -> tuple[float, float]:
    """The sum over all events of p(x) as the draws say, and its standard error.

    Importance weights average to p(x); of other bounds the logarithms are averaged first.
    """
    log_p = torch.stack([density.log_prob(EVENTS, context, samples=16).double() for _ in range(draws)])
    if density.importance_weighted:
        sums = log_p.exp().sum(1)
        return sums.mean().item(), sums.std().item() / math.sqrt(draws)
    bound = log_p.mean(0)
    errors = bound.exp() * log_p.std(0) / math.sqrt(draws)
    return bound.exp().sum().item(), errors.square().sum().sqrt().item()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", GENERATIVE)
def test_two_pixels_three_levels(name, conditional):
    options = {"conditional": True} if conditional else {}
    if conditional and "conditional" not in RECIPES[name].options:
        pytest.skip("not a conditional family")
    density = perturbed(name, **options)
    context = torch.ones(9, dtype=torch.long) if conditional else None
    if density.bound is Bound.EXACT:
        assert total(density, 2, context)[0] == pytest.approx(1, abs=1e-5)
        return
    value, error = total(density, 200, context)
    assert error < 0.06
    if density.importance_weighted:
        assert value == pytest.approx(1, abs=4 * error)
    else:
        assert 0.5 < value < 1 + 4 * error


@pytest.mark.parametrize("observation", [Categorical((1, 1, 2), 3), DiscretisedLogistic((1, 1, 2), 3, components=2)])
def test_observation_models_sum_to_one(observation):
    theta = 2 * torch.randn(1, observation.outputs, dtype=torch.float64)
    assert observation.log_prob(EVENTS, theta.expand(9, -1)).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_importance_weighted_bound_rises_to_the_truth():
    """p(x) of a VAE with one latent, integrated on a grid, against the bounds with 1 and 512 weights."""
    decoder = nn.Linear(1, 6)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    vae = VAE(encoder, decoder, Categorical((1, 1, 2), 3), latent=1).double()
    torch.set_default_dtype(torch.float64)
    try:
        z = torch.linspace(-8, 8, 4001).unsqueeze(1)
        weight = torch.exp(-0.5 * z.square()).squeeze() / math.sqrt(2 * math.pi) * (16 / 4000)
        theta = vae.parameters_of(z)
        exact = torch.stack(
            [(vae.observation.log_prob(x.expand(4001, 1, 1, 2), theta).exp() * weight).sum().log() for x in EVENTS]
        )
        one = torch.stack([vae.log_prob(EVENTS) for _ in range(2000)]).mean(0)
        many = torch.stack([vae.log_prob(EVENTS, samples=512) for _ in range(20)]).mean(0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (one < exact + 1e-3).all()
    assert (many - exact).abs().max() < 0.02
    assert (many >= one - 0.02).all()


@pytest.fixture
def gaussian():
    torch.set_default_dtype(torch.float64)
    mean = torch.tensor([0.5, -1.0, 0.2])
    root = torch.tensor([[0.7, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.2, 0.3, 0.6]])
    truth = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    yield truth, Diffusion(CorrelatedDenoiser(mean, root @ root.T), (3,), schedule=LinearBeta(t_min=1e-5))
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_diffusion_bound_is_the_closed_form_on_gaussian_data(gaussian):
    truth, diffusion = gaussian
    x = truth.sample((8000,))
    differences = diffusion.log_prob(x, samples=128) - truth.log_prob(x)
    mean, error = mean_and_stderr(differences)
    assert error < 0.03
    assert abs(mean) < 4 * error


@torch.no_grad()
@pytest.mark.parametrize("method", ["ddpm", "euler-maruyama"])
def test_samplers_draw_the_gaussian(gaussian, method):
    truth, diffusion = gaussian
    diffusion.sampler = Sampler(method=method, steps=400)
    drawn = diffusion.sample(20_000)
    assert (drawn.mean(0) - truth.mean).abs().max() < 0.03
    assert (drawn.T.cov() - truth.covariance_matrix).abs().max() < 0.03


def test_denoiser_predictions_agree(gaussian):
    truth, diffusion = gaussian
    x, logsnr = truth.sample((16,)), torch.linspace(-6, 6, 16)
    a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
    x_t = a * x + s * torch.randn_like(x)
    x_hat = diffusion.denoiser(x_t, logsnr)
    noise = (x_t - a * x_hat) / s
    for kind, value in {"noise": noise, "data": x_hat, "v": a * noise - s * x_hat, "score": -noise / s}.items():

        class Fixed(nn.Module):
            def __init__(self, value):
                super().__init__()
                self.value = value

            def forward(self, x_t, vector):
                return self.value

        torch.testing.assert_close(Denoiser(Fixed(value), prediction=kind)(x_t, logsnr), x_hat)


@pytest.mark.parametrize("kind", ["table", "image"])
def test_log_det_is_the_jacobians(kind):
    if kind == "table":
        spec = DataSpec(kind="array", event_shape=(5,))
        x = torch.randn(4, 5)
        flow = build("flow", spec, dropout=0.0)
        flow.initialise(torch.randn(100, 5) * 3 + 1)
    else:
        spec = DataSpec(kind="image", event_shape=(1, 2, 3), levels=5)
        x = torch.rand(4, 1, 2, 3) * 5
        flow = build("flow", spec, dropout=0.0)
        flow.transforms = flow.transforms[1:]  # all but the dequantization, whose noise is its own
    moved(flow)
    _, log_det = flow.encode(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: flow.encode(r.unsqueeze(0))[0].flatten(), row)
        expected = torch.linalg.slogdet(jacobian.flatten(1)).logabsdet
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    z, _ = flow.encode(x)
    torch.testing.assert_close(flow.decode(z), x, atol=1e-4, rtol=1e-4)


def test_a_flow_integrates_to_one():
    flow = build("flow", DataSpec(kind="array", event_shape=(2,)))
    with torch.no_grad():
        side = torch.linspace(-8, 8, 801)
        grid = torch.cartesian_prod(side, side)
        total = moved(flow).log_prob(grid).double().exp().sum().item() * (16 / 800) ** 2
    assert total == pytest.approx(1, abs=1e-3)


def test_standard_errors_cover_the_truth_at_their_rate():
    """Of 1,000 data sets from a known density, about 95 % have their true mean within 1.96 standard errors."""
    truth = build("independent", PIXELS)
    truth.initialise(EVENTS[SEEN])
    log_p = truth.log_prob(EVENTS)
    mean = (log_p.exp() * log_p).sum().item()
    covered = 0
    for seed in range(1000):
        torch.manual_seed(seed)
        estimate, error = mean_and_stderr(log_probs(truth, Split(truth.sample(200))))
        covered += abs(estimate - mean) < 1.96 * error
    assert 925 <= covered <= 970  # 950 ± 3 · √(1000 · 0.95 · 0.05) ≈ 950 ± 21
