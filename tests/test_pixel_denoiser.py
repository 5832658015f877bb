"""The denoiser of images by features of their levels: it starts as the independent density, and is one by Bayes."""

from __future__ import annotations

import pytest
import torch

from loglik.diffusion import Diffusion, LevelDenoiser, LinearBeta, PixelDenoiser
from loglik.networks import MLP, UNet

SHAPE, LEVELS = (2, 5, 6), 7


def built(conditional: bool = False) -> PixelDenoiser:
    torch.manual_seed(0)
    network = UNet(2 * 6, 2 * 8, width=8, multipliers=(1, 2), blocks=1, attention=(), context=16 + 4 * conditional)
    context = torch.nn.Embedding(3, 4) if conditional else None
    denoiser = PixelDenoiser(
        network, LEVELS, SHAPE, reads=4, writes=8, features=16, context=context, unconditional=0.3 * conditional
    )
    data = torch.randint(0, LEVELS, (200, *SHAPE)) * (2 / (LEVELS - 1)) - 1
    denoiser.initialise(data)
    return denoiser


def noised(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, *SHAPE), torch.linspace(-8, 9, n)


def test_it_starts_as_the_posterior_of_independent_pixels(float64):
    denoiser, (x_t, logsnr) = built(), noised()
    plain = LevelDenoiser(MLP(60, 60 * LEVELS, (4,), context=16), LEVELS, SHAPE, features=16)
    torch.nn.init.zeros_(plain.network.output.weight)
    torch.nn.init.zeros_(plain.network.output.bias)
    plain.offset.copy_(denoiser.offset)
    flat = plain(x_t.flatten(1), logsnr).view_as(x_t)
    torch.testing.assert_close(denoiser(x_t, logsnr), flat)


def test_levels_that_were_seen_more_often_start_likelier():
    denoiser = built()
    data = torch.full((50, *SHAPE), -1.0)
    data[:10] = 1.0
    denoiser.initialise(data)
    p = denoiser.offset.softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(60))
    assert (p[:, 0] > p[:, -1]).all() and (p[:, -1] > p[:, 3]).all() and (p > 0).all()


def test_the_gradient_reaches_every_parameter():
    denoiser, (x_t, logsnr) = built(conditional=True), noised()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser(x_t, logsnr, torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=torch.bool)).square().sum().backward()
    missing = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in missing if name != "read"], missing
    assert denoiser.read.grad is not None


def test_a_label_that_is_left_out_changes_nothing():
    denoiser, (x_t, logsnr) = built(conditional=True).eval(), noised()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    without = torch.zeros(4, dtype=torch.bool)
    first, second = (denoiser(x_t, logsnr, torch.full((4,), label), without) for label in (0, 2))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, denoiser(x_t, logsnr, torch.full((4,), 2)))


def test_a_diffusion_of_it_draws_levels_and_bounds_the_likelihood():
    density = Diffusion(built(), SHAPE, levels=LEVELS, schedule=LinearBeta(t_min=1e-4))
    x = density.sample(3)
    assert x.dtype == torch.uint8 and x.shape == (3, *SHAPE) and x.max() < LEVELS
    x = torch.randint(0, LEVELS, (64, *SHAPE), dtype=torch.uint8)
    torch.manual_seed(0)
    nats = density.log_prob(x, samples=64).mean().item()
    independent = density.denoiser.offset.log_softmax(-1)
    exact = independent[torch.arange(60), x.long().flatten(1)].sum(1).mean().item()
    assert nats == pytest.approx(exact, rel=0.01)


def test_full_precision_is_kept_under_autocast():
    denoiser, (x_t, logsnr) = built(), noised()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = denoiser(x_t, logsnr)
    torch.testing.assert_close(rounded, denoiser(x_t, logsnr), atol=1e-4, rtol=1e-4)


def test_the_derivative_is_that_of_all_that_the_noised_image_enters(float64):
    """The ODE's divergence, guidance and a learned schedule differentiate by x_t and by the log-SNR."""
    denoiser = built().eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_t, logsnr = noised(2)
    logsnr = torch.tensor([0.5, -1.0])
    inputs = (x_t[:, :, :2, :2].clone().requires_grad_(), logsnr.requires_grad_())

    def small(corner, logsnr):
        return denoiser(torch.cat([torch.cat([corner, x_t[:, :, :2, 2:]], 3), x_t[:, :, 2:]], 2), logsnr)[:, :, :2, :2]

    assert torch.autograd.gradcheck(small, inputs, atol=1e-6, rtol=1e-4)
