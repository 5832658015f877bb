r"""Denoisers: from noised data $x_t = \alpha x + \sigma \epsilon$ to the expected data, whatever the network predicts.

For a known $x_t$ the five usual predictions are linear functions of one another:
$\hat x = (x_t - \sigma \hat\epsilon)/\alpha$; $\hat v = \alpha \hat\epsilon - \sigma \hat x$, so
$\hat x = \alpha x_t - \sigma \hat v$; and the score $s = -\hat\epsilon / \sigma$, so
$\hat x = (x_t + \sigma^2 s)/\alpha$ (Tweedie's formula). The velocity of flow matching,
$\hat u = \hat\epsilon - \hat x$, is that of $x_\tau = x_t/(\alpha + \sigma)$, so
$\hat x = (x_t - \sigma \hat u)/(\alpha + \sigma)$.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loglik.cpu import private
from loglik.density import embed
from loglik.diffusion.schedule import add_noise, alpha, broadcast_like, sigma

__all__ = [
    "Denoise",
    "Denoiser",
    "LevelDenoiser",
    "Prediction",
    "Residual",
    "residual_of",
    "time_features",
    "to_data",
    "to_score",
]

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t, log-SNRs of shape (B,)) -> the expected data
Residual = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # (v, ε, log-SNRs, context) -> ε̂ - ε

Prediction = Literal["noise", "data", "v", "score", "velocity"]


def to_data(
    prediction: Float[Tensor, "B ..."],
    kind: Prediction,
    x_t: Float[Tensor, "B ..."],
    logsnr: Float[Tensor, " B"],
) -> Float[Tensor, "B ..."]:
    """Return the expected data from a network's prediction."""
    a, s = (broadcast_like(f(logsnr), x_t) for f in (alpha, sigma))
    if kind == "data":
        return prediction
    if kind == "noise":
        return (x_t - s * prediction) / a
    if kind == "v":
        return a * x_t - s * prediction
    if kind == "score":
        return (x_t + s.square() * prediction) / a
    if kind == "velocity":
        return (x_t - s * prediction) / (a + s)
    raise ValueError(f"unknown prediction {kind!r}: use noise, data, v, score or velocity")


