r"""Observation models of integers: Bernoulli, categorical, beta-binomial, and mixtures of discretised logistics.

D dimensions of an event, K levels 0 ... K-1, M mixture components, Q parameters of one dimension.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.checks import check_levels, needs_check
from loglik.density import sample_categories
from loglik.networks.soft_bound import inverse_tanh_bound, tanh_bound
from loglik.vae.observation import Observation, observed

__all__ = ["Bernoulli", "BetaBinomial", "Categorical", "Codes", "DiscretisedLogistic", "Integers"]


class _Levels(Observation):
    """Base of the observation models of integers 0 ... K-1."""

    discrete = True
    min_levels = 2

    def __init__(self, event_shape: tuple[int, ...], levels: int, per_dim: int) -> None:
        if levels < self.min_levels:
            raise ValueError(f"levels must be at least {self.min_levels}, got {levels}")
        super().__init__(event_shape, per_dim)
        self.levels = levels
        self.dtype = torch.uint8 if levels <= 256 else torch.int64

    @abstractmethod
    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        """Return log p(x_d | θ) of each dimension in nats."""

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        x, missing = observed(x)
        log_p = self.log_prob_dims(x, theta)
        return (log_p if missing is None else log_p.masked_fill(missing, 0)).sum(1)

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        check_levels(observed(x)[0] if needs_check(x) else x, self.levels)

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        self.check(x)
        return x.to(torch.get_default_dtype()) * (2 / (self.levels - 1)) - 1


class Bernoulli(_Levels):
    r"""Levels 0 and 1.

    $\log p(x \mid \theta) = \sum_d x_d \log \varsigma(\theta_d) + (1 - x_d) \log \varsigma(-\theta_d)$.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, levels=2, per_dim=1)

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        self.check(x)
        return F.logsigmoid(torch.where(x.flatten(1) > 0, theta, -theta))

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        return self._event(torch.rand_like(theta) < theta.sigmoid()).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        return self._event(theta.sigmoid())

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        ones = x.flatten(1).sum(0, dtype=torch.get_default_dtype())
        return ((ones + 0.5) / (len(x) - ones + 0.5)).log()


class Categorical(_Levels):
    r"""A probability for each level: $\log p(x \mid \theta) = \sum_d \theta_{x_d, d} - \log \sum_k e^{\theta_{kd}}$."""

    def __init__(self, event_shape: tuple[int, ...], levels: int) -> None:
        super().__init__(event_shape, levels, per_dim=levels)

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        self.check(x)
        return -F.cross_entropy(self._per_dim(theta), x.flatten(1).long(), reduction="none")

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        probabilities = self._per_dim(theta).softmax(1).transpose(1, 2)
        x = sample_categories(probabilities.flatten(0, 1))
        return self._event(x.view(len(theta), -1)).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        levels = torch.arange(self.levels, device=theta.device, dtype=theta.dtype)
        return self._event(torch.einsum("bkd,k->bd", self._per_dim(theta).softmax(1), levels))

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        counts = torch.zeros(self.levels, self.dims, device=x.device)
        rows = x.flatten(1).long()
        counts.scatter_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
        return (counts + 0.5).log().flatten() - math.log(len(x) + 0.5 * self.levels)


class Codes(Categorical):
    """A probability for each of K unordered categories with codes 0 ... K-1.

    An encoder reads a code as a one-hot vector of length K, and `mean` is the most probable code.
    """

    min_levels = 1

    @property
    def inputs(self) -> int:
        return self.dims * self.levels

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B KD"]:
        self.check(x)
        x, missing = observed(x)
        codes = F.one_hot(x.flatten(1).long(), self.levels)
        if missing is not None:
            codes = codes.masked_fill(missing.unsqueeze(2), 0)
        return codes.flatten(1).to(torch.get_default_dtype())

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        return self._event(self._per_dim(theta).argmax(1)).to(theta.dtype)


