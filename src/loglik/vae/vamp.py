"""VampPrior: a mixture of posteriors as the prior of a VAE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Density

__all__ = ["VampPrior"]


class VampPrior(Density):
    r"""$p(z) = \tfrac1C \sum_c q(z \mid u_c)$: the posteriors at C learned pseudo-inputs, in equal parts.

    It is near the aggregate posterior $\tfrac1N \sum_n q(z \mid x_n)$, the prior of the highest ELBO, and cannot be as
    near to each example. The encoder is the VAE's own, which the VAE hands over when it is built.

    Args:
        latent: L.
        inputs: the shape of what the encoder takes.
        components: C.

    Raises ValueError where no VAE holds it.

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
        """Take the encoder: from inputs to the mean and the log-scale of their posteriors."""
        self._encode = encode

    def _components(self) -> tuple[Float[Tensor, "C L"], Float[Tensor, "C L"]]:
        if self._encode is None:
            raise ValueError("a VampPrior needs the encoder of a VAE: pass it to VAE(prior=...)")
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
        """Pseudo-inputs from training data, evenly spaced, as the encoder takes them."""
        rows = torch.linspace(0, len(x) - 1, len(self.inputs), device=x.device).round().long()
        self.inputs.copy_(x[rows] + 0.01 * torch.randn_like(self.inputs))
