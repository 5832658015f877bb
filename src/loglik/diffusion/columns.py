"""A denoiser for rows of a table: real columns as real data, codes by their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loglik.diffusion.denoiser import Denoiser
from loglik.diffusion.schedule import alpha

__all__ = ["ColumnDenoiser"]


class ColumnDenoiser(Denoiser):
    r"""Denoise rows of n real numbers, then a one-hot vector $e_k$ for each code (`reconstruction.Codes`).

    Real numbers are denoised as by `Denoiser`. For a code the network returns logits $\theta_k(x_t, t)$ from the other
    columns, and the code's own noised vector $x_{t,k}$ adds its likelihood by Bayes' rule:
    $P(k \mid x_t) \propto \exp(\theta_k - \lVert x_t - \alpha e_k \rVert^2 / 2\sigma^2) \propto
    \exp(\theta_k + x_{t,k}\, e^\lambda / \alpha)$, and $\hat x = (P(1), \dots, P(C))$. With θ the marginal
    log-probabilities this is exact for independent columns, so training starts from the independent density of codes
    and of Gaussian real columns.

    Args:
        network: from x_t (B, V) and a conditioning vector to (B, V).
        categories: the number of codes of each column; 0 for a real column.
        features, context, unconditional: as of `Denoiser`.
    """

    offset: Tensor
    padded: Tensor
    unused: Tensor
    unpadded: Tensor

    def __init__(
        self,
        network: nn.Module,
        categories: Sequence[int],
        *,
        features: int = 32,
        context: nn.Module | None = None,
        unconditional: float = 0.0,
    ) -> None:
        counts = [count for count in categories if count]
        self.numbers = len(categories) - len(counts)
        super().__init__(
            network,
            features=features,
            context=context,
            event_shape=(self.numbers + sum(counts),),
            unconditional=unconditional,
        )
        self.register_buffer("offset", torch.zeros(sum(counts)))
        # a row of `padded` for each code column holds the positions of its logits, so that one softmax does for all
        widest, starts = max(counts), torch.tensor([0, *counts]).cumsum(0)[:-1]
        position = starts[:, None] + torch.arange(widest)
        unused = torch.arange(widest) >= torch.tensor(counts)[:, None]
        self.register_buffer("padded", position.masked_fill(unused, 0), persistent=False)
        self.register_buffer("unused", unused, persistent=False)
        self.register_buffer("unpadded", (~unused).flatten().nonzero().squeeze(1), persistent=False)

    def forward(
        self,
        x_t: Float[Tensor, "B V"],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B V"]:
        raw, n = self._predict(x_t, logsnr, context, keep), self.numbers
        numbers = self._from_v(raw[:, :n], x_t[:, :n], logsnr, self.mean[:n], self.scale[:n])
        own = (logsnr.exp() / alpha(logsnr)).unsqueeze(1) * x_t[:, n:]
        logits = (raw[:, n:].to(x_t.dtype) + self.offset + own)[:, self.padded]
        p = logits.masked_fill(self.unused, -torch.inf).softmax(-1)
        return torch.cat([numbers, p.flatten(1)[:, self.unpadded]], 1)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N V"]) -> None:
        super().initialise(x)
        counts = x[:, self.numbers :].double().sum(0)
        size = (~self.unused).sum(1, keepdim=True).expand_as(self.unused).flatten()[self.unpadded]
        self.offset.copy_(((counts + 0.5) / (len(x) + 0.5 * size)).log())
