"""Classifiers: p(label | data)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from loglik.classification import Classifier
from loglik.classification.augment import Augment
from loglik.classification.inputs import Columns, Levels
from loglik.classification.tokens import TokenEncoder
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks import ACTIVATIONS, MLP, ConvNet, ResNet, ViT
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import Recipe, Unsuitable, pick, refuse_unused

__all__ = ["CLASSIFIER", "ClassifierOptions"]

Features = tuple[nn.Module, nn.Module | None, nn.Module]  # the features, what prepares the data for them, the head

SMALL_SIDE = 16  # images with a side up to this are digits and letters: shifted less, and not mirrored or erased
OWN = {  # the options that each network has and some others do not
    "mlp": ("activation", "norm"),
    "convnet": ("norm",),
    "resnet": ("norm",),
    "vit": ("patch", "stem", "positions"),
    "transformer": (),
}


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(Options):
    """Options of `classifier`. A network refuses an option that it does not have."""

    network: Literal["auto", "mlp", "convnet", "resnet", "vit", "transformer"] = option(
        "auto",
        help="Network of the features; auto is resnet for images of 16×16 or more, transformer for text, else mlp.",
    )
    width: int | None = option(None, min=1, help="Width of the hidden layers, or of the first stage; by size if null.")
    depth: int | None = option(
        None, min=1, help="Hidden layers of mlp, blocks per stage of convnet and resnet, blocks of vit and transformer."
    )
    activation: Literal["silu", "relu", "gelu", "tanh"] | None = option(None, help="Activation of mlp; silu if null.")
    norm: Literal["none", "batch", "layer"] | None = option(
        None, help="Norm of mlp (none if null), or of convnet and resnet (batch if null; layer is for mlp alone)."
    )
    patch: int | None = option(None, min=1, help="Side of vit's patches, which must tile the maps; chosen if null.")
    stem: Literal["none", "convolution"] | None = option(
        None, help="Layers before vit's patches: convolution makes it a hybrid; for images of 16×16 or more if null."
    )
    positions: Literal["learned", "sinusoidal", "none"] | None = option(
        None, help="Positions of vit's patches; learned if null."
    )
    dropout: float | None = option(
        None, min=0, below=1, help="Dropout rate; if null 0.3 for mlp, 0.2 for transformer, else 0."
    )
    smoothing: float = option(0.0, min=0, below=1, help="Label smoothing of the training loss.")
    augment: bool | Literal["none", "shift", "flip", "erase", "all"] = option(
        True,
        help="Random changes of training images: shifts, mirror images, erased patches, or all. true suits the network "
        "and the image's size: none for mlp, shift for small images, else all.",
    )


def build(spec: DataSpec, options: ClassifierOptions) -> Density:
    r"""Return a classifier $g_{\theta_2} \circ f_{\theta_1}$: a network of features, and a head with softmax.

    The network is residual for images of 16×16 and more, a Transformer for text, else an MLP.
    """
    if not spec.classes:
        raise Unsuitable(
            'classifier needs labels: class folders, label="COLUMN" for a table, or a pair (x, y); '
            "without labels use flow, vae or diffusion"
        )
    network = options.network
    if network == "auto":
        network = "transformer" if spec.kind == "text" else "resnet" if _large(spec) else "mlp"
    for other, names in OWN.items():
        unused = tuple(name for name in names if name not in OWN[network])
        refuse_unused(options, unused, f"network={network}", f"use network={other}")
    changes = _augment(spec, network, options.augment)
    if network == "transformer":
        features, prepare, head = _text(spec, options)
    elif network == "mlp":
        features, prepare, head = _mlp(spec, options)
    else:
        features, prepare, head = _image(spec, network, options)
    mirror = changes is not None and changes.flip
    return Classifier(
        features,
        head,
        len(spec.classes),
        prepare=prepare,
        augment=changes,
        smoothing=options.smoothing,
        mirror=mirror,
    )


def _large(spec: DataSpec) -> bool:
    return spec.kind == "image" and spec.levels is not None and min(spec.event_shape[-2:]) >= 16


def _text(spec: DataSpec, options: ClassifierOptions) -> Features:
    """Return an encoder of tokens and a linear head."""
    if spec.kind != "text" or spec.levels is None:
        raise ValueError(f"network=transformer classifies text, and these are {spec.describe()}: use network=mlp")
    width = options.width or pick(options.size, small=64, medium=128, large=256)
    rate = 0.2 if options.dropout is None else options.dropout
    encoder = TokenEncoder(
        spec.levels,
        width=width,
        depth=options.depth or pick(options.size, small=2, medium=4, large=6),
        heads=max(1, width // 32),
        padding=spec.levels - 1 if spec.padded else None,
        dropout=rate,
    )
    return encoder, None, nn.Sequential(nn.Dropout(rate), nn.Linear(width, len(spec.classes)))


def _mlp(spec: DataSpec, options: ClassifierOptions) -> Features:
    """Return an MLP of features and an MLP as the head; data are scaled to order one before them."""
    width = options.width or pick(options.size, small=256, medium=512, large=1024)
    rate = 0.3 if options.dropout is None else options.dropout
    activation = ACTIVATIONS[options.activation or "silu"]
    shared: dict[str, Any] = {"dropout": rate, "activation": activation, "norm": options.norm or "none"}
    prepare: nn.Module
    if spec.levels is not None:
        prepare, inputs = Levels(spec.levels), spec.dims
    else:
        prepare = Columns(spec.categories, [column.missing for column in spec.columns])
        inputs = prepare.outputs
    features = MLP(inputs, width, (width,) * (options.depth or 2), **shared)
    head = nn.Sequential(activation(), nn.Dropout(rate), MLP(width, len(spec.classes), (width,), **shared))
    return features, prepare, head


def _image(spec: DataSpec, network: str, options: ClassifierOptions) -> Features:
    """Return a network of convolutions, patches or both, and a linear head."""
    if spec.kind != "image" or spec.levels is None:
        raise ValueError(f"network={network} classifies images, and these are {spec.describe()}: use network=mlp")
    features = _vit(spec, options) if network == "vit" else _convolutional(spec, network, options)
    features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = nn.Sequential(nn.Dropout(options.dropout or 0.0), nn.Linear(features.outputs, len(spec.classes)))
    return features, Levels(spec.levels), head


def _vit(spec: DataSpec, options: ClassifierOptions) -> ViT:
    channels, height, across = spec.event_shape
    width = options.width or pick(options.size, small=96, medium=192, large=384)
    hybrid = options.stem == "convolution" or (options.stem is None and min(height, across) >= 16)
    maps = [(side + 1) // 2 if hybrid else side for side in (height, across)]
    fitting = (p for p in (4, 2, 7, 3, 5, 1) if all(side % p == 0 and side > p for side in maps))
    return ViT(
        (channels, height, across),
        patch=options.patch or next(fitting, 1),
        stem=(width // 2,) if hybrid else (),
        width=width,
        depth=options.depth or pick(options.size, small=4, medium=6, large=8),
        heads=max(1, width // 32),
        positions=options.positions or "learned",
    )


def _convolutional(spec: DataSpec, network: str, options: ClassifierOptions) -> ResNet:
    if options.norm == "layer":
        raise ValueError(f"norm=layer is for network=mlp, and the network is {network}: use norm=batch or norm=none")
    channels, height, across = spec.event_shape
    width = options.width or pick(options.size, small=48, medium=64, large=128)
    blocks = options.depth or pick(options.size, small=1, medium=2, large=3)
    side = min(height, across)
    stages = 3 if side >= 16 else 2
    settings: dict[str, Any] = {
        "widths": [width * 2**stage for stage in range(stages)],
        "blocks": [blocks] * stages,
        "stem": "large" if side >= 96 else "strided" if side >= 24 else "small",
        "norm": options.norm or "batch",
    }
    return ResNet(channels, **settings) if network == "resnet" else ConvNet(channels, **settings)


def _augment(spec: DataSpec, network: str, chosen: bool | str) -> Augment | None:
    """Return the random changes of training images, or None.

    Small images are digits and letters, which have a right way round, so that by default they are only shifted.
    """
    if chosen in (False, "none") or (chosen is True and (network == "mlp" or spec.kind != "image")):
        return None
    if spec.kind != "image" or spec.levels is None:
        raise ValueError(f"augment={chosen} is for images, and these are {spec.describe()}: use augment=none")
    height, across = spec.event_shape[-2:]
    small = min(height, across) <= SMALL_SIDE
    if chosen is True:
        chosen = "shift" if small else "all"
    return Augment(
        (height, across),
        shift=(1 if small else 2) if chosen in ("shift", "all") else 0,
        flip=chosen in ("flip", "all"),
        erase=0.25 if chosen in ("erase", "all") else 0.0,
    )


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings: Muon and bf16 for larger images, larger steps for text."""
    if _large(spec):
        muon = {"optimizer": "muon", "learning_rate": 2e-2, "weight_decay": 0.02}
        return {**muon, "batch_size": 256, "precision": "auto"}
    if spec.kind == "text":
        return {"learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 32}
    return {"learning_rate": 1e-3, "weight_decay": 0.05, "batch_size": 64}


CLASSIFIER = Recipe(
    name="classifier",
    summary="p(label | data): a residual network, a Transformer or an MLP, a head, cross-entropy; all with labels",
    options_type=ClassifierOptions,
    build=build,
    training=training,
)
