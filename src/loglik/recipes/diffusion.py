"""Diffusion models: the VP-SDE with a U-Net for images, a Transformer for images by choice, an MLP for all else."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import (
    ColumnDenoiser,
    Denoiser,
    Diffusion,
    LevelDenoiser,
    LinearBeta,
    PixelDenoiser,
    Sampler,
    ScoreMatching,
)
from loglik.flows import Flow
from loglik.networks import DiT, ResidualMLP, UNet
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.transforms import Standardise

__all__ = ["DIFFUSION"]

FEATURES = 32
EMBEDDING = 16
READS, WRITES = 8, 32  # features of a level that an image's network sees and gives
KINDS = ("unet", "dit", "mlp")
SMALL_SIDE = 12  # images with a side below this are vectors to the MLP
MOST_LOGITS = 2**20  # of an example: up to here each of its dimensions has a probability of each of its levels
UNLABELLED = 0.1  # the share of labels left out in training, so that samples can be guided


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    kind: str = "auto",
    dropout: float | None = None,
    weighting: str = "likelihood",
    steps: int | None = None,
    method: str = "auto",
    conditional: bool = False,
) -> Density:
    """`kind` is auto, unet, dit or mlp: the denoiser; `weighting` what training minimises (likelihood, simple, ...);
    `method` and `steps` are how it samples (`ddpm`, `unipc`, ...): auto is `dpm++2m-sde` in 20 steps to log-SNR 4 of a
    unet or dit, `ddpm` in 200 of an mlp."""
    refuse_text(spec, "diffusion")
    kind = _kind(spec, kind)
    image = kind != "mlp"
    context = label_embedding(spec, EMBEDDING, conditional)
    shape = spec.event_shape if spec.levels is not None or image else (spec.dims,)
    codes = any(spec.categories)
    by_level = spec.levels is not None and spec.dims * spec.levels <= (MOST_LOGITS if image else 2**14)
    network = (
        _image_network(kind, shape, by_level, size, width, depth, dropout or 0.0, context is not None)
        if image
        else _vector_network(spec, by_level, size, width, depth, 0.2 if dropout is None else dropout, conditional)
    )
    options: dict[str, Any] = {
        "features": FEATURES, "context": context, "unconditional": UNLABELLED if conditional else 0.0
    }  # fmt: skip
    denoiser: Denoiser
    if by_level and image:
        denoiser = PixelDenoiser(network, spec.levels or 0, shape, reads=READS, writes=WRITES, **options)
    elif by_level:
        denoiser = LevelDenoiser(network, spec.levels or 0, shape, **options)
    elif codes:
        denoiser = ColumnDenoiser(network, spec.categories, **options)
    else:
        denoiser = Denoiser(network, event_shape=shape, **options)
    diffusion = Diffusion(
        denoiser,
        shape,
        levels=spec.levels,
        categories=spec.categories if codes else None,
        schedule=_schedule(spec, image, by_level),
        objective=ScoreMatching(weighting, times="importance" if image and weighting == "likelihood" else "uniform"),
        sampler=_sampler(method, steps, image),
    )
    if spec.levels is not None:
        return diffusion
    transforms = [Standardise(shape)] if image else to_vector(spec)
    return Flow(transforms, diffusion) if transforms else diffusion


def _sampler(method: str, steps: int | None, image: bool) -> Sampler:
    if method == "auto" and image:
        return Sampler(method="dpm++2m-sde", steps=20 if steps is None else steps, until=4.0)
    return Sampler(method="ddpm" if method == "auto" else method, steps=200 if steps is None else steps)


def _kind(spec: DataSpec, kind: str) -> str:
    if kind not in ("auto", *KINDS):
        raise ValueError(f"unknown kind {kind!r}: use auto, {', '.join(KINDS)}")
    image = spec.kind == "image"
    if kind == "auto":
        return "unet" if image and min(spec.event_shape[1:]) >= SMALL_SIDE else "mlp"
    if kind != "mlp" and not image:
        raise ValueError(f"kind={kind} takes images, and these are {spec.describe()}: use kind=mlp")
    return kind


def _schedule(spec: DataSpec, image: bool, by_level: bool) -> LinearBeta:
    """Least noise: a denoiser of levels snaps to one, so little costs it nothing; below 0.4 of the levels' distance
    another one only loses what the reconstruction would have known."""
    if spec.levels is None:
        return LinearBeta(t_min=1e-5)
    if by_level and not image:
        return LinearBeta(t_min=1e-4)
    logsnr = torch.tensor(-2 * math.log((0.25 if by_level else 0.8) / (spec.levels - 1)))
    return LinearBeta(t_min=LinearBeta(t_min=1e-9).time(logsnr).item())


def _vector_network(
    spec: DataSpec, by_level: bool, size: str, width: int | None, depth: int | None, dropout: float, conditional: bool
) -> nn.Module:
    inputs = sum(count or 1 for count in spec.categories)  # a code is a one-hot vector
    network = ResidualMLP(
        inputs,
        inputs * (spec.levels if by_level and spec.levels else 1),
        width=width or pick(size, small=256, medium=512, large=1024),
        depth=depth or 3,
        context=FEATURES + (EMBEDDING if conditional else 0),
        dropout=dropout,
    )
    from_zero(network.output)  # type: ignore[arg-type]
    return network


def _image_network(
    kind: str,
    shape: tuple[int, ...],
    by_level: bool,
    size: str,
    width: int | None,
    depth: int | None,
    dropout: float,
    conditional: bool,
) -> nn.Module:
    channels, height, across = shape
    inputs, outputs = (channels * (READS + 2), channels * WRITES) if by_level else (channels, channels)
    context = FEATURES + (EMBEDDING if conditional else 0)
    small = max(height, across) <= 32
    if kind == "dit":
        width = width or pick(size, small=128, medium=256, large=384)
        return DiT(
            (inputs, height, across),
            outputs,
            patch=2 if small else 4 if max(height, across) <= 64 else 8,
            width=width,
            depth=depth or pick(size, small=4, medium=6, large=12),
            heads=max(h for h in (1, 2, 4, 8) if width % h == 0),
            context=context,
            dropout=dropout,
        )
    width = width or pick(size, small=32, medium=64, large=128)
    levels = 3 if small else 4
    return UNet(
        inputs,
        outputs,
        width=width,
        multipliers=(1, *[2] * (levels - 1)),
        blocks=depth or pick(size, small=2, medium=2, large=3),
        attention=(levels - 1,),
        heads=max(h for h in (1, 2, 4) if 2 * width % h == 0),
        context=context,
        groups=max(g for g in (1, 2, 4, 8) if width % g == 0),
        dropout=dropout,
    )


def training(spec: DataSpec, kind: str = "auto") -> dict[str, Any]:
    if _kind(spec, kind) == "mlp":
        return {"learning_rate": 1e-3, "batch_size": 128, "ema_decay": 0.998}
    batch = max(4, min(32, 2**15 // spec.dims))
    return {
        "optimizer": "muon", "learning_rate": 5e-3, "batch_size": batch, "ema_decay": 0.99, "precision": "auto"
    }  # fmt: skip


DIFFUSION = Recipe(
    name="diffusion",
    summary="VP-SDE, trained by denoising score matching; images, tables (mixed too), arrays",
    build=build,
    training=training,
    kinds=KINDS,
    training_by_kind={kind: partial(training, kind=kind) for kind in KINDS},
)
