r"""Denoisers, scores and velocities of other libraries, as plain callables, become densities.

>>> import torch
>>> exact = lambda x, sigma: x / (1 + sigma.view(-1, 1) ** 2)  # D(x, σ) of data from N(0, I)
>>> density = denoiser(exact, event_shape=(2,))
>>> density.bound.value
'lower'

`loglik.diffusion.with_likelihood(density, "ode")` is the same model by its probability-flow ODE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from loglik.adapters.adapted import Adapted
from loglik.adapters.ddpm_bound import DDPMBound
from loglik.adapters.foreign import preprocessed
from loglik.adapters.paths import VE, VP, FlowMatching, Path, Steps, SubVP
from loglik.adapters.transport import Transport
from loglik.adapters.wrapped import Wrapped
from loglik.density import Density
from loglik.diffusion import LinearBeta, NoiseSchedule
from loglik.flows import Flow
from loglik.inputs import as_tensor

__all__ = ["Units", "denoiser", "score", "velocity"]


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of the data, and what else is the same for every convention.

    Attributes:
        event_shape: of one example.
        levels: K of integers 0 ... K-1; None for real data.
        span: the interval that the integers were scaled to for the network.
        mean, scale: of real data, which were standardised as (x - mean) / scale for the network: numbers, or one for
            each dimension. The log-determinant is counted.
        classes: the number of classes that the call reads as its third argument; None if it reads none.
        module: the network inside the call, if the call is not an `nn.Module` itself: it is moved, counted and put in
            evaluation mode with the density.
        data, labels: some rows, in the data's units, and their classes: the convention is checked at once, not at the
            first scores, and the bound has less noise.
        checked: False where the convention is not to be checked, as for a network without training.

    Raises ValueError for units that contradict one another.
    """

    event_shape: Sequence[int]
    levels: int | None = None
    span: tuple[float, float] = (-1.0, 1.0)
    mean: Any = None
    scale: Any = None
    classes: int | None = None
    module: nn.Module | None = None
    data: Any = None
    labels: Any = None
    checked: bool = True

    def __post_init__(self) -> None:
        if self.levels is not None and (self.mean is not None or self.scale is not None):
            raise ValueError("mean and scale are of real data: integers are scaled to span")
        if self.levels is None and tuple(self.span) != (-1.0, 1.0):
            raise ValueError(f"span={tuple(self.span)} is of integers: pass levels, or mean and scale for real data")
        if not self.span[0] < self.span[1]:
            raise ValueError(f"span must rise, got {tuple(self.span)}")
        if self.scale is not None and not ((scale := torch.as_tensor(self.scale)) > 0).all():
            raise ValueError(f"scale must be above 0, got {scale.min():g}")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Units:
        """Return the units of keyword arguments. Raises ValueError for those that there are not."""
        names = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in names]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}: use {', '.join(names)}")
        if "event_shape" not in settings:
            raise ValueError("pass event_shape, the shape of one example")
        return cls(**settings)

    def wrapped(self, call: Callable[..., Tensor], path: Path, prediction: str | None, **settings: Any) -> Wrapped:
        """Return a call as a denoiser of data scaled to [-1, 1], or of standardised real data."""
        low, high = self.span if self.levels is not None else (-1.0, 1.0)
        settings |= {"scale": (high - low) / 2, "shift": (high + low) / 2}
        return Wrapped(call, path, prediction, classes=self.classes, module=self.module, **settings)

    def density(self, model: Density) -> Density:
        """Return a density in the data's units from one in the network's, with its convention checked on the data."""
        model.eval()  # a network's dropout would count as noise
        density = preprocessed(model, mean=self.mean, scale=self.scale)
        if self.data is not None:
            like = next(model.buffers())
            data = as_tensor(self.data, like, real=not model.discrete)
            labels = None if self.labels is None else as_tensor(self.labels, like, label=True)
            seen = density.encode(data)[0] if isinstance(density, Flow) else data
            model.initialise(seen, labels)
        return density.eval()


def denoiser(
    call: Callable[..., Tensor],
    convention: str = "edm",
    *,
    prediction: str | None = None,
    sigmas: tuple[float, float] = (0.002, 80.0),
    alphas_cumprod: Sequence[float] | Tensor | None = None,
    schedule: NoiseSchedule | None = None,
    time_scale: float = 1.0,
    variance: str | None = None,
    clip: float | None = None,
    data_at: int = 1,
    sigma_min: float = 0.0,
    **units: Any,
) -> Density:
    r"""Return a denoiser as a density: a lower bound of log p, or its estimate by the probability-flow ODE.

    The call reads noised data and the noise level of each row:

    | convention | call | noised data | prediction, if None |
    |---|---|---|---|
    | `edm` | D(y, σ), as in k-diffusion, EDM and azula | $w + \sigma\epsilon$ | `data` |
    | `ve` | ε̂(y, σ) | $w + \sigma\epsilon$ | `noise` |
    | `vp` | ε̂(y, t), with t = 0 ... T-1 | $\sqrt{\bar\alpha_t}\,w + \sqrt{1 - \bar\alpha_t}\,\epsilon$ | `noise` |
    | `vp`, with a schedule | ε̂(y, t · time_scale), with t in [0, 1] | $\alpha_t w + \sigma_t\epsilon$ | `noise` |
    | `flow` | u(y, t · time_scale) | $t\,w + (1 - t)\,\epsilon$ | `velocity` |

    Args:
        call: from (y, labels), and the classes where there are some, to the prediction.
        convention: `edm`, `ve`, `vp` or `flow`.
        prediction: `data`, `noise` or `score`; of `vp` also `v`; of `flow` `velocity`, `data` or `noise`.
        sigmas: the lowest and the highest σ of the training; of `edm` and `ve`.
        alphas_cumprod: ᾱ of the chain's T steps, DDPM's by default. The bound is DDPM's, see `DDPMBound`; the ODE
            lies between trained timesteps, whose labels are interpolated.
        schedule: of `vp` in continuous time, in place of alphas_cumprod.
        time_scale: factor of the times that the network reads.
        variance, clip: of DDPM's bound; the variance is `fixed_small` for integers and `fixed_large` for real data if
            None, as either suits one network.
        data_at, sigma_min: of `flow`; see `velocity`.
        **units: see `Units`; event_shape is needed.

    Raises ValueError for an unknown convention, and where the call does not remove noise from the data.
    """
    own = Units.of(units)
    path: Path
    if convention in ("edm", "ve"):
        path = VE(*sigmas, name=convention)
    elif convention == "vp" and schedule is not None:
        if alphas_cumprod is not None:
            raise ValueError("pass alphas_cumprod, of a chain, or schedule, of continuous time")
        path = VP(schedule, time_scale=time_scale)
    elif convention == "vp":
        path = Steps(alphas_cumprod)
    elif convention == "flow":
        path = FlowMatching(data_at, sigma_min=sigma_min, time_scale=time_scale)
    else:
        raise ValueError(f"unknown convention {convention!r}: use edm, ve, vp or flow")
    return diffusion_of(call, path, prediction, own, variance=variance, clip=clip)


