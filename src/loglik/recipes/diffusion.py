"""Diffusion models: the VP-SDE with a denoiser."""

from __future__ import annotations

import math

import torch

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import Denoiser, Diffusion, LevelDenoiser, LinearBeta, Sampler
from loglik.flows import Flow
from loglik.networks.mlp import ResidualMLP
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
from loglik.recipes.vectors import refuse_text, to_vector

__all__ = ["DIFFUSION"]

FEATURES = 32
EMBEDDING = 16
UNCONDITIONAL = 0.1  # of the labels are left out in training, for guidance


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int = 3,
    dropout: float = 0.2,
    steps: int = 200,
    method: str = "ddpm",
    conditional: bool = False,
) -> Density:
    """A residual MLP as the denoiser; `method` and `steps` are how it samples (`ddpm`, `unipc`, ...)."""
    refuse_text(spec, "diffusion")
    width = width or pick(size, small=256, medium=512, large=1024)
    context = label_embedding(spec, EMBEDDING, conditional)
    conditioning = FEATURES + (EMBEDDING if conditional else 0)
    few_levels = spec.levels is not None and spec.dims * spec.levels <= 2**14
    shape = spec.event_shape if spec.levels is not None else (spec.dims,)
    network = ResidualMLP(
        spec.dims,
        spec.dims * (spec.levels if few_levels and spec.levels else 1),
        width=width,
        depth=depth,
        context=conditioning,
        dropout=dropout,
    )
    # least noise: a LevelDenoiser snaps to a level, so little costs it nothing; below 0.4 of the levels' distance
    # another denoiser only loses what the reconstruction would have known
    schedule = LinearBeta(t_min=1e-5 if spec.levels is None else 1e-4)
    if spec.levels is not None and not few_levels:
        logsnr = torch.tensor(-2 * math.log(0.8 / (spec.levels - 1)))
        schedule = LinearBeta(t_min=LinearBeta(t_min=1e-9).time(logsnr).item())
    from_zero(network.output)
    unconditional = UNCONDITIONAL if conditional else 0.0
    denoiser = (
        LevelDenoiser(network, spec.levels, shape, features=FEATURES, context=context, unconditional=unconditional)
        if few_levels and spec.levels
        else Denoiser(network, features=FEATURES, context=context, event_shape=shape, unconditional=unconditional)
    )
    diffusion = Diffusion(
        denoiser, shape, levels=spec.levels, schedule=schedule, sampler=Sampler(method=method, steps=steps)
    )
    return diffusion if spec.levels is not None else Flow(to_vector(spec), diffusion)


DIFFUSION = Recipe(
    name="diffusion",
    summary="VP-SDE, trained by denoising score matching; images, tables (mixed too), arrays",
    build=build,
    training=lambda spec: {"learning_rate": 1e-3, "batch_size": 128, "ema_decay": 0.998},
)
