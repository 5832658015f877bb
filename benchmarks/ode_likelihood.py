"""Compare the ODE likelihood of one trained network by our solver and by the procedure of score_sde_pytorch.

Their procedure is written anew from Song et al. 2021 and the repository's `likelihood.py`. It solves the
probability-flow ODE in t from 1e-5 to 1 by SciPy's RK45 with both tolerances 1e-5, on the whole batch flattened into
one NumPy vector that ends with the log-determinants. A pass of the network computes the drift, and another one with its
derivative Hutchinson's trace. Ours is `Diffusion.log_prob` with `ODE`. Both use the same network, examples and random
signs. Errors are differences from our solver in float64 with 20 times the steps.

    python benchmarks/ode_likelihood.py [RUN] [--batch 128] [--rounds 5] [--json FILE]

Without RUN, a residual MLP is trained on dequantized digits for a few seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import loglik
from loglik.diffusion import ODE, Denoiser, Diffusion
from loglik.diffusion.denoiser import to_score
from loglik.diffusion.likelihood import Model
from loglik.diffusion.reconstruction import Reals
from loglik.networks import ResidualMLP


def trained_on_digits(steps: int) -> tuple[Diffusion, Tensor]:
    """Train a diffusion over digits with uniform noise, in [-1, 1]; return it with the examples."""
    from loglik.data import load

    split = load("digits").train
    x = split.tensor().flatten(1).float()
    x = (x + torch.rand_like(x)) * (2 / 17) - 1
    network = ResidualMLP(64, 64, width=256, depth=3, context=32)
    diffusion = Diffusion(Denoiser(network, event_shape=(64,)), (64,))
    diffusion.initialise(x)
    optimizer = torch.optim.Adam(diffusion.parameters(), 2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        diffusion.loss(x[torch.randint(len(x), (128,))]).backward()
        optimizer.step()
    return diffusion.eval(), x


def of_run(path: Path) -> tuple[Diffusion, Tensor]:
    """Return a run's diffusion, and its test examples, dequantized and scaled as the diffusion expects."""
    run = loglik.load(path)
    diffusion = next(m for m in run.density.modules() if isinstance(m, Diffusion))
    from loglik.data import load

    split = load(run.config["source"], like=run.spec).test
    x = split.tensor().float()
    if diffusion.levels is None:
        return diffusion, run.density.encode(x)[0]
    return diffusion, (x + torch.rand_like(x) - 0.5) * (2 / (diffusion.levels - 1)) - 1


class Signs(ODE):
    """Our likelihood with fixed signs, so that both sides use the same."""

    def __init__(self, signs: Tensor, steps: int, tolerance: float) -> None:
        super().__init__(steps, tolerance=tolerance, probes=1)
        self.signs = signs

    def _directions(self, v: Tensor) -> Tensor:
        return self.signs.to(v.dtype).flatten(1).unsqueeze(0)


def ours(diffusion: Diffusion, x: Tensor, likelihood: ODE, count: list[int]) -> Tensor:
    def counted(x_t: Tensor, logsnr: Tensor, context: Tensor | None) -> Tensor:
        count[0] += len(x_t)
        return diffusion.denoiser(x_t, logsnr, context)

    model = Model(
        diffusion.schedule, Reals(diffusion.event_shape), counted, diffusion.denoiser.residual, diffusion.control, None
    )
    return sum(likelihood.terms(model, x, x, x.new_zeros(len(x))).values())


def theirs(diffusion: Diffusion, x: Tensor, signs: Tensor, count: list[int], tolerance: float = 1e-5) -> Tensor:
    shape, n = x.shape, len(x)

    def drift(point: Tensor, t: Tensor) -> Tensor:
        count[0] += n
        logsnr, beta = diffusion.schedule.logsnr(t), diffusion.schedule.beta(t).view(-1, *[1] * (x.dim() - 1))
        return -0.5 * beta * (point + to_score(diffusion.denoiser(point, logsnr), point, logsnr))

    def derivative(t: float, state: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(state[:-n].reshape(shape)).to(x)
        time = torch.full((n,), t, dtype=x.dtype)
        with torch.no_grad():
            slope = drift(point, time)
        with torch.enable_grad():
            point.requires_grad_(True)
            (gradient,) = torch.autograd.grad((drift(point, time) * signs).sum(), point)
        trace = (gradient * signs).flatten(1).sum(1)
        return np.concatenate([slope.numpy().reshape(-1), trace.numpy()])

    alpha_0 = diffusion.schedule.alpha(torch.tensor(1e-5)).item()
    start = np.concatenate([(alpha_0 * x).numpy().reshape(-1), np.zeros(n)])
    end = solve_ivp(derivative, (1e-5, 1.0), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
    z, log_det = torch.from_numpy(end[:-n].reshape(n, -1)), torch.from_numpy(end[-n:])
    dims = z.shape[1]
    return -0.5 * (z.square().sum(1) + dims * math.log(2 * math.pi)) + log_det + dims * math.log(alpha_0)


def measure(diffusion: Diffusion, x: Tensor, rounds: int, steps: int, tolerance: float) -> dict[str, dict[str, float]]:
    """Return seconds, evaluations per example (a derivative counts as one more) and errors in nats per side."""
    signs = (2 * torch.randint(0, 2, x.shape) - 1).to(x)
    fine = copy.deepcopy(diffusion).double()
    finest = ours(fine, x.double(), Signs(signs, 20 * steps, math.inf), [0])
    count = [0]
    sides: dict[str, Callable[[], Tensor]] = {
        "loglik": lambda: ours(diffusion, x, Signs(signs, steps, tolerance), count),
        "score_sde_pytorch's procedure": lambda: theirs(diffusion, x, signs, count),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    rows: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            count[0], start = 0, time.perf_counter()
            value = side()
            times[name].append(time.perf_counter() - start)
            error = (value.double() - finest).abs()
            passes = count[0] / len(x)
            rows[name] = {"passes": passes, "mean error": error.mean().item(), "largest error": error.max().item()}
    for name, row in rows.items():
        row |= {"seconds": statistics.median(times[name]), "fastest": min(times[name]), "slowest": max(times[name])}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    diffusion, x = trained_on_digits(chosen.train_steps) if chosen.run is None else of_run(chosen.run)
    rows = measure(diffusion, x[: chosen.batch], chosen.rounds, chosen.steps, chosen.tolerance)
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    ratio = rows["score_sde_pytorch's procedure"]["seconds"] / rows["loglik"]["seconds"]
    print(f"{ratio:.2f}x faster")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
