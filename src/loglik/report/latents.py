"""What the page shows of a density's latents: which are active, where they lie, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.evaluation.scores import arguments, evaluating
from loglik.report import figures
from loglik.report.samples import image_grid
from loglik.tasks.latents import Latents
from loglik.vae.diagnostics import Diagnosis

__all__ = ["LatentView", "view_latents"]

LOOKED_AT = 500  # examples
ACROSS = 10
DIMS = 5  # that are traversed


@dataclass(frozen=True)
class LatentView:
    """`lines` in words; `plots` as SVG, `grids` as pixels, each with its caption."""

    lines: list[str]
    plots: list[tuple[str, str]]
    grids: list[tuple[np.ndarray, str]]


def view_latents(density: Density, spec: DataSpec, split: Split, *, seed: int) -> LatentView | None:
    """Look at examples of a split; None for a density without latents."""
    if not Latents.has(density) or (density.conditional and split.y is None):
        return None
    latents = Latents(density)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:LOOKED_AT]
    with evaluating(density, seed) as device:
        y = None if split.y is None else split.y[order].to(device)
        x, given = arguments(density, split.x[order].to(device), y)
        found = latents.diagnose(x, given)
        plots = [
            (
                figures.latent_bars(found.kl.cpu().numpy(), found.active.cpu().numpy()),
                "KL of each latent dimension, the largest first",
            )
        ]
        plots += _where(found)
        grids = _grids(latents, spec, x, given, found) if spec.kind == "image" and spec.event_shape[0] in (1, 3) else []
    return LatentView(found.lines(), plots, grids)


def _where(found: Diagnosis) -> list[tuple[str, str]]:
    """The aggregate posterior over samples of the prior, in the two dimensions of the largest KL."""
    if found.z.shape[1] < 2:
        return []
    first, second = found.kl[: found.z.shape[1]].argsort(descending=True)[:2].tolist()
    pair = [first, second]
    plot = figures.scatter(
        found.prior[:, pair].cpu().numpy(), found.z[:, pair].cpu().numpy(), (f"z{first + 1}", f"z{second + 1}")
    )
    return [
        (plot, "Latents of the data (blue) over samples of the prior (grey), in the two dimensions of the largest KL")
    ]


def _grids(
    latents: Latents, spec: DataSpec, x: Tensor, given: Tensor | None, found: Diagnosis
) -> list[tuple[np.ndarray, str]]:
    span = (0.0, spec.levels - 1.0) if spec.levels else (float(x.min()), float(x.max()))

    def rows(images: Tensor) -> np.ndarray:
        return image_grid(images.cpu().double(), spec, columns=ACROSS, span=span)

    few, context = x[:ACROSS], None if given is None else given[:ACROSS]
    ends = None if given is None else given[:4]
    between = latents.interpolate(x[:4], x[4:8], steps=ACROSS, context=ends) if len(x) >= 8 else None
    grids = [
        (
            rows(torch.cat([few.double(), latents.reconstruct(few, context).double()])),
            "Examples, and below them their reconstructions",
        ),
    ]
    if between is not None:
        grids.append((rows(between.flatten(0, 1)), "From one example's latents to another's, a pair a row"))
    z = latents.encode(x, given)
    for_one = None if given is None else given[:1]
    moved = []
    for dim in found.kl.argsort(descending=True)[:DIMS].tolist():
        centre, spread = z[:, dim].mean().item(), z[:, dim].std().item()
        values = torch.linspace(-2.5, 2.5, ACROSS).mul(spread).add(centre).tolist()
        moved.append(latents.traverse(x[:1], dim, values, context=for_one)[0])
    caption = f"One example as each of the {len(moved)} dimensions of the largest KL moves by ±2.5 standard deviations"
    return [*grids, (rows(torch.cat(moved)), caption)]
