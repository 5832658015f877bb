"""Classifiers: p(label | data)."""

from __future__ import annotations

from torch import nn

from loglik.classification import Classifier
from loglik.classification.inputs import Columns, Levels
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.mlp import MLP
from loglik.recipes.recipe import Recipe, Unsuitable, pick

__all__ = ["CLASSIFIER"]


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    dropout: float = 0.3,
    smoothing: float = 0.0,
) -> Density:
    """An MLP feature extractor and an MLP head."""
    if not spec.classes:
        raise Unsuitable(
            "classifier needs labels: class folders, or --label COLUMN for a table; "
            "without labels use flow, vae or diffusion"
        )
    width = width or pick(size, small=256, medium=512, large=1024)
    prepare: nn.Module
    if spec.levels is not None:
        prepare, inputs = Levels(spec.levels), spec.dims
    else:
        coded = [len(column.categories) for column in spec.columns] or [0] * spec.dims
        prepare = Columns(coded)
        inputs = prepare.outputs
    features = MLP(inputs, width, (width, width), dropout=dropout)
    head = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), MLP(width, len(spec.classes), (width,), dropout=dropout))
    return Classifier(features, head, len(spec.classes), prepare=prepare, smoothing=smoothing)


CLASSIFIER = Recipe(
    name="classifier",
    summary="p(label | data): MLP features, MLP head, cross-entropy; images, tables, arrays with labels",
    build=build,
    training=lambda spec: {"learning_rate": 1e-3, "weight_decay": 0.05, "batch_size": 64},
)
