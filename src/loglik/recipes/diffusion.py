"""Diffusion models: the VP-SDE or flow matching with a U-Net or a Transformer for images, and an MLP for other data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import (
    VLB,
    ColumnDenoiser,
    Cosine,
    Denoiser,
    Diffusion,
    FlowMatching,
    Learned,
    LevelDenoiser,
    LinearBeta,
    LinearLogSNR,
    NoiseSchedule,
    PixelDenoiser,
    RectifiedFlow,
    Sampler,
    ScoreMatching,
)
from loglik.diffusion.steps import NOISE_ADDING
from loglik.flows import Flow
from loglik.networks import DiT, ResidualMLP, UNet
from loglik.recipes.incomplete import with_imputer
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import (
    Recipe,
    conditional_on_inputs,
    context_network,
    context_width,
    from_zero,
    pick,
    refuse_unused,
)
from loglik.recipes.vectors import refuse_text, to_vector
from loglik.transforms import Standardise

__all__ = ["DIFFUSION", "DiffusionOptions"]

FEATURES = 32
EMBEDDING = 16
READS, WRITES = 8, 32  # features per level that an image's network reads and writes
MIN_SIDE = 12  # images with a smaller side are vectors to the MLP
MAX_LOGITS = 2**20  # per example: up to here the denoiser of an image gives each level of each dimension a probability
UNLABELLED = 0.1  # the share of labels left out in training, so that samples can be guided
BETAS = 0.1, 20.0  # Song et al. 2021, appendix C; DDPM's 0.0001 to 0.02 times its T = 1000

_TIMES = {"flow-matching": "time", "logit-normal": "importance"}

Kind = Literal["unet", "dit", "mlp"]
NETWORKS: tuple[str, ...] = get_args(Kind)
FLOW_MATCHING = {"schedule": "flow-matching", "weighting": "flow-matching"}


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(Options):
    """Options of `diffusion`."""

    kind: Literal["auto"] | Kind = option(
        "auto", help="Network of the denoiser; auto is unet for images of 12×12 or more, else mlp."
    )
    width: int | None = option(None, min=1, help="Width of the network; by size if null.")
    depth: int | None = option(
        None, min=1, help="Blocks: per resolution of unet, in all of dit and mlp (3 if null); by size if null."
    )
    patch: int | None = option(None, min=1, help="Side of dit's patches; 2, 4 or 8 by the image's size if null.")
    dropout: float | None = option(None, min=0, below=1, help="Dropout rate; if null 0.2 for mlp, else 0.")
    schedule: Literal["linear", "cosine", "linear-logsnr", "flow-matching", "learned"] = option(
        "linear",
        help="Noise schedule: β(t) linear (the VP-SDE), α(t) a cosine, the log-SNR linear, the straight path of flow "
        "matching, or a monotone network.",
    )
    beta_min: float | None = option(None, above=0, help="β(0) of the linear schedule; 0.1 if null.")
    beta_max: float | None = option(None, above=0, help="β(1) of the linear schedule; 20 if null.")
    T: int | None = option(
        None, min=2, help="Steps of a DDPM chain, for training, the bound and sampling; continuous time if null."
    )
    prediction: Literal["auto", "noise", "data", "v", "score", "velocity"] = option(
        "auto",
        help="What the network predicts; auto is v for real numbers, and for pixels and codes the probability of each "
        "level, which has the better likelihood.",
    )
    weighting: Literal["likelihood", "simple", "data", "v", "flow-matching", "logit-normal", "min-snr", "sigmoid"] = (
        option("likelihood", help="Weighting of the noise levels in the training loss; likelihood is the bound itself.")
    )
    method: Literal[
        "auto", "ddpm", "ddim", "euler", "euler-maruyama", "predictor-corrector", "heun", "midpoint", "dpm++2m",
        "dpm++3m", "dpm++2m-sde", "unipc", "ipndm", "adaptive",
    ] = option(
        "auto",
        help="Sampling method; auto is ddpm, for unet and dit dpm++2m-sde to log-SNR 4, with schedule=flow-matching "
        "midpoint, and with reflow euler.",
    )  # fmt: skip
    steps: int | None = option(
        None,
        min=1,
        help="Sampling steps; if null T; with method=auto 20 for unet and dit, 25 of midpoint, 4 of euler; else 200.",
    )
    reflow: str | None = option(
        None,
        help="A run of a diffusion: train a rectified flow, whose paths are straighter, on the pairs of noise and data "
        "that its ODE joins. It starts from the run's weights, on the same data, and has no bound.",
    )
    conditional: bool = option(False, help="Learn p(x | label) instead of p(x).")


def build(spec: DataSpec, options: DiffusionOptions) -> Density:
    """Return a diffusion model; columns of real numbers are standardised before it."""
    refuse_text(spec, "diffusion")
    options = conditional_on_inputs(spec, options)
    kind = _kind(spec, options.kind)
    image = kind != "mlp"
    if kind != "dit":
        refuse_unused(options, ("patch",), f"kind={kind}", "use kind=dit")
    shape = spec.event_shape if spec.levels is not None or image else (spec.dims,)
    codes = any(spec.categories)
    max_logits = MAX_LOGITS if image else 2**14
    by_level = options.prediction == "auto" and spec.levels is not None and spec.dims * spec.levels <= max_logits
    weighting = options.weighting
    adaptive = image and weighting == "likelihood" and options.T is None and options.schedule != "learned"
    times = "importance" if adaptive else _TIMES.get(weighting, "uniform")
    if options.reflow is not None:
        _check_reflow(spec, options)
    diffusion = (Diffusion if options.reflow is None else RectifiedFlow)(
        _denoiser(spec, options, kind, shape, by_level),
        shape,
        levels=spec.levels,
        categories=spec.categories if codes else None,
        schedule=_schedule(spec, options, image, by_level),
        objective=ScoreMatching(weighting, times=times, steps=options.T),
        likelihood=None if options.T is None else VLB(options.T),
        sampler=_sampler(options, image),
    )
    if spec.levels is not None:
        return diffusion
    transforms = [Standardise(shape)] if image else to_vector(spec)
    density = Flow(transforms, diffusion) if transforms else diffusion
    return with_imputer(density, spec, size=options.size, conditional=options.conditional)


def _denoiser(spec: DataSpec, options: DiffusionOptions, kind: str, shape: tuple[int, ...], by_level: bool) -> Denoiser:
    """Return the denoiser: of levels, of rows with codes, or of real numbers."""
    context = context_network(spec, context_width(spec, EMBEDDING), options.conditional)
    if kind == "mlp":
        network = _vector_network(spec, options, by_level)
    else:
        network = (_dit if kind == "dit" else _unet)(shape, options, by_level)
    shared: dict[str, Any] = {
        "features": FEATURES, "context": context, "unconditional": UNLABELLED if options.conditional else 0.0
    }  # fmt: skip
    if by_level and kind != "mlp":
        return PixelDenoiser(network, spec.levels or 0, shape, reads=READS, writes=WRITES, **shared)
    if by_level:
        return LevelDenoiser(network, spec.levels or 0, shape, **shared)
    if not any(spec.categories):
        return Denoiser(
            network, prediction="v" if options.prediction == "auto" else options.prediction, event_shape=shape, **shared
        )
    if options.prediction != "auto":
        raise ValueError(
            f"prediction={options.prediction} is for images and real numbers, and these are {spec.describe()}: use "
            "prediction=auto"
        )
    return ColumnDenoiser(network, spec.categories, **shared)


def _check_reflow(spec: DataSpec, options: DiffusionOptions) -> None:
    """Raise ValueError for options and data that a rectified flow cannot have."""
    if options.T is not None or options.weighting == "likelihood" or options.schedule == "learned":
        raise ValueError("reflow minimises the loss of flow matching: use the model diffusion:flow-matching, without T")
    if options.method in NOISE_ADDING:
        raise ValueError(f"reflow has no score for method={options.method}: use method=euler, midpoint or unipc")
    if spec.incomplete:
        raise ValueError("reflow needs complete rows, and these data have missing values: use missing=refuse")


def _sampler(options: DiffusionOptions, image: bool) -> Sampler:
    steps = options.steps or options.T
    if options.method == "auto" and options.reflow is not None:
        return Sampler(method="euler", steps=steps or 4)
    if options.method == "auto" and options.schedule == "flow-matching" and options.T is None:
        return Sampler(method="midpoint", steps=steps or 25)
    if options.method == "auto" and options.T is not None:
        return Sampler(method="ddpm", steps=steps or 200, spacing="time")
    if options.method == "auto" and image:
        return Sampler(method="dpm++2m-sde", steps=steps or 20, until=4.0)
    return Sampler(method="ddpm" if options.method == "auto" else options.method, steps=steps or 200)


def _kind(spec: DataSpec, kind: str) -> str:
    image = spec.kind == "image"
    if kind == "auto":
        return "unet" if image and min(spec.event_shape[1:]) >= MIN_SIDE else "mlp"
    if kind != "mlp" and not image:
        raise ValueError(f"kind={kind} models images, and these are {spec.describe()}: use kind=mlp")
    return kind


def _schedule(spec: DataSpec, options: DiffusionOptions, image: bool, by_level: bool) -> NoiseSchedule:
    """Return the noise schedule, which starts where less noise would not improve the bound.

    A denoiser of levels snaps to one, so that little noise costs it nothing. For others, noise below 0.4 of the levels'
    distance only loses what the reconstruction would have known.
    """
    if options.schedule != "linear":
        refuse_unused(options, ("beta_min", "beta_max"), f"schedule={options.schedule}", "use schedule=linear")
    first, last = options.beta_min or BETAS[0], options.beta_max or BETAS[1]
    if spec.levels is None:
        t_min = 1e-5
    elif by_level and not image:
        t_min = 1e-4
    else:
        logsnr = torch.tensor(-2 * math.log((0.25 if by_level else 0.8) / (spec.levels - 1)))
        t_min = LinearBeta(first, last, t_min=1e-9).time(logsnr).item()
    linear = LinearBeta(first, last, t_min=t_min)
    if options.schedule == "linear":
        return linear
    highest = linear.logsnr(torch.zeros(())).item()
    if options.schedule == "cosine":
        return Cosine(highest)
    if options.schedule == "linear-logsnr":
        return LinearLogSNR(highest)
    if options.schedule == "flow-matching":
        return FlowMatching(highest)
    if options.T is not None or options.weighting != "likelihood":
        raise ValueError(
            "schedule=learned minimises the variance of the continuous bound: leave T out and use weighting=likelihood"
        )
    return Learned(highest)


def _context(options: DiffusionOptions, width: int = EMBEDDING) -> int:
    """The width of the vector of time features and of the label or the inputs."""
    return FEATURES + (width if options.conditional else 0)


def _vector_network(spec: DataSpec, options: DiffusionOptions, by_level: bool) -> nn.Module:
    inputs = sum(count or 1 for count in spec.categories)  # a code is a one-hot vector
    network = ResidualMLP(
        inputs,
        inputs * (spec.levels if by_level and spec.levels else 1),
        width=options.width or pick(options.size, small=256, medium=512, large=1024),
        depth=options.depth or 3,
        context=_context(options, context_width(spec, EMBEDDING)),
        dropout=0.2 if options.dropout is None else options.dropout,
    )
    from_zero(network.output)
    return network


def _channels(channels: int, by_level: bool) -> tuple[int, int]:
    """The channels in and out of an image's network."""
    return (channels * (READS + 2), channels * WRITES) if by_level else (channels, channels)


