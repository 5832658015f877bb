"""Images and text larger than memory: the memory that training takes, its rate, and a run that was killed.

    python benchmarks/large_images.py make FOLDER [IMAGES]  tar shards of 64×64 RGB images (800,000: 9.8 GB decoded)
    python benchmarks/large_images.py text FILE [BYTES]     a text (2 GB)
    python benchmarks/large_images.py memory SOURCE [MODEL] time until training begins, seconds of training, peak memory
    python benchmarks/large_images.py rate SOURCE [MODEL]   steps per second, beside data in memory, in turn
    python benchmarks/large_images.py kill SOURCE [MODEL]   SIGKILL at a random moment, resumed: bit for bit?

Anonymous memory (RssAnon) is what the process needs; pages of mapped files are the system's to take back.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import loglik
from loglik.data import as_data
from loglik.data.dataset import Data, Split
from loglik.recipes import build
from loglik.training.fabric import launch_fabric
from loglik.training.loop import Trainer
from loglik.training.settings import TrainingSettings

SIZE, SHARD, DISTINCT = 64, 20_000, 500
STEPS, ROUNDS, BATCH = 10, 5, 64
IN_MEMORY = 2**28  # bytes of the data in memory that are compared
SETTINGS = {"max_steps": 20, "validate_every": 10, "batch_size": BATCH, "accelerator": "cpu", "compile": False}


def make(folder: Path, count: int = 800_000) -> None:
    """Write shards of few distinct JPEG images, each with one of ten labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        files.append(out.getvalue())
    first = folder / "0000.tar"
    with tarfile.open(first, "w") as archive:
        for i in range(min(SHARD, count)):
            kind = i * 7919 % DISTINCT
            for suffix, content in (("jpg", files[kind]), ("cls", str(kind % 10).encode())):
                info = tarfile.TarInfo(f"{i:08}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for number in range(1, -(-count // SHARD)):
        shutil.copy(first, folder / f"{number:04}.tar")


def text(path: Path, size: int = 2 * 10**9) -> None:
    lines = "".join(f"{i * i % 9973} cats sat on {i} mats, and {i % 89} dogs ran.\n" for i in range(10**5)).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(lines)


class Peak:
    """The largest anonymous and resident memory of this process, looked at ten times a second, in MiB."""

    def __init__(self) -> None:
        self.largest = {"RssAnon": 0, "VmRSS": 0}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.largest:
                    self.largest[name] = max(self.largest[name], int(value.split()[0]) // 1024)
            time.sleep(0.1)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,} MiB" for name, value in self.largest.items())


def memory(source: str, model: str = "vae") -> None:
    peak, start = Peak(), time.perf_counter()
    data = as_data(source)
    read = time.perf_counter() - start
    print(f"{data.describe()}\nread in {read:.1f} s: peak {peak}", flush=True)
    start = time.perf_counter()
    run = loglik.fit(model, data, **SETTINGS)
    seconds = time.perf_counter() - start
    print(f"{model}: {run.steps} steps in {run.train_seconds:.1f} s, {seconds:.1f} s in all: peak {peak}")


def trainer(data: Data, model: str) -> Trainer:
    settings = TrainingSettings(max_steps=1, validate_every=10**9, batch_size=BATCH, accelerator="cpu", patience=0)
    made = Trainer(launch_fabric(settings), build(model, data.spec), data, settings, None)
    made.prepare(resume=False)
    return made


def rate(source: str, model: str = "vae") -> None:
    large = as_data(source)
    each = large.train.x[:1].nbytes
    part = large.train.evenly(max(1, IN_MEMORY // each))
    small = Data("memory", large.spec, Split(part.tensor(), part.y), large.validation, large.test)
    trainers = {"store": trainer(large, model), "memory": trainer(small, model)}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    loads: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(ROUNDS + 1):
        for name, each_trainer in trainers.items():
            start = time.perf_counter()
            for step in range(STEPS):
                each_trainer.batches.batch(10**6 + number * STEPS + step)
            loads[name].append((time.perf_counter() - start) / STEPS)
            each_trainer.last_step = each_trainer.step + STEPS
            start = time.perf_counter()
            for _ in range(STEPS):
                each_trainer.steps.take(each_trainer.step, 0.5, 1e-3)
                each_trainer.step += 1
            seconds[name].append((time.perf_counter() - start) / STEPS)
    for name in trainers:
        step, load = statistics.median(seconds[name][1:]), statistics.median(loads[name][1:])
        print(
            f"{model} from {name}: {1 / step:.1f} steps/s ({1e3 * step:.2f} ms, of which a batch {1e3 * load:.2f} ms)"
        )
    ratio = statistics.median(a / b for a, b in zip(seconds["memory"][1:], seconds["store"][1:], strict=True))
    print(f"rate from the store: {100 * ratio:.0f} % of that in memory")


def kill(source: str, model: str = "vae") -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "loglik", "fit", source, "--model", model, "--device", "cpu"]
        words += ["--max-steps", "60", "--set", "validate_every=10", "--set", f"batch_size={BATCH}", "--out"]
        start = time.perf_counter()
        subprocess.run([*words, f"{folder}/whole"], check=True, capture_output=True)
        took = time.perf_counter() - start
        process = subprocess.Popen([*words, f"{folder}/killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * random.uniform(0.5, 0.95))
        process.send_signal(signal.SIGKILL)
        print("killed:", process.wait() == -signal.SIGKILL)
        done = subprocess.run([*words, f"{folder}/killed", "--resume"], check=True, capture_output=True, text=True)
        print(
            next((line for line in (done.stdout + done.stderr).splitlines() if "continues at" in line), "from step 0")
        )
        whole, killed = (Path(folder, name, "model.safetensors").read_bytes() for name in ("whole", "killed"))
        print("weights equal, bit for bit:", whole == killed)


def main() -> None:
    command, source, *rest = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if command in ("make", "text"):
        {"make": make, "text": text}[command](Path(source), *map(int, rest))
    else:
        {"memory": memory, "rate": rate, "kill": kill}[command](source, *rest)


if __name__ == "__main__":
    main()
