"""Pictures of a diffusion: noise coming and going, what each noise level costs, samples against steps."""

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
from loglik.report.figures import INK, panel
from loglik.report.samples import examples, image_grid

__all__ = ["Strip", "bound_by_noise", "strips"]

PLACES = 10  # of a walk, from data to noise or back
BUDGETS = (5, 10, 20, 50)  # network evaluations
FASTEST = "unipc"
LEVELS = 25  # at which the bound's integrand is measured

Strip = tuple[np.ndarray, str, str]  # pixels, what they show, a caption


def strips(density: Density, data: Data, seed: int, split: str, n: int = 4) -> list[Strip]:
    """Strips of images: to noise, from noise, and samples for more and more evaluations, from the same noise."""
    if not isinstance(density, Diffusion) or data.spec.kind != "image" or data.spec.event_shape[0] not in (1, 3):
        return []
    x = examples(data.split(split), n, classes=0, seed=seed)
    n = len(x)
    with evaluating(density, seed) as device:
        high, low = density.schedule.ends(torch.zeros((), device=device))
        path = torch.linspace(high.item(), low.item(), PLACES, device=device)
        there = torch.stack([density.noised_at(x.to(device), logsnr.expand(n)) for logsnr in path], 1).cpu()
        labels = labels_in_turn(data.spec, n).to(device) if density.conditional else None
        seen: list[Tensor] = []
        density.draw(n, labels, watch=lambda logsnr, x_t: seen.append(x_t.cpu()))
        kept = [seen[round(i * (len(seen) - 1) / (PLACES - 1))] for i in range(PLACES) if seen]  # adaptive shows none
        budgets, own = [], density.sampler
        for budget in (*BUDGETS, None):
            torch.manual_seed(seed)
            density.sampler = own if budget is None else replace(own, method=FASTEST, steps=budget, eta=0.0)
            drawn = density.sample(n, labels)
            budgets.append(drawn.cpu().double())
        density.sampler = own
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(x.min()), float(x.max()))
    columns = ", ".join(map(str, BUDGETS))
    back = (
        [
            (
                _grid(torch.stack(kept, 1), data, (-1.0, 1.0)),
                "noise and its denoised selves",
                f"a walk of {own.method} back",
            )
        ]
        if kept
        else []
    )
    return [
        (_grid(there, data, (-1.0, 1.0)), "data and their noised selves", "the forward process"),
        *back,
        (
            _grid(torch.stack(budgets, 1), data, span),
            "samples for rising numbers of evaluations, from the same noise",
            f"{FASTEST} with {columns} evaluations, then {own.method} with {own.steps}",
        ),
    ]


def _grid(x: Tensor, data: Data, span: tuple[float, float]) -> np.ndarray:
    return image_grid(x.flatten(0, 1).double(), data.spec, columns=x.shape[1], span=span)


def bound_by_noise(density: Density, data: Data, seed: int, split: str, n: int = 64) -> str | None:
    """The integrand of the bound's diffusion term over the log-SNR, as a plot; None where there is no diffusion.

    A diffusion behind a flow's transforms is looked at through them.
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
        high, low = diffusion.schedule.ends(torch.zeros((), device=device))
        levels = torch.linspace(low.item(), high.item(), LEVELS, device=device)
        nats = [diffusion.integrand(x, level.expand(n), labels).mean().item() for level in levels]
    return _plot(levels.tolist(), nats)


def _plot(levels: list[float], nats: list[float]) -> str:
    def draw(axes: Any) -> None:
        axes.fill_between(levels, nats, color=INK["model"], alpha=0.15, linewidth=0)
        axes.plot(levels, nats, color=INK["model"], linewidth=1.7)
        axes.set_ylim(bottom=0)
        axes.set_xlim(levels[0], levels[-1])
        axes.set_xlabel("log-SNR: noise at the left, data at the right")
        axes.set_ylabel("nats a unit of log-SNR")

    return panel(3.6, 2.4, draw)
