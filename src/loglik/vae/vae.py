"""The variational autoencoder (the notes, "Deep generative models and the VAE")."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Bound, Density, StandardNormal, draw_weights, embed
from loglik.vae.observation import Observation

__all__ = ["VAE"]


class VAE(Density):
    r"""$p(x) = \int p(x \mid z)\,p(z)\,dz$, bounded below through an encoder $q(z \mid x)$.

    $\log p(x) \ge \mathbb E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))$ (the ELBO). `log_prob` draws
    $z = \mu + \sigma \odot \epsilon$ and returns $\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)$, a sample
    of the ELBO whose exponential averages to $p(x)$; `samples=K` returns $\log \tfrac1K \sum_k w_k$, which rises to
    $\log p(x)$ with K (Burda et al. 2016). `loss` takes the KL in closed form where the prior is N(0, I).

    Args:
        encoder: from events (B, ...) of order one, and the context if there is one, to (B, 2L):
            the mean and the log-deviation of q.
        decoder: from latents (B, L), and the context if there is one, to the observation's parameters (B, P).
        observation: p(x | z).
        prior: any density over events of shape (L,).
        context: a network from a context to the vector that encoder and decoder take; the prior takes the
            context as it is.

    Sources: Kingma and Welling 2014; Rezende et al. 2014.
    """

    offset: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        observation: Observation,
        prior: Density | None = None,
        *,
        latent: int | None = None,
        context: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if prior is None:
            if latent is None:
                raise ValueError("give a prior, or latent=L for N(0, I) over L numbers")
            prior = StandardNormal((latent,))
        if len(prior.event_shape) != 1:
            raise ValueError(f"the prior must be over events of shape (L,), got {tuple(prior.event_shape)}")
        self.encoder, self.decoder = encoder, decoder
        self.observation, self.prior, self.context = observation, prior, context
        self.latent = prior.event_shape[0]
        self.event_shape = observation.event_shape
        self.discrete = observation.discrete
        self.conditional = context is not None or prior.conditional
        self.register_buffer("offset", torch.zeros(observation.outputs))

    @property
    def bound(self) -> Bound:
        return Bound.weakest(Bound.LOWER, self.prior.bound)

    @property
    def importance_weighted(self) -> bool:
        return self.prior.importance_weighted

    def posterior(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """The mean and the log-deviation of q(z | x); the log-deviation stays within ±6."""
        parameters = self._call(self.encoder, self.observation.centre(x), context)
        if parameters.shape[-1] != 2 * self.latent:
            raise ValueError(
                f"the encoder must give 2·{self.latent} numbers, a mean and a log-deviation for each latent "
                f"dimension; it gave {parameters.shape[-1]}"
            )
        mean, log_scale = parameters.chunk(2, dim=-1)
        return mean, 6 * (log_scale / 6).tanh()

    def parameters_of(
        self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B P"]:
        """The observation's parameters given latents."""
        return self._call(self.decoder, z, context).flatten(1) + self.offset

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        mean, log_scale = self.posterior(x, context)
        packed = torch.cat([mean, log_scale], dim=1)
        rows_of = torch.arange(len(x), device=x.device)

        def log_weight(rows: Tensor, given: Tensor | None) -> Tensor:
            mu, log_sigma = packed[rows].chunk(2, dim=1)
            epsilon = torch.randn_like(mu)
            z = mu + log_sigma.exp() * epsilon
            log_q = -(0.5 * epsilon.square() + log_sigma).sum(1) - 0.5 * self.latent * math.log(2 * math.pi)
            log_likelihood = self.observation.log_prob(x[rows], self.parameters_of(z, given))
            return log_likelihood + self.prior.log_prob(z, given) - log_q

        return draw_weights(
            log_weight,
            rows_of,
            context,
            samples,
            importance_weighted=self.importance_weighted,
            at_once=max(1, 2**21 // self.observation.outputs),
        )

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        terms = self.terms(x, context)
        return -(terms["reconstruction"] + terms["-KL"]).mean()

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> dict[str, Float[Tensor, " B"]]:
        """The ELBO's two terms: E log p(x | z), with one draw of z, and -KL(q(z | x) ‖ p(z))."""
        mean, log_scale = self.posterior(x, context)
        epsilon = torch.randn_like(mean)
        z = mean + log_scale.exp() * epsilon
        if isinstance(self.prior, StandardNormal):
            kl = (0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale).sum(1)
        else:
            log_q = -(0.5 * epsilon.square() + log_scale).sum(1) - 0.5 * self.latent * math.log(2 * math.pi)
            kl = log_q - self.prior.log_prob(z, context)
        reconstruction = self.observation.log_prob(x, self.parameters_of(z, context))
        return {"reconstruction": reconstruction, "-KL": -kl}

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        z = self.prior.sample(n, context)
        return self.observation.sample(self.parameters_of(z, context))

    def reconstruct(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        """The expected data given the posterior's mean, in the units of the data."""
        mean, _ = self.posterior(x, context)
        return self.observation.mean(self.parameters_of(mean, context))

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        self.offset.copy_(self.observation.marginal(x))

    def _call(self, network: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
        vector = embed(self.context, context)
        return network(x) if vector is None else network(x, vector)
