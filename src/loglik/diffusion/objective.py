r"""What training minimises: a weighting of the noise levels, and which of them are drawn.

Every usual loss is $\tfrac12 \int w(\lambda)\, \mathbb E \lVert \epsilon - \hat\epsilon(x_\lambda) \rVert^2 d\lambda$,
whether the network predicts noise, data, v or the score, and w = 1 is the likelihood's bound (Kingma and Gao 2023,
"Understanding diffusion objectives as the ELBO with simple data augmentation"). With $r = \lvert dt/d\lambda \rvert$ of
the schedule, an expectation over uniform t is $w = r$.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.diffusion.control import Ends, pick, quadrature
from loglik.diffusion.schedule import NoiseSchedule

__all__ = ["TIMES", "WEIGHTINGS", "Objective"]

Weighting = Callable[[Tensor, Tensor], Tensor]  # (λ, r) -> w

WEIGHTINGS: dict[str, Weighting] = {
    "likelihood": lambda logsnr, rate: torch.ones_like(logsnr),
    "simple": lambda logsnr, rate: rate,  # ‖ε - ε̂‖², uniform t: Ho et al. 2020, eq. 14
    "data": lambda logsnr, rate: rate * torch.exp(-logsnr),  # ‖x - x̂‖², uniform t
    "v": lambda logsnr, rate: rate * (1 + torch.exp(-logsnr)),  # ‖v - v̂‖², uniform t: Salimans and Ho 2022
    "min-snr": lambda logsnr, rate: rate * torch.exp(-logsnr).mul(5).clamp(max=1),  # γ = 5: Hang et al. 2023
    "sigmoid": lambda logsnr, rate: torch.sigmoid(2 - logsnr),  # Hoogeboom et al. 2024, "Simpler diffusion"
}

TIMES = ("uniform", "time", "importance")
BINS = 64


class Objective(nn.Module):
    r"""How training weighs and draws noise levels. It changes `loss` alone, never `log_prob`.

    Every weighting is denoising score matching,
    $\int_0^1 \lambda(t)\, \mathbb E \lVert s_\theta(x_t, t) - \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2 dt$. With
    $s_\theta = -\hat\epsilon / \sigma_t$ and $\nabla \log p_{t \mid 0}(x_t \mid x_0) = -\epsilon / \sigma_t$, its
    weight is $\lambda(t) = w \sigma_t^2 / 2r$: β(t)/2 for `likelihood`, σ_t²/2 for `simple`. Explicit score matching
    has the target $\nabla \log p_t(x_t)$, and an expectation that is smaller by
    $\mathbb E \lVert \nabla \log p_{t \mid 0} \rVert^2 - \mathbb E \lVert \nabla \log p_t \rVert^2$, which does not
    depend on θ (Vincent 2011, "A connection between score matching and denoising autoencoders").

    Draws are spread evenly over the batch, as in Kingma et al. 2021, appendix I.1.

    Args:
        weighting: `likelihood` (the bound itself), `simple` (DDPM's), `data`, `v`, `min-snr` or `sigmoid`; or a
            function λ(t) of one's own, from times (B,) to the weights (B,) of denoising score matching.
        times: `uniform` in the log-SNR (a learned schedule's own density; for the likelihood the importance sampling of
            Song et al. 2021); `time`, uniform in t; or `importance`, in proportion to the root of the mean squared
            loss that each part of the log-SNR has had (Nichol and Dhariwal 2021, eq. 18).
        steps: T of a chain whose levels, evenly spaced in time, are trained; None for continuous time.

    Raises ValueError for names that are not these, and fewer than 2 steps.
    """

    moments: Tensor

    def __init__(
        self,
        weighting: str | Callable[[Tensor], Tensor] = "likelihood",
        *,
        times: str = "uniform",
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(weighting) and weighting not in WEIGHTINGS:
            raise ValueError(f"unknown weighting {weighting!r}: use {', '.join(WEIGHTINGS)}, or a function λ(t)")
        if times not in TIMES:
            raise ValueError(f"unknown times {times!r}: use {', '.join(TIMES)}")
        if steps is not None and steps < 2:
            raise ValueError(f"steps must be at least 2, or None for continuous time, got {steps}")
        self.weighting, self.times, self.steps = weighting, times, steps
        if times == "importance":
            self.register_buffer("moments", torch.ones(BINS))

    def draw(
        self, schedule: NoiseSchedule, place: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        r"""From uniform numbers: log-SNRs, a factor, and the places.

        The weighted integral is the mean of factor · ½‖ε - ε̂‖²; places are what `learn` takes.
        """
        density = torch.ones_like(place)
        if self.times == "importance":
            place, density = self._warp(place)
        if self.steps is not None:
            chain = schedule.chain(self.steps, place)
            s = (place * (self.steps - 1)).long().clamp(max=self.steps - 2)
            logsnr, width = chain.logsnr[s + 1], torch.expm1(chain.logsnr[s] - chain.logsnr[s + 1])
            rate, measure = 1 / ((self.steps - 1) * width), (self.steps - 1) * width
        elif self.times == "time":
            logsnr, rate = schedule.logsnr(place), schedule.rate(place)
            measure = 1 / rate
        else:
            logsnr, p = schedule.draw(place)
            rate = p if self.weighting in ("likelihood", "sigmoid") else schedule.rate(schedule.time(logsnr))
            measure = 1 / p
        return logsnr, self._weight(schedule, logsnr, rate) * measure / density, place

    def _weight(self, schedule: NoiseSchedule, logsnr: Tensor, rate: Tensor) -> Float[Tensor, " B"]:
        r"""$w(\lambda)$: by name, or $2 r \lambda(t) / \sigma_t^2$ for a function λ(t)."""
        if isinstance(self.weighting, str):
            return WEIGHTINGS[self.weighting](logsnr, rate)
        return 2 * rate * self.weighting(schedule.time(logsnr)) * (1 + torch.exp(logsnr))

    def measure(self, schedule: NoiseSchedule, ends: Ends) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Return the log-SNRs and weights of the likelihood's sum over a chain, or of a quadrature of its integral."""
        if self.steps is None:
            return quadrature(ends)
        levels = schedule.chain(self.steps, ends[0]).logsnr
        return levels[1:], torch.expm1(levels[:-1] - levels[1:])

    def _warp(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform places to ones with the density in proportion to the root of `moments`, and that density."""
        part, within, probability = pick(self.moments.sqrt().to(place), place, 0.05)  # no part is left out
        return ((part + within) / BINS).clamp(0, 1), probability * BINS

    @torch.no_grad()
    def learn(self, place: Float[Tensor, " B"], value: Float[Tensor, " B"]) -> None:
        """Let `importance` see the losses (without their density's factor) at these places."""
        part = (place * BINS).long().clamp(max=BINS - 1)
        count = torch.zeros_like(self.moments).index_add_(0, part, torch.ones_like(place, dtype=self.moments.dtype))
        total = torch.zeros_like(self.moments).index_add_(0, part, value.square().to(self.moments.dtype))
        seen = torch.where(count > 0, total / count.clamp_min(1), self.moments)
        self.moments.lerp_(seen, 0.05)
