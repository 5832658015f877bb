r"""The likelihoods of a diffusion: the variational bound, in continuous time or in T steps, and the ODE's estimate.

$\log p(x) \ge \underbrace{\mathbb E \log p(x \mid z_0)}_{\text{reconstruction}}
\underbrace{- \mathrm{KL}(q(z_1 \mid x) \,\|\, \mathcal N(0, I))}_{\text{prior}} - \text{diffusion}$, where z₀ is the
variable with the least noise. In T steps (the notes, part B2 of autumn 2025, question d; the notes' $x_1, \dots, x_T$
are the noise levels of `Chain.of(schedule, T)`) the three are $-L_0$, $-L_T$ and $-\sum_{t=2}^T L_{t-1}$.
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
from loglik.diffusion.control import Control, Draw, bins_of
from loglik.diffusion.denoiser import Residual, to_score
from loglik.diffusion.ode import adams
from loglik.diffusion.reconstruction import Reconstruction
from loglik.diffusion.schedule import NoiseSchedule, alpha
from loglik.diffusion.sde import flow_in_logsnr
from loglik.diffusion.time_grid import SPACINGS, sinh_grid, time_grid

__all__ = ["ODE", "VLB", "Likelihood", "Model", "draw_noise"]


def draw_noise(model: Model, v: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"]) -> Draw:
    """Add noise at log-SNRs, denoise, and return the draw with the denoiser's residual."""
    epsilon = torch.randn_like(v)
    return Draw(v, logsnr, epsilon, model.residual(v, epsilon, logsnr, model.context))


@dataclass(frozen=True)
class Model:
    """The parts of a diffusion that a likelihood uses, and the context of its rows."""

    schedule: NoiseSchedule
    reconstruction: Reconstruction
    denoiser: Callable[..., Tensor]
    residual: Residual
    control: Control
    context: Tensor | None

    def denoise(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        """Return the expected data given x_t."""
        return self.denoiser(x_t, logsnr, self.context)

    def at(self, rows: Tensor) -> Model:
        """Return the model for some of the rows."""
        return self if self.context is None else replace(self, context=self.context[rows])


class Likelihood(ABC):
    """Compute log p(x), its bound or its estimate, as a sum of named terms."""

    bound: Bound

    @abstractmethod
    def terms(
        self, model: Model, x: Tensor, v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the terms of data x, scaled to v; u in [0, 1) chooses the noise levels."""

    def error(self, model: Model, x: Tensor, v: Float[Tensor, "B ..."]) -> Float[Tensor, " B"] | None:
        """Return an estimate of the solver's error in nats; None if nothing is solved."""
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
        whole: sum all T - 1 divergences, with a draw of z_t each, instead of weighting one drawn at random.
        spacing: of the noise levels: even in `time`, which is DDPM's chain for its own T, or in the `logsnr`, which is
            tighter for few steps, since the first step in time is large; see `time_grid` for others.

    Raises ValueError for fewer than 2 steps, an unknown spacing, and `whole` without steps.

    Sources: Kingma et al. 2021, "Variational diffusion models", eq. 11-17; Ho et al. 2020, eq. 5.
    """

    bound = Bound.LOWER

    def __init__(self, steps: int | None = None, *, whole: bool = False, spacing: str = "time") -> None:
        if steps is not None and steps < 2:
            raise ValueError(f"steps must be at least 2, or None for continuous time, got {steps}")
        if whole and steps is None:
            raise ValueError("continuous time has no whole sum: pass steps")
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
        control, ends, nodes = model.control, model.schedule.ends(v), None
        if self.steps is not None:
            levels = time_grid(model.schedule, self.steps, self.spacing, v).flip(0)
            nodes = levels[1:], posterior_kl_weight(levels[:-1], levels[1:])
        tables = control.integral(model.schedule, v) if nodes is None else control.tables(ends, nodes)
        centred = control.project(v, tables)

        def rest(logsnr: Tensor) -> Tensor:
            draw = draw_noise(model, v, logsnr)
            return control.rest(draw.error, control.variates(centred, draw, tables), bins_of(logsnr, tables.edges))

        total = control.expected(centred, tables)
        if nodes is None:
            logsnr, density = control.draw(u, ends)
            total = total + rest(logsnr) / density
        elif self.whole:
            for level, weight in zip(*nodes, strict=True):
                total = total + weight * rest(level.expand(len(v)))
        else:
            s, probability = control.choose(nodes, u, tables)
            total = total + nodes[1][s] / probability * rest(nodes[0][s])
        return -0.5 * total


class ODE(Likelihood):
    r"""Estimate the density that the probability-flow ODE transports to N(0, I).

    $\log p(z_0) = \log \mathcal N(z_1; 0, I) + \int_{\lambda_0}^{\lambda_1} \operatorname{tr} \frac{\partial
    f}{\partial z}\,d\lambda$ along $dz/d\lambda = f = \tfrac12\alpha(\hat x - \alpha z)$. Real data are $z_0/\alpha_0$.
    Integers and codes are dequantized with the noise of the chain's first level,
    $\log P(x) \ge \mathbb E_{q(z_0 \mid x)}[\log p(z_0) + \log P(x \mid z_0) - \log q(z_0 \mid x)]$, and the last two
    terms are its cost. The result is an estimate: the solver and random probes have errors, and
    a network's score need not be the gradient of a log-density. It carries no gradient.

    The solver is `adams` on a fixed grid; examples with an estimated error above the tolerance are solved again with
    twice as many steps, up to `MAX_STEPS`.

    Args:
        steps: of the first solution: network evaluations, each with a derivative.
        tolerance: nats per dimension.
        probes: random vectors of signs ε for the trace, $\mathbb E\, \varepsilon^\top \frac{\partial f}{\partial z}
            \varepsilon$; None for the exact trace up to `EXACT` dimensions, at as many derivatives, and one probe
            beyond.

    Raises ValueError for fewer than 2 steps, no probe, or a tolerance that is not above 0.

    Sources: Song et al. 2021, "Score-based generative modeling through SDEs", section 4.3; Hutchinson 1990.
    """

    EXACT = 32
    MAX_STEPS = 1280  # an example that needs more keeps its error
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
        """Return the terms, and the solver's error in nats."""
        z, terms = self._start(model, x, v)
        directions, steps = self._directions(v), self.steps
        prior, log_det, error = self._solve(model, z, directions, steps)
        limit = self.tolerance * math.prod(v.shape[1:])
        rows = (~(error <= limit)).nonzero().squeeze(1)
        while len(rows) and steps < self.MAX_STEPS:
            steps *= 2
            again = self._solve(model.at(rows), z[rows], directions[:, rows], steps)
            better = ~(again[2] >= error[rows] / 2)  # otherwise the rest is rounding
            rows = rows[better]
            prior[rows], log_det[rows], error[rows] = (value[better] for value in again)
            rows = rows[~(error[rows] <= limit)]
        return terms | {"prior": prior, "log-determinant": log_det}, error

    def _start(self, model: Model, x: Tensor, v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return z₀, and the cost of dequantization where there is one."""
        high, _ = model.schedule.ends(v)
        seen, cost = model.reconstruction.dequantize(x, v, high)
        exact = model.reconstruction.real_dims == math.prod(v.shape[1:])
        return alpha(high) * seen, {} if exact else {"dequantization": cost}

    def _directions(self, v: Tensor) -> Float[Tensor, "S B D"]:
        """Return the unit vectors, or random signs that stay the same during a solution."""
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
