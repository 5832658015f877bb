r"""Score matching: the explicit and the denoising loss, their constant difference, and what training minimises.

With $p_{t \mid 0}(x_t \mid x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)$, whose score is
$\nabla \log p_{t \mid 0}(x_t \mid x_0) = -\epsilon / \sigma_t$ at $x_t = \alpha_t x_0 + \sigma_t \epsilon$, and
$p_t(x_t) = \mathbb E_{x_0}\, p_{t \mid 0}(x_t \mid x_0)$:

- explicit, $J_E = \mathbb E_{x_t} \lambda(t) \lVert s_\theta(x_t, t) - \nabla \log p_t(x_t) \rVert^2$;
- denoising, $J_D = \mathbb E_{x_0, x_t} \lambda(t) \lVert s_\theta(x_t, t) -
  \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2$;
- $J_D = J_E + C$, where $C = \lambda(t) \left[\mathbb E \lVert \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2 -
  \mathbb E \lVert \nabla \log p_t(x_t) \rVert^2\right]$ does not depend on θ.

The proof: $\nabla \log p_t(x_t) = \mathbb E[\nabla \log p_{t \mid 0}(x_t \mid x_0) \mid x_t]$, so the cross terms of
the two squares with $s_\theta$ have the same mean, as has $\lVert s_\theta \rVert^2$.

Every usual loss is $\tfrac12 \int w(\lambda)\, \mathbb E \lVert \epsilon - \hat\epsilon(x_\lambda) \rVert^2 d\lambda$,
whether the network predicts noise, data, v or the score, and w = 1 is the likelihood's bound (Kingma and Gao 2023,
"Understanding diffusion objectives as the ELBO with simple data augmentation"). With $r = \lvert dt/d\lambda \rvert$ of
the schedule, an expectation over uniform t is $w = r$.

The loss of flow matching, $\mathbb E_t \lVert \hat u - (\epsilon - x) \rVert^2$ at
$x_\tau = (1 - \tau) x + \tau \epsilon$, is one of them. For a known $x_\tau$,
$(1 - \tau)(\hat x - x) = -\tau (\hat\epsilon - \epsilon)$, so
$\hat u - (\epsilon - x) = (\hat\epsilon - \epsilon)/(1 - \tau)$ with $1/(1 - \tau) = 1 + e^{-\lambda/2}$, and
$w = r (1 + e^{-\lambda/2})^2$ gives half of it.

Reference: Vincent 2011, "A connection between score matching and denoising autoencoders"; Song et al. 2021,
"Score-based generative modeling through SDEs", eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.diffusion.chain import Chain, posterior_kl_weight
from loglik.diffusion.control import Control, Tables, pick
from loglik.diffusion.schedule import NoiseSchedule, add_noise, broadcast_like, sigma

__all__ = [
    "TIMES",
    "WEIGHTINGS",
    "ScoreMatching",
    "denoising_score_matching",
    "explicit_score_matching",
    "score_matching_constant",
    "score_weight",
]

Score = Callable[[Tensor, Tensor], Tensor]  # (x_t, log-SNRs of shape (B,)) -> a score of the shape of x_t
Weighting = Callable[[Tensor, Tensor], Tensor]  # (λ, r) -> w

WEIGHTINGS: dict[str, Weighting] = {
    "likelihood": lambda logsnr, rate: torch.ones_like(logsnr),
    "simple": lambda logsnr, rate: rate,  # ‖ε - ε̂‖², uniform t: Ho et al. 2020, eq. 14
    "data": lambda logsnr, rate: rate * torch.exp(-logsnr),  # ‖x - x̂‖², uniform t
    "v": lambda logsnr, rate: rate * (1 + torch.exp(-logsnr)),  # ‖v - v̂‖², uniform t: Salimans and Ho 2022
    "flow-matching": lambda logsnr, rate: rate * (1 + torch.exp(-0.5 * logsnr)).square(),  # ‖u - û‖², uniform t
    "logit-normal": lambda logsnr, rate: _logit_normal(logsnr),  # ‖u - û‖², logit(τ) ~ N(0, 1): Esser et al. 2024
    "min-snr": lambda logsnr, rate: rate * torch.exp(-logsnr).mul(5).clamp(max=1),  # γ = 5: Hang et al. 2023
    "sigmoid": lambda logsnr, rate: torch.sigmoid(2 - logsnr),  # Hoogeboom et al. 2024, "Simpler diffusion"
}

WITHOUT_RATE = ("likelihood", "sigmoid", "logit-normal")  # weightings that do not depend on the schedule

TIMES = ("uniform", "time", "importance")
BINS = 64


# ---- the losses, of any score


def explicit_score_matching(
    score: Score,
    true_score: Score,
    x_t: Float[Tensor, "B ..."],
    logsnr: Float[Tensor, " B"],
    weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Return $\lambda(t) \lVert s_\theta(x_t, t) - \nabla \log p_t(x_t) \rVert^2$ of each example.

    Its mean over $x_t \sim p_t$ is $J_E$. The true score is known only where $p_0$ is.

    Args:
        score: $s_\theta$, from $x_t$ and log-SNRs to a tensor of the shape of $x_t$.
        true_score: $\nabla \log p_t$, of the same form.
        x_t: draws of $p_t$.
        logsnr: the noise level of each example.
        weight: λ(t) of each example; 1 if None.
    """
    return _weighted(_squares(score(x_t, logsnr) - true_score(x_t, logsnr)), weight)


