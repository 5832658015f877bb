r"""Update rules of samplers: from the noise level t to the lower level s, with the denoiser's $\hat x(x_t)$.

λ is the log-SNR, $\ell = \lambda/2 = \log(\alpha/\sigma)$, $h = \ell_s - \ell_t > 0$, and $y = x/\alpha$ with
$\rho = \sigma/\alpha$, in which the probability-flow ODE is $dy/d\rho = \hat\epsilon$ (Karras et al. 2022, "Elucidating
the design space of diffusion-based generative models", eq. 3) and in which its exact solution is
$x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_0^h e^{-(h-u)}\, \hat x(\ell_t + u)\,du$ (Lu et al. 2022,
"DPM-Solver++").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.chain import posterior
from loglik.diffusion.denoiser import Denoise
from loglik.diffusion.schedule import NoiseSchedule, alpha, flow_time, sigma
from loglik.diffusion.sde import diffusion, reverse_drift

__all__ = ["NOISE_ADDING", "RULES", "Level", "SamplerState"]


@dataclass(frozen=True)
class Level:
    """A noise level in the forms that rules use; tensors of shape ()."""

    t: Tensor
    logsnr: Tensor

    @property
    def alpha(self) -> Tensor:
        return alpha(self.logsnr)

    @property
    def sigma(self) -> Tensor:
        return sigma(self.logsnr)

    @property
    def half(self) -> Tensor:
        return self.logsnr / 2

    @property
    def rho(self) -> Tensor:
        return torch.exp(-self.half)

    @property
    def tau(self) -> Tensor:
        return flow_time(self.logsnr)

    @classmethod
    def at(cls, tau: Tensor, schedule: NoiseSchedule) -> Level:
        logsnr = -2 * torch.logit(tau)
        return cls(schedule.time(logsnr), logsnr)

    def to_flow(self, x: Tensor) -> Tensor:
        return x / (self.alpha + self.sigma)

    def of_flow(self, x: Tensor) -> Tensor:
        return x * (self.alpha + self.sigma)

    def velocity(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return self.noise(x, x_hat) - x_hat

    def score(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return (self.alpha * x_hat - x) / self.sigma.square()

    def noise(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return (x - self.alpha * x_hat) / self.sigma


@dataclass
class SamplerState:
    """The state of a sampler on its way from noise to data.

    Attributes:
        denoiser, schedule: of the diffusion.
        noise: from a tensor to N(0, I) of its shape.
        eta: of `ddim`.
        evaluations: number of network evaluations so far.
        past: earlier noise levels, each with a value that its rule keeps, the newest first.
        before: x at the noise level before, for UniPC.
    """

    denoiser: Denoise
    schedule: NoiseSchedule
    noise: Callable[[Tensor], Tensor]
    eta: float = 0.0
    evaluations: int = 0
    past: list[tuple[Level, Tensor]] = field(default_factory=list)
    before: Tensor | None = None

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        self.evaluations += 1
        return self.denoiser(x, level.logsnr.expand(len(x)))

    def remember(self, level: Level, value: Tensor, max_length: int) -> None:
        self.past = [(level, value), *self.past][:max_length]


Rule = Callable[[Tensor, Level, Level, SamplerState], Tensor]


def ddpm(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""Draw from $q(x_s \mid x_t, \hat x)$, a step of the ancestral chain: see `chain.posterior`.

    Reference: Ho et al. 2020, algorithm 2; Kingma et al. 2021, appendix A.4.
    """
    mean, std = posterior(x, state.denoise(x, t), t.logsnr, s.logsnr)
    return mean + std * state.noise(x)


