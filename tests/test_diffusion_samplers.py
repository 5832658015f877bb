"""Samplers: each one's order on Gaussian data, honest counts, and diffusers' trajectories."""

import math

import pytest
import torch
from torch import nn

from helpers.exact import GaussianDenoiser, gaussian_end, two_moons_like
from helpers.needs import peer
from loglik.diffusion import Diffusion, Discrete, LinearBeta, Sampler, ddpm_betas
from loglik.diffusion.sampler import METHODS, integrate
from loglik.diffusion.steps import exponential_weights
from loglik.diffusion.time_grid import SPACINGS, time_grid

MEAN, SCALE = 0.7, 0.4
ORDERS = {
    "ddpm": 1,
    "ddim": 1,
    "euler": 1,
    "euler-maruyama": 1,
    "predictor-corrector": 1,
    "heun": 2,
    "midpoint": 2,
    "dpm++2m": 2,
    "dpm++2m-sde": 2,
    "dpm++3m": 3,
    "unipc": 3,
    "ipndm": 2,
}
DETERMINISTIC = ("ddim", "euler", "heun", "midpoint", "dpm++2m", "dpm++3m", "unipc", "ipndm")


def moments(sampler: Sampler, schedule: LinearBeta) -> tuple[float, float]:
    """The exact mean and variance of what a sampler draws of N(m, s²): it is affine in x_1 and in every noise."""
    denoiser, rows, calls = GaussianDenoiser(MEAN, SCALE), 2 + 3 * sampler.steps, 1
    x = torch.zeros(rows, 1)
    x[1] = 1

    def one_at_a_time(like):
        nonlocal calls
        calls += 1
        noise = torch.zeros_like(like)
        noise[calls] = 1
        return noise

    end = integrate(x, denoiser, schedule, sampler, noise=one_at_a_time)
    drawn = denoiser(end.x, end.logsnr.expand(rows)).squeeze(1)
    return drawn[0].item(), (drawn[1:] - drawn[0]).square().sum().item()


@pytest.mark.parametrize("method", [*ORDERS, "ddim-1"])
def test_moments_converge_at_the_samplers_order(float64, method):
    schedule = LinearBeta(t_min=1e-4)
    eta = 1.0 if method == "ddim-1" else 0.0
    method = method.removesuffix("-1")
    high, low = schedule.ends(torch.empty(()))
    flow = method in DETERMINISTIC and not eta
    truth = [value.item() for value in gaussian_end(MEAN, SCALE, high, low, flow=flow)]
    errors = []
    for steps in (40, 80):
        found = moments(Sampler(method=method, steps=steps, eta=eta), schedule)
        errors.append(sum(abs(a - b) for a, b in zip(found, truth, strict=True)))
    assert errors[0] < 0.05
    assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.15


def test_every_method_has_its_order_measured():
    assert set(ORDERS) | {"adaptive"} == set(METHODS)


def test_the_adaptive_solver_keeps_its_tolerance(float64):
    schedule, x = LinearBeta(t_min=1e-4), torch.randn(64, 1)
    denoiser = GaussianDenoiser(MEAN, SCALE)
    high, low = schedule.ends(x)
    mean, variance = gaussian_end(MEAN, SCALE, high, low, flow=True)
    counts = []
    for tolerance in (1e-3, 1e-6):
        end = integrate(x, denoiser, schedule, Sampler(method="adaptive", tolerance=tolerance))
        drawn = denoiser(end.x, end.logsnr.expand(64))
        assert (drawn - (mean + variance.sqrt() * x)).abs().max() < 20 * tolerance
        counts.append(end.evaluations)
    assert counts[0] < counts[1] < 300


@pytest.mark.parametrize("method", ["dpm++3m", "unipc", "ipndm", "adaptive", "dpm++2m-sde"])
def test_a_mixtures_samples_have_its_moments(float64, method):
    mixture = two_moons_like()
    drawn = Diffusion(mixture, (2,), sampler=Sampler(method=method, steps=40)).sample(8000)
    truth = mixture.truth
    assert (drawn.mean(0) - truth.mean).abs().max() < 0.04
    assert (drawn.var(0) / truth.variance - 1).abs().max() < 0.06
    assert abs(truth.log_prob(drawn).mean() - truth.log_prob(truth.sample((8000,))).mean()) < 0.08


class Counting(GaussianDenoiser):
    calls = 0

    def forward(self, x_t, logsnr, context=None):
        type(self).calls += 1
        return super().forward(x_t, logsnr)


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_counted(method):
    Counting.calls = 0
    diffusion = Diffusion(Counting(MEAN, SCALE), (1,), sampler=Sampler(method=method, steps=7))
    drawn, evaluations = diffusion.draw(3)
    assert evaluations == Counting.calls and drawn.isfinite().all()
    if method != "adaptive":
        assert evaluations == (13 if method in ("heun", "midpoint", "predictor-corrector") else 7)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "adaptive"])
def test_one_step_is_one_evaluation_of_the_noise(method):
    drawn, evaluations = Diffusion(GaussianDenoiser(MEAN, SCALE), (1,), sampler=Sampler(method=method, steps=1)).draw(5)
    assert evaluations == 1
    assert (drawn - MEAN).abs().max() < 0.01  # almost nothing is to be seen in pure noise


