"""Diffusion: the VP-SDE as a density (the notes, parts B2 of 2025)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Bound, Density, check_levels
from loglik.diffusion.denoiser import Denoiser, LevelDenoiser
from loglik.diffusion.sampler import integrate
from loglik.diffusion.schedule import LinearBeta, NoiseSchedule, alpha, sigma

__all__ = ["Diffusion"]


class Diffusion(Density):
    r"""A hierarchical VAE whose encoder adds noise, in infinitely many steps.

    $\log p(x) \ge \underbrace{\mathbb E \log p(x \mid z_0)}_{\text{reconstruction}}
    \underbrace{- \mathrm{KL}(q(z_1 \mid x) \,\|\, \mathcal N(0, I))}_{\text{prior}}
    \underbrace{- \tfrac12 \int_{\lambda_1}^{\lambda_0} \mathbb E \lVert \epsilon - \hat\epsilon(z_\lambda) \rVert^2
    d\lambda}_{\text{diffusion}}$

    with λ the log-SNR. The last term is denoising score matching under the likelihood weighting β(t):
    $\tfrac12 \int \beta(t)\,\mathbb E \lVert s(x_t, t) - \nabla \log q(x_t \mid x) \rVert^2 dt$. It is estimated
    from one λ per example and sample, drawn uniformly and stratified over samples (over the batch when there is one).
    `loss` is minus the same bound, so training maximises what `log_prob` reports.

    For whole numbers 0 ... K-1, scaled to levels in [-1, 1],
    $p(x \mid z_0) \propto \exp(-(z_0/\alpha_0 - x)^2 e^{\lambda_0}/2)$ normalised over the levels, so
    the bound is on a log-probability; for real data p(x | z_0) is $\mathcal N(z_0/\alpha_0, e^{-\lambda_0} I)$.

    Args:
        denoiser: from (x_t, log-SNR, context) to the expected data: a `Denoiser`, a `LevelDenoiser` where data take few
            levels, or any module of that form.
        event_shape: of the data.
        levels: K of whole numbers, None for real data.
        schedule: the noise; the VP-SDE with linear β(t) by default.
        method, steps: how `sample` draws: `ddpm` (the ancestral chain) or `sde` (the reverse SDE), and in how many
            steps.

    Sources: Kingma et al. 2021, "Variational diffusion models", eq. 11-17; Song et al. 2021, "Maximum likelihood
    training of score-based diffusion models".
    """

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        *,
        levels: int | None = None,
        schedule: NoiseSchedule | None = None,
        method: str = "ddpm",
        steps: int = 200,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.event_shape = tuple(event_shape)
        self.dims = math.prod(event_shape)
        self.levels = levels
        self.schedule = LinearBeta() if schedule is None else schedule
        self.method, self.steps = method, steps
        self.discrete = levels is not None
        self.conditional = getattr(denoiser, "context", None) is not None
        # how many levels away 12 deviations of the least noise reach: further ones weigh nothing
        least = math.exp(-0.5 * self.schedule.logsnr(torch.zeros(())).item())
        self.near = max(2, math.ceil(6 * least * ((levels or 2) - 1)))

    @property
    def bound(self) -> Bound:
        return Bound.LOWER

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        v = self._centre(x)
        if samples == 1:
            return _sum(self._terms(x, v, context, self._stratified(len(x), v)))
        first = torch.rand(len(x), device=v.device, dtype=v.dtype)
        total = v.new_zeros(len(x))
        for k in range(samples):
            total = total + _sum(self._terms(x, v, context, (first + k / samples) % 1))
        return total / samples

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> dict[str, Float[Tensor, " B"]]:
        """The bound's three terms, one draw each: `reconstruction`, `prior` and `diffusion`."""
        v = self._centre(x)
        return self._terms(x, v, context, self._stratified(len(x), v))

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        ends = self._logsnr_ends()
        z = torch.randn(n, *self.event_shape, device=ends.device, dtype=ends.dtype)
        z = integrate(
            z,
            lambda z_t, lam: self.denoiser(z_t, lam, context),
            self.schedule,
            method=self.method,
            steps=self.steps,
        )
        lowest = ends[0].expand(n)
        if self.levels is None:
            return self.denoiser(z, lowest, context)
        if isinstance(self.denoiser, LevelDenoiser):
            x = self.denoiser.logits(z, lowest, context).argmax(-1).view(z.shape)
        else:
            x = ((self.denoiser(z, lowest, context) + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        if isinstance(self.denoiser, Denoiser):
            self.denoiser.initialise(self._centre(x))

    def _logsnr_ends(self) -> Float[Tensor, "2"]:
        """The log-SNR at t = 0, the highest, and at t = 1."""
        parameter = next(self.parameters(), None)
        return self.schedule.logsnr(
            torch.tensor([0.0, 1.0])
            if parameter is None
            else torch.tensor([0.0, 1.0], device=parameter.device, dtype=parameter.dtype)
        )

    def _centre(self, x: Tensor) -> Tensor:
        check_levels(x, self.levels)
        return x if self.levels is None else x.to(torch.get_default_dtype()) * (2 / (self.levels - 1)) - 1

    def _stratified(self, count: int, v: Tensor) -> Tensor:
        places = torch.rand(count, device=v.device).argsort()  # indexing by randperm is what inductor cannot compile
        return (places.to(v.dtype) + torch.rand((), device=v.device, dtype=v.dtype)) / count

    def _terms(self, x: Tensor, v: Tensor, context: Tensor | None, place: Tensor) -> dict[str, Tensor]:
        high, low = self._logsnr_ends().to(v)
        logsnr = low + (high - low) * place
        wide = (-1, *[1] * (v.dim() - 1))
        x_t = alpha(logsnr).view(wide) * v + sigma(logsnr).view(wide) * torch.randn_like(v)
        error = (v - self.denoiser(x_t, logsnr, context)).square().flatten(1).sum(1)
        diffusion = -0.5 * (high - low) * logsnr.exp() * error

        variance = sigma(low).square()
        mean_square = alpha(low).square() * v.square().flatten(1).sum(1)
        prior = -0.5 * (mean_square + self.dims * (variance - 1 - variance.log()))
        return {"reconstruction": self._reconstruction(x, v, high), "prior": prior, "diffusion": diffusion}

    def _reconstruction(self, x: Tensor, v: Tensor, high: Tensor) -> Tensor:
        if self.levels is None:  # the expectation over z_0 in closed form
            return (-0.5 * self.dims * (1 + math.log(2 * math.pi) - high)).expand(len(v))
        levels = torch.linspace(-1, 1, self.levels, device=v.device, dtype=v.dtype)
        seen = v + torch.exp(-0.5 * high) * torch.randn_like(v)  # z_0 / α_0
        gap = 2 / (self.levels - 1)
        if 2 * self.near + 1 >= self.levels:
            distance = seen.unsqueeze(-1) - levels
        else:
            window = x.long().unsqueeze(-1) + torch.arange(-self.near, self.near + 1, device=v.device)
            outside = (window < 0) | (window >= self.levels)
            distance = seen.unsqueeze(-1) - (window * gap - 1)
            distance = distance.masked_fill(outside, torch.inf)
        logits = -0.5 * high.exp() * distance.square()
        own = -0.5 * high.exp() * (seen - v).square()
        return (own - logits.logsumexp(-1)).flatten(1).sum(1)


def _sum(terms: dict[str, Tensor]) -> Float[Tensor, " B"]:
    return terms["reconstruction"] + terms["prior"] + terms["diffusion"]
