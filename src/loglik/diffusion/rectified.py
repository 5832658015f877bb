r"""Rectified flow: a flow trained again, on the pairs of noise and data that a first flow joins.

The first flow's ODE $dx_\tau/d\tau = u(x_\tau, \tau)$ carries noise ε to $x = x_0$. The second minimises
$\mathbb E_\tau \lVert \hat u(x_\tau, \tau) - (\epsilon - x) \rVert^2$ at $x_\tau = (1 - \tau)\,x + \tau\,\epsilon$ over
such pairs. Its ODE has the same distribution at each end and straighter paths. Where they are straight, one step of
Euler's rule is exact.

Given x, $x_\tau$ is no longer Gaussian, since ε depends on x. So $\hat x = x_\tau - \tau \hat u$ is not the expected
data, and there is no score and no bound. The ODE's density and deterministic samplers remain: they need $\hat u$ alone.

Source: Liu et al. 2023, "Flow straight and fast: learning to generate and transfer data with rectified flow".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.density import Density
from loglik.diffusion.diffusion import TOGETHER, Diffusion
from loglik.diffusion.likelihood import ODE, Likelihood
from loglik.diffusion.sampler import Sampler, integrate
from loglik.diffusion.schedule import alpha, sigma

__all__ = ["RectifiedFlow", "curvature"]

PAIRS = Sampler(method="dpm++2m", steps=24)  # of the first flow's ODE


@dataclass(frozen=True)
class _First:
    """The first flow, which is no part of the second: it has no place among its weights, copies and averages."""

    flow: Diffusion

    def __deepcopy__(self, memo: dict[int, Any]) -> _First:
        return self

    @torch.no_grad()
    def pairs(
        self, noise: Float[Tensor, "B ..."], context: Tensor | None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """Return v and ε whose line passes through the noise at t = 1, where the ODE of both flows starts."""
        flow = self.flow.to(noise.device)
        denoise = flow._model(context).denoise
        drawn = integrate(noise, denoise, flow.schedule, PAIRS)
        v = denoise(drawn.x, drawn.logsnr.expand(len(noise)))
        low = flow.schedule.ends(noise)[1]
        return v, (noise - alpha(low) * v) / sigma(low)


class RectifiedFlow(Diffusion):
    """The second flow, trained on the pairs of a first one that `rectify` takes.

    The arguments are those of `Diffusion`. `log_prob` is the ODE's estimate. Training keeps its last weights, as the
    first ones have the likelihood of the first flow, and paths as curved.

    `loss` without the first flow is that of independent pairs, and an error in training mode.

    Raises ValueError for the bound, for samplers that add noise, and for `inpaint`.
    """

    gaussian = False
    keep_last = True
    first: _First | None = None

    def __init__(self, *args: Any, likelihood: Likelihood | None = None, **kwargs: Any) -> None:
        super().__init__(*args, likelihood=likelihood or ODE(20, tolerance=1e-2), **kwargs)

    def rectify(self, first: Density) -> None:
        """Take a trained diffusion, or a density with one as its base, as the first flow.

        Raises ValueError where its network is another one.
        """
        flow = next((module for module in first.modules() if isinstance(module, Diffusion)), None)
        if flow is None:
            raise ValueError(f"reflow needs a trained diffusion, and {type(first).__name__} has none")
        own, other = (
            {name: value.shape for name, value in part.state_dict().items()} for part in (self.denoiser, flow.denoiser)
        )
        if own != other or type(self.denoiser) is not type(flow.denoiser):
            raise ValueError("reflow needs the network of the first flow: leave out options of the network")
        self.first = _First(flow.eval())

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        super().initialise(x, context)
        if self.first is not None:
            self.denoiser.load_state_dict(self.first.flow.denoiser.state_dict())

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        context = None if context is None else _together(context[::TOGETHER], len(x))
        v, epsilon = self._pairs(x, context)
        logsnr, factor, _ = self.objective.draw(self.schedule, self._stratified(len(v), v))
        residual = self._model(context).residual(v, epsilon, logsnr, context)
        return (0.5 * factor * residual.flatten(1).square().sum(1)).mean()

    def inpaint(
        self, x: Shaped[Tensor, "B ..."], known: Bool[Tensor, "B ..."], *args: Any, **kwargs: Any
    ) -> Shaped[Tensor, "B ..."]:
        raise ValueError("a rectified flow has no score to fill values by: use the flow that it was made from")

    @torch.compiler.disable
    def _pairs(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.first is None and self.training:
            raise ValueError("a rectified flow is trained on the pairs of a first flow: pass reflow=RUN, its folder")
        if self.first is None:
            v = self.reconstruction.embed(x)
            return v, torch.randn_like(v)
        noise = torch.randn_like(self.reconstruction.embed(x[::TOGETHER]))
        v, epsilon = self.first.pairs(noise, None if context is None else context[::TOGETHER])
        return _together(v, len(x)), _together(epsilon, len(x))


def _together(rows: Tensor, count: int) -> Tensor:
    """Repeat each row for `TOGETHER` neighbours, whose times are stratified: a pair costs more than a step on it."""
    return rows.repeat_interleave(TOGETHER, 0)[:count]


@torch.no_grad()
def curvature(flow: Diffusion, n: int = 1024, context: Tensor | None = None, *, steps: int = 50) -> Float[Tensor, ""]:
    r"""Return $\int \mathbb E \lVert (\epsilon - x) - \hat u(x_\tau, \tau) \rVert^2 d\tau$ along the flow's own paths.

    It is 0 where all paths are straight. In units of the data that noise is added to, summed over the dimensions.

    Source: Liu et al. 2023, section 2, which calls its negative straightness.
    """
    like = flow._like()
    noise = torch.randn(n, *flow.reconstruction.shape, device=like.device, dtype=like.dtype)
    points: list[Tensor] = []

    def keep(logsnr: Tensor, x_t: Tensor) -> None:
        points.append(x_t / (alpha(logsnr) + sigma(logsnr)))

    integrate(noise, flow._model(context).denoise, flow.schedule, Sampler(method="euler", steps=steps), watch=keep)
    velocities = torch.stack(points).diff(dim=0) * -steps
    return (velocities - velocities.mean(0)).flatten(2).square().sum(2).mean()
