"""Flows: a good default for tables, arrays and images, and every ready-made kind by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from loglik.classification.inputs import Columns
from loglik.data.spec import DataSpec
from loglik.density import Density, StandardNormal
from loglik.flows import (
    Affine,
    Chain,
    Elementwise,
    Flow,
    GaussianMixture,
    Map,
    Spline,
    StandardLogistic,
    VariationalDequantize,
    Whitening,
    autoregressions,
    continuous_flow,
    couplings,
    glow,
)
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import Recipe, conditional_on_inputs, context_network, context_width, from_zero, pick
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.transforms import Dequantize, Jitter, Logit, PartialOut, Scale, SoftTails, Transform

__all__ = ["FLOW", "FlowOptions"]

EMBEDDING = 16
INTERVAL = 5.0
NOISE_WIDTH = 32
MAX_AUTOREGRESSIVE = 256  # steps of sampling one dimension after another, by default; an image above it is not tiny

Kind = Literal["nsf", "nsf-ar", "realnvp", "maf", "iaf", "glow", "continuous"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class FlowOptions(Options):
    """Options of `flow`."""

    kind: Literal["auto"] | Kind = option(
        "auto", help="Transforms; auto is nsf-ar for tables and arrays, nsf for small images, glow for larger ones."
    )
    base: Literal["normal", "logistic", "mixture"] = option(
        "normal", help="Base density: N(0, I), independent logistics, or a learned Gaussian mixture."
    )
    width: int | None = option(None, min=1, help="Width of the networks' hidden layers; by size if null.")
    depth: int | None = option(
        None,
        min=1,
        help="Number of transforms: couplings, autoregressive maps, steps of glow per scale, or solver steps of "
        "continuous; by size if null.",
    )
    bins: int = option(8, min=1, help="Bins of each spline.")
    dropout: float = option(0.2, min=0, below=1, help="Dropout rate of couplings' and autoregressive maps' networks.")
    jitter: float = option(
        80.0,
        min=0,
        help="c: in training, real columns get noise with standard deviation min(c / rows, 1/2) after whitening.",
    )
    conditional: bool = option(False, help="Learn p(x | label) instead of p(x).")


def build(spec: DataSpec, options: FlowOptions) -> Density:
    """Return a flow: dequantization and marginal splines, then transforms that make the dimensions dependent."""
    refuse_text(spec, "flow")
    options = conditional_on_inputs(spec, options)
    conditional = options.conditional
    width = context_width(spec, EMBEDDING)
    context = width if conditional else 0
    embedding = context_network(spec, width, conditional)
    kind = _default(spec) if options.kind == "auto" else options.kind
    if kind == "glow":
        return Flow(_glow(spec, options), _base(spec, options), context=embedding)
    transforms = to_vector(spec, codes=True)
    if spec.levels is None and any(spec.discrete_dims):
        transforms[0] = _learned_noise(spec)
    if spec.levels is not None:
        transforms += [Scale(1 / spec.levels), Logit()]
    else:
        transforms += [PartialOut(spec.dims), SoftTails()]
    marginals: Map = Spline(options.bins if spec.levels else 16, INTERVAL)
    if spec.inputs:  # a target may be a nearly deterministic function of the inputs
        marginals = Chain(Affine(), marginals)
    reads_label = from_zero(nn.Linear(context, spec.dims * marginals.parameters)) if conditional else None
    transforms.append(Elementwise(spec.dims, marginals, network=reads_label))
    if spec.dims > 1 and spec.levels is None:
        transforms += [Whitening(spec.dims), Jitter(options.jitter)]
    if spec.dims > 1:
        transforms += _joint(spec, kind, options)
    return Flow(transforms, _base(spec, options), context=embedding)


def _base(spec: DataSpec, options: FlowOptions) -> Density:
    bases: dict[str, Callable[[tuple[int, ...]], Density]] = {
        "normal": StandardNormal, "logistic": StandardLogistic, "mixture": GaussianMixture
    }  # fmt: skip
    return bases[options.base]((spec.dims,))


def _default(spec: DataSpec) -> str:
    """Return the kind for a spec.

    On tables the autoregressive one learns more from few rows; on images that are not tiny, kernels beat dense layers.
    """
    if spec.dims <= MAX_AUTOREGRESSIVE:
        return "nsf-ar" if spec.levels is None else "nsf"
    return "glow" if spec.kind == "image" and spec.levels is not None and min(spec.event_shape[1:]) > 1 else "nsf"


def _joint(spec: DataSpec, kind: str, options: FlowOptions) -> list[Transform]:
    """Return the transforms that make the dimensions depend on one another."""
    size, bins = options.size, options.bins
    context = context_width(spec, EMBEDDING) if options.conditional else 0
    real = spec.levels is None  # a table's step costs by its number of layers, hardly by their width
    width = options.width or pick(
        size, small=64 if real else 128, medium=128 if real else 256, large=256 if real else 512
    )
    if kind == "continuous":
        return continuous_flow(spec.dims, hidden=(width, width), context=context, steps=options.depth or 8)
    depth = options.depth or pick(size, small=4 if real else 6, medium=6 if real else 8, large=8 if real else 12)
    if spec.dims > 1024:  # a coupling has about width · dims · 3K/2 parameters
        bins, depth = min(bins, 4), min(depth, 4)
        width = max(32, min(width, 2**18 // spec.dims))
    settings: dict[str, Any] = {
        "layers": depth, "hidden": (width, width), "context": context, "dropout": options.dropout
    }  # fmt: skip
    map: Map = Spline(bins, INTERVAL) if kind.startswith("nsf") else Affine()
    if kind.startswith("nsf") and real:
        map = Chain(Affine(), map)  # real columns can nearly determine one another: a scale sharpens faster than bins
    if kind in ("nsf", "realnvp"):
        return couplings(spec.dims, map, **settings)
    return autoregressions(spec.dims, map, inverse=kind == "iaf", **settings)


class _Reader(nn.Module):
    """Features of a row for the learned noise: numbers standardised, categories as one-hot codes."""

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
        features: Tensor = self.network(self.columns(x))
        return features


def _learned_noise(spec: DataSpec) -> Transform:
    """Return a learned dequantization of a mixed table's integers and categories, which starts as uniform noise."""
    noise, dims = Spline(4, 1.0), sum(spec.discrete_dims)
    read = from_zero(nn.Linear(NOISE_WIDTH, dims * noise.parameters))
    return VariationalDequantize(
        [Elementwise(dims, noise, network=read)],
        _Reader(list(spec.categories)),
        discrete=spec.discrete_dims,
        categories=spec.categories,
    )


