"""The report's section on latents: which are active, where they lie, and what they change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.evaluation.scores import arguments, evaluating
from loglik.report.chart import Chart
from loglik.report.html import png_source
from loglik.report.sample_figures import latent_bars, latent_map
from loglik.report.samples import image_grid
from loglik.tasks.latents import Latents
from loglik.vae.diagnostics import Diagnosis

__all__ = ["LatentView", "view_latents"]

MAX_EXAMPLES = 500
MAX_MAPPED = 250  # examples on the map, each with its image
MAX_SIDE = 32  # of such an image, in pixels
COLUMNS = 10  # images in a row of a grid
TRAVERSED = 5  # latent dimensions


@dataclass(frozen=True)
class LatentView:
    """Sentences, charts, and grids of images as pixels with their captions."""

    lines: list[str]
    charts: list[Chart]
    grids: list[tuple[np.ndarray, str]]


def view_latents(name: str, density: Density, spec: DataSpec, split: Split, *, seed: int) -> LatentView | None:
    """Return the latents of examples of a split; None for a density without latents."""
    if not Latents.has(density) or (density.conditional and split.y is None):
        return None
    latents = Latents(density)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:MAX_EXAMPLES]
    with evaluating(density, seed) as device:
        y = None if split.y is None else split.y[order].to(device)
        x, context = arguments(density, split.x[order].to(device), y)
        diagnosis = latents.diagnose(x, context)
        charts = [latent_bars(diagnosis.kl.cpu().numpy(), diagnosis.active.cpu().numpy(), name)]
        charts += _map(name, diagnosis, spec, x, split.y[order] if split.y is not None and spec.classes else None)
        grids = (
            _grids(latents, spec, x, context, diagnosis)
            if spec.kind == "image" and spec.event_shape[0] in (1, 3)
            else []
        )
    return LatentView(diagnosis.lines(), charts, grids)


def _map(name: str, diagnosis: Diagnosis, spec: DataSpec, x: Tensor, y: Tensor | None) -> list[Chart]:
    """Chart the aggregate posterior over samples of the prior, in the two dimensions with the largest KL."""
    if diagnosis.z.shape[1] < 2:
        return []
    first, second = diagnosis.kl[: diagnosis.z.shape[1]].argsort(descending=True)[:2].tolist()
    pair, n = [first, second], min(len(diagnosis.z), MAX_MAPPED)
    images = None
    if spec.kind == "image" and spec.event_shape[0] in (1, 3):
        span = (0.0, spec.levels - 1.0) if spec.levels else (float(x.min()), float(x.max()))
        thin = max(1, max(spec.event_shape[1:]) // MAX_SIDE)
        small = x[:n, :, ::thin, ::thin].cpu().double()
        images = [png_source(image_grid(image[None], spec, columns=1, span=span, cell=1)) for image in small]
    return [
        latent_map(
            diagnosis.prior[:, pair].cpu().numpy(),
            diagnosis.z[:n, pair].cpu().numpy(),
            (f"z{first + 1}", f"z{second + 1}"),
            name,
            classes=None if y is None else [spec.classes[k] for k in y[:n].tolist()],
            images=images,
        )
    ]


def _grids(
    latents: Latents, spec: DataSpec, x: Tensor, context: Tensor | None, diagnosis: Diagnosis
) -> list[tuple[np.ndarray, str]]:
    span = (0.0, spec.levels - 1.0) if spec.levels else (float(x.min()), float(x.max()))

    def rows(images: Tensor) -> np.ndarray:
        return image_grid(images.cpu().double(), spec, columns=COLUMNS, span=span, clear=True)

    first, first_context = x[:COLUMNS], None if context is None else context[:COLUMNS]
    ends = None if context is None else context[:4]
    between = latents.interpolate(x[:4], x[4:8], steps=COLUMNS, context=ends) if len(x) >= 8 else None
    grids = [
        (
            rows(torch.cat([first.double(), latents.reconstruct(first, first_context).double()])),
            "Examples (top) and their reconstructions (bottom)",
        ),
    ]
    if between is not None:
        grids.append(
            (rows(between.flatten(0, 1)), "Interpolations between the latents of two examples, one pair per row")
        )
    z = latents.encode(x, context)
    one_context = None if context is None else context[:1]
    moved = []
    for dim in diagnosis.kl.argsort(descending=True)[:TRAVERSED].tolist():
        centre, spread = z[:, dim].mean().item(), z[:, dim].std().item()
        values = torch.linspace(-2.5, 2.5, COLUMNS).mul(spread).add(centre).tolist()
        moved.append(latents.traverse(x[:1], dim, values, context=one_context)[0])
    caption = (
        f"One example while each of the {len(moved)} dimensions with the largest KL changes by ±2.5 standard "
        "deviations, one dimension per row"
    )
    return [*grids, (rows(torch.cat(moved)), caption)]
