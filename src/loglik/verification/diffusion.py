r"""Diffusion on the user's own model: the SDE, its reverse, Stein's identity, the chain's bound and its limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion import Diffusion, with_likelihood
from loglik.diffusion.chain import posterior, posterior_kl_weight, transition
from loglik.diffusion.denoiser import to_score
from loglik.diffusion.sampler import Sampler, integrate
from loglik.diffusion.schedule import NoiseSchedule, add_noise, alpha, broadcast_like, sigma
from loglik.diffusion.sde import diffusion, forward_drift
from loglik.diffusion.time_grid import time_grid
from loglik.verification.check import Finding, check, standard_error
from loglik.verification.subject import DoesNotApply, Subject

__all__ = [
    "bound_rises",
    "chain_of_kls",
    "forward_sde",
    "order_of_the_ode",
    "posterior_by_bayes",
    "score_matching_trace",
]

SCORE = "Spring 2025, B2: score-based diffusion"
LIKELIHOOD = "Autumn 2025, B2: likelihood"
MAX_ROWS = 256
LOGSNRS = (2.0, -1.0)  # noise levels where data and noise are both seen


@check("forward-sde", section=SCORE, statement=r"p_{t \mid 0}(x_t \mid x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)")
def forward_sde(subject: Subject) -> Iterator[Finding]:
    r"""The forward SDE, simulated from the data, has the mean $\alpha_t x_0$ and the variance $\sigma_t^2$.

    Euler-Maruyama in 1,000 steps from the data to a noise level. A mean that is $a x_0$ is fitted by regression, and
    what is left has the variance.
    """
    model, x = _model(subject)
    schedule = model.schedule
    x = x.flatten(1)[:, :16].double()
    x = x.repeat(math.ceil(2**15 / x.numel()), 1)
    with subject.drawing():
        for target in LOGSNRS:
            t = schedule.time(torch.tensor(target)).item()
            x_t = _simulated(schedule, x, t)
            start, end = (schedule.logsnr(torch.tensor(time, dtype=torch.float64)) for time in (0.0, t))
            mean, scale = transition(torch.ones(1, dtype=torch.float64), start, end)
            square = x.square().sum()
            factor = (x_t * x).sum() / square
            rest = (x_t - factor * x).flatten()
            error = (rest.std() / square.sqrt()).item()
            yield Finding.equal(
                f"factor of the data at t = {t:.3f}", factor.item(), mean.item(), stderr=error, tolerance=0.01
            )
            variance, spread = rest.square().mean().item(), standard_error(rest.square())
            computed = f"variance at t = {t:.3f}"
            yield Finding.equal(computed, variance, scale.square().item(), stderr=spread, tolerance=0.01)


@check("reverse-order", section=SCORE, statement=r"\lVert x_N - x \rVert = O(N^{-p})")
def order_of_the_ode(subject: Subject) -> Iterator[Finding]:
    r"""The reverse ODE in N steps converges at an order: about 1 for DDIM, above 1 for DPM-Solver++(2M).

    From the same noise, with N = 16 and 64 against 256 steps; the order is the slope of the logarithm of the error.
    The last level is a log-SNR of 2, before which a denoiser of levels has not snapped to one of them.
    """
    model, x = _model(subject)
    with subject.drawing():
        noise = torch.randn_like(x[:4])
        context = None if subject.context is None else subject.context[:4]

        def denoise(x_t: Tensor, logsnr: Tensor) -> Tensor:
            return _denoised(model, x_t, logsnr, context)

        def solved(method: str, steps: int) -> Tensor:
            sampler = Sampler(method=method, steps=steps, until=2.0)
            return integrate(noise, denoise, model.schedule, sampler).x

        exact = solved("dpm++2m", 256)
        for method, order in (("ddim", 0.6), ("dpm++2m", 1.0)):
            errors = [(solved(method, steps) - exact).square().mean().sqrt().item() for steps in (16, 64)]
            slope = math.log2(max(errors[0], 1e-9) / max(errors[1], 1e-9)) / 2
            computed = f"order of {method}: errors {errors[0]:.2g} and {errors[1]:.2g} with 16 and 64 steps"
            yield Finding.at_least(computed, slope, order)


@check(
    "score-matching",
    section=SCORE,
    statement=r"\mathbb E\left[\mathrm{tr}\, \nabla_{x_t} s_\theta\right] = "
    r"-\mathbb E\left[\langle s_\theta, \nabla_{x_t} \log p_{t \mid 0} \rangle\right]",
)
def score_matching_trace(subject: Subject) -> Iterator[Finding]:
    r"""Explicit and denoising score matching differ by a constant: their cross terms are equal, by the trace.

    Explicit score matching is $\mathbb E \lVert s \rVert^2 + 2\, \mathbb E\, \mathrm{tr} \nabla s$ and a constant
    (Hyvärinen 2005), denoising score matching $\mathbb E \lVert s \rVert^2 - 2\, \mathbb E \langle s, \nabla \log
    p_{t \mid 0} \rangle$ and a constant. So they have the same gradient where the two cross terms have the same mean,
    which is what is computed, on the user's model and data, with one random direction an example for the trace.
    """
    model, x = _model(subject)
    x = x.repeat(max(1, MAX_ROWS // len(x)), *[1] * (x.dim() - 1))[:MAX_ROWS]
    context = subject.contexts(len(x))
    with subject.drawing():
        for target in LOGSNRS:
            logsnr = torch.full((len(x),), target, device=x.device, dtype=x.dtype)
            epsilon, probe = torch.randn_like(x), torch.randint_like(x, 2) * 2 - 1
            x_t = add_noise(x, epsilon, logsnr)
            score, slope = _score_and_slope(model, x_t, logsnr, probe, context)
            conditional = -epsilon / broadcast_like(sigma(logsnr), epsilon)
            trace = (slope * probe).flatten(1).sum(1)
            cross = (score * conditional).flatten(1).sum(1)
            difference, size = (trace + cross).double(), cross.double().abs().mean().item()
            error = standard_error(difference)
            computed = f"mean of tr ∇s + ⟨s, ∇ log p(x_t | x_0)⟩ at log-SNR {target:g}, terms of size {size:.3g}"
            yield Finding.equal(computed, difference.mean().item(), 0, stderr=error, tolerance=1e-3 * size)


@check(
    "posterior-bayes",
    section=LIKELIHOOD,
    statement=r"q(x_{t-1} \mid x_t, x_0) = \frac{q(x_t \mid x_{t-1}) q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}",
)
def posterior_by_bayes(subject: Subject) -> Finding:
    """The posterior's mean and variance are those that Bayes' rule gives, on the model's own noise levels."""
    model, x = _model(subject)
    logsnr = time_grid(model.schedule, 10, "time", torch.empty((), dtype=torch.float64)).flip(0)
    worst = 0.0
    x_0 = x.flatten()[:64].double().cpu()
    for s, t in zip(logsnr[:-1].cpu(), logsnr[1:].cpu(), strict=True):
        x_t = add_noise(x_0, torch.randn_like(x_0), t.expand(len(x_0)))
        mean, std = posterior(x_t, x_0, t, s)
        x_s = (mean + std * torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(1)).detach()
        step_mean, step_std = transition(x_s, s, t)
        bayes = _log_normal(x_t, step_mean, step_std) + _log_normal(x_s, alpha(s) * x_0, sigma(s))
        bayes = bayes - _log_normal(x_t, alpha(t) * x_0, sigma(t))
        worst = max(worst, (bayes - _log_normal(x_s, mean, std)).abs().max().item())
    return Finding.equal("largest difference of the log-densities, 9 steps, float64", worst, 0, tolerance=1e-6)


