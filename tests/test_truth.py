"""Numbers of whole models against an integral and a Jacobian that are computed here by brute force."""

import itertools
import math

import pytest
import torch
from torch import nn

from loglik.data.spec import DataSpec
from loglik.recipes import build
from loglik.vae import VAE, Categorical

EVENTS = torch.tensor(list(itertools.product(range(3), repeat=2)), dtype=torch.uint8).view(9, 1, 1, 2)


def moved(density):
    """Return the density with all parameters moved a little, in evaluation mode."""
    with torch.no_grad():
        for parameter in density.parameters():
            scale = 0.25 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return density.eval()


def test_the_importance_weighted_bound_rises_to_the_truth(float64):
    """p(x) of a VAE with one latent, integrated on a grid, against the bounds with 1 and 4096 weights."""
    decoder = nn.Linear(1, 6)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    vae = VAE(encoder, decoder, Categorical((1, 1, 2), 3), latent=1)
    z = torch.linspace(-8, 8, 4001).unsqueeze(1)
    weight = torch.exp(-0.5 * z.square()).squeeze() / math.sqrt(2 * math.pi) * (16 / 4000)
    theta = vae.parameters_of(z)
    exact = torch.stack(
        [(vae.observation.log_prob(x.expand(4001, 1, 1, 2), theta).exp() * weight).sum().log() for x in EVENTS]
    )
    one = torch.stack([vae.log_prob(EVENTS) for _ in range(2000)]).mean(0)
    many = torch.stack([vae.log_prob(EVENTS, samples=4096) for _ in range(20)]).mean(0)
    assert (one < exact + 1e-3).all()
    assert (many - exact).abs().max() < 0.02
    assert (many >= one - 0.02).all()


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
        flow.transforms = flow.transforms[1:]  # without the dequantization, which draws noise
    moved(flow)
    _, log_det = flow.encode(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: flow.encode(r.unsqueeze(0))[0].flatten(), row)
        expected = torch.linalg.slogdet(jacobian.flatten(1)).logabsdet
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    z, _ = flow.encode(x)
    torch.testing.assert_close(flow.decode(z), x, atol=1e-4, rtol=1e-4)