@pytest.mark.parametrize("spacing", [spacing for spacing in SPACINGS if spacing != "flow"])
def test_levels_go_from_noise_to_data(float64, spacing):
    schedule, like = LinearBeta(), torch.empty(())
    levels = time_grid(schedule, 9, spacing, like)
    high, low = schedule.ends(like)
    torch.testing.assert_close(levels[[0, -1]], torch.stack([low, high]))
    assert (levels.diff() > 0).all()
    earlier = time_grid(schedule, 9, spacing, like, until=3.0)
    torch.testing.assert_close(earlier[[0, -1]], torch.stack([low, torch.tensor(3.0)]))
    assert (earlier.diff() > 0).all()
    torch.testing.assert_close(time_grid(schedule, 9, spacing, like, until=99.0), levels)


def test_levels_of_flow_matching_are_one_step_before_the_data(float64):
    schedule, like = LinearBeta(), torch.empty(())
    levels = time_grid(schedule, 9, "flow", like)
    times = torch.sigmoid(-levels / 2)  # σ / (α + σ)
    torch.testing.assert_close(times, times[0] * (1 - torch.arange(9) / 9))
    torch.testing.assert_close(levels[0], schedule.ends(like)[1])
    torch.testing.assert_close(time_grid(schedule, 9, "flow", like, until=3.0), levels.clamp(max=3.0))


def test_the_last_level_may_come_before_the_schedule_ends():
    sampler = Sampler(method="dpm++2m", steps=30, until=2.0)
    drawn, evaluations = Diffusion(GaussianDenoiser(MEAN, SCALE), (1,), sampler=sampler).draw(4000)
    assert evaluations == 30
    shrunk = SCALE**2 * math.sqrt(1 / (SCALE**2 + math.exp(-2.0)))  # of x̂ given data under that much noise
    torch.testing.assert_close(drawn.std().item(), shrunk, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="until is the last log-SNR of a method with steps, got 3 for adaptive"):
        Sampler(method="adaptive", until=3)


@pytest.mark.parametrize("h", [1e-3, 0.3, 2.0, 9.0])
def test_exponential_weights_integrate_polynomials(float64, h):
    nodes = [torch.tensor(0.0), torch.tensor(-0.7 * h), torch.tensor(-1.9 * h)]
    weights = exponential_weights(nodes, torch.tensor(h))
    u = torch.linspace(0, h, 20_001)
    for k in range(3):
        truth = torch.trapezoid(torch.exp(u - h) * (u / h) ** k, u)
        found = sum(w * (node / h) ** k for w, node in zip(weights, nodes, strict=True))
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-10)


def test_what_is_watched_goes_from_noise_to_data():
    seen = []
    diffusion = Diffusion(GaussianDenoiser(MEAN, SCALE), (1,), sampler=Sampler(method="ddim", steps=5))
    diffusion.draw(2, watch=lambda logsnr, x: seen.append((logsnr.item(), x.shape)))
    assert len(seen) == 5 and seen == sorted(seen) and seen[0][1] == (2, 1)


# ---- diffusers, from the same network, noise and list of β


class Noise(nn.Module):
    """A network of x and DDPM's index of time, that predicts the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 32), nn.Linear(32, 8)

    def forward(self, x, index):
        return self.second(torch.tanh(self.first(torch.cat([x, index[:, None] / 500 - 1], dim=1))))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDIM-eta", "DPM++2M", "DPM++2M-SDE"])
@torch.no_grad()
def test_trajectories_are_diffusers(float64, name):
    diffusers = peer("diffusers")
    network, steps = Noise(), 1000 if name == "DDPM" else 20
    schedule = Discrete(ddpm_betas())
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    if name == "DDPM":
        theirs, ours, extra = diffusers.DDPMScheduler(**common, clip_sample=False), Sampler(method="ddpm"), {}
    elif name.startswith("DDIM"):
        eta = 0.5 if name == "DDIM-eta" else 0.0
        theirs = diffusers.DDIMScheduler(**common, clip_sample=False)
        ours, extra = Sampler(method="ddim", eta=eta), {"eta": eta}
    else:
        sde = name.endswith("SDE")
        theirs = diffusers.DPMSolverMultistepScheduler(
            **common, algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++", final_sigmas_type="zero"
        )
        ours, extra = Sampler(method="dpm++2m-sde" if sde else "dpm++2m"), {}
    theirs.set_timesteps(steps)
    start = torch.randn(3, 8)

    def denoise(x, logsnr):
        index = (schedule.time(logsnr) * 999).round()
        a, s = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
        return (x - s * network(x, index)) / a

    torch.manual_seed(5)
    x, path = start, []
    for t in theirs.timesteps:
        path.append(x)
        x = theirs.step(network(x, torch.full((3,), int(t), dtype=x.dtype)), t, x, **extra).prev_sample
    torch.manual_seed(5)
    levels = schedule.logsnr(theirs.timesteps.to(x.dtype) / 999)
    seen = []
    # diffusers draws the noise of its SDE solver in float32
    noise = (lambda z: torch.randn(z.shape, dtype=torch.float32).to(z)) if "SDE" in name else torch.randn_like
    end = integrate(start, denoise, schedule, ours, levels=levels, noise=noise, watch=lambda _, z: seen.append(z))
    for mine, other in zip(seen, path, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoise(end.x, end.logsnr.expand(3)), x, rtol=1e-4, atol=1e-4)
