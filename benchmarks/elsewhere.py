"""A DDPM that diffusers trains, beside our diffusion in one table: bound and ODE on the same test images.

`python benchmarks/elsewhere.py [--data digits] [--seconds 600] [--out FOLDER]` trains a UNet2DModel by the training
loop of diffusers' own example (mean squared error of the noise, AdamW, cosine learning rate, EMAModel), saves it as a
DDPMPipeline, reads it by `loglik.adapters.load`, trains our diffusion with its defaults, early stopping among them, for
at most the same CPU time, and prints a Markdown table. Both see the same training images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import loglik
from loglik.adapters import load as load_elsewhere
from loglik.data import load
from loglik.runs import Run

BATCH = 64


def scaled(x: torch.Tensor, levels: int) -> torch.Tensor:
    return x.float() * (2 / (levels - 1)) - 1


def train_with_diffusers(x: torch.Tensor, seconds: float, width: int, out: Path) -> int:
    """Train a DDPM on images in [-1, 1], save its pipeline, and return the number of steps."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=tuple(x.shape[2:]),
        in_channels=x.shape[1],
        out_channels=x.shape[1],
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler, start, steps = DDPMScheduler(num_train_timesteps=1000), time.process_time(), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    rate: Any = None
    while time.process_time() - start < seconds:
        if steps == 20:  # as many steps as there will be, from the speed of the first ones
            total = int(seconds / ((time.process_time() - start) / steps))
            rate = get_cosine_schedule_with_warmup(optimizer, min(200, total // 10), total)
        clean = x[torch.randint(len(x), (BATCH,))]
        noise, t = torch.randn_like(clean), torch.randint(1000, (BATCH,))
        predicted = model(scheduler.add_noise(clean, noise, t), t).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if rate is not None:
            rate.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        steps += 1
    ema.copy_to(model.parameters())
    DDPMPipeline(model, scheduler).save_pretrained(out)
    return steps


def ours(data: Any, seconds: float) -> Run:
    """Train our diffusion for at most so many CPU seconds, by the speed of its first steps."""
    settings: dict[str, Any] = {"seed": 0, "progress": False, "device": "cpu"}
    start = time.process_time()
    loglik.fit("diffusion", data, max_steps=100, patience=0, **settings)
    speed = 100 / (time.process_time() - start)
    return loglik.fit("diffusion", data, max_steps=int(seconds * speed), **settings)


def rows(name: str, run: Run, data: Any, steps: int, samples: int) -> list[str]:
    """Return the table's rows of a run: its bound, a chain's in continuous time too, and the ODE's estimate."""
    found = []
    own = "bound of the chain" if run.model.startswith("diffusers") else "bound"
    numbers: list[tuple[str, dict[str, Any]]] = [(own, {"samples": samples})]
    if run.model.startswith("diffusers"):
        numbers.append(("bound in continuous time", {"method": "vlb", "samples": samples}))
    for words, options in (*numbers, ("ODE", {"method": "ode"})):
        start = time.process_time()
        result = loglik.evaluate(run, data, **options)
        error = "" if result.numerical_error is None else f"{result.numerical_error:.3f}"
        found.append(
            f"| {name} | {words} | {result.nats:.3f} ± {result.stderr:.3f} | {result.bits_per_dim:.3f} | {error} | "
            f"{result.params:,} | {steps:,} | {time.process_time() - start:.0f} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="images, as for `loglik compare`")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of each training")
    parser.add_argument("--width", type=int, default=32, help="channels of diffusers' U-Net")
    parser.add_argument("--samples", type=int, default=8, help="draws of the bounds per image")
    parser.add_argument("--out", type=Path, default=None, help="folder for the saved pipeline")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data)
    train, test = data.split("train"), data.split("test")
    assert data.spec.levels is not None
    with tempfile.TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary) / "ddpm"
        steps = train_with_diffusers(scaled(train.x[:], data.spec.levels), chosen.seconds, chosen.width, out)
        elsewhere = load_elsewhere("diffusers", out, data.spec)
        pair = test.x[:], test.y[:]
        print(f"{chosen.data}, {chosen.seconds:g} s each, one thread, {len(test):,} test images\n")
        print("| model | number | nats | bits/dim | solver's error | parameters | steps | seconds to score |")
        print("|---|---|--:|--:|--:|--:|--:|--:|", flush=True)
        print("\n".join(rows("diffusers: UNet2DModel, DDPM", elsewhere, pair, steps, chosen.samples)), flush=True)
    own = ours(data, chosen.seconds)
    print("\n".join(rows("loglik: diffusion", own, pair, own.steps, chosen.samples)), flush=True)


if __name__ == "__main__":
    main()