def to_score(
    x_hat: Float[Tensor, "B ..."], x_t: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    r"""Return the score $\nabla \log p_t(x_t) = (\alpha \hat x - x_t)/\sigma^2$."""
    a, s = (broadcast_like(f(logsnr), x_t) for f in (alpha, sigma))
    return (a * x_hat - x_t) / s.square()


def time_features(logsnr: Float[Tensor, " B"], count: int) -> Float[Tensor, "B E"]:
    """Return sines and cosines of the log-SNR at `count` / 2 frequencies, from which a network reads the time."""
    frequencies = _frequencies if torch.compiler.is_compiling() or private.is_observed() else _kept_frequencies
    phase = logsnr[:, None].float() * frequencies(count, logsnr.device)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _frequencies(count: int, device: torch.device) -> Float[Tensor, " half"]:
    return torch.exp(torch.linspace(math.log(0.05), math.log(2.0), count // 2, device=device))


@functools.lru_cache(maxsize=16)
def _kept_frequencies(count: int, device: torch.device) -> Float[Tensor, " half"]:
    with torch.inference_mode(False):  # training cannot use a tensor that was made in inference mode
        return _frequencies(count, device)


def residual_of(denoiser: nn.Module) -> Residual:
    """Return the function from (v, ε, log-SNRs, context) to ε̂ - ε of a denoiser, whatever it is."""
    own = type(denoiser).forward is Denoiser.forward  # a subclass may return other data than `residual` knows of
    return denoiser.residual if own and isinstance(denoiser, Denoiser) else functools.partial(_residual, denoiser)


def _residual(
    denoiser: nn.Module, v: Tensor, epsilon: Tensor, logsnr: Tensor, context: Tensor | None
) -> Float[Tensor, "B ..."]:
    x_hat = denoiser(add_noise(v, epsilon, logsnr), logsnr, context)
    return broadcast_like(torch.exp(0.5 * logsnr), v) * (v - x_hat)


class Denoiser(nn.Module):
    r"""Turn a network into a denoiser of continuous data.

    With the v prediction, data with the mean m and std s in each dimension (0 and 1 unless `initialise` is
    called) are denoised as a Gaussian of these moments would be, and the network adds a correction in units of the
    error that remains: $\hat x = m + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2}(x_t - \alpha m) -
    \frac{s \sigma}{\sqrt{\alpha^2 s^2 + \sigma^2}} \hat v$. For m = 0, s = 1 this is
    $\alpha x_t - \sigma \hat v$, and for a network that gives zeros it is exact for independent Gaussians. Karras et
    al. 2022, "Elucidating the design space of diffusion-based generative models", table 1, scale theirs alike.

    Args:
        network: from x_t (B, ...) and a conditioning vector (B, E) to a prediction of the shape of x_t. The
            vector holds `features` time features, then the context's embedding if there is one.
        prediction: what the network predicts.
        features: number of time features.
        context: a network from a context to a vector.
        event_shape: if not empty, each dimension has a mean and a scale of its own; else all share one.
        unconditional: fraction of contexts that training replaces by zeros, so that the network learns p(x) too, for
            classifier-free guidance.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        prediction: Prediction = "v",
        features: int = 32,
        context: nn.Module | None = None,
        event_shape: tuple[int, ...] = (),
        unconditional: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= unconditional < 1:
            raise ValueError(f"unconditional is a share from 0 to below 1, got {unconditional}")
        self.unconditional = unconditional
        if prediction == "v":
            self.register_buffer("mean", torch.zeros(event_shape))
            self.register_buffer("scale", torch.ones(event_shape))
        self.network, self.context = network, context
        self.prediction: Prediction = prediction
        self.features = features

    def forward(
        self,
        x_t: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B ..."]:
        """Return the expected data given x_t; where `keep` is false, the context is replaced by zeros."""
        raw = self._predict(x_t, logsnr, context, keep).view(x_t.shape)
        if self.prediction != "v":
            return to_data(raw, self.prediction, x_t, logsnr)
        return self._from_v(raw, x_t, logsnr, self.mean, self.scale)

    def residual(
        self,
        v: Float[Tensor, "B ..."],
        epsilon: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
    ) -> Float[Tensor, "B ..."]:
        r"""Return $\hat\epsilon - \epsilon = e^{\lambda/2} (v - \hat x(x_t))$ of data v and the noise in $x_t$.

        The network's prediction of the noise or of v gives it directly, with fewer operations and less rounding.
        """
        if self.prediction not in ("noise", "v"):
            return _residual(self, v, epsilon, logsnr, context)
        a, s = (broadcast_like(f(logsnr), v) for f in (alpha, sigma))
        x_t = torch.addcmul(a * v, s, epsilon)
        raw = self._predict(x_t, logsnr, context).view(v.shape).to(v.dtype)
        if self.prediction == "noise":
            return raw - epsilon
        scaled = a * self.scale
        root = torch.addcmul(s.square(), scaled, scaled).rsqrt()  # of the variance of x_t
        known = s * (v - self.mean) - scaled * self.scale * epsilon
        return a * root * torch.addcmul(self.scale * raw, known, root)

    def _from_v(self, raw: Tensor, x_t: Tensor, logsnr: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the posterior mean of a Gaussian with these moments, corrected by the network's v."""
        a, s = (broadcast_like(f(logsnr), x_t) for f in (alpha, sigma))
        variance = (a * scale).square() + s.square()  # of x_t
        seen = a * scale.square() / variance * (x_t - a * mean)
        return mean + seen - scale * s * variance.rsqrt() * raw

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        """Set the moments from data; each standard deviation is at least 1/100 of the largest."""
        if self.prediction != "v":
            return
        scale, mean = torch.std_mean(x, dim=0 if self.mean.dim() else None, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(scale.clamp_min(0.01 * scale.max().item() or 1.0))

    def _predict(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, keep: Tensor | None = None) -> Tensor:
        vector = time_features(logsnr, self.features).to(x_t.dtype)
        embedded = embed(self.context, context)
        if embedded is not None:
            if keep is None and self.training and self.unconditional:
                keep = torch.rand(len(x_t), device=x_t.device) >= self.unconditional
            if keep is not None:
                embedded = embedded * keep.unsqueeze(1).to(embedded.dtype)
            vector = torch.cat([vector, embedded], dim=1)
        return self.network(x_t, vector)


class LevelDenoiser(Denoiser):
    r"""Denoise data with K known levels $\ell_k$ in [-1, 1].

    The network returns logits $\theta_{dk}(x_t, t)$ of each dimension's level from the other dimensions, and the
    dimension's own noised value adds its likelihood by Bayes' rule:
    $P(x_d = \ell_k \mid x_t) \propto \exp\left(\theta_{dk} - (x_{t,d} - \alpha \ell_k)^2 / 2\sigma^2\right)$ and
    $\hat x_d = \sum_k P_{dk}\,\ell_k$. With θ the marginal log-probabilities this is exact for independent
    dimensions, whatever the noise, so training starts from the independent density and can only add to it.

    Args:
        network: from x_t and a conditioning vector to (B, D · K) logits, level fastest.
        levels: K.
    """

    levels: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: int,
        event_shape: tuple[int, ...],
        *,
        features: int = 32,
        context: nn.Module | None = None,
        unconditional: float = 0.0,
    ) -> None:
        super().__init__(network, prediction="data", features=features, context=context, unconditional=unconditional)
        self.register_buffer("levels", torch.linspace(-1, 1, levels), persistent=False)
        self.register_buffer("offset", torch.zeros(math.prod(event_shape), levels))

    def forward(
        self,
        x_t: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B ..."]:
        probabilities = self.logits(x_t, logsnr, context, keep).softmax(-1)
        # not a matrix product, which bf16 and TF32 would round: the bound multiplies its error by the SNR
        return (probabilities * self.levels.to(x_t.dtype)).sum(-1).view(x_t.shape)

    def logits(
        self,
        x_t: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D K"]:
        """Return the unnormalised log P(x_d = ℓ_k | x_t)."""
        prior = self._predict(x_t, logsnr, context, keep).view(len(x_t), -1, len(self.levels)) + self.offset
        return self._with_own_value(prior, x_t, logsnr)

    def _with_own_value(self, prior: Tensor, x_t: Tensor, logsnr: Tensor) -> Float[Tensor, "B D K"]:
        """Add the log-likelihood -(x - αℓ)²/2σ² of a dimension's own noised value, up to a constant."""
        snr = logsnr.exp().view(-1, 1, 1)
        centre = x_t.flatten(1).unsqueeze(-1) / alpha(logsnr).view(-1, 1, 1)
        return torch.addcmul(prior, (centre - self.levels).square(), -0.5 * snr)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        """Start from each dimension's own log-probabilities in data scaled to [-1, 1]."""
        count = len(self.levels)
        whole = ((x.flatten(1)[: 2**14] + 1) * ((count - 1) / 2)).round().long()
        rows = F.one_hot(whole, count).double().sum(0)
        self.offset.copy_((rows + 0.5).log() - math.log(len(whole) + 0.5 * count))
