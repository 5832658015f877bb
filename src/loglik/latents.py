"""What a trained VAE is used for: embeddings, reconstructions, ways between examples, missing values.

A VAE is found inside the preprocessing that a recipe puts before it, and everything is in the units of the data.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.data.dataset import Data
from loglik.density import Density, StandardNormal
from loglik.evaluation.scores import arguments, evaluating
from loglik.flows import Flow
from loglik.runs import Run
from loglik.transforms import Dequantize, Reshape, Standardise, Transform
from loglik.vae import VAE, LadderVAE, LocalPixels
from loglik.vae.diagnostics import Diagnosis, diagnose
from loglik.vae.kl import gaussian_log_prob

__all__ = ["EACH_ALONE", "Latents", "diagnose_latents", "write_latents"]

EACH_ALONE = (Dequantize, Reshape, Standardise)  # transforms of each dimension by itself, in its place
AT_ONCE = 1024


class Latents:
    """The latents of a density that is a VAE, or a VAE behind transforms of the data.

    Rows, latents and contexts may be on any device: they are moved to the density's, where the results are.
    Raises ValueError for any other density.
    """

    def __init__(self, density: Density) -> None:
        transforms: Sequence[Transform] = ()
        base = density
        if isinstance(density, Flow):
            transforms, base = density.transforms, density.base
        if not isinstance(base, VAE):
            kind = type(density if isinstance(base, StandardNormal) else base).__name__.lower()
            raise ValueError(f"a {kind} has no latents of a VAE: use a run of the family vae")
        self.vae, self.transforms = base, transforms

    @classmethod
    def has(cls, density: Density) -> bool:
        """Whether a density has latents."""
        return isinstance(density.base if isinstance(density, Flow) else density, VAE)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B L"]:
        """The latents of examples without noise."""
        with self._quiet():
            parts = [
                self.vae.encode(self._inside(x[rows]), self._here(None if context is None else context[rows]))
                for rows in torch.arange(len(x)).split(AT_ONCE)
            ]
        return torch.cat(parts)

    def decode(
        self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """The expected data given latents."""
        with self._quiet():
            return self._outside(self.vae.decode(self._here(z), self._here(context)))

    def reconstruct(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """The expected data given each example's own latents."""
        return self.decode(self.encode(x, context), context)

    def interpolate(
        self,
        first: Shaped[Tensor, "B ..."],
        last: Shaped[Tensor, "B ..."],
        *,
        steps: int = 8,
        context: Shaped[Tensor, "B ..."] | None = None,
    ) -> Shaped[Tensor, "B S ..."]:
        """The expected data on the straight way between the latents of two examples, both ends included."""
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
        """The expected data as one latent dimension of an example takes other values, the others kept."""
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
        """Which latents are active, and how far the prior is from the aggregate posterior."""
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

        They start as a sample of the model and are drawn anew in every sweep: z given the whole row, then the missing
        values given z. The first is one of `draws` from $q(z \mid x)$ and the z before it, each taken with probability
        proportional to its importance weight $p(x \mid z)\,p(z) / q(z \mid x)$, which leaves $p(z \mid x)$ as it is
        however good q is (iterated sampling importance resampling; Andrieu et al. 2010, "Particle Markov chain Monte
        Carlo methods"). With q exact it is the pseudo-Gibbs sampling of Rezende et al. 2014, appendix F; with one draw
        the Metropolis-within-Gibbs of Mattei and Frellsen 2018, "Leveraging the exact likelihood of deep latent
        variable models", but for the choice between the two. Exact as `sweeps` grow, where the prior is.

        The filled rows are on the device of x.

        Raises ValueError where a model's dimensions hang together given the latents, or before them.
        """
        vae = self.vae
        if x.dim() != 2 or not all(isinstance(t, EACH_ALONE) for t in self.transforms):
            raise ValueError("missing values are filled in rows (B, D), behind transforms of each dimension alone")
        if isinstance(vae.observation, LocalPixels) or isinstance(vae, LadderVAE) or len(vae.posterior_flow):
            raise ValueError("missing values are filled by a VAE with a Gaussian posterior and independent dimensions")
        if sweeps < 1 or draws < 1:
            raise ValueError(f"sweeps and draws must be at least 1, got {sweeps} and {draws}")
        back, x, missing, context = x.device, self._here(x), self._here(missing), self._here(context)
        with self._quiet():
            z = vae.sample_latents(len(x), context)
            start = self._outside(vae.observation.sample(vae.parameters_of(z, context)))
            filled = torch.where(missing, start.to(x.dtype), x)
            for _ in range(sweeps):
                for rows in torch.arange(len(x), device=x.device).split(max(1, 2**14 // draws)):
                    given = None if context is None else context[rows]
                    z[rows] = self._resample(self._inside(filled[rows]), z[rows], draws, given)
                drawn = self._outside(vae.observation.sample(vae.parameters_of(z, context)))
                filled = torch.where(missing, drawn.to(x.dtype), x)
        return filled.to(back)

    def _resample(self, x: Tensor, z: Tensor, draws: int, context: Tensor | None) -> Tensor:
        """For each row one of its own z and `draws` from the posterior, by their importance weights."""
        vae = self.vae
        mean, log_scale = vae.posterior(x, context)
        fresh = mean + log_scale.exp() * torch.randn(draws, *mean.shape, dtype=mean.dtype, device=mean.device)
        each = torch.cat([z[None], fresh])
        flat, given = each.flatten(0, 1), None if context is None else torch.cat([context] * (draws + 1))
        log_joint = vae.observation.log_prob(torch.cat([x] * (draws + 1)), vae.parameters_of(flat, given))
        log_joint = (log_joint + vae.prior.log_prob(flat, given)).view(draws + 1, -1)
        weights = (log_joint - gaussian_log_prob(each, mean[None], log_scale[None]).sum(2)).softmax(0)
        chosen = torch.multinomial(weights.T, 1).squeeze(1)
        return each[chosen, torch.arange(len(x), device=x.device)]

    def _here(self, tensor: Any) -> Any:
        """A tensor, or None, on the density's device."""
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
        """In evaluation mode and without gradients."""
        training = self.vae.training
        self.vae.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.vae.train(training)


def write_latents(run: Run, path: Path, data: Any = None, *, split: str = "all") -> int:
    """The latents of a split's examples as CSV: row, label where there is one, z1 ... zL; gives how many rows.

    Raises ValueError where the run is no VAE.
    """
    latents = Latents(run.density)
    part = run.data_for(data).split(split)
    x, given = arguments(run.density, part.tensor(), part.y)
    z = latents.encode(x, given).cpu()
    places = torch.arange(len(z)) if part.index is None else part.index
    names = run.spec.classes
    labels = None if part.y is None else [names[y] for y in part.y.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *(["label"] if labels else []), *(f"z{d + 1}" for d in range(z.shape[1]))])
        for i in places.argsort().tolist():
            values = [float(f"{value:.7g}") for value in z[i].tolist()]
            writer.writerow([int(places[i]) + 1, *([labels[i]] if labels else []), *values])
    return len(z)


def diagnose_latents(density: Density, data: Data, split: str, seed: int, most: int = 1000) -> Diagnosis | None:
    """Diagnose a density's latents on the first `most` examples of a split; None if it has none."""
    if not Latents.has(density):
        return None
    part = data.split(split)
    x, given = arguments(density, part.x[:most], None if part.y is None else part.y[:most])
    with evaluating(density, seed):
        return Latents(density).diagnose(x, given)
