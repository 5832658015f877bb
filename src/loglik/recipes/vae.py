"""Variational autoencoders: a ladder of convolutions for images, MLPs for tables and arrays, priors of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.ladder import Pyramid, TopDown
from loglik.networks.mlp import ACTIVATIONS, MLP
from loglik.recipes.options import Options, option
from loglik.recipes.priors import PRIORS, Prior, prior_of
from loglik.recipes.recipe import (
    Recipe,
    conditional_on_inputs,
    context_network,
    context_width,
    from_zero,
    pick,
    refuse_unused,
)
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.vae import (
    VAE,
    Categorical,
    Codes,
    DiscretisedLogistic,
    Gaussian,
    Integers,
    KLWeighting,
    LadderVAE,
    LocalPixels,
    Mixed,
    Observation,
)

__all__ = ["VAE_RECIPE", "VAEOptions"]

EMBEDDING = 16
WARMUP = 500  # steps; at once, the KL would close groups of latents before the decoder has learned to read them
MIN_SIDE = 8  # of an image that a ladder models


@dataclass(frozen=True, kw_only=True)
class VAEOptions(Options):
    """Options of `vae`."""

    network: Literal["auto", "mlp", "ladder"] = option(
        "auto", help="Networks; auto is a ladder of convolutions for images of 8×8 or more, else mlp."
    )
    prior: Prior = option("normal", help="Prior over the latents, or the top latents of a ladder.")
    width: int | None = option(
        None, min=1, help="Width of the hidden layers, or of a ladder's finest maps; by size if null."
    )
    depth: int | None = option(
        None, min=1, help="Hidden layers of each mlp (2 if null), or blocks per resolution of a ladder (by size)."
    )
    activation: Literal["silu", "relu", "gelu", "tanh"] | None = option(None, help="Activation of mlp; silu if null.")
    norm: Literal["none", "batch", "layer"] | None = option(None, help="Norm of mlp; none if null.")
    latent: int | None = option(
        None, min=1, help="Number of latents, or channels of a ladder's coarsest latents; by size if null."
    )
    dropout: float = option(0.2, min=0, below=1, help="Dropout rate of mlp; a ladder has none.")
    beta: float = option(1.0, min=0, help="Weight β of the KL in the training loss; the likelihood stays the same.")
    free_bits: float = option(0.0, min=0, help="KL per latent, in nats, that the training loss does not penalise.")
    kl_warmup: int | None = option(
        None, min=0, help="Training steps over which the KL's weight rises to β; if null 500 for a ladder, else 0."
    )
    conditional: bool = option(False, help="Learn p(x | label) instead of p(x).")


def build(spec: DataSpec, options: VAEOptions) -> Density:
    """Return a ladder for images, else MLPs.

    Codes and integers have discrete observation models, real numbers a Gaussian.
    """
    refuse_text(spec, "vae")
    options = conditional_on_inputs(spec, options)
    if options.conditional and options.prior == "vamp":
        raise ValueError(
            "prior=vamp is a mixture of posteriors without labels: use another prior, or conditional=false"
        )
    images = _has_ladder(spec)
    if options.network == "ladder" and not images:
        raise ValueError(
            f"network=ladder models images of {MIN_SIDE}×{MIN_SIDE} and more, and these are {spec.describe()}"
        )
    ladder = images and options.network != "mlp"
    warmup = options.kl_warmup
    if warmup is None:
        warmup = WARMUP if ladder else 0
    objective = KLWeighting(beta=options.beta, free_bits=options.free_bits, warmup=warmup)
    return (_ladder if ladder else _mlps)(spec, options, objective)


def _has_ladder(spec: DataSpec) -> bool:
    return spec.kind == "image" and spec.levels is not None and min(spec.event_shape[-2:]) >= MIN_SIDE


def _mlps(spec: DataSpec, options: VAEOptions, objective: KLWeighting) -> Density:
    """Return a VAE with an MLP as encoder and another as decoder."""
    width = options.width or pick(options.size, small=256, medium=512, large=1024)
    latent = options.latent or min(pick(options.size, small=16, medium=32, large=64), max(2, spec.dims // 2))
    observation = _columns(spec) if spec.levels is None else _levels(spec.levels, spec.dims, spec.event_shape)
    inputs = (observation.inputs,) if spec.levels is None else spec.event_shape
    hidden = (width,) * (options.depth or 2)
    shared: dict[str, Any] = {
        "context": context_width(spec, EMBEDDING) if options.conditional else 0,
        "dropout": options.dropout,
        "activation": ACTIVATIONS[options.activation or "silu"],
        "norm": options.norm or "none",
    }
    decoder = MLP(latent, observation.outputs, hidden, **shared)
    from_zero(decoder.output)
    vae = VAE(
        MLP(observation.inputs, 2 * latent, hidden, **shared),
        decoder,
        observation,
        prior_of(options.prior, latent, width // 2, inputs),
        context=context_network(spec, context_width(spec, EMBEDDING), options.conditional),
        objective=objective,
    )
    if spec.levels is not None:
        return vae
    transforms = to_vector(spec, integers=False)
    return Flow(transforms, vae) if transforms else vae


def _columns(spec: DataSpec) -> Observation:
    """Return a Gaussian, a mixture of logistics over the integers, or a probability per code for each column."""
    kinds = list(zip(spec.discrete_dims, spec.categories, strict=True))
    parts: list[Observation] = []
    groups: list[list[int]] = []
    for discrete, count in sorted(set(kinds)):
        group = [d for d, kind in enumerate(kinds) if kind == (discrete, count)]
        shape = (len(group),)
        parts.append(Codes(shape, count) if count else Integers(shape) if discrete else Gaussian(shape))
        groups.append(group)
    return parts[0] if len(parts) == 1 else Mixed(parts, groups)


def _levels(levels: int, dims: int, shape: tuple[int, ...]) -> Observation:
    """Return a probability for each of few levels, or a mixture of logistics for many."""
    if levels <= 64:
        return Categorical(shape, levels)
    return DiscretisedLogistic(shape, levels, 4 if dims <= 1024 else 2 if dims <= 4096 else 1)


def _ladder(spec: DataSpec, options: VAEOptions, objective: KLWeighting) -> Density:
    """Return a ladder of maps down to 4×4 or less."""
    refuse_unused(options, ("activation", "norm"), "network=ladder", "use network=mlp")
    channels, height, across = spec.event_shape
    assert spec.levels is not None
    width = options.width or pick(options.size, small=32, medium=64, large=128)
    latent = options.latent or pick(options.size, small=16, medium=16, large=32)
    depth = 1
    while min(height, across) / 2**depth > 4:
        depth += 1
    widths = [width * (level + 1) for level in range(depth)]
    latents = [max(2, latent // 2 ** (depth - 1 - level)) for level in range(depth)]
    many = options.depth or pick(options.size, small=1, medium=2, large=3)
    # neighbouring pixels determine the texture: latents at the finest of several levels would go unused
    blocks = [many if level or depth == 1 else 0 for level in range(depth)]
    observation = LocalPixels(
        spec.event_shape, partial(_levels_of, spec.levels), features=width, radius=3 if min(height, across) >= 16 else 2
    )
    extra = EMBEDDING if options.conditional else 0
    encoder = Pyramid(channels, widths=widths, blocks=blocks, groups=blocks, context=extra)
    decoder = TopDown(
        height, across, observation.features, widths=widths, latents=latents, groups=blocks, context=extra
    )
    top = decoder.shapes[0][0] * decoder.shapes[0][1] * decoder.shapes[0][2]
    return LadderVAE(
        encoder,
        decoder,
        observation,
        prior_of(options.prior, top, 128, spec.event_shape),
        context=context_network(spec, context_width(spec, EMBEDDING), options.conditional),
        objective=objective,
    )


def _levels_of(levels: int, shape: tuple[int, ...]) -> Observation:
    return Categorical(shape, levels) if levels <= 64 else DiscretisedLogistic(shape, levels, 5)


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings: Muon for a ladder."""
    if _has_ladder(spec):
        return {"optimizer": "muon", "learning_rate": 7e-3, "batch_size": 64, "precision": "auto"}
    return {"learning_rate": 1e-3, "batch_size": 128}


VAE_RECIPE = Recipe(
    name="vae",
    summary="encoder, decoder and a normalised observation model; images, tables (mixed too), arrays",
    options_type=VAEOptions,
    build=build,
    training=training,
    variant="prior",
    kinds=PRIORS[1:],
)
