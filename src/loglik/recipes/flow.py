"""Flows: coupling transforms with rational-quadratic splines."""

from __future__ import annotations

import torch
from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density, StandardNormal
from loglik.flows import ElementwiseSpline, Flow, SplineCoupling
from loglik.flows.spline import parameters_per_dim
from loglik.networks.mlp import MLP
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.transforms import Logit, Scale

__all__ = ["FLOW"]

EMBEDDING = 16
INTERVAL = 5.0


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    bins: int = 8,
    dropout: float = 0.1,
    conditional: bool = False,
) -> Density:
    """Dequantize, scale, spline couplings, N(0, I); `conditional=true` for p(x | label)."""
    refuse_text(spec, "flow")
    dims = spec.dims
    width = width or pick(size, small=128, medium=256, large=512)
    depth = depth or pick(size, small=6, medium=8, large=12)
    if dims > 1024:  # a coupling has about width · dims · 3K/2 parameters
        bins, depth = min(bins, 4), min(depth, 4)
        width = max(32, min(width, 2**18 // dims))
    embedding = label_embedding(spec, EMBEDDING, conditional)
    extra = EMBEDDING if conditional else 0

    transforms = to_vector(spec)
    if spec.levels is not None:
        transforms += [Scale(1 / spec.levels), Logit()]
    outputs = parameters_per_dim(bins)
    transforms.append(
        ElementwiseSpline(
            dims,
            bins=bins,
            interval=INTERVAL,
            network=from_zero(nn.Linear(extra, dims * outputs)) if conditional else None,
        )
    )
    if dims > 1:
        for mask in _masks(dims, depth):
            moved = sum(mask)
            network = MLP(dims - moved, moved * outputs, (width, width), context=extra, dropout=dropout)
            from_zero(network.output)
            transforms.append(SplineCoupling(mask, network, bins=bins, interval=INTERVAL))
    return Flow(transforms, StandardNormal((dims,)), context=embedding)


def _masks(dims: int, depth: int) -> list[list[bool]]:
    """Pairs of complementary random halves, the same at every build."""
    generator = torch.Generator().manual_seed(0)
    masks = []
    for layer in range(depth):
        if layer % 2 == 0:
            order = torch.randperm(dims, generator=generator)
        half = order[: dims // 2] if layer % 2 == 0 else order[dims // 2 :]
        mask = torch.zeros(dims, dtype=torch.bool)
        mask[half] = True
        masks.append(mask.tolist())
    return masks


FLOW = Recipe(
    name="flow",
    summary="spline couplings over N(0, I); images, tables (mixed too), arrays",
    build=build,
    training=lambda spec: {"learning_rate": 2e-3, "batch_size": 128},
)
