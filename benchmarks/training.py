"""Train one model for a time with the defaults, as a user does, and measure how busy the device was.

`python benchmarks/training.py DATA MODEL --max-time 60s --device cuda --json FILE` prints and writes the score on the
test split, the steps, the milliseconds of a step, and the busy share: the time of the device's kernels in 50 steps, by
torch.profiler, divided by the wall time of the 50 steps before them, which no profiler slows down. On the CPU the
numerator is the time inside torch's operations. Validations are outside of both windows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import loglik
from loglik.comparison import evaluate_run
from loglik.data import TextSettings, as_data
from loglik.devices import resolve_device
from loglik.training.batches import Batches
from loglik.training.loop import Trainer

WARM_UP = 30  # steps before the first window: compilation, recording, caches
WINDOW = 50  # steps that are timed, and as many that are profiled


class Busy:
    """Times a window of steps, then profiles one; the training calls `before_step` and `before_validation`.

    The device is awaited only where a window or a validation begins or ends.
    """

    def __init__(self, device: torch.device, warm_up: int = WARM_UP, window: int = WINDOW) -> None:
        self.device, self.window = device, window
        self.phase, self.left = "warm-up", warm_up
        self.open = False
        self.wall = self.start = self.kernel_seconds = 0.0
        self.kernels = 0
        self.profiler: torch.profiler.profile | None = None

    @property
    def share(self) -> float | None:
        """Return the busy share; None until both windows are complete."""
        return self.kernel_seconds / self.wall if self.phase == "done" else None

    def before_step(self) -> None:
        """Count the step before, and continue or begin a window."""
        if self.phase == "warm-up":
            self.left -= 1
            if self.left <= 0:
                self._enter("timed")
        elif self.open:
            self._count()
        if self.phase in ("timed", "profiled") and not self.open:
            self._open()

    def before_validation(self) -> None:
        """Count the step before, and stop the clock until the next step."""
        if self.open:
            self._count()
        if self.open:
            self._close()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._close()
            self._enter("profiled" if self.phase == "timed" else "done")

    def _enter(self, phase: str) -> None:
        self.phase, self.left = phase, self.window

    def _open(self) -> None:
        self._wait()
        self.open, self.start = True, time.perf_counter()
        if self.phase == "profiled":
            kind = torch.profiler.ProfilerActivity
            self.profiler = torch.profiler.profile(activities=[kind.CPU if self._on_cpu else kind.CUDA])
            self.profiler.start()

    def _close(self) -> None:
        self._wait()
        self.open = False
        if self.profiler is None:
            self.wall += time.perf_counter() - self.start
            return
        self.profiler.stop()
        for row in self.profiler.key_averages():
            micros = row.self_cpu_time_total if self._on_cpu else row.self_device_time_total
            self.kernel_seconds += micros / 1e6
            self.kernels += row.count if micros > 0 else 0
        self.profiler = None

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _wait(self) -> None:
        if not self._on_cpu:
            torch.get_device_module(self.device).synchronize()


@contextmanager
def watching(busy: Busy) -> Iterator[None]:
    """Call `busy` from the training loop: a step reads one batch."""
    batch, validate = Batches.batch, Trainer._validate

    def read(self: Batches, *arguments: Any, **named: Any) -> Any:
        busy.before_step()
        return batch(self, *arguments, **named)

    def _validate(self: Trainer, *arguments: Any, **named: Any) -> Any:
        busy.before_validation()
        return validate(self, *arguments, **named)

    Batches.batch, Trainer._validate = read, _validate  # type: ignore[method-assign]
    try:
        yield
    finally:
        Batches.batch, Trainer._validate = batch, validate  # type: ignore[method-assign]


def measure(data: str, model: str, out: Path | None, device: str, **options: Any) -> dict[str, Any]:
    """Train, score, and return what the table of a run needs."""
    place = resolve_device(device)
    busy = Busy(place)
    text, options = TextSettings.split_options(options)
    dataset = as_data(data, text=text)
    start = time.perf_counter()
    with watching(busy):
        run = loglik.fit(model, dataset, out=out, device=device, progress=False, **options)
    trained = time.perf_counter()
    result = evaluate_run(run, dataset).result
    name = torch.get_device_module(place).get_device_name(place) if place.type == "cuda" else place.type
    return {
        "data": data,
        "model": model,
        "device": name,
        "torch": torch.__version__,
        "nats": result.nats,
        "unit": result.unit,
        "bits_per_dim": result.bits_per_dim,
        "accuracy": result.accuracy,
        "steps": run.config["steps"],
        "train_seconds": run.config["train_seconds"],
        "seconds_in_fit": trained - start,
        "seconds_to_score": time.perf_counter() - trained,
        "ms_per_step": 1e3 * busy.wall / busy.window if busy.share is not None else None,
        "busy_share": busy.share,
        "kernels_per_step": busy.kernels / busy.window if busy.share is not None else None,
        "batch_size": run.config.get("training", {}).get("batch_size"),
        "settings": run.config.get("training"),
        "validation_nats": [row["validation_nats"] for row in run.history][-5:],
    }


def value(word: str) -> Any:
    """Return the value of KEY=VALUE as YAML reads it."""
    import yaml

    return yaml.safe_load(word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--max-time", default="60s")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="the run's folder; by default the run stays in memory")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of fit")
    chosen = parser.parse_args()
    options = {key: value(word) for key, _, word in (pair.partition("=") for pair in chosen.set)}
    found = measure(chosen.data, chosen.model, chosen.out, chosen.device, max_time=chosen.max_time, **options)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=2, default=str) + "\n")
    for key, what in found.items():
        if key != "settings":
            print(f"{key}: {what}")


if __name__ == "__main__":
    main()
