"""Rows per second of `fit` from a store on disk, beside the same rows in memory.

`python benchmarks/large.py [ROWS] [ROUNDS]` writes a Parquet file of 30 columns (10 million rows by default) to a
temporary folder, reads it into a store, and trains the recipes' VAE by the same loop from the store and from memory in
turn. It prints the seconds and the peak memory of reading, the medians of the rows per second, and their ratio; on
Linux also with a cold cache: the file's pages are dropped from the system's cache before each round.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from loglik import recipes
from loglik.data import load
from loglik.data.dataset import Data, Split
from loglik.data.store import Rows
from loglik.training.fabric import launch_fabric
from loglik.training.loop import Trainer
from loglik.training.progress import Progress
from loglik.training.settings import TrainingSettings

COLUMNS, BATCH, STEPS, BLOCK = 30, 512, 100, 500_000


def write(path: Path, rows: int) -> None:
    """Write correlated columns in parts, and join them to one file."""
    generator = np.random.default_rng(0)
    parts = []
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        z = generator.standard_normal((n, 4), dtype=np.float32)
        noise = generator.standard_normal((n, COLUMNS), dtype=np.float32)
        columns = {f"x{d}": z[:, d % 4] + 0.5 * noise[:, d] for d in range(COLUMNS)}
        parts.append(path.with_suffix(f".{start}.parquet"))
        pl.DataFrame(columns).write_parquet(parts[-1])
    pl.scan_parquet(parts).sink_parquet(path)
    for part in parts:
        part.unlink()


def rounds_of(data: Data) -> Callable[[], float]:
    """Return a function that trains for `STEPS` steps and returns the rows per second."""
    torch.manual_seed(0)
    settings = TrainingSettings(max_steps=STEPS, batch_size=BATCH, validate_every=10**9, accelerator="cpu", patience=0)
    trainer = Trainer(launch_fabric(settings), recipes.build("vae", data.spec), data, settings, None)
    trainer.prepare(resume=False)

    def run() -> float:
        trainer.last_step = trainer.step + STEPS
        start = time.perf_counter()
        trainer.train(Progress())
        return STEPS * BATCH / (time.perf_counter() - start)

    return run


def memory(field: str) -> int:
    """Return a field of this process's status in MiB; 0 on systems other than Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(field)), 0)


def drop(data: Data, folder: Path) -> None:
    """Drop the pages of a folder's files from this process and from the system's cache."""
    assert isinstance(data.train.x, Rows)
    data.train.x.array.release()
    for file in folder.rglob("*.bin"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(rows: int, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"LOGLIK_CACHE": str(folder / "cache"), "LOGLIK_MAX_IN_MEMORY": "1"}
        write(folder / "large.parquet", rows)
        start, before = time.perf_counter(), memory("RssAnon")
        data = load(folder / "large.parquet")
        seconds = time.perf_counter() - start
        print(f"{rows:,} rows of {COLUMNS} columns: read in {seconds:.1f} s; {before} MiB of memory before, "
              f"{memory('RssAnon')} after")  # fmt: skip
        splits = {s: Split(data.split(s).tensor()) for s in ("train", "validation", "test")}
        sides = {"memory": rounds_of(replace(data, **splits)), "store": rounds_of(data)}
        for cache in ("warm", "cold") if hasattr(os, "posix_fadvise") else ("warm",):
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(rounds + 1):  # the first warms up
                for side, run in sides.items():
                    if cache == "cold" and side == "store":
                        drop(data, folder)
                    rate = run()
                    if number:
                        rates[side].append(rate)
            stored, plain = statistics.median(rates["store"]), statistics.median(rates["memory"])
            best = max(rates["store"]) / max(rates["memory"])
            print(f"{cache} cache: {stored:,.0f} rows/s from the store, {plain:,.0f} from memory: "
                  f"ratio of medians {stored / plain:.3f}, of the fastest rounds {best:.3f}")  # fmt: skip


if __name__ == "__main__":
    main(*[*map(int, sys.argv[1:]), *(10_000_000, 5)[len(sys.argv) - 1 :]])
