r"""LatentDiffusion: pixels through an autoencoder whose latents a diffusion models.

$\log p(x) \ge \mathbb E_{q(z \mid x)}[\log p(x \mid z) + \log p(z) - \log q(z \mid x)]$ with the autoencoder's own
Gaussian $q(z \mid x)$, and a Gaussian around the decoded image with one standard deviation for $p(x \mid z)$:
of real data its density, of integers its integral over each level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.conventions import SEED
from loglik.adapters.ddpm_bound import log_prob_of_levels
from loglik.checks import check_complete, check_levels
from loglik.density import Bound, Density
from loglik.draws import draw_terms, sum_terms
from loglik.inputs import as_tensor

__all__ = ["LatentDiffusion"]

FITTED = 256  # rows that the decoder's scale is fitted to


class LatentDiffusion(Density):
    """A lower bound of log p(x) through an AutoencoderKL of diffusers.

    Args:
        vae: with `encode(x).latent_dist`, `decode(z).sample` and `config.scaling_factor`.
        prior: a density of the scaled latents, $(z - \\text{shift}) \\cdot \\text{factor}$.
        event_shape: of x.
        levels: K of integers 0 ... K-1, scaled to [-1, 1] for the autoencoder; None for real data in [-1, 1].
        scale: standard deviation of x around the decoded image, in [-1, 1]; fitted to data if None.
        data, labels: to fit the scale to by maximum likelihood, and to check the prior's convention with.

    Raises ValueError where there is neither a scale nor data to fit it to.
    """

    scale: Tensor

    def __init__(
        self,
        vae: nn.Module,
        prior: Density,
        event_shape: tuple[int, ...],
        *,
        levels: int | None,
        scale: float | None = None,
        data: Any = None,
        labels: Any = None,
    ) -> None:
        super().__init__()
        if scale is None and data is None:
            raise ValueError(
                "a latent model's decoder has no standard deviation of its own: pass decoder_scale, such as 0.05, or "
                "data to fit it to"
            )
        if scale is not None and not scale > 0:
            raise ValueError(f"decoder_scale must be above 0, got {scale}")
        self.vae, self.prior = vae, prior
        self.event_shape, self.levels, self.discrete = tuple(event_shape), levels, levels is not None
        self.conditional = prior.conditional
        config: Any = vae.config
        self.factor = float(getattr(config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.register_buffer("scale", torch.tensor(1.0 if scale is None else float(scale)))
        if data is not None:
            like = next(vae.parameters())
            x = as_tensor(data, like, real=not self.discrete)
            self.initialise(x, None if labels is None else as_tensor(labels, like, label=True), fit=scale is None)

    @property
    def bound(self) -> Bound:
        return Bound.weakest(Bound.LOWER, self.prior.bound)

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        return sum_terms(self.terms(x, context, samples=samples))

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return `reconstruction`, log p(x | z), and `-KL`, log p(z) - log q(z | x), means over the draws of z."""

        def terms(rows: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
            v = self._embed(rows)
            z, log_q = self._draw(v)
            log_p = self.prior.log_prob(self._to_prior(z), labels) + self._log_det(z)
            return {"reconstruction": self._reconstruction(v, self._decode(z)), "-KL": log_p - log_q}

        self.check_context(context)
        at_once = max(1, 2**20 // math.prod(self.event_shape))
        return draw_terms(terms, x, context, samples, importance_weighted=False, at_once=at_once)

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_complete(x)
        check_levels(x, self.levels)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        self.prior.check_context(context)

    @torch.no_grad()
    def initialise(
        self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None, *, fit: bool = True
    ) -> None:
        """Fit the decoder's scale by maximum likelihood, and check the prior's convention."""
        x, context = x[:FITTED], None if context is None else context[:FITTED]
        v = self._embed(x)
        with torch.random.fork_rng(devices=[v.device] if v.is_cuda else []):
            torch.manual_seed(SEED)
            z, _ = self._draw(v)
        if fit:
            mean = self._decode(z)
            root = (v - mean).square().mean().sqrt().clamp_min(1e-4)
            tried = root * torch.linspace(-1.5, 0.5, 81).exp().to(root)  # levels make the best one smaller
            self.scale.copy_(tried[torch.stack([self._reconstruction(v, mean, s).mean() for s in tried]).argmax()])
        self.prior.initialise(self._to_prior(z), context)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        v = self._decode(self.prior.sample(n, context) / self.factor + self.shift)
        v = v + self.scale * torch.randn_like(v)
        if self.levels is None:
            return v
        x = ((v + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        return self.prior.numerical_error(self._to_prior(self._draw(self._embed(x))[0]), context)

    def _embed(self, x: Tensor) -> Float[Tensor, "B ..."]:
        """Return x in [-1, 1]."""
        if self.levels is None:
            return x
        check_levels(x, self.levels)
        return x.to(self.scale.dtype) * (2 / (self.levels - 1)) - 1

    def _draw(self, v: Tensor) -> tuple[Tensor, Float[Tensor, " B"]]:
        """Draw latents, and return them with log q(z | x)."""
        encode: Any = self.vae.encode
        q = encode(v.to(next(self.vae.parameters()).dtype)).latent_dist
        mean, log_variance = q.mean.to(v.dtype), q.logvar.to(v.dtype)
        epsilon = torch.randn_like(mean)
        log_q = -0.5 * (epsilon.square() + log_variance + math.log(2 * math.pi)).flatten(1).sum(1)
        return mean + torch.exp(0.5 * log_variance) * epsilon, log_q

    def _decode(self, z: Tensor) -> Float[Tensor, "B ..."]:
        decode: Any = self.vae.decode
        mean: Tensor = decode(z.to(next(self.vae.parameters()).dtype)).sample
        if mean.shape[1:] != self.event_shape:
            raise ValueError(f"the autoencoder decodes to {tuple(mean.shape[1:])}, and the data are {self.event_shape}")
        return mean.to(z.dtype)

    def _to_prior(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.factor

    def _log_det(self, z: Tensor) -> float:
        return z[0].numel() * math.log(self.factor)

    def _reconstruction(self, v: Tensor, mean: Tensor, scale: Tensor | None = None) -> Float[Tensor, " B"]:
        """Return log p(x | z)."""
        log_scale = (self.scale if scale is None else scale).log()
        if self.levels is not None:
            return log_prob_of_levels(v, mean, log_scale, 1 / (self.levels - 1))
        squares = ((v - mean) * torch.exp(-log_scale)).square() + 2 * log_scale + math.log(2 * math.pi)
        return -0.5 * squares.flatten(1).sum(1)
