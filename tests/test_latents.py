"""Latents of a VAE behind preprocessing: embeddings, reconstructions, interpolations, filling."""

import pytest
import torch

import loglik
from helpers.exact import Constant
from loglik.flows import Flow
from loglik.tasks import Latents
from loglik.transforms import Standardise
from loglik.vae import VAE, Gaussian


@pytest.fixture
def linear(float64):
    """x = w z + ε behind a change of units, with a posterior that is near the true one."""
    w, s = torch.tensor([[1.0], [-2.0], [0.5]]), 0.3
    precision = 1 + w.square().sum() / s**2
    gain = w.T / s**2 / precision
    log_scale = 6 * torch.atanh(-0.5 * precision.log().view(1) / 6)
    encoder = Constant(gain, torch.zeros(1), log_scale)
    decoder = Constant(w, torch.zeros(3), torch.zeros(0))
    whole = Flow([Standardise((3,))], VAE(encoder, decoder, Gaussian((3,), s), latent=1).double())
    whole.transforms[0].mean.copy_(torch.tensor([10.0, 0.0, -5.0]))
    whole.transforms[0].std.copy_(torch.tensor([1.0, 100.0, 0.01]))
    return whole.double(), w @ w.T + s**2 * torch.eye(3)


def test_filling_draws_from_the_conditional(linear):
    """The last two columns given the first: the mean and the covariance of the Gaussian's conditional."""
    density, cov = linear
    mean, unit = density.transforms[0].mean, density.transforms[0].std
    n, x1 = 4000, 1.5
    x = torch.zeros(n, 3)
    x[:, 0] = mean[0] + x1 * unit[0]
    missing = torch.tensor([False, True, True]).expand(n, 3)
    torch.manual_seed(0)
    filled = Latents(density).fill(torch.where(missing, torch.nan, x), missing, sweeps=40, draws=5)
    assert torch.equal(filled[:, 0], x[:, 0]) and filled.isfinite().all()
    v = ((filled - mean) / unit)[:, 1:]
    expected = cov[1:, 0] / cov[0, 0] * x1
    conditional = cov[1:, 1:] - cov[1:, :1] @ cov[:1, 1:] / cov[0, 0]
    assert ((v.mean(0) - expected).abs() < 5 * conditional.diag().sqrt() / n**0.5 + 0.01).all()
    assert (v.T.cov() - conditional).abs().max() < 0.08 * conditional.max()


def test_ways_between_latents(linear):
    density, _ = linear
    latents, x = Latents(density), density.sample(6)
    assert latents.encode(x).shape == (6, 1)
    way = latents.interpolate(x[:2], x[2:4], steps=5)
    assert way.shape == (2, 5, 3)
    torch.testing.assert_close(way[:, 0], latents.reconstruct(x[:2]))
    torch.testing.assert_close(way[:, 2], (way[:, 0] + way[:, 4]) / 2)
    moved = latents.traverse(x[:2], 0, [-1.0, 0.0, 1.0])
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(moved[0, 1], density.transforms[0].mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it, x: it.interpolate(x, x, steps=1), "steps must be at least 2"),
        (lambda it, x: it.traverse(x, 3, [0.0]), r"dim must be 0 \.\.\. 0, a latent dimension, got 3"),
        (lambda it, x: it.fill(x, x > 0, draws=0), "sweeps and draws must be at least 1, got 30 and 0"),
    ],
)
def test_mistakes_are_one_line(linear, call, message):
    with pytest.raises(ValueError, match=message):
        call(Latents(linear[0]), torch.zeros(4, 3))


def test_what_has_no_latents_is_named():
    with pytest.raises(ValueError, match="only a VAE has latents, and this run is a flow: use a run of the family vae"):
        Latents(Flow([], loglik.StandardNormal((2,))))