def _glow(spec: DataSpec, options: FlowOptions) -> list[Transform]:
    """Return a dequantization, a scale, then Glow, whose kernels see the pixels' neighbourhood."""
    if spec.kind != "image" or spec.levels is None or min(spec.event_shape[1:]) < 2:
        raise ValueError(
            f"kind=glow models images of 2×2 pixels or more, and these are {spec.describe()}: use kind=nsf"
        )
    width = options.width or pick(options.size, small=64, medium=128, large=256)
    depth = options.depth or pick(options.size, small=6, medium=12, large=24)
    context = EMBEDDING if options.conditional else 0
    dequantized: list[Transform] = [Dequantize(spec.levels), Scale(1 / spec.levels), Logit()]
    return dequantized + glow(spec.event_shape, steps=depth, width=width, context=context)


def training(spec: DataSpec, kind: str | None = None) -> dict[str, Any]:
    """Return the training settings of a kind; those of the spec's default kind if None."""
    if (kind or _default(spec)) == "glow":
        return {"learning_rate": 6e-3, "batch_size": 32, "ema_decay": 0.98}
    if spec.levels is None:
        return {"learning_rate": 5e-3, "batch_size": 256, "weight_decay": 0.1}
    return {"learning_rate": 2e-3, "batch_size": 128}


FLOW = Recipe(
    name="flow",
    summary="splines over N(0, I), or another kind of flow; images, tables (mixed too), arrays",
    options_type=FlowOptions,
    build=build,
    training=training,
    kinds=KINDS,
    training_by_kind={kind: partial(training, kind=kind) for kind in KINDS},
)
