r"""Guidance: samples that agree more with their label than draws of $p(x \mid c)$ do.

Classifier-free, $\hat x = \hat x_\emptyset + w\,(\hat x_c - \hat x_\emptyset)$, of a network trained with labels left
out at random; w = 1 is $p(x \mid c)$ (Ho and Salimans 2022, "Classifier-free diffusion guidance", write 1 + w). By a
classifier of noised data, $\hat x + \frac{\sigma^2}{\alpha} w\,\nabla \log p(c \mid x_t)$ (Dhariwal and Nichol 2021,
"Diffusion models beat GANs", algorithm 2, in terms of x̂).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.diffusion.denoiser import Denoise
from loglik.diffusion.schedule import alpha, broadcast_like, sigma

__all__ = ["by_classifier", "classifier_free", "with_noise_level"]


def classifier_free(denoiser: Callable[..., Tensor], context: Tensor, weight: float) -> Denoise:
    """Return the denoiser with classifier-free guidance; the network sees both halves in one batch."""
    unknown = torch.zeros(len(context), dtype=torch.bool, device=context.device)

    def denoise(x_t: Tensor, logsnr: Tensor) -> Tensor:
        keep = torch.cat([unknown, ~unknown])
        both = denoiser(torch.cat([x_t, x_t]), logsnr.repeat(2), torch.cat([context, context]), keep)
        unconditional, conditional = both.chunk(2)
        return unconditional + weight * (conditional - unconditional)

    return denoise


def by_classifier(denoise: Denoise, classifier: Callable[..., Any], labels: Tensor, weight: float) -> Denoise:
    """Return the denoiser guided by a classifier, from (x_t, log-SNR, labels) to log p(label | x_t)."""

    def guided(x_t: Tensor, logsnr: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x_t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(classifier(point, logsnr, labels).sum(), point)
        return denoise(x_t, logsnr) + weight * broadcast_like(sigma(logsnr).square() / alpha(logsnr), x_t) * slope

    return guided


def with_noise_level(x_t: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"]) -> Shaped[Tensor, "B ..."]:
    r"""Append $\lambda / 10$ to x_t as a channel (or column), so that any classifier's network can read it.

    For `classifier`, a density p(y | x) trained on `with_noise_level(*diffusion.noised(x))`, pass `Sampler`
    `lambda x_t, logsnr, y: classifier.log_prob(y, with_noise_level(x_t, logsnr))`.
    """
    level = broadcast_like(logsnr / 10, x_t).expand(len(x_t), 1, *x_t.shape[2:])
    return torch.cat([x_t, level.to(x_t.dtype)], dim=1)
