"""Pictures of a diffusion: both processes, the bound at each noise level, and samples against evaluations.

The way from noise to samples is a series of frames, which a slider shows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import Data
from loglik.density import Density
from loglik.diffusion import Diffusion
from loglik.evaluation.scores import evaluating, labels_in_turn
from loglik.flows import Flow
from loglik.report.chart import COLOURS, Chart, columns, field
from loglik.report.numbers import number
from loglik.report.samples import examples, image_grid

__all__ = ["Frame", "Strip", "bound_by_noise", "strips"]

STATES = 10  # of the strip from data to noise
FRAMES = 24  # from noise to samples
FRAMED = 8  # samples in a frame
EVALUATIONS = (5, 10, 20, 50)  # of the network
FEW_STEP_METHOD = "unipc"
NOISE_LEVELS = 25  # at which the integrand of the bound is measured

Strip = tuple[np.ndarray, str, str]  # pixels, a text in their place, a caption
Frame = tuple[np.ndarray, str]  # pixels, and the noise level in words


def strips(density: Density, data: Data, seed: int, split: str, n: int = 4) -> tuple[list[Strip], list[Frame], str]:
    """Return images: strips of the forward process and of samples against evaluations, frames of the reverse process.

    The frames come with a caption. An adaptive solver has none.
    """
    if not isinstance(density, Diffusion) or data.spec.kind != "image" or data.spec.event_shape[0] not in (1, 3):
        return [], [], ""
    x = examples(data.split(split), n, seed=seed)
    n = len(x)
    with evaluating(density, seed) as device:
        high, low = torch.stack(density.schedule.ends(torch.zeros((), device=device))).tolist()
        path = torch.linspace(high, low, STATES, device=device)
        noised = torch.stack([density.noised_at(x.to(device), logsnr.expand(n)) for logsnr in path], 1).cpu()
        labels = labels_in_turn(data.spec, n).to(device) if density.conditional else None
        framed = labels_in_turn(data.spec, FRAMED).to(device) if density.conditional else None
        states: list[tuple[float, Tensor]] = []
        density.draw(FRAMED, framed, watch=lambda logsnr, x_t: states.append((float(logsnr.flatten()[0]), x_t.cpu())))
        samples, own = [], density.sampler
        for steps in (*EVALUATIONS, None):
            torch.manual_seed(seed)
            density.sampler = own if steps is None else replace(own, method=FEW_STEP_METHOD, steps=steps, eta=0.0)
            drawn = density.sample(n, labels)
            samples.append(drawn.cpu().double())
        density.sampler = own
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(x.min()), float(x.max()))
    few = ", ".join(map(str, EVALUATIONS))
    shown = sorted({round(i * (len(states) - 1) / (FRAMES - 1)) for i in range(FRAMES)}) if states else []
    frames = [
        (_grid(states[i][1][:, None], data, (-1.0, 1.0), columns=FRAMED), f"log-SNR {number(states[i][0], 1)}")
        for i in shown
    ]
    made = [
        (_grid(noised, data, (-1.0, 1.0)), "data turning into noise", "forward process"),
        (
            _grid(torch.stack(samples, 1), data, span),
            "samples for increasing numbers of evaluations, from the same noise",
            f"samples: {FEW_STEP_METHOD} with {few} evaluations, then {own.method} with {own.steps}",
        ),
    ]
    return made, frames, f"reverse process: {FRAMED} samples on their way from noise, by {own.method}"


def _grid(x: Tensor, data: Data, span: tuple[float, float], columns: int | None = None) -> np.ndarray:
    return image_grid(x.flatten(0, 1).double(), data.spec, columns=columns or x.shape[1], span=span, clear=True)


def bound_by_noise(name: str, density: Density, data: Data, seed: int, split: str, n: int = 64) -> Chart | None:
    """Chart the integrand of the bound's diffusion term over the log-SNR; None if there is no diffusion.

    The base of a flow is evaluated on transformed data.
    """
    diffusion = density.base if isinstance(density, Flow) else density
    part = data.split(split)
    if not isinstance(diffusion, Diffusion) or not diffusion.gaussian or (density.conditional and part.y is None):
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
    across = field("logsnr", "log-SNR, from noise to data", scale={"zero": False, "nice": False})
    up = field("nats", "nats per unit of log-SNR", scale={"domainMin": 0}, axis={"tickCount": 5})
    mark = {
        "type": "area",
        "color": COLOURS["model"],
        "opacity": 0.25,
        "line": {"color": COLOURS["model"]},
        "clip": True,
    }
    spec = {
        "data": columns(logsnr=logsnrs.tolist(), nats=nats.tolist()),
        "encoding": {"x": across, "y": up, "tooltip": [field("logsnr", "log-SNR"), field("nats")]},
        "layer": [{"mark": mark}, {"mark": {"type": "point", "opacity": 0, "size": 90}}],
    }
    return Chart(spec, f"bound of {name} over the noise level", "nats per example at each noise level")
