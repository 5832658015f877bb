r"""A VAE that is linear in z, where log p(x), the posterior and the ELBO's gap have closed forms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from loglik.networks.soft_bound import inverse_tanh_bound
from loglik.vae import VAE, Gaussian

__all__ = ["LinearVAE"]

DIMS, LATENT = 5, 2
SCALE = 0.6  # σ of the observation


class LinearVAE:
    r"""$x = W z + b + \sigma \epsilon$, so $p(x) = \mathcal N(b, W W^\top + \sigma^2 I)$, and a q that is not exact.

    Attributes:
        vae: in float64.
        marginal: p(x).

    Reference: Tipping and Bishop 1999, "Probabilistic principal component analysis".
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        encoder, decoder = nn.Linear(DIMS, 2 * LATENT).double(), nn.Linear(LATENT, DIMS).double()
        self.w = torch.randn(DIMS, LATENT, dtype=torch.float64, generator=generator)
        self.b = torch.randn(DIMS, dtype=torch.float64, generator=generator)
        self.precision = torch.eye(LATENT, dtype=torch.float64) + self.w.T @ self.w / SCALE**2
        back = torch.linalg.solve(self.precision, self.w.T / SCALE**2)
        std = self.precision.inverse().diagonal().sqrt()
        with torch.no_grad():  # q is the true posterior, its mean drawn to 0 and its covariance without the correlation
            decoder.weight.copy_(self.w)
            decoder.bias.copy_(self.b)
            encoder.weight.copy_(torch.cat([0.9 * back, torch.zeros_like(back)]))
            encoder.bias.copy_(torch.cat([-0.9 * back @ self.b, inverse_tanh_bound(std.log())]))
        self.vae = VAE(encoder, decoder, Gaussian((DIMS,), SCALE), latent=LATENT).double().eval()
        noise = SCALE**2 * torch.eye(DIMS, dtype=torch.float64)
        self.marginal = MultivariateNormal(self.b, self.w @ self.w.T + noise)

    def examples(self, n: int) -> Float[Tensor, "n D"]:
        """Draw x from p(x)."""
        return self.marginal.sample((n,))

    def gap(self, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        r"""Return $\mathrm{KL}(q(z \mid x) \Vert p(z \mid x))$ in closed form."""
        mean, log_scale = self.vae.posterior(x)
        q = MultivariateNormal(mean, scale_tril=log_scale.exp().diag_embed())
        centre = torch.linalg.solve(self.precision, self.w.T @ (x - self.b).T / SCALE**2).T
        return kl_divergence(q, MultivariateNormal(centre, precision_matrix=self.precision))
