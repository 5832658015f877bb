"""Pictures of a diffusion: both processes, the bound at each noise level, and samples against evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import Data
from loglik.density import Density
from loglik.diffusion import Diffusion
from loglik.evaluation.scores import evaluating, labels_in_turn
from loglik.flows import Flow
from loglik.report.panel import INK, panel
from loglik.report.samples import examples, image_grid

__all__ = ["Strip", "bound_by_noise", "strips"]

STATES = 10  # of a trajectory, from data to noise or back
EVALUATIONS = (5, 10, 20, 50)  # of the network
FEW_STEP_METHOD = "unipc"
NOISE_LEVELS = 25  # at which the integrand of the bound is measured

Strip = tuple[np.ndarray, str, str]  # pixels, a text in their place, a caption


def strips(density: Density, data: Data, seed: int, split: str, n: int = 4) -> list[Strip]:
    """Return strips of images: the forward process, the reverse process, and samples against evaluations."""
    if not isinstance(density, Diffusion) or data.spec.kind != "image" or data.spec.event_shape[0] not in (1, 3):
        return []
    x = examples(data.split(split), n, classes=0, seed=seed)
    n = len(x)
    with evaluating(density, seed) as device:
        high, low = torch.stack(density.schedule.ends(torch.zeros((), device=device))).tolist()
        path = torch.linspace(high, low, STATES, device=device)
        noised = torch.stack([density.noised_at(x.to(device), logsnr.expand(n)) for logsnr in path], 1).cpu()
        labels = labels_in_turn(data.spec, n).to(device) if density.conditional else None
        states: list[Tensor] = []
        density.draw(n, labels, watch=lambda logsnr, x_t: states.append(x_t))
        # an adaptive solver shows no states
        reverse = [states[round(i * (len(states) - 1) / (STATES - 1))] for i in range(STATES) if states]
        samples, own = [], density.sampler
        for steps in (*EVALUATIONS, None):
            torch.manual_seed(seed)
            density.sampler = own if steps is None else replace(own, method=FEW_STEP_METHOD, steps=steps, eta=0.0)
            drawn = density.sample(n, labels)
            samples.append(drawn.cpu().double())
        density.sampler = own
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(x.min()), float(x.max()))
    columns = ", ".join(map(str, EVALUATIONS))
    trajectory: list[Strip] = []
    if reverse:
        pixels = _grid(torch.stack(reverse, 1).cpu(), data, (-1.0, 1.0))
        trajectory = [(pixels, "noise turning into samples", f"reverse process, by {own.method}")]
    return [
        (_grid(noised, data, (-1.0, 1.0)), "data turning into noise", "forward process"),
        *trajectory,
        (
            _grid(torch.stack(samples, 1), data, span),
            "samples for increasing numbers of evaluations, from the same noise",
            f"samples: {FEW_STEP_METHOD} with {columns} evaluations, then {own.method} with {own.steps}",
        ),
    ]


def _grid(x: Tensor, data: Data, span: tuple[float, float]) -> np.ndarray:
    return image_grid(x.flatten(0, 1).double(), data.spec, columns=x.shape[1], span=span)


def bound_by_noise(density: Density, data: Data, seed: int, split: str, n: int = 64) -> str | None:
    """Plot the integrand of the bound's diffusion term over the log-SNR; None if there is no diffusion.

    The base of a flow is evaluated on transformed data.
    """
    diffusion = density.base if isinstance(density, Flow) else density
    part = data.split(split)
    if not isinstance(diffusion, Diffusion) or (density.conditional and part.y is None):
        return None
    n = min(n, len(part), max(4, 2**16 // data.spec.dims))
    rows = torch.linspace(0, len(part) - 1, n).round().long()
    with evaluating(density, seed) as device:
        x = part.x[rows].to(device)
        labels = part.y[rows].to(device) if density.conditional and part.y is not None else None
        if isinstance(density, Flow):
            x = density.encode(x, labels)[0]
        high, low = torch.stack(diffusion.schedule.ends(torch.zeros((), device=device))).tolist()
        logsnrs = torch.linspace(low, high, NOISE_LEVELS, device=device)
        nats = torch.stack([diffusion.integrand(x, logsnr.expand(n), labels).mean() for logsnr in logsnrs])
    return _plot(logsnrs.tolist(), nats.tolist())


def _plot(logsnrs: list[float], nats: list[float]) -> str:
    def draw(axes: Any) -> None:
        axes.fill_between(logsnrs, nats, color=INK["model"], alpha=0.15, linewidth=0)
        axes.plot(logsnrs, nats, color=INK["model"], linewidth=1.7)
        axes.set_ylim(bottom=0)
        axes.set_xlim(logsnrs[0], logsnrs[-1])
        axes.set_xlabel("log-SNR, from noise to data")
        axes.set_ylabel("nats per unit of log-SNR")

    return panel(3.6, 2.4, draw)
