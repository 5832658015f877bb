"""The variational autoencoder (the notes, "Deep generative models and the VAE")."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.checks import check_complete, check_labels
from loglik.density import Bound, Density, StandardNormal, conditioned, embed, initialise_context, output_layer
from loglik.draws import draw_terms, draw_weights, expand_context, sum_terms
from loglik.missing import hot_deck
from loglik.networks.soft_bound import tanh_bound
from loglik.noise import is_first_part, mean_over_ranks
from loglik.transforms import Transform
from loglik.vae.kl import KLWeighting, gaussian_kl
from loglik.vae.observation import Gaussian, Observation, to_float32
from loglik.vae.vamp import VampPrior

__all__ = ["VAE", "Draw"]

MIXED = 16  # draws of the latents in the distribution of filled values
CACHED = 2**19  # decoder outputs that fit in a CPU's cache


@dataclass(frozen=True)
class Draw:
    r"""One draw of the latents, with its parameters and what its two estimates of the KL need.

    Training uses the closed form and `log_prob` the draw's own densities, so each is computed when it is read.

    Attributes:
        z: latents.
        theta: the observation's parameters.
        ratio: returns `log_ratio`.
        divergence: returns `kl`; None where there is no closed form.
    """

    z: Float[Tensor, "B L"]
    theta: Float[Tensor, "B P"]
    ratio: Callable[[], Tensor]
    divergence: Callable[[], Tensor] | None

    @property
    def log_ratio(self) -> Float[Tensor, " B"]:
        r"""$\log p(z) - \log q(z \mid x)$."""
        return self.ratio()

    @property
    def kl(self) -> Float[Tensor, "B L"] | None:
        """The closed form of each latent dimension's KL where there is one."""
        return None if self.divergence is None else self.divergence()


