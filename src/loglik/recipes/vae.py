"""Variational autoencoders: a ladder of convolutions for images, MLPs for tables and arrays, priors of every kind."""

from __future__ import annotations

from functools import partial
from typing import Any

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.ladder import Pyramid, TopDown
from loglik.networks.mlp import MLP
from loglik.recipes.priors import PRIORS, prior_of
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
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

__all__ = ["VAE_RECIPE"]

EMBEDDING = 16
NETWORKS = ("auto", "mlp", "ladder")
WARMUP = 500  # steps; at once, the KL would close groups of latents before the decoder has learned to read them
SMALLEST = 8  # the side of an image from which on it is given a ladder


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    network: str = "auto",
    prior: str = "normal",
    width: int | None = None,
    latent: int | None = None,
    dropout: float = 0.2,
    beta: float = 1.0,
    free_bits: float = 0.0,
    kl_warmup: int | None = None,
    conditional: bool = False,
) -> Density:
    """A ladder for images, else MLPs; codes and integers have discrete observation models, reals a Gaussian.

    `network` is auto, ladder or mlp; `prior` over the (top) latents is normal, vamp, flow, autoregressive, hierarchical
    or diffusion; `beta`, `free_bits` and `kl_warmup` (steps) change what training minimises, not the likelihood.
    """
    refuse_text(spec, "vae")
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}: use {', '.join(NETWORKS)}")
    if prior not in PRIORS:
        raise ValueError(f"unknown prior {prior!r}: use {', '.join(PRIORS)}")
    if conditional and prior == "vamp":
        raise ValueError(
            "prior=vamp is a mixture of posteriors without labels: use another prior, or conditional=false"
        )
    images = spec.kind == "image" and spec.levels is not None and min(spec.event_shape[-2:]) >= SMALLEST
    if network == "ladder" and not images:
        raise ValueError(
            f"network=ladder takes images of {SMALLEST}×{SMALLEST} and more, and these are {spec.describe()}"
        )
    ladder = images and network != "mlp"
    if kl_warmup is None:
        kl_warmup = WARMUP if ladder else 0
    objective = KLWeighting(beta=beta, free_bits=free_bits, warmup=kl_warmup)
    if ladder:
        return _ladder(spec, size, width, latent, prior, objective, conditional)
    width = width or pick(size, small=256, medium=512, large=1024)
    latent = latent or min(pick(size, small=16, medium=32, large=64), max(2, spec.dims // 2))
    observation = _columns(spec) if spec.levels is None else _levels(spec.levels, spec.dims, spec.event_shape)
    inputs = (observation.inputs,) if spec.levels is None else spec.event_shape
    extra = EMBEDDING if conditional else 0
    decoder = MLP(latent, observation.outputs, (width, width), context=extra, dropout=dropout)
    from_zero(decoder.output)
    vae = VAE(
        MLP(observation.inputs, 2 * latent, (width, width), context=extra, dropout=dropout),
        decoder,
        observation,
        prior_of(prior, latent, width // 2, inputs),
        context=label_embedding(spec, EMBEDDING, conditional),
        objective=objective,
    )
    if spec.levels is not None:
        return vae
    transforms = to_vector(spec, integers=False)
    return Flow(transforms, vae) if transforms else vae


def _columns(spec: DataSpec) -> Observation:
    """Each column by its kind: a Gaussian, a mixture of logistics over the integers, or a probability for each code."""
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
    """A probability for each of few levels, a mixture of logistics for many."""
    if levels <= 64:
        return Categorical(shape, levels)
    return DiscretisedLogistic(shape, levels, 4 if dims <= 1024 else 2 if dims <= 4096 else 1)


def _ladder(
    spec: DataSpec,
    size: str,
    width: int | None,
    latent: int | None,
    prior: str,
    objective: KLWeighting,
    conditional: bool,
) -> Density:
    """Levels of maps down to 4×4 or less; `width` is that of the finest, `latent` the channels of the coarsest."""
    channels, height, across = spec.event_shape
    assert spec.levels is not None
    width = width or pick(size, small=32, medium=64, large=128)
    latent = latent or pick(size, small=16, medium=16, large=32)
    depth = 1
    while min(height, across) / 2**depth > 4:
        depth += 1
    widths = [width * (level + 1) for level in range(depth)]
    latents = [max(2, latent // 2 ** (depth - 1 - level)) for level in range(depth)]
    many = pick(size, small=1, medium=2, large=3)
    # the texture is the neighbours' to tell: latents at the finest of several levels go unused
    blocks = [many if level or depth == 1 else 0 for level in range(depth)]
    observation = LocalPixels(
        spec.event_shape, partial(_levels_of, spec.levels), features=width, radius=3 if min(height, across) >= 16 else 2
    )
    extra = EMBEDDING if conditional else 0
    encoder = Pyramid(channels, widths=widths, blocks=blocks, groups=blocks, context=extra)
    decoder = TopDown(
        height, across, observation.features, widths=widths, latents=latents, groups=blocks, context=extra
    )
    top = decoder.shapes[0][0] * decoder.shapes[0][1] * decoder.shapes[0][2]
    return LadderVAE(
        encoder,
        decoder,
        observation,
        prior_of(prior, top, 128, spec.event_shape),
        context=label_embedding(spec, EMBEDDING, conditional),
        objective=objective,
    )


def _levels_of(levels: int, shape: tuple[int, ...]) -> Observation:
    return Categorical(shape, levels) if levels <= 64 else DiscretisedLogistic(shape, levels, 5)


def training(spec: DataSpec) -> dict[str, Any]:
    if spec.kind == "image" and spec.levels is not None and min(spec.event_shape[-2:]) >= SMALLEST:
        return {"optimizer": "muon", "learning_rate": 7e-3, "batch_size": 64, "precision": "auto"}
    return {"learning_rate": 1e-3, "batch_size": 128}


VAE_RECIPE = Recipe(
    name="vae",
    summary="encoder, decoder and a normalised observation model; images, tables (mixed too), arrays",
    build=build,
    training=training,
    variant="prior",
    kinds=PRIORS[1:],
)
