"""Base densities: normalised, sampled from what they score, and usable as the base of a flow."""

import math

import pytest
import torch
from torch import distributions

from loglik.flows import Flow, GaussianMixture, StandardLogistic, nsf

pytestmark = pytest.mark.usefixtures("float64")


def mixture(dims: int) -> GaussianMixture:
    density = GaussianMixture((dims,), components=3)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return density


BASES = {"logistic": lambda dims: StandardLogistic((dims,)), "mixture": mixture}


@pytest.mark.parametrize("name", BASES)
def test_the_mass_is_one(name):
    grid = torch.linspace(-40, 40, 100_001)
    p = BASES[name](1).log_prob(grid[:, None]).exp()
    assert torch.trapezoid(p, grid).item() == pytest.approx(1, abs=1e-9)
    grid = torch.linspace(-25, 25, 801)
    points = torch.cartesian_prod(grid, grid)
    p = BASES[name](2).log_prob(points).exp().view(801, 801)
    assert torch.trapezoid(torch.trapezoid(p, grid), grid).item() == pytest.approx(1, abs=1e-6)


def test_the_mixture_is_torchs():
    density = mixture(3)
    components = distributions.Independent(distributions.Normal(density.means, density.log_scales.exp()), 1)
    truth = distributions.MixtureSameFamily(distributions.Categorical(logits=density.logits), components)
    x = torch.randn(50, 3)
    torch.testing.assert_close(density.log_prob(x), truth.log_prob(x))


@pytest.mark.parametrize("name", BASES)
def test_samples_have_the_density(name):
    density = BASES[name](1)
    x = density.sample(20_000)
    assert x.shape == (20_000, 1) and x.isfinite().all()
    grid = torch.linspace(-60, 60, 60_001)
    cdf = torch.cumulative_trapezoid(density.log_prob(grid[:, None]).exp(), grid)
    ranks = cdf[torch.searchsorted(grid, x.squeeze(1)).clamp(max=59_999)].sort().values
    even = (torch.arange(20_000) + 0.5) / 20_000
    assert (ranks - even).abs().max() < 2.2 / math.sqrt(20_000)  # Kolmogorov and Smirnov: p of about 1e-4


@pytest.mark.parametrize("name", BASES)
def test_a_flow_over_it_has_mass_one_and_gradients(name):
    flow = Flow(nsf(1, context=0), BASES[name](1))
    grid = torch.linspace(-40, 40, 20_001)
    p = flow.log_prob(grid[:, None]).exp()
    assert torch.trapezoid(p, grid).item() == pytest.approx(1, abs=1e-6)
    flow.loss(torch.randn(8, 1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    assert flow.sample(5).shape == (5, 1)


def test_a_mixture_has_components():
    with pytest.raises(ValueError, match="a mixture needs at least 1 component, got 0"):
        GaussianMixture((2,), components=0)