def diffusion_of(
    call: Callable[..., Tensor],
    path: Path,
    prediction: str | None,
    units: Units,
    *,
    variance: str | None = None,
    clip: float | None = None,
    doubled: bool = False,
) -> Density:
    """Return a call on a path as a density; DDPM's chain has its own bound."""
    wrapped = units.wrapped(call, path, prediction, doubled=doubled)
    shape, levels, likelihood = tuple(units.event_shape), units.levels, None
    if isinstance(path, Steps):
        variance = variance or ("fixed_large" if levels is None else "fixed_small")
        likelihood = DDPMBound(wrapped, variance=variance, clip=clip)
    return units.density(Adapted(wrapped, shape, levels=levels, likelihood=likelihood, checked=units.checked))


def score(
    call: Callable[..., Tensor],
    sde: str = "vp",
    *,
    network: bool = True,
    betas: tuple[float, float] = (0.1, 20.0),
    sigmas: tuple[float, float] = (0.01, 50.0),
    **units: Any,
) -> Density:
    r"""Return a score network of score_sde as a density: a lower bound, or an estimate by the ODE.

    Args:
        call: score_sde's network, model(y, labels): of `vp` and `subvp` it reads 999 t and returns $-b$ times the
            score, of `ve` it reads σ and returns the score. With network=False it is a score function s(y, t) with t in
            [0, 1], as its `get_score_fn` returns.
        sde: `vp`, `subvp` or `ve`.
        network: what the call is.
        betas: β(0) and β(1) of `vp` and `subvp`.
        sigmas: the lowest and the highest σ of `ve`.
        **units: see `Units`; event_shape is needed.

    Raises ValueError for an unknown SDE, and where the call does not remove noise from the data.

    Reference: Song et al. 2021, "Score-based generative modeling through SDEs".
    """
    path: Path
    if sde in ("vp", "subvp"):
        path = (VP if sde == "vp" else SubVP)(LinearBeta(*betas), time_scale=999.0 if network else 1.0)
    elif sde == "ve":
        path = VE(*sigmas, times=not network)
    else:
        raise ValueError(f"unknown sde {sde!r}: use vp, subvp or ve")
    return diffusion_of(call, path, "noise" if network and sde != "ve" else "score", Units.of(units))


def velocity(
    call: Callable[..., Tensor],
    *,
    data_at: int = 1,
    gaussian: bool = False,
    sigma_min: float = 0.0,
    sigma: float = 0.0,
    time_scale: float = 1.0,
    steps: int = 40,
    **units: Any,
) -> Density:
    r"""Return a velocity field of flow matching or rectified flow as a density.

    By default it is the density to which the field carries N(0, I), an estimate by the ODE $dy/dt = u(y, t)$ whose
    error is known: right for every field, also of optimal-transport couplings and of reflow. With gaussian=True the
    path is known to be Gaussian, $y = t\,w + (1 - t)\,\epsilon$ with independent data and noise, and the density is a
    diffusion with a lower bound, samplers and `with_likelihood(density, "ode")`.

    Args:
        call: u(y, t) with t of shape (B,): of torchcfm `lambda y, t: model(t, y)`.
        data_at: the time of the data, 1 as in torchcfm and flow_matching, or 0 as in Stable Diffusion 3.
        gaussian: whether data and noise were drawn independently.
        sigma_min: of a Gaussian path that ends in $\mathcal N(w, \sigma_{\min}^2 I)$ (Lipman et al. 2023).
        sigma: of torchcfm's `ConditionalFlowMatcher` (Tong et al. 2024); of a Gaussian path.
        time_scale: factor of the times that the call reads.
        steps: of the ODE's first solution, which is refined until its error is small.
        **units: see `Units`; event_shape is needed.

    Raises ValueError for integers without gaussian=True, and where the call does not carry the data to noise.
    """
    own = Units.of(units)
    path = FlowMatching(data_at, sigma_min=sigma_min, sigma=sigma, time_scale=time_scale)
    if gaussian:
        return diffusion_of(call, path, "velocity", own)
    if own.levels is not None:
        raise ValueError("integers have no density under an ODE: pass gaussian=True, which counts their dequantization")
    wrapped = own.wrapped(call, path, "velocity")
    return own.density(Transport(wrapped, tuple(own.event_shape), steps=steps, checked=own.checked))
