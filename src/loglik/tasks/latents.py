"""The latents of a trained VAE: embeddings, reconstructions, interpolations, missing values, diagnostics.

The VAE may stand behind the preprocessing of a recipe; everything is in the units of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.checks import data_checked
from loglik.data.dataset import Data
from loglik.density import Density, StandardNormal, evaluation_mode, sample_categories
from loglik.evaluation.scores import arguments, evaluating
from loglik.flows import Flow
from loglik.transforms import Dequantize, Reshape, Standardise, Transform
from loglik.vae import VAE, LadderVAE, LocalPixels
from loglik.vae.diagnostics import Diagnosis, diagnose
from loglik.vae.kl import gaussian_log_prob

__all__ = ["ELEMENTWISE", "Latents", "diagnose_latents"]

ELEMENTWISE = (Dequantize, Reshape, Standardise)  # transforms of each dimension by itself, in the same order
BATCH = 1024


class Latents:
    """The latents of a density that is a VAE, or a VAE behind transforms of the data.

    Rows, latents and contexts may be on any device; the results are on the density's.
    Raises ValueError for any other density.
    """

    def __init__(self, density: Density) -> None:
        transforms: Sequence[Transform] = ()
        base = density
        if isinstance(density, Flow):
            transforms, base = density.transforms, density.base
        if not isinstance(base, VAE):
            kind = type(density if isinstance(base, StandardNormal) else base).__name__.lower()
            raise ValueError(f"only a VAE has latents, and this run is a {kind}: use a run of the family vae")
        self.density, self.vae, self.transforms = density, base, transforms

    @classmethod
    def has(cls, density: Density) -> bool:
        """Return whether a density has latents of a VAE."""
        return isinstance(density.base if isinstance(density, Flow) else density, VAE)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B L"]:
        """Return the latents of examples without noise: the posterior means."""
        with self._quiet():
            parts = [
                self.vae.encode(self._inside(x[rows]), self._here(None if context is None else context[rows]))
                for rows in _slices(len(x), BATCH)
            ]
        return torch.cat(parts)

    def decode(
        self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """Return the expected data given latents."""
        with self._quiet():
            return self._outside(self.vae.decode(self._here(z), self._here(context)))

    def reconstruct(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """Return the expected data given each example's own latents."""
        return self.decode(self.encode(x, context), context)

    def interpolate(
        self,
        first: Shaped[Tensor, "B ..."],
        last: Shaped[Tensor, "B ..."],
        *,
        steps: int = 8,
        context: Shaped[Tensor, "B ..."] | None = None,
    ) -> Shaped[Tensor, "B S ..."]:
        """Return the expected data on the line between the latents of two examples, both ends included."""
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the two ends, got {steps}")
        a, b = self.encode(first, context), self.encode(last, context)
        parts = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)
        return torch.stack([self.decode(a + part * (b - a), context) for part in parts], 1)

    def traverse(
        self,
        x: Shaped[Tensor, "B ..."],
        dim: int,
        values: Sequence[float],
        *,
        context: Shaped[Tensor, "B ..."] | None = None,
    ) -> Shaped[Tensor, "B S ..."]:
        """Return the expected data for several values of one latent dimension; the others are the example's own."""
        z = self.encode(x, context)
        if not 0 <= dim < z.shape[1]:
            raise ValueError(f"dim must be 0 ... {z.shape[1] - 1}, a latent dimension, got {dim}")
        moved = []
        for value in values:
            changed = z.clone()
            changed[:, dim] = value
            moved.append(self.decode(changed, context))
        return torch.stack(moved, 1)

    def diagnose(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> Diagnosis:
        """Return which latents are active, and the distance of the prior from the aggregate posterior."""
        with self._quiet():
            return diagnose(self.vae, self._inside(x), self._here(context))

    def fill(
        self,
        x: Shaped[Tensor, "B D"],
        missing: Bool[Tensor, "B D"],
        *,
        sweeps: int = 30,
        draws: int = 10,
        context: Shaped[Tensor, "B ..."] | None = None,
    ) -> Shaped[Tensor, "B D"]:
        r"""Draw the missing values of rows from p(missing | observed), with torch's global generator.

        The missing values start as a sample of the model. Every sweep draws z given the full row, then the missing
        values given z. z is chosen among the previous z and `draws` draws from $q(z \mid x)$, with probabilities
        proportional to the importance weights $p(x \mid z)\,p(z) / q(z \mid x)$. This leaves $p(z \mid x)$ invariant
        for any q (iterated sampling importance resampling; Andrieu et al. 2010, "Particle Markov chain Monte Carlo
        methods"). With an exact q it is the pseudo-Gibbs sampling of Rezende et al. 2014, appendix F; with one draw it
        is the Metropolis-within-Gibbs sampling of Mattei and Frellsen 2018, "Leveraging the exact likelihood of deep
        latent variable models", except for the rule that chooses between the two. It is exact in the limit of many
        sweeps where the prior is exact.

        The filled rows are on the device of x.

        Raises ValueError where a model's dimensions depend on each other given the latents, or in the transforms.
        """
        vae = self.vae
        if x.dim() != 2 or not all(isinstance(t, ELEMENTWISE) for t in self.transforms):
            raise ValueError("missing values are filled in rows (B, D), behind transforms of each dimension by itself")
        if isinstance(vae.observation, LocalPixels) or isinstance(vae, LadderVAE) or len(vae.posterior_flow):
            raise ValueError("missing values are filled by a VAE with a Gaussian posterior and independent dimensions")
        if sweeps < 1 or draws < 1:
            raise ValueError(f"sweeps and draws must be at least 1, got {sweeps} and {draws}")
        device, x, missing, context = x.device, self._here(x), self._here(missing), self._here(context)
        with self._quiet():
            z = vae.sample_latents(len(x), context)
            start = self._outside(vae.observation.sample(vae.parameters_of(z, context)))
            filled = torch.where(missing, start.to(x.dtype), x)
            self.density.check(filled, context)
        with self._quiet(), data_checked():
            for _ in range(sweeps):
                for rows in _slices(len(x), max(1, 2**14 // draws)):
                    some = None if context is None else context[rows]
                    z[rows] = self._resample(self._inside(filled[rows]), z[rows], draws, some)
                drawn = self._outside(vae.observation.sample(vae.parameters_of(z, context)))
                filled = torch.where(missing, drawn.to(x.dtype), x)
        return filled.to(device)

    def _resample(self, x: Tensor, z: Tensor, draws: int, context: Tensor | None) -> Tensor:
        """Choose for each row among its own z and `draws` posterior draws, by their importance weights."""
        vae = self.vae
        mean, log_scale = vae.posterior(x, context)
        fresh = mean + log_scale.exp() * torch.randn(draws, *mean.shape, dtype=mean.dtype, device=mean.device)
        candidates = torch.cat([z[None], fresh])
        flat, repeated = candidates.flatten(0, 1), None if context is None else torch.cat([context] * (draws + 1))
        log_joint = vae.observation.log_prob(torch.cat([x] * (draws + 1)), vae.parameters_of(flat, repeated))
        log_joint = (log_joint + vae.prior.log_prob(flat, repeated)).view(draws + 1, -1)
        weights = (log_joint - gaussian_log_prob(candidates, mean[None], log_scale[None]).sum(2)).softmax(0)
        chosen = sample_categories(weights.T)
        return candidates[chosen, torch.arange(len(x), device=x.device)]

    def _here(self, tensor: Any) -> Any:
        """Return a tensor on the density's device; None for None."""
        return None if tensor is None else tensor.to(self.vae.device)

    def _inside(self, x: Tensor) -> Tensor:
        x = self._here(x)
        for transform in self.transforms:
            x, _ = transform.encode(x)
        return x

    def _outside(self, x: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            x = transform.decode(x)
        return x

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Run a block in evaluation mode and without gradients."""
        with evaluation_mode(self.vae), torch.no_grad():
            yield


def _slices(n: int, size: int) -> list[slice]:
    """Return slices of n rows, `size` at a time; one of no rows if there are none."""
    return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]


def diagnose_latents(density: Density, data: Data, split: str, seed: int, max_examples: int = 1000) -> Diagnosis | None:
    """Diagnose a density's latents on the first examples of a split; return None if it has no latents."""
    if not Latents.has(density):
        return None
    part = data.split(split)
    x, context = arguments(density, *part.first(max_examples))
    with evaluating(density, seed):
        return Latents(density).diagnose(x, context)
