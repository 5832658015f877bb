"""Measure Muon's share of a training step for the recipes that use it, with torch's Muon and with ours.

`python benchmarks/muon.py` measures with all instructions of the CPU, and again with AVX2 only in a separate process,
and writes the section of RESULTS.md. In every round the forward and backward pass, torch's Muon and ours are each timed
once, on one thread, in CPU time, which other processes hardly change. `make bench` does not run it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

from loglik.cpu.allocator import keep_freed_memory
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.evaluation.scores import arguments
from loglik.recipes import build, recipe
from loglik.training import TrainingSettings
from loglik.training.muon import Muon
from loglik.training.optimizers import optimizers_of
from loglik.training.precision import multiplies_bfloat16

CLASSES = tuple("0123456789")
CASES = {
    "text, windows of 128": ("autoregressive", DataSpec(kind="text", event_shape=(128,), levels=65)),
    "VAE, 8 × 8": ("vae", DataSpec(kind="image", event_shape=(1, 8, 8), levels=17)),
    "VAE, 28 × 28": ("vae", DataSpec(kind="image", event_shape=(1, 28, 28), levels=256)),
    "diffusion, 28 × 28": ("diffusion", DataSpec(kind="image", event_shape=(1, 28, 28), levels=256)),
    "classifier, 28 × 28": ("classifier", DataSpec(kind="image", event_shape=(1, 28, 28), levels=256, classes=CLASSES)),
}
LIMITED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def torchs_step(kernels: list[nn.Parameter]) -> Callable[[], Any]:
    """Return a step of torch.optim.Muon on copies of the kernels as matrices."""
    copies = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    for copy, kernel in zip(copies, kernels, strict=True):
        assert kernel.grad is not None
        copy.grad = kernel.grad.flatten(1).clone()
    return torch.optim.Muon(copies, lr=1e-9, adjust_lr_fn="match_rms_adamw").step


def measure(family: str, spec: DataSpec, rounds: int) -> list[float]:
    """Return the milliseconds of a forward and backward pass, a step of torch's Muon and a step of ours, on noise."""
    torch.manual_seed(0)
    density: Density = build(family, spec)
    settings = TrainingSettings(**recipe(family).training(spec))
    x = torch.randint(spec.levels or 2, (settings.batch_size, *spec.event_shape)).byte()
    event, context = arguments(density, x, torch.randint(len(CLASSES), (len(x),)))
    density.initialise(event, context)
    native = settings.precision == "auto" and multiplies_bfloat16(torch.device("cpu"))

    def forward_and_backward() -> Tensor:
        density.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            loss = density.loss(event, context)
        loss.backward()
        return loss

    forward_and_backward()
    kernels = next(o for o in optimizers_of(density, settings) if isinstance(o, Muon)).param_groups[0]["params"]
    calls = [forward_and_backward, torchs_step(kernels), Muon(kernels, lr=1e-9).step]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    return [1e3 * statistics.median(seconds[1:]) for seconds in times]


def row(name: str, instructions: str, forward: float, before: float, after: float) -> str:
    shares = [f"{took:.1f} | {took / (forward + took):.0%}" for took in (before, after)]
    return f"| {name} | {instructions} | {forward:.0f} | {' | '.join(shares)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    chosen = parser.parse_args()
    if chosen.here:
        torch.set_num_threads(1)
        keep_freed_memory()
        print(json.dumps({name: measure(*case, chosen.rounds) for name, case in CASES.items()}))
        return
    import device
    import run

    rows = [
        "| recipe | instructions | forward and backward, ms | torch's Muon, ms | its share | ours, ms | its share |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for limits in ({}, LIMITED):
        words = [sys.executable, __file__, "--here", "--rounds", str(chosen.rounds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **limits}
        found = json.loads(subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        rows += [row(name, "AVX2" if limits else "all", *times) for name, times in found.items()]
    limited = " ".join(f"{name}={value}" for name, value in LIMITED.items())
    text = "\n".join(
        [
            "## Muon's share of a training step",
            "",
            *rows,
            "",
            "`python benchmarks/muon.py`: the density, batch and precision of each recipe, on noise. The share is that "
            f"of Muon in the sum of forward pass, backward pass and Muon. `AVX2` is the same CPU with {limited}, where "
            "bfloat16 is not native: the recipes train in float32 there, and torch's Muon emulates bfloat16. Our Muon "
            "multiplies in float32 in both cases.",
            "",
            f"Measured {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC on {device.describe()}, CPU time of one thread, "
            f"load {os.getloadavg()[0]:.1f} at the end; medians of {chosen.rounds} rounds; torch {torch.__version__}.",
        ]
    )
    run.write({"muon": text + "\n"})
    print(text)


if __name__ == "__main__":
    main()
