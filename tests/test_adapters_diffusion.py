"""Denoisers, scores and velocities in other libraries' conventions, against Gaussians whose log p is known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from helpers.densities import check_sums_to_one
from loglik.adapters import denoiser, score, velocity
from loglik.adapters.conventions import errors
from loglik.adapters.ddpm_bound import DDPMBound, log_prob_of_levels
from loglik.adapters.paths import VE, VP, FlowMatching, Steps, SubVP, target
from loglik.density import Bound
from loglik.diffusion import LinearBeta, with_likelihood
from loglik.evaluation import evaluate

MEAN, SCALE = 0.4, 0.7


def column(values, like):
    return values.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)


def guess(y, a, b, kind):
    """The exact prediction of y = a w + b ε for w from N(m, s²)."""
    a, b = column(a, y), column(b, y)
    w = MEAN + a * SCALE**2 / (a**2 * SCALE**2 + b**2) * (y - a * MEAN)
    noise = (y - a * w) / b
    return {"data": w, "noise": noise, "v": a * noise - b * w, "score": -noise / b, "velocity": w - noise}[kind]


def edm(y, s):
    """k-diffusion's and EDM's D(x, σ)."""
    return guess(y, torch.ones_like(s), s, "data")


def epsilon_of_sigma(y, s):
    return guess(y, torch.ones_like(s), s, "noise")


def ddpm(kind, steps=1000):
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), 0)

    def call(y, t):
        a = torch.exp(torch.lerp(*(alpha_bar.log()[i] for i in (t.long(), t.ceil().long())), t.double() % 1))
        return guess(y, a.sqrt(), (1 - a).sqrt(), kind)

    return call


def vp(kind, factor=1.0):
    def call(y, t):
        a = torch.exp(-LinearBeta().integral(t / factor))
        return guess(y, a.sqrt(), (1 - a).sqrt(), kind)

    return call


def sub_vp(y, labels):
    """score_sde's network: -b times the score."""
    integral = LinearBeta().integral(labels / 999)
    return guess(y, torch.exp(-integral / 2), -torch.expm1(-integral), "noise")


def ve_network(y, s):
    return guess(y, torch.ones_like(s), s, "score")


def ve_score(y, t):
    s = 0.01 * (50 / 0.01) ** t
    return guess(y, torch.ones_like(s), s, "score")


def forwards(y, t):
    """The velocity of torchcfm and flow_matching: the data at t = 1."""
    return guess(y, t, (1 - t).clamp_min(1e-9), "velocity")


def backwards(y, t):
    return -forwards(y, 1 - t)


def lipman(y, t, s=0.01):
    a, b = t, 1 - (1 - s) * t
    return guess(y, a, b, "data") - (1 - s) * guess(y, a, b, "noise")


def tong(y, t, s=0.1):
    a, b = t, ((1 - t) ** 2 + s**2).sqrt()
    return guess(y, a, b, "data") - column((1 - t) / b, y) * guess(y, a, b, "noise")


INTERFACES = {
    "k-diffusion": lambda **units: denoiser(edm, "edm", **units),
    "ve noise": lambda **units: denoiser(epsilon_of_sigma, "ve", **units),
    "ddpm noise": lambda **units: denoiser(ddpm("noise"), "vp", **units),
    "ddpm data": lambda **units: denoiser(ddpm("data"), "vp", prediction="data", **units),
    "ddpm v": lambda **units: denoiser(ddpm("v"), "vp", prediction="v", **units),
    "vp schedule": lambda **units: denoiser(vp("noise"), "vp", schedule=LinearBeta(), **units),
    "score_sde vp": lambda **units: score(vp("noise", 999.0), "vp", **units),
    "score_sde vp score": lambda **units: score(vp("score"), "vp", network=False, **units),
    "score_sde subvp": lambda **units: score(sub_vp, "subvp", **units),
    "score_sde ve": lambda **units: score(ve_network, "ve", **units),
    "score_sde ve score": lambda **units: score(ve_score, "ve", network=False, **units),
    "flow": lambda **units: denoiser(forwards, "flow", **units),
    "torchcfm": lambda **units: velocity(forwards, gaussian=True, **units),
    "reverse": lambda **units: velocity(backwards, gaussian=True, data_at=0, **units),
    "sigma_min": lambda **units: velocity(lipman, gaussian=True, sigma_min=0.01, **units),
    "torchcfm sigma": lambda **units: velocity(tong, gaussian=True, sigma=0.1, **units),
}


@pytest.mark.parametrize("name", INTERFACES)
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
@torch.no_grad()
def test_a_gaussian_has_its_nats(name, shape, float64):
    """The bound is below and tight, and the ODE's nats are exact within its own error, in float64."""
    dims, truth = math.prod(shape), Normal(MEAN, SCALE)
    x = truth.sample((128, *shape))
    density = INTERFACES[name](event_shape=shape, data=x)
    exact = truth.log_prob(x).flatten(1).sum(1)
    assert density.bound is Bound.LOWER
    gap = (density.log_prob(x, samples=16) - exact) / dims
    assert gap.mean() < 4 * gap.std() / math.sqrt(len(x)) and gap.mean() > -0.02
    solved = with_likelihood(density, "ode")
    solved.likelihood.probes = None if dims <= 32 else 32
    found, error = solved.log_prob(x[:16]), solved.numerical_error(x[:16])
    # what the path itself leaves: N(0, I) at its end, and the noise at its beginning
    left = 2e-3 if name not in ("torchcfm sigma",) else 2e-2
    assert solved.bound is Bound.ESTIMATE and error.max() < 1e-3 * dims + 1e-9
    tolerance = error + left * dims * (1 if dims <= 32 else 3)
    assert ((found - exact[:16]).abs() <= tolerance).all(), ((found - exact[:16]) / dims, error)
