r"""The variational bound of DDPM's chain, with the variances and the last step that its authors trained and sampled.

In the notation of `loglik.diffusion.chain`, $L_{t-1} = \mathbb E\,\mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \,\|\,
\mathcal N(\tilde\mu(x_t, \hat x), \sigma_t^2 I))$ for any variance $\sigma_t^2$ of the model, and $p(x_0 \mid x_1)$ is
a Gaussian that is integrated over each level; the end levels contain the tails.

References: Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 5 and 13; Nichol and Dhariwal 2021,
"Improved denoising diffusion probabilistic models", eq. 15 for a learned variance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from loglik.adapters.paths import NoiseLevel, Steps
from loglik.adapters.wrapped import Wrapped
from loglik.autoregressive.column_distributions import log_normal_mass
from loglik.density import Bound
from loglik.diffusion.chain import prior_term
from loglik.diffusion.control import Draw, bins_of, pick
from loglik.diffusion.likelihood import Likelihood, Model
from loglik.diffusion.reconstruction import Levels, gaussian_reconstruction
from loglik.diffusion.schedule import broadcast_like

__all__ = ["VARIANCES", "DDPMBound", "log_prob_of_levels"]

VARIANCES = ("fixed_small", "fixed_large", "learned_range")
UNIFORM = 0.2  # fraction of the timesteps that are drawn uniformly


class DDPMBound(Likelihood):
    r"""$\log p(x_0) \ge -L_0 - \sum_{t=2}^T L_{t-1} - L_T$ of a network with timesteps 0 ... T-1.

    Each draw adds one L of the sum, of a timestep drawn with a known probability, with the control variate of
    `loglik.diffusion.control`: the sum is estimated without bias.

    For real data, for which the chain has no $p(x_0 \mid x_1)$, it is $\mathcal N(\hat x, e^{-\lambda_1} I)$, tight
    where the data vary by more than the first step's noise.

    Args:
        wrapped: the network, on a path of `Steps`; with `learned_range` its call returns the variances, too.
        variance: $\sigma_t^2$: `fixed_small`, the posterior's, which is best for data without spread; `fixed_large`,
            $\beta_t$, which is best for N(0, I); `learned_range`, between them.
        clip: $\hat x$ is limited to ±clip, as in sampling; None where it is not.
        whole: sum all L, with one network evaluation each.

    Raises ValueError for another variance.
    """

    bound = Bound.LOWER

    def __init__(
        self, wrapped: Wrapped, *, variance: str = "fixed_small", clip: float | None = None, whole: bool = False
    ) -> None:
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}: use {', '.join(VARIANCES)}")
        self.wrapped, self.variance, self.clip, self.whole = wrapped, variance, clip, whole
        alpha_bar = self.path.alpha_bar
        before = torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
        betas = 1 - alpha_bar / before
        small = betas * (1 - before) / (1 - alpha_bar)
        small = torch.cat([small[1:2], small[1:]])  # the first is 0
        large = torch.cat([betas[:1] if variance == "learned_range" else small[:1], betas[1:]])
        self.log_small, self.log_large = small.log(), large.log()
        # µ̃(x_t, x) - µ̃(x_t, x̂) = slope · (x - x̂), so L is about ½ weight · ‖ε - ε̂‖²
        self.slope = betas * before.sqrt() / (1 - alpha_bar)
        part = {"fixed_small": 0.0, "learned_range": 0.5, "fixed_large": 1.0}[variance]
        log_variance = torch.lerp(self.log_small, self.log_large, part)
        self.weight = self.slope.square() * torch.exp(-log_variance) * (1 - alpha_bar) / alpha_bar

    @property
    def path(self) -> Steps:
        """The chain."""
        assert isinstance(self.wrapped.path, Steps)
        return self.wrapped.path

    def terms(
        self, model: Model, x: Tensor, v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, " B"]]:
        w, diffusion = self.wrapped.to_network(v), -0.5 * self._sum(model, v, u)
        reconstruction = self._reconstruction(model, x, w)
        prior = prior_term(w, v.new_tensor(self.path.lowest))
        return {"reconstruction": reconstruction, "prior": prior, "diffusion": diffusion}

    def _reconstruction(self, model: Model, x: Tensor, w: Tensor) -> Float[Tensor, " B"]:
        """Return a draw of -L_0."""
        first = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        x_hat, log_variance = self._step(model, w, torch.randn_like(w), first)
        if isinstance(model.reconstruction, Levels):
            half = self.wrapped.scale / (model.reconstruction.levels - 1)
            return log_prob_of_levels(w, x_hat, 0.5 * log_variance, half, self._ends())
        high = w.new_tensor(self.path.highest)
        squares = (w - x_hat).flatten(1).square().sum(1)
        return gaussian_reconstruction(w[0].numel(), high) + 0.5 * w[0].numel() - 0.5 * high.exp() * squares

    def _ends(self) -> tuple[float, float]:
        """Return the network's values of the lowest and the highest level."""
        return self.wrapped.shift - self.wrapped.scale, self.wrapped.shift + self.wrapped.scale

    def _sum(self, model: Model, v: Tensor, u: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return a draw of 2 Σ L_{t-1}, in nats: Σ weight · f, as in `VLB`."""
        control, move = model.control, 2 * math.log(self.wrapped.scale)
        nodes = (self.path.levels[1:] + move).to(v), self.weight[1:].to(v)
        tables = control.tables(model.schedule.ends(v), nodes)
        centred = control.project(v, tables)

        def rest(index: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
            epsilon, logsnr = torch.randn_like(v), nodes[0][index]
            f = 2 * self._divergence(model, self.wrapped.to_network(v), epsilon, index + 1) / nodes[1][index]
            g = control.variates(centred, Draw(v, logsnr, epsilon, epsilon), tables)
            return control.rest(f, g, bins_of(logsnr, tables.edges))

        total = control.expected(centred, tables)
        if self.whole:
            for number, weight in enumerate(nodes[1]):
                total = total + weight * rest(torch.full((len(v),), number, device=v.device))
            return total
        left = control.left.sqrt().to(v)[bins_of(nodes[0], tables.edges)]
        unlearned = torch.sigmoid(nodes[0] - 1)  # ‖ε - ε̂‖² per dimension of Gaussian data with a variance of 1/e
        importance = nodes[1] * torch.where(control.left.sum() > 0, left, unlearned)
        index, _, probability = pick(importance, u, UNIFORM)
        return total + nodes[1][index] / probability * rest(index)

    def _divergence(self, model: Model, w: Tensor, epsilon: Tensor, t: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return L_{t-1}, the KL between two Gaussians, at the x_t with noise ε."""
        x_hat, log_variance = self._step(model, w, epsilon, t)
        small, slope = (broadcast_like(self._at(table, t, w), w) for table in (self.log_small, self.slope))
        gap = small - log_variance
        squares = (slope * (w - x_hat)).square() * torch.exp(-log_variance)
        return 0.5 * (torch.expm1(gap) - gap + squares).flatten(1).sum(1)

    def _step(self, model: Model, w: Tensor, epsilon: Tensor, t: Int64[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Return x̂ at the x_t of network data w with noise ε, and the model's log-variances."""
        wrapped = self.wrapped
        alpha_bar = self._at(self.path.alpha_bar, t, w)
        level = NoiseLevel(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), t)
        y = broadcast_like(level.a, w) * w + broadcast_like(level.b, w) * epsilon
        small, large = (broadcast_like(self._at(table, t, w), w) for table in (self.log_small, self.log_large))
        if self.variance == "learned_range":
            output, fraction = wrapped.predict_with_variance(y, level, model.context)
            log_variance = torch.lerp(small.expand_as(w), large.expand_as(w), (fraction + 1) / 2)
        else:
            output = wrapped.predict(y, level, model.context)
            log_variance = small if self.variance == "fixed_small" else large
        x_hat = wrapped.from_output(output, y, level)
        return (x_hat if self.clip is None else x_hat.clamp(-self.clip, self.clip)), log_variance

    def _at(self, table: Tensor, t: Int64[Tensor, " B"], like: Tensor) -> Float[Tensor, " B"]:
        return table.to(like)[t]


def log_prob_of_levels(
    w: Float[Tensor, "B ..."],
    mean: Float[Tensor, "B ..."],
    log_scale: Float[Tensor, "..."],
    half: float,
    ends: tuple[float, float] = (-1.0, 1.0),
) -> Float[Tensor, " B"]:
    r"""Return $\sum_d \log \left[\Phi\left(\frac{w_d + h - \mu_d}{s_d}\right) - \Phi\left(\frac{w_d - h -
    \mu_d}{s_d}\right)\right]$ of values w that stand for levels; the levels at the ends contain the tails.

    Reference: Ho et al. 2020, eq. 13.

    Args:
        w: values of integers, evenly spaced between the ends.
        mean, log_scale: of the Gaussian.
        half: h, half the distance of two values.
        ends: the values of the first and the last level.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (w - mean + half) * inverse, (w - mean - half) * inverse
    log_p = log_normal_mass((w - mean) * inverse, 2 * half * inverse)
    below, above = w - half < ends[0], w + half > ends[1]
    log_p = torch.where(below, torch.special.log_ndtr(upper), log_p)
    log_p = torch.where(above, torch.special.log_ndtr(-lower), log_p)
    return log_p.flatten(1).sum(1)