def _dit(shape: tuple[int, ...], options: DiffusionOptions, by_level: bool) -> nn.Module:
    channels, height, across = shape
    inputs, outputs = _channels(channels, by_level)
    width = options.width or pick(options.size, small=128, medium=256, large=384)
    side = max(height, across)
    return DiT(
        (inputs, height, across),
        outputs,
        patch=options.patch or (2 if side <= 32 else 4 if side <= 64 else 8),
        width=width,
        depth=options.depth or pick(options.size, small=4, medium=6, large=12),
        heads=max(h for h in (1, 2, 4, 8) if width % h == 0),
        context=_context(options),
        dropout=options.dropout or 0.0,
    )


def _unet(shape: tuple[int, ...], options: DiffusionOptions, by_level: bool) -> nn.Module:
    channels, height, across = shape
    inputs, outputs = _channels(channels, by_level)
    width = options.width or pick(options.size, small=32, medium=64, large=128)
    resolutions = 3 if max(height, across) <= 32 else 4
    return UNet(
        inputs,
        outputs,
        width=width,
        multipliers=(1, *[2] * (resolutions - 1)),
        blocks=options.depth or pick(options.size, small=2, medium=2, large=3),
        attention=(resolutions - 1,),
        heads=max(h for h in (1, 2, 4) if 2 * width % h == 0),
        context=_context(options),
        groups=max(g for g in (1, 2, 4, 8) if width % g == 0),
        dropout=options.dropout or 0.0,
    )


def training(spec: DataSpec, kind: str = "auto") -> dict[str, Any]:
    """Return the training settings of a kind."""
    if _kind(spec, kind) == "mlp":
        return {"learning_rate": 1e-3, "batch_size": 128, "ema_decay": 0.998}
    batch = max(4, min(32, 2**15 // spec.dims))
    return {
        "optimizer": "muon", "learning_rate": 5e-3, "batch_size": batch, "ema_decay": 0.99, "precision": "auto"
    }  # fmt: skip


DIFFUSION = Recipe(
    name="diffusion",
    summary="VP-SDE or flow matching, trained by score matching; images, tables (mixed too), arrays",
    options_type=DiffusionOptions,
    build=build,
    training=training,
    kinds=(*NETWORKS, "flow-matching"),
    training_by_kind={kind: partial(training, kind=kind) for kind in NETWORKS},
    presets={"flow-matching": FLOW_MATCHING},
)
