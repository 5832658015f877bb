"""VampPrior: a mixture of posteriors as the prior of a VAE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Density
from loglik.noise import shared_noise

__all__ = ["VampPrior"]


class VampPrior(Density):
    r"""$p(z) = \tfrac1C \sum_c q(z \mid u_c)$: the posteriors at C learned pseudo-inputs, with equal weights.

    It approximates the aggregate posterior $\tfrac1N \sum_n q(z \mid x_n)$, the prior with the highest ELBO, with fewer
    components, so it cannot fit each example. The encoder is that of the VAE, which calls `bind`.

    Args:
        latent: L.
        inputs: the shape of the encoder's input.
        components: C.

    Raises ValueError if it is used outside a VAE.

    Source: Tomczak and Welling 2018, "VAE with a VampPrior".
    """

    def __init__(self, latent: int, inputs: tuple[int, ...], components: int = 100) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.event_shape = (latent,)
        self.inputs = nn.Parameter(torch.zeros(components, *inputs).uniform_(-1, 1))
        self._encode: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def bind(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Set the encoder, from inputs to the mean and log-scale of their posteriors."""
        self._encode = encode

    def _components(self) -> tuple[Float[Tensor, "C L"], Float[Tensor, "C L"]]:
        if self._encode is None:
            raise ValueError("a VampPrior needs the encoder of a VAE: pass it to VAE(prior=...)")
        with shared_noise():  # the pseudo-inputs are no examples of the batch
            return self._encode(self.inputs)

    def log_prob(
        self, x: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        mean, log_scale = self._components()
        z = (x.unsqueeze(1) - mean) * (-log_scale).exp()
        constant = -log_scale.sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi) - math.log(len(mean))
        return (constant - 0.5 * z.square().sum(2)).logsumexp(1)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n L"]:
        mean, log_scale = self._components()
        chosen = torch.randint(len(mean), (n,), device=mean.device)
        return mean[chosen] + log_scale[chosen].exp() * torch.randn_like(mean[chosen])

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Set the pseudo-inputs to evenly spaced rows of training data."""
        rows = torch.linspace(0, len(x) - 1, len(self.inputs), device=x.device).round().long()
        self.inputs.copy_(x[rows] + 0.01 * torch.randn_like(self.inputs))
