r"""What `Diffusion.log_prob` is: the variational bound, in continuous time or in T steps, or the ODE's estimate.

$\log p(x) \ge \underbrace{\mathbb E \log p(x \mid z_0)}_{\text{reconstruction}}
\underbrace{- \mathrm{KL}(q(z_1 \mid x) \,\|\, \mathcal N(0, I))}_{\text{prior}} - \text{diffusion}$, where z₀ is the
least noised variable. In T steps (the notes, part B2 of autumn 2025, question d, with the notes' $x_1, \dots, x_T$ the
levels of `Chain.of(schedule, T)`) the three are $-L_0$, $-L_T$ and $-\sum_{t=2}^T L_{t-1}$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.density import Bound
from loglik.diffusion.chain import posterior_kl_weight, prior_term
from loglik.diffusion.control import Control, Draw, quadrature
from loglik.diffusion.denoiser import Denoise, to_score
from loglik.diffusion.ode import adams
from loglik.diffusion.reconstruction import Reconstruction
from loglik.diffusion.schedule import NoiseSchedule, add_noise, alpha, broadcast_like
from loglik.diffusion.sde import flow_in_logsnr
from loglik.diffusion.time_grid import SPACINGS, sinh_grid, time_grid

__all__ = ["ODE", "VLB", "Likelihood", "Model", "draw_noise"]


def draw_noise(v: Float[Tensor, "B ..."], denoise: Denoise, logsnr: Float[Tensor, " B"]) -> Draw:
    """Add noise at log-SNRs and let the denoiser take it away."""
    epsilon = torch.randn_like(v)
    x_t = add_noise(v, epsilon, logsnr)
    return Draw(v, logsnr, epsilon, broadcast_like(torch.exp(0.5 * logsnr), v) * (v - denoise(x_t, logsnr)))


@dataclass(frozen=True)
class Model:
    """What a likelihood needs of a diffusion: its parts, and the denoiser in a context."""

    schedule: NoiseSchedule
    reconstruction: Reconstruction
    denoiser: Callable[..., Tensor]
    control: Control
    context: Tensor | None

    def denoise(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        """The expected data given x_t."""
        return self.denoiser(x_t, logsnr, self.context)

    def at(self, rows: Tensor) -> Model:
        """For some of the examples."""
        return self if self.context is None else replace(self, context=self.context[rows])


class Likelihood(ABC):
    """A way to log p(x): named terms whose sum it is."""

    bound: Bound

    @abstractmethod
    def terms(
        self, model: Model, x: Tensor, v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the terms of data x, scaled to v; u in [0, 1) chooses the noise levels."""

    def error(self, model: Model, x: Tensor, v: Float[Tensor, "B ..."]) -> Float[Tensor, " B"] | None:
        """An estimate of the error of a solver, in nats; None where there is none."""
        return None


class VLB(Likelihood):
    r"""The variational lower bound.

    In continuous time the diffusion term is $\tfrac12 \int_{\lambda_1}^{\lambda_0} \mathbb E \lVert \epsilon -
    \hat\epsilon(z_\lambda) \rVert^2 d\lambda$, from one λ per draw. In T steps it is the hierarchical VAE's sum of T -
    1 divergences, $L_{t-1} = \mathbb E\, \mathrm{KL}(q(z_{t-1} \mid z_t, x) \,\|\, p(z_{t-1} \mid z_t))$ with
    $p(z_{t-1} \mid z_t) = q(z_{t-1} \mid z_t, \hat x(z_t))$, so that both Gaussians have the posterior's variance:
    $L_{t-1} = \tfrac12 (e^{\lambda_{t-1} - \lambda_t} - 1)\, \mathbb E \lVert \epsilon - \hat\epsilon(z_t) \rVert^2$.
    Either is estimated without bias, with the control variate and the importance sampling of `Control`.

    Args:
        steps: T, None for continuous time.
        whole: sum all T - 1 divergences, with a draw of z_t each, rather than weigh one drawn at random.
        spacing: of the levels: even in `time`, which with its own T is DDPM's chain, or in the `logsnr`, whose bound
            is the tighter for few steps, since a first step in time jumps far; see `time_grid` for others.

    Raises ValueError for fewer than 2 steps, an unknown spacing, and for the whole sum of continuous time.

    Sources: Kingma et al. 2021, "Variational diffusion models", eq. 11-17; Ho et al. 2020, eq. 5.
    """

    bound = Bound.LOWER

    def __init__(self, steps: int | None = None, *, whole: bool = False, spacing: str = "time") -> None:
        if steps is not None and steps < 2:
            raise ValueError(f"steps must be at least 2, or None for continuous time, got {steps}")
        if whole and steps is None:
            raise ValueError("continuous time has no whole sum: give steps")
        if spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {spacing!r}: use {', '.join(SPACINGS)}")
        self.steps, self.whole, self.spacing = steps, whole, spacing

    def terms(
        self, model: Model, x: Tensor, v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, " B"]]:
        high, low = model.schedule.ends(v)
        diffusion = self._diffusion(model, v, u)
        reconstruction = model.reconstruction.expected(x, v, high)
        return {"reconstruction": reconstruction, "prior": prior_term(v, low), "diffusion": diffusion}

    def _diffusion(self, model: Model, v: Tensor, u: Tensor) -> Tensor:
        control, ends = model.control, model.schedule.ends(v)

        def rest(logsnr: Tensor) -> Tensor:
            return control.rest(control.shares(draw_noise(v, model.denoise, logsnr), ends))

        if self.steps is None:
            logsnr, density = control.draw(u, ends)
            return -0.5 * (rest(logsnr) / density + control.expected(v, *quadrature(ends), ends))
        levels = time_grid(model.schedule, self.steps, self.spacing, v).flip(0)
        levels, width = levels[1:], posterior_kl_weight(levels[:-1], levels[1:])
        total = control.expected(v, levels, width, ends)
        if self.whole:
            for level, weight in zip(levels, width, strict=True):
                total = total + weight * rest(level.expand(len(v)))
        else:
            s, probability = control.choose(levels, width, u, ends)
            total = total + width[s] / probability * rest(levels[s])
        return -0.5 * total