class BetaBinomial(_Levels):
    r"""A binomial of K-1 trials whose probability has a beta distribution: peaked, flat, or U-shaped.

    $P(x \mid \alpha, \beta) = \binom{n}{x} \mathrm B(x + \alpha, n - x + \beta) / \mathrm B(\alpha, \beta)$, n = K-1;
    $\log \alpha$ and $\log \beta$ stay within ±5. Source: Townsend et al. 2019, "Practical lossless compression with
    latent variables", section 3.2.
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int) -> None:
        super().__init__(event_shape, levels, per_dim=2)

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        alpha, beta = tanh_bound(self._per_dim(theta), 5.0).exp().unbind(1)
        return alpha, beta

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        self.check(x)
        alpha, beta = self._split(theta)
        k, n = x.flatten(1).to(theta.dtype), self.levels - 1
        choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        above = torch.lgamma(k + alpha) + torch.lgamma(n - k + beta) - torch.lgamma(n + alpha + beta)
        return choose + above - torch.lgamma(alpha) - torch.lgamma(beta) + torch.lgamma(alpha + beta)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        p = torch.distributions.Beta(*self._split(theta), validate_args=False).sample()
        trials = torch.full_like(p, self.levels - 1)
        return self._event(torch.binomial(trials, p)).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        alpha, beta = self._split(theta)
        return self._event((self.levels - 1) * alpha / (alpha + beta))

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        """Match the moments: the mean, and the variance in excess of a binomial's."""
        v, n = x.flatten(1).to(torch.get_default_dtype()), self.levels - 1
        p = (v.mean(0) / n).clamp(1e-3, 1 - 1e-3)
        over = v.var(0, unbiased=False) / (n * p * (1 - p))  # 1 + (n-1) / (α + β + 1)
        total = ((n - 1) / (over - 1).clamp_min(1e-3) - 1).clamp(0.1, 100)
        logs = torch.cat([(total * p).log(), (total * (1 - p)).log()])
        return inverse_tanh_bound(logs, 5.0)


