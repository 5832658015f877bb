"""Variational autoencoders."""

from __future__ import annotations

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.mlp import MLP
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.vae import VAE, Categorical, DiscretisedLogistic, Gaussian, Observation

__all__ = ["VAE_RECIPE"]

EMBEDDING = 16


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    latent: int | None = None,
    dropout: float = 0.2,
    conditional: bool = False,
) -> Density:
    """MLP encoder and decoder; whole numbers have a discrete observation model, real ones a Gaussian."""
    refuse_text(spec, "vae")
    width = width or pick(size, small=256, medium=512, large=1024)
    latent = latent or min(pick(size, small=16, medium=32, large=64), max(2, spec.dims // 2))
    observation: Observation
    if spec.levels is None:
        observation = Gaussian((spec.dims,))
    elif spec.levels <= 64:
        observation = Categorical(spec.event_shape, spec.levels)
    else:
        components = 4 if spec.dims <= 1024 else 2 if spec.dims <= 4096 else 1
        observation = DiscretisedLogistic(spec.event_shape, spec.levels, components)
    extra = EMBEDDING if conditional else 0
    decoder = MLP(latent, observation.outputs, (width, width), context=extra, dropout=dropout)
    from_zero(decoder.output)
    vae = VAE(
        MLP(spec.dims, 2 * latent, (width, width), context=extra, dropout=dropout),
        decoder,
        observation,
        latent=latent,
        context=label_embedding(spec, EMBEDDING, conditional),
    )
    return vae if spec.levels is not None else Flow(to_vector(spec), vae)


VAE_RECIPE = Recipe(
    name="vae",
    summary="encoder, decoder and a normalised observation model; images, tables (mixed too), arrays",
    build=build,
    training=lambda spec: {"learning_rate": 1e-3, "batch_size": 128},
)
