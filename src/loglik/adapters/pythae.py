"""pythae's VAEs as densities: the importance-weighted bound from their encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.foreign import Foreign, preprocessed
from loglik.density import Bound, Density
from loglik.draws import draw_terms, draw_weights, sum_terms

__all__ = ["FromPythae", "from_pythae"]

# VAEs with a Gaussian encoder, the prior N(0, I) and a decoder that outputs one number for each dimension
KINDS = (
    "VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD", "IWAE", "MIWAE", "PIWAE", "CIWAE",
    "VAEGAN",
)  # fmt: skip
AT_ONCE = 2**16  # values of the decoder's output in one call


class FromPythae(Foreign):
    r"""The bound $\log \tfrac1S \sum_s \frac{p(x \mid z_s)\, p(z_s)}{q(z_s \mid x)}$ of a VAE of pythae.

    With `reconstruction_loss="mse"` p(x | z) is $\mathcal N(\text{reconstruction}, \text{std}^2 I)$; with `"bce"` it is
    a Bernoulli distribution of binary data.

    Reference: Burda et al. 2016, "Importance weighted autoencoders", eq. 8.
    """

    def __init__(self, model: nn.Module, event_shape: tuple[int, ...], std: float) -> None:
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        super().__init__("pythae", event_shape, dtype=dtype)
        self.module, self.std = model, std
        config: Any = model.model_config
        self.discrete = config.reconstruction_loss == "bce"
        self.latents = int(config.latent_dim)

    @property
    def bound(self) -> Bound:
        return Bound.LOWER

    @property
    def importance_weighted(self) -> bool:
        return True

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        super().check(x, context)
        if self.discrete and not ((x == 0) | (x == 1)).all():
            raise ValueError(
                'this pythae model has reconstruction_loss="bce", which is a probability of binary data only, and the '
                f"data have values from {x.min().item():g} to {x.max().item():g}: binarise them, or train with mse"
            )

    def _terms_of_draws(self, x: Tensor) -> Callable[[Tensor, Tensor | None], dict[str, Tensor]]:
        model: Any = self.module
        inferred = model.encoder(x.to(self.anchor.dtype))
        mean, log_var = inferred.embedding, inferred.log_covariance

        def terms(rows: Tensor, _: Tensor | None) -> dict[str, Tensor]:
            repeats = len(rows) // len(x)
            centre, log_variance = (t.repeat_interleave(repeats, 0) for t in (mean, log_var))
            noise = torch.randn_like(centre)
            z = centre + noise * (log_variance / 2).exp()
            log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(1)
            return {"reconstruction": self._log_likelihood(rows, z), "-KL": log_ratio}

        return terms

    def _decode(self, z: Float[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        model: Any = self.module
        out: Tensor = model.decoder(z)["reconstruction"]
        return out.reshape(len(z), -1)

    def _log_likelihood(self, x: Shaped[Tensor, "B ..."], z: Float[Tensor, "B L"]) -> Float[Tensor, " B"]:
        theta, flat = self._decode(z), x.to(z.dtype).flatten(1)
        if self.discrete:
            return -nn.functional.binary_cross_entropy(theta, flat, reduction="none").sum(1)
        constant = flat.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * ((flat - theta) / self.std).square().sum(1) - constant

    @property
    def _at_once(self) -> int:
        return max(1, AT_ONCE // math.prod(self.event_shape))

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        terms = self._terms_of_draws(x)
        return draw_weights(
            lambda rows, given: sum_terms(terms(rows, given)),
            x,
            None,
            samples,
            importance_weighted=True,
            at_once=self._at_once,
        )

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the ELBO's two terms, and the gain from K importance weights."""
        self.check(x, context)
        return draw_terms(self._terms_of_draws(x), x, None, samples, importance_weighted=True, at_once=self._at_once)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        z = torch.randn(n, self.latents, dtype=self.anchor.dtype, device=self.anchor.device)
        theta = self._decode(z)
        x = torch.bernoulli(theta).long() if self.discrete else theta + self.std * torch.randn_like(theta)
        return x.view(n, *self.event_shape)


def from_pythae(
    model: nn.Module, *, event_shape: tuple[int, ...] | None = None, std: float = 1.0, **preprocessing: Any
) -> Density:
    """Return a VAE of pythae as a density, whose log-probability is a lower bound.

    Args:
        model: a VAE with a Gaussian encoder, the prior N(0, I) and `reconstruction_loss` `mse` or `bce`.
        event_shape: of one example; the `input_dim` of its configuration if None.
        std: of the decoder's Gaussian with `mse`, in the units of what the model sees; 1 is what it was trained with.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for other models, and for other reconstruction losses.
    """
    own = next((cls for cls in type(model).__mro__ if cls.__module__.startswith("pythae.")), type(model))
    if own.__name__ not in KINDS:
        raise ValueError(
            f"{own.__name__} has another prior, encoder or decoder than the VAEs whose bound is known here: "
            f"{', '.join(KINDS)}"
        )
    config: Any = getattr(model, "model_config", None)
    loss = getattr(config, "reconstruction_loss", None)
    if loss not in ("mse", "bce"):
        raise ValueError(f"reconstruction_loss must be mse or bce, got {loss!r}: its p(x | z) is not known here")
    if std <= 0 or (std != 1 and loss == "bce"):
        raise ValueError(f"std must be above 0, and goes with reconstruction_loss=mse only, got {std}")
    shape = event_shape or getattr(config, "input_dim", None)
    if shape is None:
        raise ValueError("the model has no input_dim: pass event_shape=")
    return preprocessed(FromPythae(model, tuple(shape), std), **preprocessing)