class DiscretisedLogistic(_Levels):
    r"""A mixture of M logistics, integrated over each level; the end levels contain the tails.

    $P(x \mid \theta) = \sum_m \pi_m \left[\varsigma((x + \tfrac12 - \mu_m)/s_m) - \varsigma((x - \tfrac12 - \mu_m)/s_m)
    \right]$ on levels scaled to [-1, 1]. Source: Salimans et al. 2017, "PixelCNN++", section 2.1.
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int, components: int = 4) -> None:
        super().__init__(event_shape, levels, per_dim=3 * components)
        self.components = components

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Tensor, Tensor, Tensor]:
        log_weight, mean, log_scale = self._per_dim(theta).split(self.components, dim=1)
        return log_weight.log_softmax(1), mean, tanh_bound(log_scale, 7.0)  # scales within e^±7

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        log_weight, mean, log_scale = self._split(theta)
        levels = x.flatten(1).unsqueeze(1)
        half = 1 / (self.levels - 1)
        inverse = (-log_scale).exp()
        width = 2 * half * inverse
        upper = (self.centre(levels) - mean + half) * inverse
        log_mass = torch.where(levels == 0, F.logsigmoid(upper), _log_mass(upper, width))  # an end contains its tail
        log_mass = torch.where(levels == self.levels - 1, F.logsigmoid(width - upper), log_mass)
        return (log_weight + log_mass).logsumexp(1)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        return self._event(self._to_levels(_draw(*self._split(theta))).round()).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        log_weight, mean, _ = self._split(theta)
        return self._event(self._to_levels((log_weight.exp() * mean).sum(1)))

    def _to_levels(self, v: Tensor) -> Tensor:
        return ((v + 1) * ((self.levels - 1) / 2)).clamp(0, self.levels - 1)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        v = self.centre(x.flatten(1))
        quantiles = (torch.arange(self.components, device=v.device) + 0.5) / self.components
        rows = v[: max(2, min(2**14, 2**23 // self.dims))]  # torch's quantile accepts 16 million values
        mean = rows.quantile(quantiles, dim=0)
        spread = (v.std(0, unbiased=False) / self.components).clamp_min(1 / self.levels).log()
        return torch.stack([torch.zeros_like(mean), mean, spread.expand_as(mean)]).flatten()


class Integers(Observation):
    r"""A mixture of M logistics, integrated over each integer of an open range.

    $P(x \mid \theta) = \sum_m \pi_m \left[\varsigma((x + \tfrac12 - \mu_m)/s_m) - \varsigma((x - \tfrac12 - \mu_m)/s_m)
    \right]$, which sums to 1 over all integers. Means and scales are in units of the training data's standard deviation
    about their mean.
    """

    discrete = True
    shift: Tensor
    scale: Tensor

    def __init__(self, event_shape: tuple[int, ...], components: int = 4) -> None:
        super().__init__(event_shape, per_dim=3 * components)
        self.components = components
        self.register_buffer("shift", torch.zeros(self.dims))
        self.register_buffer("scale", torch.ones(self.dims))

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        rows = x.flatten(1).double()
        std = rows.std(0, unbiased=False)
        self.shift.copy_(rows.mean(0).round())  # an integer, so that differences are exact
        self.scale.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Tensor, Tensor, Tensor]:
        log_weight, mean, log_scale = self._per_dim(theta).split(self.components, dim=1)
        return log_weight.log_softmax(1), mean, tanh_bound(log_scale, 7.0)

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        log_weight, mean, log_scale = self._split(theta)
        inverse = (-log_scale).exp()
        x, missing = observed(x)
        upper = (self.centre(x).flatten(1).unsqueeze(1) - mean + 0.5 / self.scale) * inverse
        log_p = (log_weight + _log_mass(upper, inverse / self.scale)).logsumexp(1)
        return (log_p if missing is None else log_p.masked_fill(missing, 0)).sum(1)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        return self._event((_draw(*self._split(theta)) * self.scale).round() + self.shift)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        log_weight, mean, _ = self._split(theta)
        return self._event((log_weight.exp() * mean).sum(1) * self.scale + self.shift)

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return self._event((x.flatten(1).to(self.shift.dtype) - self.shift) / self.scale)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        v = self.centre(x).flatten(1)
        quantiles = (torch.arange(self.components, device=v.device, dtype=v.dtype) + 0.5) / self.components
        mean = v[: max(2, min(2**14, 2**23 // self.dims))].quantile(quantiles, dim=0)
        # a component is as wide as the gaps between the means, but at least a quarter of an integer
        spread = torch.maximum(torch.full_like(self.scale, 1 / self.components), 0.25 / self.scale).log()
        return torch.stack([torch.zeros_like(mean), mean, spread.expand_as(mean)]).flatten()


def _log_mass(upper: Tensor, width: Tensor) -> Tensor:
    r"""Return $\log[\varsigma(u) - \varsigma(u - w)]$.

    It is $\log \varsigma(u) + \log \varsigma(w - u) + \log(1 - e^{-w})$.
    """
    return F.logsigmoid(upper) + F.logsigmoid(width - upper) + (-torch.expm1(-width)).log()


def _draw(
    log_weight: Float[Tensor, "B M D"], mean: Float[Tensor, "B M D"], log_scale: Float[Tensor, "B M D"]
) -> Float[Tensor, "B D"]:
    """Draw from each mixture of logistics."""
    # Gumbel's race draws the component: the arg max of log π - log E with E exponential
    chosen = (log_weight - torch.empty_like(log_weight).exponential_().log()).argmax(1, keepdim=True)
    u = torch.rand_like(mean[:, :1]).clamp(1e-6, 1 - 1e-6)
    return (mean.gather(1, chosen) + log_scale.gather(1, chosen).exp() * (u.log() - (-u).log1p())).squeeze(1)