@check(
    "elbo-as-kls",
    section=LIKELIHOOD,
    statement=r"KL(q(x_{t-1} \mid x_t, x_0) \Vert p_\theta(x_{t-1} \mid x_t)) = \frac12 \left("
    r"\frac{\bar\alpha_{t-1} (1 - \bar\alpha_t)}{(1 - \bar\alpha_{t-1}) \bar\alpha_t} - 1\right) "
    r"\Vert \epsilon - \hat\epsilon \Vert^2",
)
def chain_of_kls(subject: Subject) -> Finding:
    """The bound's terms are the literal KL divergences of Gaussians, in float64 on the model's own predictions."""
    model, x = _model(subject)
    x, context = x[:16], None if subject.context is None else subject.context[:16]
    levels = time_grid(model.schedule, 6, "time", x).flip(0)
    worst = 0.0
    with subject.drawing():
        for s, t in zip(levels[:-1], levels[1:], strict=True):
            epsilon = torch.randn_like(x)
            x_t = add_noise(x, epsilon, t.expand(len(x)))
            x_hat = _denoised(model, x_t, t.expand(len(x)), context)
            a, b, noised, u, v = (value.double() for value in (x, x_hat, x_t, t, s))
            noised = add_noise(a, epsilon.double(), u.expand(len(x)))
            (q_mean, std), (p_mean, _) = posterior(noised, a, u, v), posterior(noised, b, u, v)
            gaussians = (torch.distributions.Normal(mean, std) for mean in (q_mean, p_mean))
            literal = torch.distributions.kl_divergence(*gaussians).flatten(1).sum(1)
            noise_error = (torch.exp(0.5 * u) * (a - b)).square().flatten(1).sum(1)
            closed = 0.5 * posterior_kl_weight(v, u) * noise_error
            worst = max(worst, ((closed - literal).abs() / literal.clamp_min(1e-9)).max().item())
    return Finding.equal("largest relative difference of a term, 5 terms of 16 examples", worst, 0, tolerance=1e-6)


