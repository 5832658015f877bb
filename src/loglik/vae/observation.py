r"""Observation models: normalised densities $p(x \mid \theta)$ whose parameters a decoder returns.

D dimensions of an event, Q parameters of one dimension, P = Q·D of an event, in the order (Q, D): a convolution's
outputs flattened. The models of integers 0 ... K-1 are in `levels`, the model of images whose pixels depend on one
another is in `pixels`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from loglik.checks import needs_check
from loglik.networks.soft_bound import inverse_tanh_bound, tanh_bound

__all__ = ["Gaussian", "Mixed", "Observation", "observed", "to_float32"]


class Observation(nn.Module, ABC):
    """A density with independent dimensions given θ, the `outputs` parameters of an event from a decoder.

    Attributes:
        discrete: `log_prob` is the logarithm of a probability.
        adds_marginal: the VAE adds the decoder's outputs to the `marginal` parameters of the training data.
        marginalises: `log_prob` leaves out missing values, NaN; `centre` keeps them NaN, or makes their codes 0.
    """

    discrete: bool
    adds_marginal = True
    marginalises = True

    def __init__(self, event_shape: tuple[int, ...], per_dim: int) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.dims = math.prod(event_shape)
        self.per_dim = per_dim
        self.outputs = self.dims * per_dim

    @property
    def inputs(self) -> int:
        """Return the number of values of an event after `centre`, which an encoder reads."""
        return self.dims

    @abstractmethod
    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Return log p(x | θ) in nats."""

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        """Return log p(x_d | θ) of each dimension in nats, one after the other with all others missing."""
        flat = x.flatten(1).to(theta.dtype)
        alone = torch.full_like(flat, torch.nan)
        each = []
        for d in range(self.dims):
            alone[:, d] = flat[:, d]
            each.append(self.log_prob(self._event(alone), theta))
            alone[:, d] = torch.nan
        return torch.stack(each, 1)

    @abstractmethod
    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        """Draw x given θ, in the units of the data."""

    @abstractmethod
    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        """Return the expected x given θ, in the units of the data."""

    @abstractmethod
    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Scale x to values of order one, which an encoder reads."""

    @abstractmethod
    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        """Return the parameters that fit each dimension alone, from which a decoder starts."""

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        """Raise ValueError for levels or codes that p(x | θ) is not defined on; `centre` and `log_prob` check too."""
        return None

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        """Set the parameters that do not depend on the latents from training data, before the first step."""
        return None

    def _per_dim(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B Q D"]:
        return theta.view(-1, self.per_dim, self.dims)

    def _event(self, x: Shaped[Tensor, "B D"]) -> Shaped[Tensor, "B ..."]:
        return x.reshape(-1, *self.event_shape)


class Gaussian(Observation):
    r"""$\mathcal N(\mu_d, \sigma_d^2)$ in each dimension.

    $\log p(x \mid \theta) = -\sum_d \left[\tfrac12 ((x_d - \mu_d) / \sigma_d)^2 + \log \sigma_d\right]
    - \tfrac D2 \log 2\pi$; $\log \sigma$ stays within ±6 where it is learned.

    Args:
        scale: the source of σ. `example`: the decoder, for each dimension of each example; `dim`: learned, one per
            dimension; `shared`: learned, one for all; a number: fixed, so that $-\log p$ is the mean squared
            error times $D / 2\sigma^2$, and a constant (the notes' reconstruction error has σ = 1).

    Raises ValueError for another scale.
    """

    discrete = False
    log_scale: Tensor

    def __init__(self, event_shape: tuple[int, ...], scale: str | float = "example") -> None:
        if not (scale in ("example", "dim", "shared") or (isinstance(scale, (int, float)) and scale > 0)):
            raise ValueError(f"scale must be example, dim, shared or a number above 0, got {scale!r}")
        super().__init__(event_shape, per_dim=2 if scale == "example" else 1)
        self.scale = scale
        if isinstance(scale, str):
            if scale != "example":
                self.log_scale = nn.Parameter(torch.zeros(self.dims if scale == "dim" else 1))
        else:
            self.register_buffer("log_scale", torch.tensor([math.log(scale)]), persistent=False)

    def _split(self, theta: Float[Tensor, "B P"]) -> tuple[Float[Tensor, "B D"], Tensor]:
        if self.scale == "example":
            mean, log_scale = self._per_dim(theta).unbind(1)
            return mean, tanh_bound(log_scale)
        return theta, self.log_scale if isinstance(self.scale, (int, float)) else tanh_bound(self.log_scale)

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        mean, log_scale = self._split(theta)
        values, left_out = x.flatten(1).to(mean.dtype), torch.zeros((), device=mean.device)
        if x.is_floating_point():
            missing = values.isnan()
            values = torch.where(missing, mean.detach(), values)
            left_out = torch.where(missing, log_scale + 0.5 * math.log(2 * math.pi), 0.0).sum(1)
        # one pass over the data, and one for its gradient
        squares = F.mse_loss(mean, values, reduction="none")
        if isinstance(self.scale, (int, float)):
            constant = self.dims * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
            return -0.5 * self.scale**-2 * squares.sum(1) - constant + left_out
        precision = (-2 * log_scale).exp()
        # a shared scale factors out of the sum, which saves a pass over the data
        distance = squares.sum(1) * precision if log_scale.shape == (1,) else (squares * precision).sum(1)
        log_scales = log_scale.sum(-1) * (self.dims // log_scale.shape[-1])
        return -0.5 * distance - log_scales - 0.5 * self.dims * math.log(2 * math.pi) + left_out

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        mean, log_scale = self._split(theta)
        return self._event(mean + log_scale.exp() * torch.randn_like(mean))

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        return self._event(self._split(theta)[0])

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return x

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        v = x.flatten(1)
        if self.scale != "example":
            return v.mean(0)
        return torch.cat([v.mean(0), inverse_tanh_bound(v.std(0, unbiased=False).log())])

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        if self.scale in ("dim", "shared"):
            variance = x.flatten(1).var(0, unbiased=False)
            variance = variance if self.scale == "dim" else variance.mean().unsqueeze(0)
            self.log_scale.copy_(inverse_tanh_bound(0.5 * variance.log()))


class Mixed(Observation):
    r"""Combine an observation model per group of columns, independent given the parameters, for tables.

    Args:
        parts: observation models of events of shape (D_i,), D in sum; the decoder's outputs are (P_1, P_2, ...).
        columns: the columns of each part; consecutive by default.

    Raises:
        ValueError: no parts, a part over another shape, or columns that are not 0 ... D-1.
    """

    order: Tensor
    position: Tensor

    def __init__(self, parts: Sequence[Observation], columns: Sequence[Sequence[int]] | None = None) -> None:
        for part in parts:
            if len(part.event_shape) != 1:
                raise ValueError(f"parts must be over events of shape (D,), got {part.event_shape}")
        if not parts:
            raise ValueError("Mixed needs at least one part")
        dims = [part.dims for part in parts]
        super().__init__((sum(dims),), per_dim=1)
        order = torch.arange(sum(dims)) if columns is None else torch.tensor([d for group in columns for d in group])
        if columns is not None and (
            [len(group) for group in columns] != dims or order.sort().values.tolist() != list(range(sum(dims)))
        ):
            raise ValueError(f"columns must be 0 ... {sum(dims) - 1} in groups of {dims}, got {list(columns)}")
        self.parts: Sequence[Observation] = nn.ModuleList(parts)  # type: ignore[assignment]
        self.outputs = sum(part.outputs for part in parts)
        self.discrete = all(part.discrete for part in parts)
        self.marginalises = all(part.marginalises for part in parts)
        self.column_order: list[int] = order.tolist()  # `check` reads data on other devices than the model's
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("position", order.argsort(), persistent=False)

    @property
    def inputs(self) -> int:
        return sum(part.inputs for part in self.parts)

    def _columns(self, x: Shaped[Tensor, "B D"]) -> list[Shaped[Tensor, "B D2"]]:
        return list(x[:, self.order].split([part.dims for part in self.parts], dim=1))

    def _together(self, columns: Sequence[Tensor], like: Tensor) -> Shaped[Tensor, "B D"]:
        """Join the parts' columns in the table's order."""
        return torch.cat([part.to(like.dtype) for part in columns], 1)[:, self.position]

    def _theta(self, theta: Float[Tensor, "B P"]) -> list[Float[Tensor, "B P2"]]:
        return list(theta.split([part.outputs for part in self.parts], dim=1))

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        each = zip(self.parts, self._columns(x), self._theta(theta), strict=True)
        return torch.stack([part.log_prob(columns, own) for part, columns, own in each]).sum(0)

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        each = zip(self.parts, self._theta(theta), strict=True)
        return self._together([part.sample(own) for part, own in each], theta)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        each = zip(self.parts, self._theta(theta), strict=True)
        return self._together([part.mean(own) for part, own in each], theta)

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        if not needs_check(x):
            return  # selecting the columns takes time, too
        columns = x[:, self.column_order].split([part.dims for part in self.parts], dim=1)
        for part, own in zip(self.parts, columns, strict=True):
            part.check(own)

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B F"]:
        each = zip(self.parts, self._columns(x), strict=True)
        return torch.cat([part.centre(columns) for part, columns in each], 1)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        each = zip(self.parts, self._columns(x), strict=True)
        return torch.cat([part.marginal(columns) for part, columns in each])

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        for part, columns in zip(self.parts, self._columns(x), strict=True):
            part.initialise(columns)


def observed(x: Shaped[Tensor, "B ..."]) -> tuple[Shaped[Tensor, "B ..."], Bool[Tensor, "B D"] | None]:
    """Return x with 0 for missing values, NaN, and where these are; None for integers, which have none."""
    if not x.is_floating_point():
        return x, None
    missing = x.isnan()
    return x.masked_fill(missing, 0), missing.flatten(1)


def to_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which densities are computed."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
