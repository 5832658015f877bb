r"""The two ends of the data side: what noise is added to, $v(x)$, and the reconstruction $p(x \mid z_0)$.

$z_0 = \alpha_0 v + \sigma_0 \epsilon$ is the variable with the least noise, λ₀ its log-SNR, and `seen` stands for
$z_0/\alpha_0$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from loglik.checks import check_codes, check_levels
from loglik.diffusion.schedule import sigma

__all__ = ["Codes", "Levels", "Reals", "Reconstruction"]


class Reconstruction(nn.Module, ABC):
    """Embed data as v, to which noise is added, and define p(x | z₀) over the possible values of x.

    Attributes:
        shape: of one v.
        real_dims: number of dimensions of v that are real data.
        discrete: p(x | z₀) is a probability.
    """

    shape: tuple[int, ...]
    real_dims: int
    discrete: bool

    @abstractmethod
    def embed(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return v of data x."""

    @abstractmethod
    def expected(
        self, x: Shaped[Tensor, "B ..."], v: Float[Tensor, "B ..."], high: Float[Tensor, ""]
    ) -> Float[Tensor, " B"]:
        """Return E log p(x | z₀) at λ₀ = high, from one draw of z₀ where there is no closed form."""

    @abstractmethod
    def dequantize(
        self, x: Shaped[Tensor, "B ..."], v: Float[Tensor, "B ..."], high: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Return z₀/α₀ for the probability-flow ODE, and log p(x | z₀) - log q(z₀ | x) of its discrete dimensions."""

    @abstractmethod
    def data(self, x_hat: Float[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        """Return the data nearest to a denoised v."""

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        """Raise ValueError for levels or codes that have no v; `embed` checks too."""
        return None

    def spread(self, mask: Bool[Tensor, "B ..."]) -> Bool[Tensor, "B ..."]:
        """Return a mask of v from a mask of data."""
        return mask


class Reals(Reconstruction):
    r"""Real data: $v = x$ and $p(x \mid z_0) = \mathcal N(z_0/\alpha_0, e^{-\lambda_0} I)$."""

    discrete = False

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.real_dims = tuple(event_shape), math.prod(event_shape)

    def embed(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return x

    def expected(self, x: Tensor, v: Float[Tensor, "B ..."], high: Float[Tensor, ""]) -> Float[Tensor, " B"]:
        return gaussian_reconstruction(self.real_dims, high).expand(len(v))

    def dequantize(
        self, x: Tensor, v: Float[Tensor, "B ..."], high: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return v, torch.zeros(len(v), dtype=v.dtype, device=v.device)

    def data(self, x_hat: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return x_hat


class Levels(Reconstruction):
    r"""Integers 0 ... K-1, scaled to levels v in [-1, 1].

    $p(x \mid z_0) \propto \exp(-(z_0/\alpha_0 - v)^2 e^{\lambda_0}/2)$, normalised over the levels.

    Args:
        event_shape: of the data.
        levels: K.
        near: distance in levels beyond which p(x | z₀) is 0 to rounding.
    """

    discrete = True

    def __init__(self, event_shape: tuple[int, ...], levels: int, near: int) -> None:
        super().__init__()
        self.shape, self.real_dims = tuple(event_shape), 0
        self.levels, self.near = levels, near

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        check_levels(x, self.levels)

    def embed(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        self.check(x)
        return x.to(torch.get_default_dtype()) * (2 / (self.levels - 1)) - 1

    def expected(
        self, x: Shaped[Tensor, "B ..."], v: Float[Tensor, "B ..."], high: Float[Tensor, ""]
    ) -> Float[Tensor, " B"]:
        return self.log_prob(x, v, v + torch.exp(-0.5 * high) * torch.randn_like(v), high)

    def log_prob(
        self,
        x: Shaped[Tensor, "B ..."],
        v: Float[Tensor, "B ..."],
        seen: Float[Tensor, "B ..."],
        high: Float[Tensor, ""],
    ) -> Float[Tensor, " B"]:
        """Return log P(x | z₀) of integers x, scaled to v, from seen = z₀/α₀."""
        if 2 * self.near + 1 >= self.levels:
            levels = torch.linspace(-1, 1, self.levels, device=v.device, dtype=v.dtype)
            distance = seen.unsqueeze(-1) - levels
        else:
            window = x.long().unsqueeze(-1) + torch.arange(-self.near, self.near + 1, device=v.device)
            outside = (window < 0) | (window >= self.levels)
            distance = seen.unsqueeze(-1) - (window * (2 / (self.levels - 1)) - 1)
            distance = distance.masked_fill(outside, torch.inf)
        logits = -0.5 * high.exp() * distance.square()
        own = -0.5 * high.exp() * (seen - v).square()
        return (own - logits.logsumexp(-1)).flatten(1).sum(1)

    def dequantize(
        self, x: Shaped[Tensor, "B ..."], v: Float[Tensor, "B ..."], high: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        seen, log_q = _noised(v, high)
        return seen, self.log_prob(x, v, seen, high) - log_q

    def data(self, x_hat: Float[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        x = ((x_hat + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)


class Codes(Reconstruction):
    r"""Rows of n real numbers and of codes; v is the real numbers, then a one-hot vector $e_k$ of each code.

    Real numbers are as in `Reals`. For a code into C categories
    $P(k \mid z_0) \propto \exp(-\lVert z_0/\alpha_0 - e_k \rVert^2 e^{\lambda_0}/2)$, normalised over the C codes.

    Args:
        categories: the number of codes 0, 1, ... of each dimension; 0 for a real number.

    Raises:
        ValueError: a value that is not one of the codes.
    """

    numbers: Tensor
    codes: Tensor
    one_hot: Tensor
    owner: Tensor

    def __init__(self, categories: Sequence[int]) -> None:
        super().__init__()
        self.categories = list(categories)
        self.counts = [count for count in categories if count]
        numbers = [d for d, count in enumerate(categories) if not count]
        codes = [d for d, count in enumerate(categories) if count]
        self.dims, self.real_dims = len(categories), len(numbers)
        self.shape, self.discrete = (len(numbers) + sum(self.counts),), not numbers
        owner = numbers + [d for d, count in zip(codes, self.counts, strict=True) for _ in range(count)]
        starts = torch.tensor([0, *self.counts]).cumsum(0)[:-1] + len(numbers)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("codes", torch.tensor(codes, dtype=torch.long), persistent=False)
        self.register_buffer("one_hot", starts, persistent=False)  # where each code's vector begins in v
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.long), persistent=False)

    def check(self, x: Shaped[Tensor, "B D"]) -> None:
        check_codes(x.flatten(1), self.categories)

    def embed(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        self.check(x)
        codes = x[:, self.codes].long()
        v = x.new_zeros(len(x), *self.shape)
        v[:, : self.real_dims] = x[:, self.numbers]
        return v.scatter(1, self.one_hot + codes, 1.0)

    def expected(
        self, x: Shaped[Tensor, "B D"], v: Float[Tensor, "B V"], high: Float[Tensor, ""]
    ) -> Float[Tensor, " B"]:
        own = v[:, self.real_dims :]
        log_p = self._log_codes(own + torch.exp(-0.5 * high) * torch.randn_like(own), own, high)
        return log_p + gaussian_reconstruction(self.real_dims, high)

    def dequantize(
        self, x: Shaped[Tensor, "B D"], v: Float[Tensor, "B V"], high: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "B V"], Float[Tensor, " B"]]:
        own = v[:, self.real_dims :]
        seen, log_q = _noised(own, high)
        return torch.cat([v[:, : self.real_dims], seen], 1), self._log_codes(seen, own, high) - log_q

    def data(self, x_hat: Float[Tensor, "B V"]) -> Float[Tensor, "B D"]:
        codes = [block.argmax(1) for block in x_hat[:, self.real_dims :].split(self.counts, 1)]
        x = x_hat.new_zeros(len(x_hat), self.dims)
        x[:, self.numbers] = x_hat[:, : self.real_dims]
        x[:, self.codes] = torch.stack(codes, 1).to(x.dtype)
        return x

    def spread(self, mask: Bool[Tensor, "B D"]) -> Bool[Tensor, "B V"]:
        return mask[:, self.owner]

    def _log_codes(self, seen: Tensor, own: Tensor, high: Tensor) -> Float[Tensor, " B"]:
        # one-hot vectors have equal norms, so -|s - e_k|²/2 is s_k plus a constant
        log_p = [block.log_softmax(1) for block in (seen * high.exp()).split(self.counts, 1)]
        return (torch.cat(log_p, 1) * own).sum(1)


def gaussian_reconstruction(dims: int, high: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r"""Return the reconstruction term of D real dimensions in closed form.

    $\mathbb E \log \mathcal N(v; z_0/\alpha_0, e^{-\lambda_0} I) = -\tfrac D2 (1 + \log 2\pi - \lambda_0)$.
    """
    return -0.5 * dims * (1 + math.log(2 * math.pi) - high)


def _noised(v: Float[Tensor, "B ..."], high: Float[Tensor, ""]) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
    """Draw z₀/α₀, and return it with log q(z₀ | x)."""
    epsilon = torch.randn_like(v)
    flat = epsilon.flatten(1)
    log_q = -0.5 * flat.square().sum(1) - flat.shape[1] * (0.5 * math.log(2 * math.pi) + sigma(high).log())
    return v + torch.exp(-0.5 * high) * epsilon, log_q
