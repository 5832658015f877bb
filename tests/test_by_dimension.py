"""The likelihood by dimension: sums, Gaussians whose conditionals are known, and estimates without bias."""

import math

import pytest
import torch

from helpers.reports import IMAGES, TABLE, events
from loglik.density import StandardNormal
from loglik.diffusion.likelihood import draw_noise
from loglik.evaluation.scores import evaluating
from loglik.flows import Flow, Whitening, maf
from loglik.flows.by_dimension import triangular
from loglik.recipes import build


def built(family, spec, **options):
    torch.manual_seed(0)
    x = events(spec, 200)
    density = build(family, spec, **options)
    density.initialise(x)
    return density.eval(), x[:4]


def summed(parts):
    return sum(part if part.dim() == 1 else part.sum(1) for part in parts.values())


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("family", "spec", "options"),
    [
        ("vae", IMAGES, {"width": 8, "latent": 2, "network": "mlp"}),
        ("vae", TABLE, {"width": 8, "latent": 2}),
        ("vae:hierarchical", IMAGES, {"width": 4, "depth": 1}),
        ("flow", IMAGES, {"width": 8, "depth": 2}),
        ("flow:glow", IMAGES, {"width": 4, "depth": 1}),
        ("flow", TABLE, {"width": 8, "depth": 2}),
        ("diffusion", IMAGES, {"kind": "mlp", "width": 8, "depth": 1}),
        ("diffusion", TABLE, {"width": 8, "depth": 1}),
    ],
)
def test_terms_by_dimension_sum_to_the_terms_of_the_same_draws(family, spec, options, samples):
    name, _, kind = family.partition(":")
    density, x = built(name, spec, **options, **({"prior" if name == "vae" else "kind": kind} if kind else {}))
    with evaluating(density, 0):
        parts = density.terms_by_dimension(x, samples=samples)
    with evaluating(density, 0):
        terms = density.terms(x, samples=samples)
    with evaluating(density, 0):
        whole = density.log_prob(x, samples=samples)
    torch.testing.assert_close(summed(parts).to(whole), whole, rtol=1e-4, atol=2e-3)
    for key in parts.keys() & terms.keys() - ({"log-determinant"} if "dequantization" in parts else set()):
        own = parts[key] if parts[key].dim() == 1 else parts[key].sum(1)
        torch.testing.assert_close(own.to(terms[key]), terms[key], rtol=1e-4, atol=2e-3)
    assert any(part.shape == (4, spec.dims) for part in parts.values())


def test_a_linear_flow_gives_the_conditionals_of_its_gaussian():
    torch.manual_seed(0)
    mixing = torch.randn(4, 4)
    x = torch.randn(500, 4) @ mixing.T
    flow = Flow([Whitening(4)], StandardNormal((4,)))
    flow.initialise(x)
    parts = flow.terms_by_dimension(x[:6])
    matrix = flow.encode(torch.eye(4))[0].T.double()
    precision = matrix.T @ matrix
    covariance = precision.inverse()
    for d in range(4):
        before = covariance[:d, :d].inverse() if d else torch.zeros(0, 0, dtype=torch.float64)
        weights = covariance[d, :d] @ before
        mean = x[:6, :d].double() @ weights
        variance = covariance[d, d] - weights @ covariance[:d, d]
        expected = -0.5 * ((x[:6, d] - mean).square() / variance + variance.log() + math.log(2 * math.pi))
        found = parts["base"][:, d] + parts["log-determinant"][:, d]
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def test_an_autoregressive_flow_gives_its_own_conditionals():
    torch.manual_seed(0)
    flow = Flow(maf(3, layers=1, hidden=(8,)), StandardNormal((3,)))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 3)
    parts = flow.eval().terms_by_dimension(x)
    total = parts["base"] + parts["log-determinant"]
    changed = x.clone()
    changed[:, 2] += 1.0
    again = flow.terms_by_dimension(changed)
    later = again["base"] + again["log-determinant"]
    torch.testing.assert_close(total[:, :2], later[:, :2])
    assert (total[:, 2] - later[:, 2]).abs().min() > 1e-3


def test_triangular_keeps_the_norm_and_the_determinant():
    torch.manual_seed(0)
    z, jacobian = torch.randn(3, 5), torch.randn(3, 5, 5)
    u, log_slopes = triangular(z, jacobian)
    torch.testing.assert_close(u.square().sum(1), z.double().square().sum(1))
    torch.testing.assert_close(log_slopes.sum(1), torch.linalg.slogdet(jacobian.double()).logabsdet)


def test_the_control_variate_leaves_the_mean_of_each_dimension_as_it_is():
    density, x = built("diffusion", IMAGES, kind="mlp", width=8, depth=1)
    density.control.products.fill_(0.7)
    density.control.squares.fill_(1.0)
    draws = 4000
    with evaluating(density, 0):
        found = density.terms_by_dimension(x[:1].expand(draws, *x.shape[1:]))["diffusion"].mean(0)
        v = density.reconstruction.embed(x[:1])
        high, low = density.schedule.ends(v)
        logsnr = low + (high - low) * (torch.arange(draws) + torch.rand(draws)) / draws
        residual = draw_noise(density._model(None), v.expand(draws, *v.shape[1:]), logsnr).residual
        plain = -0.5 * (high - low) * residual.flatten(1).square()
    error = (plain.var(0) / draws).sqrt()
    assert ((found - plain.mean(0)).abs() < 5 * error + 0.02 * plain.mean(0).abs()).all()


def test_a_flow_over_another_base_has_none():
    density, x = built("flow", IMAGES, width=8, depth=1, base="mixture")
    assert density.terms_by_dimension(x) == {}
