"""Classifiers: p(label | data)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loglik.classification import Classifier
from loglik.classification.augment import Augment
from loglik.classification.inputs import Columns, Levels
from loglik.classification.tokens import TokenEncoder
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks import MLP, ConvNet, ResNet, ViT
from loglik.recipes.recipe import Recipe, Unsuitable, pick

__all__ = ["CLASSIFIER"]

NETWORKS = ("auto", "mlp", "convnet", "resnet", "vit", "transformer")
SHIFT = {True: 1, False: 2}  # pixels, for images of at most 16 and larger ones


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    network: str = "auto",
    width: int | None = None,
    dropout: float | None = None,
    smoothing: float = 0.0,
    augment: bool = True,
) -> Density:
    """A residual network for images of 16×16 and more, a Transformer for text, else an MLP; `network` is mlp, convnet,
    resnet, vit or transformer."""
    if not spec.classes:
        raise Unsuitable(
            'classifier needs labels: class folders, label="COLUMN" for a table, or a pair (x, y); '
            "without labels use flow, vae or diffusion"
        )
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}: use {', '.join(NETWORKS)}")
    if network == "auto":
        network = "transformer" if spec.kind == "text" else "resnet" if _large(spec) else "mlp"
    classes = len(spec.classes)
    if network == "transformer":
        if spec.kind != "text" or spec.levels is None:
            raise ValueError(f"network=transformer takes text, and these are {spec.describe()}: use network=mlp")
        width, rate = width or pick(size, small=64, medium=128, large=256), 0.2 if dropout is None else dropout
        encoder = TokenEncoder(
            spec.levels,
            width=width,
            depth=pick(size, small=2, medium=4, large=6),
            heads=max(1, width // 32),
            padding=spec.levels - 1 if spec.padded else None,
            dropout=rate,
        )
        head: nn.Module = nn.Sequential(nn.Dropout(rate), nn.Linear(width, classes))
        return Classifier(encoder, head, classes, smoothing=smoothing)
    if network == "mlp":
        width, rate = width or pick(size, small=256, medium=512, large=1024), 0.3 if dropout is None else dropout
        prepare, inputs = _numbers(spec)
        features: nn.Module = MLP(inputs, width, (width, width), dropout=rate)
        head = nn.Sequential(nn.SiLU(), nn.Dropout(rate), MLP(width, classes, (width,), dropout=rate))
    else:
        if spec.kind != "image" or spec.levels is None:
            raise ValueError(f"network={network} takes images, and these are {spec.describe()}: use network=mlp")
        prepare = Levels(spec.levels)
        features = _convolutional(spec, network, size, width)
        features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = 0.0 if dropout is None else dropout
        head = nn.Sequential(nn.Dropout(rate), nn.Linear(features.outputs, classes))  # type: ignore[arg-type]
    changes = _augment(spec) if augment and network != "mlp" and spec.kind == "image" else None
    mirror = changes is not None and changes.flip
    return Classifier(features, head, classes, prepare=prepare, augment=changes, smoothing=smoothing, mirror=mirror)


def _large(spec: DataSpec) -> bool:
    return spec.kind == "image" and spec.levels is not None and min(spec.event_shape[-2:]) >= 16


def _numbers(spec: DataSpec) -> tuple[nn.Module, int]:
    """What makes numbers of order one from any data, and how many."""
    if spec.levels is not None:
        return Levels(spec.levels), spec.dims
    columns = Columns(spec.categories)
    return columns, columns.outputs


def _convolutional(spec: DataSpec, network: str, size: str, width: int | None) -> nn.Module:
    channels, height, across = spec.event_shape
    if network == "vit":
        width = width or pick(size, small=96, medium=192, large=384)
        stem = (width // 2,) if min(height, across) >= 16 else ()
        maps = [(side + 1) // 2 if stem else side for side in (height, across)]
        patch = next(p for p in (4, 2, 7, 3, 5, 1) if all(side % p == 0 and side > p for side in maps))
        depth = pick(size, small=4, medium=6, large=8)
        return ViT((channels, height, across), patch=patch, stem=stem, width=width, depth=depth, heads=width // 32)
    width = width or pick(size, small=48, medium=64, large=128)
    blocks = pick(size, small=1, medium=2, large=3)
    stages = 3 if min(height, across) >= 16 else 2
    side = min(height, across)
    stem_kind = "large" if side >= 96 else "strided" if side >= 24 else "small"
    options: dict[str, Any] = {
        "widths": [width * 2**stage for stage in range(stages)],
        "blocks": [blocks] * stages,
        "stem": stem_kind,
    }
    return ResNet(channels, **options) if network == "resnet" else ConvNet(channels, **options)


def _augment(spec: DataSpec) -> Augment:
    """Small shifts; of larger images mirrored and partly erased ones too. Small ones are digits and letters, which have
    a right way round."""
    height, across = spec.event_shape[-2:]
    small = min(height, across) <= 16
    return Augment((height, across), shift=SHIFT[small], flip=not small, erase=0.0 if small else 0.25)


def training(spec: DataSpec) -> dict[str, Any]:
    if _large(spec):
        muon = {"optimizer": "muon", "learning_rate": 2e-2, "weight_decay": 0.02}
        return {**muon, "batch_size": 256, "precision": "auto"}
    if spec.kind == "text":
        return {"learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 32}
    return {"learning_rate": 1e-3, "weight_decay": 0.05, "batch_size": 64}


CLASSIFIER = Recipe(
    name="classifier",
    summary="p(label | data): a residual network, a Transformer or an MLP, a head, cross-entropy; all with labels",
    build=build,
    training=training,
)
