"""Base densities of a flow beside N(0, I): a logistic one with heavier tails, and a learned Gaussian mixture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Density

__all__ = ["GaussianMixture", "StandardLogistic"]


class StandardLogistic(Density):
    r"""Independent logistic variables: $\log p(z) = -\sum_d \left(z_d + 2 \log(1 + e^{-z_d})\right)$.

    Its tails fall as $e^{-\lvert z \rvert}$, more slowly than a Gaussian's. The base of NICE (Dinh et al. 2015, "NICE:
    non-linear independent components estimation", section 3.4).

    >>> StandardLogistic((1,)).log_prob(torch.zeros(1, 1)).item()  # -log 4
    -1.3862943649291992
    """

    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows the device and dtype

    def log_prob(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        z = x.flatten(1)
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(1)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        anchor = self.get_buffer("anchor")
        u = torch.rand(n, *self.event_shape, device=anchor.device, dtype=anchor.dtype)
        return torch.logit(u, eps=torch.finfo(anchor.dtype).tiny)

    rsample = sample  # nothing to differentiate


class GaussianMixture(Density):
    r"""A learned mixture $p(z) = \sum_k \pi_k \prod_d \mathcal N(z_d; \mu_{kd}, \sigma_{kd}^2)$.

    Args:
        event_shape: of the events; flattened, they have D dimensions.
        components: K.

    The means start at random about 0 with standard deviation 1/2, so that the components differ.

    Raises ValueError for fewer than 1 component.
    """

    def __init__(self, event_shape: tuple[int, ...], components: int = 8) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least 1 component, got {components}")
        self.event_shape = tuple(event_shape)
        dims = math.prod(event_shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(0.5 * torch.randn(components, dims))
        self.log_scales = nn.Parameter(torch.zeros(components, dims))

    def log_prob(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        z = (x.flatten(1).unsqueeze(1) - self.means) * torch.exp(-self.log_scales)
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        each = -0.5 * z.square().sum(-1) - self.log_scales.sum(-1) - constant
        return torch.logsumexp(each + self.logits.log_softmax(0), 1)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        k = torch.multinomial(self.logits.softmax(0), n, replacement=True)
        z = self.means[k] + self.log_scales[k].exp() * torch.randn_like(self.means[k])
        return z.view(n, *self.event_shape)