class ODE(Likelihood):
    r"""The density that the probability-flow ODE carries to N(0, I), an estimate.

    $\log p(z_0) = \log \mathcal N(z_1; 0, I) + \int_{\lambda_0}^{\lambda_1} \operatorname{tr} \frac{\partial
    f}{\partial z}\,d\lambda$ along $dz/d\lambda = f = \tfrac12\alpha(\hat x - \alpha z)$. Real data are $z_0/\alpha_0$,
    taken as they are. Integers and codes are dequantized with the chain's own least noise,
    $\log P(x) \ge \mathbb E_{q(z_0 \mid x)}[\log p(z_0) + \log P(x \mid z_0) - \log q(z_0 \mid x)]$, and the last two
    terms are what that costs. The number is an estimate, since the solver has an error, random probes have one too, and
    the score of a network is no density's. It carries no gradient.

    The solver is `adams` on a fixed grid; the examples whose error it puts above the tolerance are solved again with
    twice as many steps, and so on.

    Args:
        steps: of the first solution, and so network evaluations, each with a derivative.
        tolerance: nats per dimension.
        probes: random vectors of signs ε for the trace, $\mathbb E\, \varepsilon^\top \frac{\partial f}{\partial z}
            \varepsilon$; None for the exact trace up to `EXACT` dimensions, at as many derivatives, and one probe
            beyond.

    Raises ValueError for fewer than 2 steps, no probe, or a tolerance that is not above 0.

    Sources: Song et al. 2021, "Score-based generative modeling through SDEs", section 4.3; Hutchinson 1990.
    """

    EXACT = 32
    MOST = 1280  # steps, beyond which an example is left as it is, with its error
    bound = Bound.ESTIMATE

    def __init__(self, steps: int = 40, *, tolerance: float = 1e-3, probes: int | None = None) -> None:
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        if not tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {tolerance}")
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be at least 1, or None, got {probes}")
        self.steps, self.tolerance, self.probes = steps, tolerance, probes

    def terms(
        self, model: Model, x: Tensor, v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, " B"]]:
        terms, _ = self._solution(model, x, v)
        return terms

    def error(self, model: Model, x: Tensor, v: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        return self._solution(model, x, v)[1]

    @torch.no_grad()
    def _solution(self, model: Model, x: Tensor, v: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, and the solver's error in nats."""
        z, terms = self._start(model, x, v)
        directions, steps = self._directions(v), self.steps
        prior, log_det, error = self._solve(model, z, directions, steps)
        limit = self.tolerance * math.prod(v.shape[1:])
        rows = (~(error <= limit)).nonzero().squeeze(1)
        while len(rows) and steps < self.MOST:
            steps *= 2
            again = self._solve(model.at(rows), z[rows], directions[:, rows], steps)
            better = ~(again[2] >= error[rows] / 2)  # else what is left is rounding
            rows = rows[better]
            prior[rows], log_det[rows], error[rows] = (value[better] for value in again)
            rows = rows[~(error[rows] <= limit)]
        return terms | {"prior": prior, "log-determinant": log_det}, error

    def _start(self, model: Model, x: Tensor, v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """z₀, and what it costs that it is not the data."""
        high, _ = model.schedule.ends(v)
        seen, cost = model.reconstruction.dequantize(x, v, high)
        exact = model.reconstruction.real_dims == math.prod(v.shape[1:])
        return alpha(high) * seen, {} if exact else {"dequantization": cost}

    def _directions(self, v: Tensor) -> Float[Tensor, "S B D"]:
        """The unit vectors, or random signs that stay the same for the whole of a solution."""
        dims = math.prod(v.shape[1:])
        if self.probes is None and dims <= self.EXACT:
            return torch.eye(dims, dtype=v.dtype, device=v.device).unsqueeze(1).expand(-1, len(v), -1)
        probes = self.probes or 1
        signs = 2 * torch.randint(0, 2, (probes, len(v), dims), device=v.device) - 1
        return signs.to(v.dtype) / math.sqrt(probes)

    def _solve(self, model: Model, z: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        dims = math.prod(z.shape[1:])

        def rate(z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                point = z.detach().requires_grad_()
                x_hat = model.denoise(point, logsnr)
                flat, trace = x_hat.flatten(1), torch.zeros(len(z), dtype=z.dtype, device=z.device)
                for number, direction in enumerate(directions):
                    last = number + 1 == len(directions)
                    (slope,) = torch.autograd.grad((flat * direction).sum(), point, retain_graph=not last)
                    trace = trace + (slope.flatten(1) * direction).sum(1)
            a, x_hat = alpha(logsnr), x_hat.detach()
            return flow_in_logsnr(z, x_hat, logsnr), 0.5 * a * (trace - a * dims), to_score(x_hat, z, logsnr)

        high, low = model.schedule.ends(z)
        z, log_det, error = adams(rate, z, sinh_grid(high, low, steps))
        prior = -0.5 * (z.flatten(1).square().sum(1) + dims * math.log(2 * math.pi))
        return prior, log_det + model.reconstruction.real_dims * alpha(high).log(), error
