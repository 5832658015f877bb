"""The time that the training loop adds to a step, beside a bare loop of the same step.

`python benchmarks/loop.py [ROUNDS]` trains a VAE of MLPs with a step of about 10 ms on one thread, by our loop and by a
bare one in turn, and prints the medians. The bare loop does what a step must: a batch by index, the loss, its gradient
clipped, AdamW, a moving average. Ours also seeds the noise, sets the learning rate, checks that loss and norm are
finite, keeps time, updates the bar and validates on 16 examples at the end of each round.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.networks import MLP
from loglik.training.fabric import launch_fabric
from loglik.training.loop import Trainer
from loglik.training.progress import Progress
from loglik.training.settings import TrainingSettings
from loglik.training.signals import StopRequest
from loglik.vae import VAE, Gaussian

DIMS, LATENT, HIDDEN, BATCH, STEPS = 784, 16, (512, 512), 128, 40


def vae() -> VAE:
    torch.manual_seed(0)
    encoder, decoder = MLP(DIMS, 2 * LATENT, HIDDEN), MLP(LATENT, DIMS, HIDDEN)
    return VAE(encoder, decoder, Gaussian((DIMS,), 1.0), latent=LATENT)


def ours(x: torch.Tensor) -> Callable[[], None]:
    splits = Split(x), Split(x[:16]), Split(x[:16])
    data = Data("noise", DataSpec(kind="array", event_shape=(DIMS,)), *splits)
    settings = TrainingSettings(max_steps=STEPS, batch_size=BATCH, validate_every=10**9, accelerator="cpu", patience=0)
    trainer = Trainer(launch_fabric(settings), vae(), data, settings, None)
    trainer.prepare(resume=False)

    def run() -> None:
        trainer.last_step = trainer.step + STEPS
        trainer.train(Progress(), StopRequest())

    return run


def bare(x: torch.Tensor) -> Callable[[], None]:
    model = vae().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))

    def run() -> None:
        order = torch.randperm(len(x))
        for rows in order[: STEPS * BATCH].split(BATCH):
            optimizer.zero_grad()
            model.loss(x.index_select(0, rows)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), float(DIMS))
            optimizer.step()
            average.update_parameters(model)

    return run


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    x = torch.randn(STEPS * BATCH, DIMS)
    sides = {"ours": ours(x), "bare": bare(x)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first warms up
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    mine, other = (statistics.median(times[name]) for name in ("ours", "bare"))
    fastest = min(times["ours"]) / min(times["bare"])
    print(
        f"a step: ours {mine:.2f} ms, bare {other:.2f} ms; ours / bare {mine / other:.3f}, of the fastest {fastest:.3f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 15)
