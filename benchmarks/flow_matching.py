"""Compare flow matching with the VP-SDE and the cosine schedule: likelihood by bound and ODE, and samples in few steps.

    python benchmarks/flow_matching.py --data wine --steps 500 --seeds 0 1 2 [--rectify]

All rows have the same network and the same number of steps on the same examples, so the same compute. A line of the
Markdown table that is printed has log p(x) of the test split, in nats per example (bits per dimension of integers), by
the bound and by the ODE; then the energy distance between as many samples as the split to be compared with has rows
and its rows, for numbers of network evaluations: of Euler's rule over even times of flow matching, and of the model's
own sampler. Columns are divided by their standard deviation, images by one number. `--rectify` trains a rectified flow
for as many steps again. `moons` are 4,000 points on two half-circles with noise of 0.1. `make bench` does not run it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import loglik
from loglik.data import Data, as_data
from loglik.diffusion import Diffusion, curvature, with_sampler
from loglik.runs import Run

MODELS: dict[str, dict[str, Any]] = {
    "VP-SDE": {},
    "cosine": {"schedule": "cosine"},
    "flow-matching path, likelihood": {"schedule": "flow-matching"},
    "flow-matching path, logit-normal": {"schedule": "flow-matching", "weighting": "logit-normal"},
    "flow matching": {"schedule": "flow-matching", "weighting": "flow-matching"},
    "flow matching, velocity": {"schedule": "flow-matching", "weighting": "flow-matching", "prediction": "velocity"},
}
EULER = (1, 2, 4, 8)
SAMPLES = 1000


def moons(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    lower, angle = random.integers(0, 2, n), random.uniform(0, math.pi, n)
    x = np.where(lower == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(lower == 0, np.sin(angle), 0.5 - np.sin(angle))
    return (np.stack([x, y], 1) + 0.1 * random.normal(size=(n, 2))).astype(np.float32)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'|, without bias: squared, and 0 for equal distributions."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return (2 * torch.cdist(x, y).mean() - within).item()


def measured(run: Run, data: Data) -> list[float]:
    """Return bound (NaN without one), ODE, energy distances and curvature."""
    dims = data.spec.dims if data.spec.levels is not None else 0

    def likelihood(method: str, samples: int) -> float:
        nats = loglik.evaluate(run, data, method=method, samples=samples).nats
        return -nats / dims / math.log(2) if dims else nats

    flow = next(module for module in run.density.modules() if isinstance(module, Diffusion))
    row = [likelihood("vlb", 32) if flow.gaussian else math.nan, likelihood("ode", 1)]
    rows = data.train.x[:].flatten(1).double()
    scale = rows.std() if dims else rows.std(0)
    samplers = [{"method": "euler", "steps": steps} for steps in EULER]
    for sampler in (*samplers, {}):
        torch.manual_seed(1)
        density = with_sampler(run.density, **sampler) if sampler else run.density
        drawn = density.sample(SAMPLES).flatten(1).double()
        row.append(energy_distance(drawn / scale, rows[:4000] / scale))
    return [*row, curvature(flow, 512).item()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="wine")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rectify", action="store_true")
    chosen = parser.parse_args()
    names = [*chosen.models, *(["rectified flow"] if chosen.rectify else [])]
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for seed in chosen.seeds:
        data = as_data(moons(4000, seed) if chosen.data == "moons" else chosen.data, seed=seed)
        how: dict[str, Any] = {"max_steps": chosen.steps, "seed": seed, "progress": False, "validate_every": 100}
        with tempfile.TemporaryDirectory() as folder:
            for name in chosen.models:
                out = Path(folder) / name.replace(" ", "-")
                run = loglik.fit("diffusion", data, out=out, **how, **MODELS[name])
                found[name].append(measured(run, data))
            if chosen.rectify:
                first = str(Path(folder) / "flow-matching")
                how["validate_every"] = chosen.steps
                run = loglik.fit("diffusion:flow-matching", data, reflow=first, **how)
                found["rectified flow"].append(measured(run, data))
    columns = ["bound", "ODE", *(f"Euler {steps}" for steps in EULER), "own sampler", "curvature"]
    print(f"| {chosen.data}, {chosen.steps} steps | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name, rows in found.items():
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        print(f"| {name} | " + " | ".join("" if math.isnan(value) else f"{value:.3f}" for value in means) + " |")


if __name__ == "__main__":
    main()
