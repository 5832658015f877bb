"""Autoregressive densities: a causal Transformer over pixels, tokens or whole numbers."""

from __future__ import annotations

from torch import nn

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.transformer import CausalTransformer
from loglik.recipes import text
from loglik.recipes.recipe import Recipe, Unsuitable, label_embedding, pick

__all__ = ["AUTOREGRESSIVE"]

LONGEST = 4096  # attention costs T² a layer


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    dropout: float | None = None,
    conditional: bool = False,
) -> Density:
    """A causal Transformer; `conditional=true` for p(x | label)."""
    if spec.levels is None:
        raise Unsuitable(
            "autoregressive takes whole numbers (images, text, integer arrays); for a table or real arrays use flow, "
            "vae or diffusion"
        )
    if spec.dims > LONGEST:
        raise Unsuitable(
            f"autoregressive takes events of at most {LONGEST} numbers and these have {spec.dims}; use flow, vae or "
            "diffusion, or smaller images"
        )
    if spec.kind == "text":
        width = width or pick(size, small=128, medium=256, large=384)
        depth = depth or pick(size, small=4, medium=6, large=6)
        dropout = pick(size, small=0.0, medium=0.1, large=0.2) if dropout is None else dropout
        density = Autoregressive(
            CausalTransformer(width, depth, heads or max(1, width // 32), dropout=dropout, settings=text.BLOCKS),
            spec.event_shape,
            spec.levels,
            context=label_embedding(spec, width, conditional),
            dropout=dropout,
            positions="none",
            shared=True,
        )
        nn.init.normal_(density.start, std=0.02)  # a norm of zeros has a gradient without bound
        return density
    width = width or pick(size, small=64, medium=128, large=256)
    depth = depth or pick(size, small=2, medium=4, large=6)
    heads = heads or 4
    dropout = 0.1 if dropout is None else dropout
    return Autoregressive(
        CausalTransformer(width, depth, heads, dropout=dropout),
        spec.event_shape,
        spec.levels,
        context=label_embedding(spec, width, conditional),
        dropout=dropout,
    )


AUTOREGRESSIVE = Recipe(
    name="autoregressive",
    summary="a causal Transformer over the pixels or tokens; images, text, integer arrays",
    build=build,
    training=lambda spec: (
        text.training(spec)
        if spec.kind == "text"
        else {
            "learning_rate": 4e-3,
            "weight_decay": 0.05,
            "batch_size": max(1, min(32, 2**13 // spec.dims)),  # a step of a long event takes long
        }
    ),
)
