r"""Observation models: normalised densities $p(x \mid \theta)$ whose parameters a decoder gives.

D dimensions of an event, K levels, M mixture components, P parameters of an event in all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import check_levels

__all__ = ["Observation", "Categorical", "DiscretisedLogistic", "Gaussian"]


class Observation(nn.Module, ABC):
    """Independent dimensions given the parameters: `outputs` numbers of a decoder for one event."""

    discrete: bool

    def __init__(self, event_shape: tuple[int, ...], per_dim: int) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.dims = math.prod(event_shape)
        self.per_dim = per_dim
        self.outputs = self.dims * per_dim

    @abstractmethod
    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Log p(x | θ) in nats."""

    @abstractmethod
    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        """Draw x given θ, in the units of the data."""

    @abstractmethod
    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        """The expected x given θ, in the units of the data."""

    @abstractmethod
    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The data as an encoder likes them: numbers of order one."""

    @abstractmethod
    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        """Parameters that fit each dimension alone; a decoder starts from them."""

    def _per_dim(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D Q"]:
        return theta.view(-1, self.dims, self.per_dim)

    def _event(self, x: Shaped[Tensor, "B D"]) -> Shaped[Tensor, "B ..."]:
        return x.reshape(-1, *self.event_shape)


class _Levels(Observation):
    """What observation models of whole numbers 0 ... K-1 share."""

    discrete = True

    def __init__(self, event_shape: tuple[int, ...], levels: int, per_dim: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        super().__init__(event_shape, per_dim)
        self.levels = levels
        self.dtype = torch.uint8 if levels <= 256 else torch.int64

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        check_levels(x, self.levels)
        return x.to(torch.get_default_dtype()) * (2 / (self.levels - 1)) - 1


class Categorical(_Levels):
    r"""A probability for each level: $\log p(x \mid \theta) = \sum_d \theta_{d, x_d} - \log \sum_k e^{\theta_{dk}}$."""

    def __init__(self, event_shape: tuple[int, ...], levels: int) -> None:
        super().__init__(event_shape, levels, per_dim=levels)

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        logits = theta.reshape(-1, self.levels)
        return -F.cross_entropy(logits, x.reshape(-1).long(), reduction="none").view(len(x), -1).sum(1)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        probabilities = self._per_dim(theta).softmax(-1)
        x = torch.multinomial(probabilities.flatten(0, 1), 1)
        return self._event(x.view(len(theta), -1)).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        levels = torch.arange(self.levels, device=theta.device, dtype=theta.dtype)
        return self._event(self._per_dim(theta).softmax(-1) @ levels)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        counts = torch.zeros(self.dims, self.levels, device=x.device)
        rows = x.flatten(1).long().T
        counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
        return (counts + 0.5).log().flatten() - math.log(len(x) + 0.5 * self.levels)


class DiscretisedLogistic(_Levels):
    r"""A mixture of M logistics, integrated over each level; the end levels take the tails.

    $P(x \mid \theta) = \sum_m \pi_m \left[\varsigma((x + \tfrac12 - \mu_m)/s_m) - \varsigma((x - \tfrac12 - \mu_m)/s_m)
    \right]$ on levels scaled to [-1, 1]. Source: Salimans et al. 2017, "PixelCNN++", section 2.1.
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int, components: int = 4) -> None:
        super().__init__(event_shape, levels, per_dim=3 * components)
        self.components = components

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Tensor, Tensor, Tensor]:
        log_weight, mean, log_scale = self._per_dim(theta).split(self.components, dim=-1)
        return log_weight.log_softmax(-1), mean, 7 * (log_scale / 7).tanh()  # scales within e^±7

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        log_weight, mean, log_scale = self._split(theta)
        levels = x.flatten(1).unsqueeze(-1)
        half = 1 / (self.levels - 1)
        centred = self.centre(levels) - mean
        upper = (centred + half) * (-log_scale).exp()
        lower = (centred - half) * (-log_scale).exp()
        # log[σ(u) - σ(l)] = log σ(u) + log σ(-l) + log(1 - e^{l-u}), without cancellation
        inner = F.logsigmoid(upper) + F.logsigmoid(-lower) + (-torch.expm1(lower - upper)).log()
        log_mass = torch.where(levels == 0, F.logsigmoid(upper), inner)
        log_mass = torch.where(levels == self.levels - 1, F.logsigmoid(-lower), log_mass)
        return (log_weight + log_mass).logsumexp(-1).sum(1)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        log_weight, mean, log_scale = self._split(theta)
        chosen = torch.multinomial(log_weight.exp().flatten(0, 1), 1).view(*mean.shape[:2], 1)
        u = torch.rand_like(mean[..., :1]).clamp(1e-6, 1 - 1e-6)
        v = mean.gather(-1, chosen) + log_scale.gather(-1, chosen).exp() * (u.log() - (-u).log1p())
        return self._event(self._to_levels(v.squeeze(-1)).round()).to(self.dtype)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        log_weight, mean, _ = self._split(theta)
        return self._event(self._to_levels((log_weight.exp() * mean).sum(-1)))

    def _to_levels(self, v: Tensor) -> Tensor:
        return ((v + 1) * ((self.levels - 1) / 2)).clamp(0, self.levels - 1)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        v = self.centre(x.flatten(1))
        places = (torch.arange(self.components, device=v.device) + 0.5) / self.components
        mean = v.quantile(places, dim=0).T if len(v) < 2**14 else v[: 2**14].quantile(places, dim=0).T
        spread = (v.std(0, unbiased=False) / self.components).clamp_min(1 / self.levels).log()
        log_weight = torch.zeros_like(mean)
        return torch.stack([log_weight, mean, spread[:, None].expand_as(mean)], 1).flatten()


class Gaussian(Observation):
    r"""$\mathcal N(\mu_d, \sigma_d^2)$ in each dimension, both from the decoder; $\log \sigma$ stays within ±6."""

    discrete = False

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, per_dim=2)

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        mean, log_scale = self._per_dim(theta).unbind(-1)
        return mean, 6 * (log_scale / 6).tanh()

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        mean, log_scale = self._split(theta)
        z = (x.flatten(1) - mean) * (-log_scale).exp()
        return -(0.5 * z.square() + log_scale).sum(1) - 0.5 * self.dims * math.log(2 * math.pi)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        mean, log_scale = self._split(theta)
        return self._event(mean + log_scale.exp() * torch.randn_like(mean))

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        return self._event(self._split(theta)[0])

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return x

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        v = x.flatten(1)
        log_scale = v.std(0, unbiased=False).log().clamp(-5.9, 5.9)
        return torch.stack([v.mean(0), 6 * (log_scale / 6).atanh()], 1).flatten()