def denoising_score_matching(
    score: Score,
    x_0: Float[Tensor, "B ..."],
    epsilon: Float[Tensor, "B ..."],
    logsnr: Float[Tensor, " B"],
    weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Return $\lambda(t) \lVert s_\theta(x_t, t) - \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2$ of each example.

    Its mean over data $x_0$ and $\epsilon \sim \mathcal N(0, I)$ is $J_D$. With
    $s_\theta = -\hat\epsilon / \sigma_t$ it is $\frac{\lambda(t)}{\sigma_t^2} \lVert \epsilon - \hat\epsilon \rVert^2$.

    Args:
        score: $s_\theta$, from $x_t$ and log-SNRs to a tensor of the shape of $x_t$.
        x_0: data.
        epsilon: draws of N(0, I); $x_t = \alpha_t x_0 + \sigma_t \epsilon$.
        logsnr: the noise level of each example.
        weight: λ(t) of each example; 1 if None.
    """
    x_t = add_noise(x_0, epsilon, logsnr)
    return _weighted(_squares(score(x_t, logsnr) - _conditional_score(epsilon, logsnr)), weight)


def score_matching_constant(
    true_score: Score,
    x_0: Float[Tensor, "B ..."],
    epsilon: Float[Tensor, "B ..."],
    logsnr: Float[Tensor, " B"],
    weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Return the difference of each example's squared scores, whose mean is the constant C.

    It is $\lambda(t) [\lVert \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2 - \lVert \nabla \log p_t(x_t) \rVert^2]$.
    Its mean is $C = J_D - J_E$, the same for every $s_\theta$, so both losses have the same gradient. The arguments
    are those of `denoising_score_matching` and `explicit_score_matching`.
    """
    x_t = add_noise(x_0, epsilon, logsnr)
    gap = _squares(_conditional_score(epsilon, logsnr)) - _squares(true_score(x_t, logsnr))
    return _weighted(gap, weight)


def score_weight(weighting: str, logsnr: Float[Tensor, " B"], rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    r"""Return $\lambda(t) = w \sigma_t^2 / 2r$, with which denoising score matching over uniform t is a weighting.

    It is β(t)/2 for `likelihood` and σ_t²/2 for `simple`.

    Args:
        weighting: a key of `WEIGHTINGS`.
        logsnr: the noise levels.
        rate: $r = \lvert dt/d\lambda \rvert$, from `NoiseSchedule.rate`.
    """
    return WEIGHTINGS[weighting](logsnr, rate) * sigma(logsnr).square() / (2 * rate)


def _logit_normal(logsnr: Tensor) -> Tensor:
    """Return w of flow matching's loss at times τ of a logit-normal distribution: λ = -2 logit(τ) is of N(0, 2²)."""
    density = torch.exp(-0.125 * logsnr.square()) / math.sqrt(8 * math.pi)
    return density * (1 + torch.exp(-0.5 * logsnr)).square()


def _conditional_score(epsilon: Tensor, logsnr: Tensor) -> Tensor:
    return -epsilon / broadcast_like(sigma(logsnr), epsilon)


def _squares(x: Tensor) -> Float[Tensor, " B"]:
    return x.flatten(1).square().sum(1)


def _weighted(values: Float[Tensor, " B"], weight: Float[Tensor, " B"] | None) -> Float[Tensor, " B"]:
    return values if weight is None else weight * values


# ---- what training minimises


class ScoreMatching(nn.Module):
    r"""Denoising score matching in training: a weighting of the noise levels, and a distribution to draw them from.

    It changes `loss` alone, never `log_prob`. Every weighting is
    $\int_0^1 \lambda(t)\, \mathbb E \lVert s_\theta(x_t, t) - \nabla \log p_{t \mid 0}(x_t \mid x_0) \rVert^2 dt$ with
    the $\lambda(t)$ of `score_weight`, computed as an error of the noise.

    Draws are spread evenly over the batch, as in Kingma et al. 2021, appendix I.1.

    Args:
        weighting: `likelihood` (the bound itself), `simple` (DDPM's), `data`, `v`, `flow-matching`, `logit-normal`,
            `min-snr` or `sigmoid`; or a function λ(t), from times (B,) to the weights (B,) of denoising score matching.
        times: `uniform` in the log-SNR (a learned schedule's own density; for the likelihood the importance sampling of
            Song et al. 2021); `time`, uniform in t; or `importance`, in proportion to the root mean square of the
            losses seen in each part of the log-SNR (Nichol and Dhariwal 2021, eq. 18).
        steps: T, to train the noise levels of a chain that are evenly spaced in time; None for continuous time.

    Raises ValueError for an unknown weighting or times, and for fewer than 2 steps.
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
        self, schedule: NoiseSchedule, u: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        r"""Return log-SNRs, a factor and the positions of the log-SNRs, from uniform draws u.

        The weighted integral is the mean of factor · ½‖ε - ε̂‖²; `learn` accepts the positions, in [0, 1].
        """
        density = None
        if self.times == "importance":
            u, density = self._warp(u)
        if self.steps is not None:
            chain = Chain.of(schedule, self.steps, u)
            s = (u * (self.steps - 1)).long().clamp(max=self.steps - 2)
            logsnr, width = chain.logsnr[s + 1], posterior_kl_weight(chain.logsnr[s], chain.logsnr[s + 1])
            rate, measure = 1 / ((self.steps - 1) * width), (self.steps - 1) * width
        elif self.times == "time":
            logsnr, rate = schedule.logsnr(u), schedule.rate(u)
            measure = 1 / rate
        else:
            logsnr, p = schedule.draw(u)
            rate = p if self.weighting in WITHOUT_RATE else schedule.rate(schedule.time(logsnr))
            measure = p.reciprocal()
        factor = measure if self.weighting == "likelihood" else self._weight(schedule, logsnr, rate) * measure
        return logsnr, factor if density is None else factor / density, u

    def _weight(self, schedule: NoiseSchedule, logsnr: Tensor, rate: Tensor) -> Float[Tensor, " B"]:
        r"""Return $w(\lambda)$: by name, or $2 r \lambda(t) / \sigma_t^2$ for a function λ(t)."""
        if isinstance(self.weighting, str):
            return WEIGHTINGS[self.weighting](logsnr, rate)
        return 2 * rate * self.weighting(schedule.time(logsnr)) * (1 + torch.exp(logsnr))

    def tables(self, control: Control, schedule: NoiseSchedule, like: Float[Tensor, "..."]) -> Tables:
        """Return the control variate's tables of the likelihood's integral, or of its sum over a chain."""
        if self.steps is None:
            return control.integral(schedule, like)
        logsnr = Chain.of(schedule, self.steps, like).logsnr
        return control.tables(schedule.ends(like), (logsnr[1:], posterior_kl_weight(logsnr[:-1], logsnr[1:])))

    def _warp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform draws to a density in proportion to the root of `moments`, and return that density too."""
        part, within, probability = pick(self.moments.sqrt().to(u), u, 0.05)  # every part keeps some probability
        return ((part + within) / BINS).clamp(0, 1), probability * BINS

    @torch.no_grad()
    def learn(self, u: Float[Tensor, " B"], value: Float[Tensor, " B"]) -> None:
        """Update the moments of `importance` with the losses at these positions, before division by their density."""
        part = (u * BINS).long().clamp(max=BINS - 1)
        count = torch.zeros_like(self.moments).index_add_(0, part, torch.ones_like(u, dtype=self.moments.dtype))
        total = torch.zeros_like(self.moments).index_add_(0, part, value.square().to(self.moments.dtype))
        seen = torch.where(count > 0, total / count.clamp_min(1), self.moments)
        self.moments.lerp_(seen, 0.05)
