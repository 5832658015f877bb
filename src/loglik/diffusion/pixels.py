"""A denoiser for images with many levels, whose network reads and writes levels through tables of features."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loglik.devices import full_precision
from loglik.diffusion.denoiser import LevelDenoiser

__all__ = ["PixelDenoiser"]

UNSEEN = 16.0  # pseudo-counts of a pixel, shared evenly by its levels


class PixelDenoiser(LevelDenoiser):
    r"""A `LevelDenoiser` of images, whose network keeps their shape and does not grow with the levels.

    The posterior of a pixel's level from its own noised value and its marginal $m_{dk}$ is
    $p_{dk} \propto m_{dk} \exp\left(-(x_{t,d} - \alpha \ell_k)^2 / 2\sigma^2\right)$. The network sees it as
    $\sum_k p_{dk} e_k$, with a learned vector $e_k$ of `reads` features for each level, and its `writes` features
    $h_d(x_t, t)$ give the logits $\log p_{dk} + h_d \cdot u_k$. Both tables start as cosines of the level, of rising
    frequency: the likelihood of 8-bit data needs features of fine scale, and noise does not disturb these, as their
    expectation fades when the noise grows. With h = 0 it is the independent density, whatever the noise.

    Args:
        network: from (B, C · (reads + 2), H, W), the noised image first, and a conditioning vector to
            (B, C · writes, H, W), channel slowest in both.
        levels: K.
        event_shape: (C, H, W).
        reads, writes: number of features per level.
        features, context, unconditional: as of `Denoiser`.

    Source for features of fine scale: Kingma et al. 2021, "Variational diffusion models", appendix C.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: int,
        event_shape: tuple[int, ...],
        *,
        reads: int = 8,
        writes: int = 32,
        features: int = 32,
        context: nn.Module | None = None,
        unconditional: float = 0.0,
    ) -> None:
        super().__init__(network, levels, event_shape, features=features, context=context, unconditional=unconditional)
        phase = math.pi * (torch.arange(levels) + 0.5) / levels
        octaves = 2.0 ** (torch.arange(reads) // 2)
        shift = math.pi / 2 * (torch.arange(reads) % 2)  # a cosine and a sine of each octave
        self.read = nn.Parameter(torch.cos(phase[:, None] * octaves - shift))
        self.write = nn.Parameter(torch.cos(phase * torch.arange(1, writes + 1)[:, None]))

    def logits(
        self,
        x_t: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D K"]:
        batch, channels, height, width = x_t.shape
        # in training nothing here has a gradient; the ODE's divergence, guidance and a learned schedule need one
        with torch.set_grad_enabled(torch.is_grad_enabled() and (x_t.requires_grad or logsnr.requires_grad)):
            alone = self._with_own_value(self.offset, x_t, logsnr)
            p = alone.softmax(-1)
        # the bound multiplies errors by the SNR: levels stay in full precision, the network need not
        with full_precision(x_t):
            seen = torch.cat([(p * self.levels).sum(-1, keepdim=True), p @ self.read], dim=-1)
        seen = seen.view(batch, channels, height, width, -1).permute(0, 1, 4, 2, 3).flatten(1, 2)
        h = self._predict(torch.cat([x_t, seen], dim=1), logsnr, context, keep)
        h = h.unflatten(1, (channels, -1)).movedim(2, -1)
        with full_precision(x_t):
            h = h.to(x_t.dtype).reshape(batch, -1, self.write.shape[0])
            return torch.baddbmm(alone, h, self.write.expand(batch, -1, -1))

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        """Set the offset to each pixel's log-probabilities, with pseudo-counts, in data scaled to [-1, 1]."""
        levels, dims = len(self.levels), len(self.offset)
        counts = torch.zeros(dims * levels, dtype=torch.long, device=x.device)
        starts = levels * torch.arange(dims, device=x.device)
        for part in x.flatten(1).split(4096):
            whole = ((part + 1) * ((levels - 1) / 2)).round().long()
            counts += (whole + starts).flatten().bincount(minlength=len(counts))
        share = UNSEEN / levels
        self.offset.copy_(((counts.view(dims, levels) + share).double() / (len(x) + UNSEEN)).log())