def ddim(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""$x_s = \alpha_s \hat x + \sqrt{\sigma_s^2 - \eta^2 \sigma_s^2 c}\;\hat\epsilon + \eta \sigma_s \sqrt
    c\,\epsilon$.

    c is the ancestral chain's, which is η = 1; η = 0 is deterministic. Source: Song et al. 2021, "Denoising diffusion
    implicit models", eq. 12 and 16.
    """
    x_hat = state.denoise(x, t)
    variance = -(state.eta**2) * torch.expm1(t.logsnr - s.logsnr)
    drawn = s.alpha * x_hat + s.sigma * (1 - variance).clamp_min(0).sqrt() * t.noise(x, x_hat)
    return drawn + s.sigma * variance.sqrt() * state.noise(x) if state.eta else drawn


def euler_maruyama(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    """One Euler step of the reverse-time SDE. Source: Song et al. 2021, "Score-based generative modeling", eq. 6."""
    drift = reverse_drift(state.schedule, x, t.t, t.score(x, state.denoise(x, t)))
    step = t.t - s.t
    return x - step * drift + diffusion(state.schedule, t.t) * step.sqrt() * state.noise(x)


def predictor_corrector(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""The ancestral chain's step, then one of Langevin at s: $x + \delta\,s(x) + \sqrt{2\delta}\,\epsilon$.

    $\delta = \sigma_s^2 c / 4$ falls with the step, so that the whole converges; Song et al. set it from a
    constant signal-to-noise ratio, whose error stays.

    Source: Song et al. 2021, "Score-based generative modeling", algorithm 3.
    """
    x = ddpm(x, t, s, state)
    step = -0.25 * s.sigma.square() * torch.expm1(t.logsnr - s.logsnr)
    return x + step * s.score(x, state.denoise(x, s)) + (2 * step).sqrt() * state.noise(x)


def heun(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    """The trapezoidal rule in ρ after an Euler step: two evaluations. Source: Karras et al. 2022, algorithm 1."""
    slope = t.noise(x, state.denoise(x, t))
    guess = s.alpha * (x / t.alpha + (s.rho - t.rho) * slope)
    end = s.noise(guess, state.denoise(guess, s))
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * 0.5 * (slope + end))


def midpoint(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""The midpoint rule for the ODE of flow matching, $dx_\tau/d\tau = \hat u$: two evaluations.

    In $x_\tau = x_t/(\alpha + \sigma)$ and $\tau = \sigma/(\alpha + \sigma)$.
    Euler's rule for the same ODE is `ddim`; `euler` is `ddim` at even τ.

    Source: Lipman et al. 2023, "Flow matching for generative modeling", section 6.
    """
    middle = Level.at((t.tau + s.tau) / 2, state.schedule)
    guess = middle.of_flow(t.to_flow(x) + (middle.tau - t.tau) * t.velocity(x, state.denoise(x, t)))
    return s.of_flow(t.to_flow(x) + (s.tau - t.tau) * middle.velocity(guess, state.denoise(guess, middle)))


ADAMS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""Apply Adams-Bashforth's weights of order up to 4, which are for even steps, to $\hat\epsilon$ in ρ.

    The steps in ρ are not even, so the order is 2 in theory.

    Source: Zhang and Chen 2023, "Fast sampling of diffusion models with exponential
    integrator", section 3.3; Liu et al. 2022, "Pseudo numerical methods".
    """
    state.remember(t, t.noise(x, state.denoise(x, t)), 4)
    slope = sum(weight * value for weight, (_, value) in zip(ADAMS[len(state.past)], state.past, strict=True))
    return s.alpha * (x / t.alpha + (s.rho - t.rho) * slope)


def exponential_weights(nodes: Sequence[Tensor], h: Tensor) -> Float[Tensor, " n"]:
    r"""Return weights $w_j$ with $\int_0^h e^{-(h-u)} p(u)\,du = \sum_j w_j\,p(u_j)$ for polynomials below degree n.

    From the moments $m_k = \int_0^h e^{-(h-u)} (u/h)^k du$: $m_0 = 1 - e^{-h}$, $m_k = 1 - \frac kh m_{k-1}$.
    """
    n = len(nodes)
    position = torch.stack(list(nodes)).double() / h.double()
    moment = -torch.expm1(-h.double())
    moments = [moment]
    for k in range(1, n):
        # where h is small the recursion loses digits: its series, m_k = Σ_i k! (-h)^i h / (k+i+1)!
        term, series = h.double() / (k + 1), torch.zeros_like(moment)
        for i in range(12):
            series, term = series + term, -term * h.double() / (k + i + 2)
        moment = torch.where(h > 0.5, 1 - k / h.double() * moment, series)
        moments.append(moment)
    powers = torch.stack([position**k for k in range(n)])
    return torch.linalg.solve_ex(powers, torch.stack(moments))[0].to(h.dtype)


def exponential_step(
    x: Float[Tensor, "B ..."], t: Level, s: Level, known: Sequence[tuple[Level, Tensor]]
) -> Float[Tensor, "B ..."]:
    """The exact solution where x̂ is the polynomial in ℓ through its values at the known levels."""
    weights = exponential_weights([level.half - t.half for level, _ in known], s.half - t.half)
    integral = sum(weight * x_hat for weight, (_, x_hat) in zip(weights, known, strict=True))
    return s.sigma / t.sigma * x + s.alpha * integral


def dpm_2m(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""DPM-Solver++(2M): $x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - e^{-h}) \hat x_{\text{mid}}$.

    $\hat x_{\text{mid}}$ is extrapolated from the last two to the step's middle. Source: Lu et al. 2022, algorithm 2.
    """
    x_hat = _middle(x, t, s, state)
    return s.sigma / t.sigma * x - s.alpha * torch.expm1(t.half - s.half) * x_hat


def dpm_2m_sde(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    r"""SDE-DPM-Solver++(2M): $\frac{\sigma_s}{\sigma_t} e^{-h} x_t + \alpha_s (1 - e^{-2h}) \hat x_{\text{mid}} +
    \sigma_s \sqrt{1 - e^{-2h}}\,\epsilon$. Source: Lu et al. 2022, appendix."""
    x_hat = _middle(x, t, s, state)
    h = s.half - t.half
    fresh = -torch.expm1(-2 * h)
    drawn = s.sigma / t.sigma * torch.exp(-h) * x + s.alpha * fresh * x_hat
    return drawn + s.sigma * fresh.sqrt() * state.noise(x)


def _middle(x: Tensor, t: Level, s: Level, state: SamplerState) -> Tensor:
    state.remember(t, state.denoise(x, t), 2)
    if len(state.past) == 1:
        return state.past[0][1]
    (_, newest), (earlier, older) = state.past
    return newest + 0.5 * (s.half - t.half) / (t.half - earlier.half) * (newest - older)


def dpm_3m(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    """DPM-Solver++(3M): the parabola through the last three x̂, integrated exactly. Source: Lu et al. 2022."""
    state.remember(t, state.denoise(x, t), 3)
    return exponential_step(x, t, s, state.past)


def unipc(x: Float[Tensor, "B ..."], t: Level, s: Level, state: SamplerState) -> Float[Tensor, "B ..."]:
    """UniPC of order 3: the step of `dpm_3m`, and once x̂ at its end is known, the step again with it among the nodes.

    The correction costs no evaluation: x̂ is that of the uncorrected point. Source: Zhao et al. 2023, "UniPC",
    algorithms 1 and 2.
    """
    x_hat = state.denoise(x, t)
    if state.before is not None:
        x = exponential_step(state.before, state.past[0][0], t, [(t, x_hat), *state.past])
    state.remember(t, x_hat, 3)
    state.before = x
    return exponential_step(x, t, s, state.past)


RULES: dict[str, Rule] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "euler-maruyama": euler_maruyama,
    "predictor-corrector": predictor_corrector,
    "heun": heun,
    "midpoint": midpoint,
    "dpm++2m": dpm_2m,
    "dpm++3m": dpm_3m,
    "dpm++2m-sde": dpm_2m_sde,
    "unipc": unipc,
    "ipndm": ipndm,
}

NOISE_ADDING = ("ddpm", "euler-maruyama", "predictor-corrector", "dpm++2m-sde")  # rules that need the score
