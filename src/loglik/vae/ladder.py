"""A VAE with a ladder of latents: the posterior, like the model, goes from the top down."""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Density, StandardNormal, embed
from loglik.networks.soft_bound import tanh_bound
from loglik.vae.kl import KLWeighting, gaussian_kl, gaussian_log_prob
from loglik.vae.observation import Observation, to_float32
from loglik.vae.vae import VAE, Draw

__all__ = ["LadderVAE"]


class LadderVAE(VAE):
    r"""A VAE whose latents $z = (z_1, \dots, z_G)$ depend on one another, the top group first.

    $p(z) = p(z_1) \prod_{g>1} p(z_g \mid z_{<g})$ and $q(z \mid x) = \prod_g q(z_g \mid z_{<g}, x)$, Gaussians from one
    top-down network, which q shares: from the encoder's features at the group's
    resolution it shifts the prior's mean and scales its standard deviation. So the KL of every group after the first
    has a closed form, given the groups above it.

    Args:
        encoder: from events of order one (B, ...), and the context's vector if there is one, to a list of features,
            one per group, the top group's first.
        decoder: the top-down network, such as `networks.TopDown`: `shapes`, those of the groups' latents;
            `start(n, vector)`; a module of `steps` per group, with `rise(h)` to its resolution, `prior(h)` and
            `posterior(h, features)`, means and log-scales side by side in dimension 1, and `merge(h, z)`; and
            `finish(h)`, the observation's parameters.
        observation: p(x | z).
        prior: any density over the top group's latents in one row; N(0, I) if None.
        context: a network from a context to the vector that encoder and decoder read.
        objective: the KL's weight in training.

    `encode` returns and `decode` accepts the latents of all groups in one row.

    Sources: Sønderby et al. 2016, "Ladder variational autoencoders"; Kingma et al. 2016, for the top-down posterior;
    Vahdat and Kautz 2020, "NVAE", for the residual one; Child 2021, "Very deep VAEs".
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        observation: Observation,
        prior: Density | None = None,
        *,
        context: nn.Module | None = None,
        objective: KLWeighting | None = None,
    ) -> None:
        self.shapes = [tuple(shape) for shape in decoder.shapes]  # type: ignore[union-attr]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        super().__init__(
            encoder, decoder, observation, prior, latent=self.sizes[0], context=context, objective=objective
        )
        self.latent = sum(self.sizes)
        self.marginalises = False

    def _infer(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(self._call(self.encoder, self.observation.centre(x), context))

    def _component(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        top, step = self.encoder(inputs)[0], self.decoder.steps[0]  # type: ignore[union-attr, index]
        return self._top(step.posterior(self._start(len(inputs), None), top))  # type: ignore[union-attr]

    def _start(self, n: int, context: Tensor | None) -> Tensor:
        return self.decoder.start(n, embed(self.context, context))  # type: ignore[union-attr, operator]

    def _top(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = to_float32(parameters).chunk(2, 1)
        return mean.flatten(1), tanh_bound(log_scale).flatten(1)

    def _draw(self, inferred: tuple[Tensor, ...], context: Tensor | None) -> Draw:
        h = self._start(len(inferred[0]), context)
        closed = isinstance(self.prior, StandardNormal)
        latents, kls, log_ratio = [], [], torch.zeros(len(h), device=h.device)
        for group, (step, features) in enumerate(zip(self.decoder.steps, inferred, strict=True)):  # type: ignore[union-attr, arg-type]
            h = step.rise(h)
            if group == 0:
                mean, log_scale = self._top(step.posterior(h, features))
                z = mean + log_scale.exp() * torch.randn_like(mean)
                log_q = gaussian_log_prob(z, mean, log_scale)
                log_ratio = log_ratio + self.prior.log_prob(z, context) - log_q.sum(1)
                kl = gaussian_kl(mean, log_scale) if closed else None
                z = z.view(-1, *self.shapes[0])
            else:
                prior_mean, prior_log_scale = _gaussian(step.prior(h))
                shift, log_factor = _gaussian(step.posterior(h, features))
                mean, log_scale = prior_mean + prior_log_scale.exp() * shift, prior_log_scale + log_factor
                epsilon = torch.randn_like(mean)
                z = mean + log_scale.exp() * epsilon
                # log p - log q, where z lies (shift + e^{log_factor} ε) prior stds from the prior's mean
                ratio = 0.5 * (epsilon.square() - (shift + log_factor.exp() * epsilon).square()) + log_factor
                log_ratio = log_ratio + ratio.flatten(1).sum(1)
                kl = gaussian_kl(shift, log_factor).flatten(1)
            latents.append(z.flatten(1))
            kls.append(kl)
            h = step.merge(h, z)
        theta = self._theta(self.decoder.finish(h))  # type: ignore[union-attr, operator]
        divergence = None if kls[0] is None else partial(torch.cat, kls, 1)  # type: ignore[arg-type]
        return Draw(torch.cat(latents, 1), theta, lambda: log_ratio, divergence)

    def posterior(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Return the mean and log-scale of every group's q, given the means of the groups above."""
        means: list[Tensor] = []
        log_scales: list[Tensor] = []
        h = None
        for step, features in zip(self.decoder.steps, self._infer(x, context), strict=True):  # type: ignore[union-attr, arg-type]
            if h is None:
                h = self._start(len(x), context)
                mean, log_scale = self._top(step.posterior(h, features))
            else:
                h = step.rise(h)
                prior_mean, prior_log_scale = _gaussian(step.prior(h))
                shift, log_factor = _gaussian(step.posterior(h, features))
                mean, log_scale = prior_mean + prior_log_scale.exp() * shift, prior_log_scale + log_factor
            h = step.merge(h, mean.view(-1, *self.shapes[len(means)]))
            means.append(mean.flatten(1))
            log_scales.append(log_scale.flatten(1))
        return torch.cat(means, 1), torch.cat(log_scales, 1)

    def parameters_of(
        self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B P"]:
        h = self._start(len(z), context)
        for step, shape, own in zip(self.decoder.steps, self.shapes, z.split(self.sizes, 1), strict=True):  # type: ignore[union-attr, arg-type]
            h = step.merge(step.rise(h), own.reshape(-1, *shape))
        return self._theta(self.decoder.finish(h))  # type: ignore[union-attr, operator]

    def sample_latents(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n L"]:
        z = self.prior.sample(n, context)
        latents, h = [z], self._start(n, context)
        steps = list(self.decoder.steps)  # type: ignore[union-attr, arg-type]
        for above, step, shape in zip(steps, steps[1:], self.shapes, strict=False):
            h = step.rise(above.merge(h, z.view(-1, *shape)))
            mean, log_scale = _gaussian(step.prior(h))
            z = mean + log_scale.exp() * torch.randn_like(mean)
            latents.append(z.flatten(1))
        return torch.cat(latents, 1)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B L"]:
        """Return the posterior means of all groups in one row, each given the means above."""
        return self.posterior(x, context)[0]


def _gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_scale = to_float32(parameters).chunk(2, 1)
    return mean, tanh_bound(log_scale)
