"""Flows: a good default for tables, arrays and images, and every ready-made kind by name."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from loglik.classification.inputs import Columns
from loglik.data.spec import DataSpec
from loglik.density import Density, StandardNormal
from loglik.flows import (
    Affine,
    Chain,
    Elementwise,
    Flow,
    Map,
    Spline,
    VariationalDequantize,
    Whitening,
    autoregressions,
    continuous_flow,
    couplings,
    glow,
)
from loglik.recipes.recipe import Recipe, from_zero, label_embedding, pick
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.transforms import Dequantize, Jitter, Logit, PartialOut, Scale, SoftTails, Transform

__all__ = ["FLOW"]

EMBEDDING = 16
INTERVAL = 5.0
NOISE_WIDTH = 32
MOST_STEPS = 256  # of sampling one dimension after another, by default; an image above it is not tiny
KINDS = ("nsf", "nsf-ar", "realnvp", "maf", "iaf", "glow", "continuous")


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    bins: int = 8,
    kind: str = "auto",
    dropout: float = 0.2,
    jitter: float = 80.0,
    conditional: bool = False,
) -> Density:
    """`kind` is auto, nsf, nsf-ar, realnvp, maf, iaf, glow or continuous; `conditional=true` for p(x | label)."""
    refuse_text(spec, "flow")
    if kind not in ("auto", *KINDS):
        raise ValueError(f"unknown kind {kind!r}: use auto, {', '.join(KINDS)}")
    context = EMBEDDING if conditional else 0
    embedding = label_embedding(spec, EMBEDDING, conditional)
    if kind == "auto":
        kind = _default(spec)
    if kind == "glow":
        return Flow(_glow(spec, size, width, depth, context), StandardNormal((spec.dims,)), context=embedding)
    transforms = to_vector(spec, codes=True)
    if spec.levels is None and any(spec.discrete_dims):
        transforms[0] = _learned_noise(spec)
    if spec.levels is not None:
        transforms += [Scale(1 / spec.levels), Logit()]
    else:
        transforms += [PartialOut(spec.dims), SoftTails()]
    marginals = Spline(bins if spec.levels else 16, INTERVAL)
    reads_label = from_zero(nn.Linear(context, spec.dims * marginals.parameters)) if conditional else None
    transforms.append(Elementwise(spec.dims, marginals, network=reads_label))
    if spec.dims > 1 and spec.levels is None:
        transforms += [Whitening(spec.dims), Jitter(jitter)]
    if spec.dims > 1:
        transforms += _joint(spec, kind, size, width, depth, bins, dropout, context)
    return Flow(transforms, StandardNormal((spec.dims,)), context=embedding)


def _default(spec: DataSpec) -> str:
    """On tables the autoregressive one learns more from few rows; on all but tiny images kernels beat dense layers."""
    if spec.dims <= MOST_STEPS:
        return "nsf-ar" if spec.levels is None else "nsf"
    return "glow" if spec.kind == "image" and spec.levels is not None and min(spec.event_shape[1:]) > 1 else "nsf"


def _joint(
    spec: DataSpec,
    kind: str,
    size: str,
    width: int | None,
    depth: int | None,
    bins: int,
    dropout: float,
    context: int,
) -> list[Transform]:
    """What makes the dimensions depend on one another."""
    real = spec.levels is None  # a table's step costs what its layers cost, hardly what their width does
    width = width or pick(size, small=64 if real else 128, medium=128 if real else 256, large=256 if real else 512)
    if kind == "continuous":
        return continuous_flow(spec.dims, hidden=(width, width), context=context, steps=depth or 8)
    depth = depth or pick(size, small=4 if real else 6, medium=6 if real else 8, large=8 if real else 12)
    if spec.dims > 1024:  # a coupling has about width · dims · 3K/2 parameters
        bins, depth = min(bins, 4), min(depth, 4)
        width = max(32, min(width, 2**18 // spec.dims))
    options: dict[str, Any] = {"layers": depth, "hidden": (width, width), "context": context, "dropout": dropout}
    map: Map = Spline(bins, INTERVAL) if kind.startswith("nsf") else Affine()
    if kind.startswith("nsf") and real:
        map = Chain(Affine(), map)  # real columns can all but determine one another: a scale sharpens faster than bins
    if kind in ("nsf", "realnvp"):
        return couplings(spec.dims, map, **options)
    return autoregressions(spec.dims, map, inverse=kind == "iaf", **options)


class _Reader(nn.Module):
    """What the learned noise reads of a row: numbers standardised, categories one by one."""

    def __init__(self, categories: list[int]) -> None:
        super().__init__()
        self.columns = Columns(categories)
        self.network = nn.Sequential(nn.Linear(self.columns.outputs, NOISE_WIDTH), nn.SiLU())

    @property
    def output(self) -> nn.Module:
        return self.network

    def initialise(self, x: Tensor) -> None:
        self.columns.initialise(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.columns(x))


def _learned_noise(spec: DataSpec) -> Transform:
    """Learned dequantization of a mixed table's integers and categories; it starts as uniform noise."""
    noise, dims = Spline(4, 1.0), sum(spec.discrete_dims)
    read = from_zero(nn.Linear(NOISE_WIDTH, dims * noise.parameters))
    return VariationalDequantize(
        [Elementwise(dims, noise, network=read)],
        _Reader(list(spec.categories)),
        discrete=spec.discrete_dims,
        categories=spec.categories,
    )


def _glow(spec: DataSpec, size: str, width: int | None, depth: int | None, context: int) -> list[Transform]:
    """Dequantize, scale, then Glow; its kernels see the pixels' neighbourhood."""
    if spec.kind != "image" or spec.levels is None or min(spec.event_shape[1:]) < 2:
        raise ValueError(f"kind=glow takes images of 2×2 pixels or more, and these are {spec.describe()}: use kind=nsf")
    width = width or pick(size, small=64, medium=128, large=256)
    depth = depth or pick(size, small=6, medium=12, large=24)
    dequantized: list[Transform] = [Dequantize(spec.levels), Scale(1 / spec.levels), Logit()]
    return dequantized + glow(spec.event_shape, steps=depth, width=width, context=context)


def training(spec: DataSpec, kind: str | None = None) -> dict[str, Any]:
    if (kind or _default(spec)) == "glow":
        return {"learning_rate": 6e-3, "batch_size": 32, "ema_decay": 0.98}
    if spec.levels is None:
        return {"learning_rate": 5e-3, "batch_size": 256, "weight_decay": 0.1}
    return {"learning_rate": 2e-3, "batch_size": 128}


FLOW = Recipe(
    name="flow",
    summary="splines over N(0, I), or another kind of flow; images, tables (mixed too), arrays",
    build=build,
    training=training,
    kinds=KINDS,
    training_by_kind={kind: partial(training, kind=kind) for kind in KINDS},
)
