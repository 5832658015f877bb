"""Autoregressive densities: a causal Transformer over pixels, tokens or whole numbers."""

from __future__ import annotations

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.transformer import CausalTransformer
from loglik.recipes.recipe import Recipe, Unsuitable, label_embedding, pick

__all__ = ["AUTOREGRESSIVE"]

LONGEST = 4096  # attention costs T² a layer


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int = 4,
    dropout: float = 0.1,
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
    width = width or pick(size, small=64, medium=128, large=256)
    depth = depth or pick(size, small=2, medium=4, large=6)
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
    training=lambda spec: {
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "batch_size": max(1, min(32, 2**13 // spec.dims)),  # a step of a long event takes long
    },
)