class VAE(Density):
    r"""$p(x) = \int p(x \mid z)\,p(z)\,dz$, bounded below through an encoder $q(z \mid x)$.

    $\log p(x) \ge \mathbb E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))$ (the ELBO). `log_prob` draws
    $z = \mu + \sigma \odot \epsilon$ and returns $\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)$, a sample
    of the ELBO whose exponential averages to $p(x)$; `samples=K` returns $\log \tfrac1K \sum_k w_k$, which rises to
    $\log p(x)$ with K (Burda et al. 2016). `loss` uses the closed form of the KL where q is a Gaussian and the prior
    N(0, I).

    Given z the dimensions are independent, so missing values, NaN, drop out of $\log p(x \mid z)$: of a row with some,
    `log_prob` and `loss` return the bound of log p of the observed ones. The encoder reads 0 in their place (Mattei and
    Frellsen 2019, "MIWAE"). `LocalPixels` and `LadderVAE` accept complete events only.

    Args:
        encoder: from events (B, ...) of order one, and the context if there is one, to (B, 2L):
            the mean and the log-scale of q; or to (B, 2L + E), where the `posterior` has a context of E values.
        decoder: from latents (B, L), and the context if there is one, to the observation's parameters (B, P).
        observation: p(x | z).
        prior: any density over events of shape (L,); a `VampPrior` uses this VAE's encoder.
        latent: L, for the prior N(0, I).
        context: a network from a context to the vector that encoder and decoder read; the prior receives the
            context itself.
        posterior: transforms whose `encode` maps the Gaussian draw to z, so that q is a flow. With masked
            autoregressive transforms it is the inverse autoregressive flow of Kingma et al. 2016.
        objective: the KL's weight in training; the ELBO by default.
        missing: for each dimension, whether the encoder reads a flag that its value is missing; the flags come after
            the values. None for no flags.

    Sources: Kingma and Welling 2014; Rezende et al. 2014.
    """

    offset: Tensor | None
    flags: Tensor | None
    trained: Tensor
    part: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        observation: Observation,
        prior: Density | None = None,
        *,
        latent: int | None = None,
        context: nn.Module | None = None,
        posterior: Sequence[Transform] = (),
        objective: KLWeighting | None = None,
        missing: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if prior is None:
            if latent is None:
                raise ValueError("pass a prior, or latent=L for N(0, I) in L dimensions")
            prior = StandardNormal((latent,))
        if len(prior.event_shape) != 1:
            raise ValueError(f"the prior must be over events of shape (L,), got {tuple(prior.event_shape)}")
        if latent is not None and prior.event_shape != (latent,):
            raise ValueError(f"the prior must be over events of shape ({latent},), got {tuple(prior.event_shape)}")
        if prior.discrete:
            raise ValueError("the prior must be a density over real numbers, got one over integers")
        # in this order, so that the last layer, which Muon leaves out, is the decoder's
        self.context, self.prior, self.encoder = context, prior, encoder
        self.posterior_flow: Sequence[Transform] = nn.ModuleList(posterior)  # type: ignore[assignment]
        self.decoder, self.observation = decoder, observation
        self.objective = objective or KLWeighting()
        self.latent = prior.event_shape[0]
        self.event_shape = observation.event_shape
        self.discrete = observation.discrete
        self.conditional = context is not None or prior.conditional
        self.marginalises = observation.marginalises
        self.has_rsample = type(self) is VAE and isinstance(observation, Gaussian) and prior.has_rsample
        if isinstance(prior, VampPrior):
            if len(self.posterior_flow):
                raise ValueError(
                    "a VampPrior is a mixture of Gaussian posteriors: leave the posterior's transforms out"
                )
            prior.bind(self._component)
        self.register_buffer("offset", torch.zeros(observation.outputs) if observation.adds_marginal else None)
        flags = None if missing is None else torch.tensor(list(missing)).nonzero().squeeze(1)
        self.register_buffer("flags", flags, persistent=False)
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # steps, for the warm-up
        self.register_buffer("part", torch.zeros(()), persistent=False)  # of a `fit`

    @property
    def bound(self) -> Bound:
        return Bound.weakest(Bound.LOWER, self.prior.bound)

    @property
    def warming_up(self) -> bool:
        return self.objective.warmup > 0 and self._warmth().item() < 1

    def progress(self, fraction_done: float) -> None:
        self.part.fill_(fraction_done)

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the observation model's output layer if it has a network, else the decoder's."""
        return output_layer(self.observation) or output_layer(self.decoder)

    @property
    def importance_weighted(self) -> bool:
        return self.prior.importance_weighted

    # ---- the parts

    def posterior(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Return the mean and log-scale of q(z | x), before its transforms; the log-scale is within ±6."""
        mean, log_scale, *_ = self._infer(x, context)
        return mean, log_scale

    def parameters_of(
        self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B P"]:
        """Return the observation's parameters given latents."""
        return self._theta(self._call(self.decoder, z, context))

    def _infer(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Return the encoder's results, which all draws share, one row per example."""
        return self._split(self._call(self.encoder, self._read(x), context))

    def _read(self, x: Tensor) -> Tensor:
        """Return what the encoder reads: values of order one, 0 where they are missing, and the flags."""
        values = self.observation.centre(x)
        if not self.marginalises or not x.is_floating_point():
            return values
        values = values.masked_fill(values.isnan(), 0)
        if self.flags is None:
            return values
        flags = x.flatten(1).index_select(1, self.flags).isnan()
        return torch.cat([values.flatten(1), flags.to(values.dtype)], 1)

    def _draw(self, inferred: tuple[Tensor, ...], context: Tensor | None) -> Draw:
        mean, log_scale, *extra = inferred
        epsilon = torch.randn_like(mean)
        z = mean + log_scale.exp() * epsilon
        if isinstance(self.prior, StandardNormal) and not len(self.posterior_flow):
            drawn = z

            def ratio() -> Tensor:
                return self.prior.log_prob(drawn, context) - self._log_q(epsilon, log_scale)

            return Draw(z, self.parameters_of(z, context), ratio, partial(gaussian_kl, mean, log_scale))
        log_q = self._log_q(epsilon, log_scale)
        for transform in self.posterior_flow:
            z, log_det = transform.encode(z, extra[0] if extra else None)
            log_q = log_q - log_det
        log_ratio = self.prior.log_prob(z, context) - log_q  # before the decoder: it may draw, too
        return Draw(z, self.parameters_of(z, context), lambda: log_ratio, None)

    def _log_q(self, epsilon: Tensor, log_scale: Tensor) -> Float[Tensor, " B"]:
        """Return the log-density of the Gaussian draws from their noise."""
        return -(0.5 * epsilon.square() + log_scale).sum(1) - 0.5 * self.latent * math.log(2 * math.pi)

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        width, want = parameters.flatten(1).shape[1], 2 * self.latent
        if width < want or (width > want and not len(self.posterior_flow)):
            raise ValueError(
                f"the encoder must return 2·{self.latent} values, a mean and a log-scale for each latent "
                f"dimension; it returned {width}"
            )
        mean, log_scale, extra = to_float32(parameters).flatten(1).split([self.latent, self.latent, width - want], 1)
        log_scale = tanh_bound(log_scale)
        return (mean, log_scale, extra) if width > want else (mean, log_scale)

    def _component(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior at pseudo-inputs of order one, for a VampPrior."""
        mean, log_scale = self._split(self.encoder(inputs))
        return mean, log_scale

    def _theta(self, outputs: Tensor) -> Tensor:
        width, kind = outputs[0].numel(), type(self.observation).__name__
        if width != self.observation.outputs:
            raise ValueError(
                f"the decoder must return {self.observation.outputs} values, the parameters of {kind} over events of "
                f"shape {self.event_shape}; it returned {width}"
            )
        return outputs.flatten(1) if self.offset is None else to_float32(outputs).flatten(1) + self.offset

    def _call(self, network: nn.Module, x: Tensor, context: Tensor | None) -> Any:
        return conditioned(network, x, embed(self.context, context))

    # ---- the density

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        terms = self._terms_of_draws(x, context)
        return draw_weights(
            lambda rows, labels: sum_terms(terms(rows, labels)),
            x,
            context,
            samples,
            importance_weighted=self.importance_weighted,
            at_once=self._at_once(x),
        )

    def _terms_of_draws(
        self, x: Tensor, context: Tensor | None, *, by_dimension: bool = False
    ) -> Callable[[Tensor, Tensor | None], dict[str, Tensor]]:
        """Return a function to the ELBO's terms for repetitions of x; the encoder runs once."""
        inferred = self._infer(x, context)
        reconstruction = self.observation.log_prob_dims if by_dimension else self.observation.log_prob

        def terms(rows: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
            repeats = len(rows) // len(x)
            draw = self._draw(tuple(t.repeat_interleave(repeats, 0) for t in inferred), labels)
            return {"reconstruction": reconstruction(rows, draw.theta), "-KL": draw.log_ratio}

        return terms

    def _at_once(self, x: Tensor) -> int:
        return max(1, (CACHED if x.device.type == "cpu" else 2**21) // self.observation.outputs)

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        draw = self._draw(self._infer(x, context), context)
        reconstruction = self.observation.log_prob(x, draw.theta).mean()
        free = self.objective.free_bits
        each = draw.kl
        if each is None:
            kl = -draw.log_ratio.mean()
            kl = _at_least(kl, free * draw.z.shape[1]) if free else kl
        else:
            kl = _at_least(each.mean(0), free).sum() if free else each.sum() / len(each)
        return self._kl_weight() * kl - reconstruction

    def _kl_weight(self) -> Tensor | float:
        if not self.training or not self.objective.warmup:
            return self.objective.beta
        if is_first_part():
            self.trained += 1
        return self.objective.beta * self._warmth().clamp_max(1.0)

    def _warmth(self) -> Tensor:
        """Return the finished fraction of the warm-up; it may exceed 1."""
        return torch.maximum(self.trained / self.objective.warmup, 4 * self.part)

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        r"""Return the ELBO's two terms over the draws of `log_prob`, and the gain of K importance weights.

        `reconstruction` is the mean of $\log p(x \mid z)$ and `-KL` that of $\log p(z) - \log q(z \mid x)$, whose
        expectation is $-\mathrm{KL}(q(z \mid x) \,\|\, p(z))$; `tightening (K = samples)` is the gain.
        """
        return self._terms(x, context, samples, by_dimension=False)

    def terms_by_dimension(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, "B ..."]]:
        """Return `terms` with a reconstruction for each dimension, (B, D)."""
        return self._terms(x, context, samples, by_dimension=True)

    def _terms(self, x: Tensor, context: Tensor | None, samples: int, *, by_dimension: bool) -> dict[str, Tensor]:
        draws = self._terms_of_draws(x, context, by_dimension=by_dimension)
        weighted, at_once = self.importance_weighted, self._at_once(x)
        return draw_terms(draws, x, context, samples, importance_weighted=weighted, at_once=at_once)

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        if not self.marginalises:
            check_complete(x)
        self.observation.check(x)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        check_labels(self.context, context)
        self.prior.check_context(context)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        return self.observation.sample(self.parameters_of(self.sample_latents(n, context), context))

    def rsample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        if not self.has_rsample:
            return super().rsample(n, context)
        return self.observation.sample(self.parameters_of(self.prior.rsample(n, context), context))

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        initialise_context(self.context, context)
        filled = hot_deck(x)
        self.observation.initialise(filled)
        if self.offset is not None:
            self.offset.copy_(self.observation.marginal(filled))
        if isinstance(self.prior, VampPrior):
            self.prior.initialise(self._read(x))

    # ---- use

    def sample_latents(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n L"]:
        """Draw n latents from the prior."""
        return self.prior.sample(n, context)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B L"]:
        """Return the latents of examples without noise: the posterior's mean after its transforms."""
        z, _, *extra = self._infer(x, context)
        for transform in self.posterior_flow:
            z, _ = transform.encode(z, extra[0] if extra else None)
        return z

    @torch.no_grad()
    def fill_with_log_prob(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        r"""Draw the missing values from $q = \tfrac1S \sum_s p(x_m \mid z_s)$: (rows, log q), as an `Imputer` does.

        $z_1, \dots, z_S$ are draws from $q(z \mid x_o)$, S = 16. Given them q is a mixture, of which $p(x_m \mid z_1)$
        is as good a component to draw from as any.
        """
        if not self.marginalises:
            raise ValueError("missing values are filled by a VAE whose dimensions are independent given the latents")
        missing = x.isnan()
        inferred = tuple(t.repeat_interleave(MIXED, 0) for t in self._infer(x, context))
        theta = self._draw(inferred, expand_context(context, MIXED)).theta
        filled = torch.where(missing, self.observation.sample(theta[::MIXED]).to(x.dtype), x)
        drawn = filled.masked_fill(~missing, torch.nan).repeat_interleave(MIXED, 0)
        log_q = self.observation.log_prob(drawn, theta).view(-1, MIXED).logsumexp(1) - math.log(MIXED)
        return filled, torch.where(missing.any(1), log_q, 0.0)

    def decode(self, z: Float[Tensor, "B L"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, "B ..."]:
        """Return the expected data given latents, in the units of the data."""
        return self.observation.mean(self.parameters_of(z, context))

    def reconstruct(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        """Return the expected data given each example's own latents, in the units of the data."""
        return self.decode(self.encode(x, context), context)


def _at_least(kl: Float[Tensor, "..."], free: float) -> Float[Tensor, "..."]:
    """Return a mean KL, or where it is below the free nats these, without a gradient; all ranks compare alike."""
    return torch.where(mean_over_ranks(kl) >= free, kl, free)