@check("t-steps", section=LIKELIHOOD, statement=r"\mathcal L_T \le \mathcal L_{2T} \le \mathcal L_\infty")
def bound_rises(subject: Subject) -> Iterator[Finding]:
    """The bound in T steps rises with T to that of continuous time."""
    _model(subject)
    before: Float[Tensor, " B"] | None = None
    for steps in (8, 64, None):
        density = with_likelihood(subject.density, "vlb", steps).eval()
        event, context = subject.event[:32], None if subject.context is None else subject.context[:32]
        with subject.drawing():
            scores = torch.stack([density.log_prob(event, context, samples=4).double() for _ in range(4)])
        name = "in continuous time" if steps is None else f"in {steps} steps"
        mean, draws = scores.mean(0), scores
        if before is not None:
            rise = mean - before.mean(0)
            noise = ((draws.var(0) + before.var(0)) / len(draws)).sum().sqrt().item() / len(rise)
            computed = f"rise of the bound {name} over the one before, nats ({mean.mean().item():.4g})"
            yield Finding.at_least(computed, rise.mean().item(), 0, stderr=noise, tolerance=1e-3)
        before = draws


def _model(subject: Subject) -> tuple[Diffusion, Float[Tensor, "B ..."]]:
    """Return the diffusion and the data in the space where noise is added."""
    part = subject.part(Diffusion)
    if not part.density.gaussian:
        raise DoesNotApply("the path of a rectified flow is not Gaussian given the data")
    with subject.drawing():
        return part.density, part.density.reconstruction.embed(part.event)


def _denoised(model: Diffusion, x_t: Tensor, logsnr: Tensor, context: Tensor | None) -> Tensor:
    return model.denoiser(x_t, logsnr, context if model.conditional else None)


def _score_and_slope(
    model: Diffusion, x_t: Tensor, logsnr: Tensor, probe: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""Return the score, and its Jacobian applied to a direction from the left, which has the same trace."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        score = to_score(_denoised(model, x_t, logsnr, context), x_t, logsnr)
        (slope,) = torch.autograd.grad((score * probe).sum(), x_t)
    return score.detach(), slope


def _simulated(schedule: NoiseSchedule, x: Tensor, t: float, steps: int = 1000) -> Tensor:
    """Simulate the forward SDE from time 0 to t by Euler-Maruyama, with steps of equal growth of the noise."""
    path = torch.linspace(0, t**0.5, steps + 1, dtype=torch.float64).square()
    for now, later in zip(path[:-1], path[1:], strict=True):
        h = later - now
        middle = (now + later) / 2
        noise = diffusion(schedule, middle) * h.sqrt() * torch.randn_like(x)
        x = x + forward_drift(schedule, x, middle) * h + noise
    return x


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
