"""Define a workload, and run the process that measures one side of it.

A workload is a file of this folder with `TITLE`, `SHAPES`, `NOTES` and `SIDES`: for each side a function that
builds its model and data from `SHAPES`, once, and returns a `Side`. Each side runs in its own process; the parent
(run.py) speaks with it in lines of JSON and requests one timed run at a time, so that only one side computes at any
moment.

`python harness.py WORKLOAD SIDE` is that process. A peer's process runs in the peers' environment, so this file and
the workloads import only the standard library before a side is built.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Side", "Unavailable", "count", "evaluation", "load_workload", "matrix_peak", "serve", "training_step"]

RUN_SECONDS = 0.3  # an operation is repeated until a run takes this long
WARM_UP = 3
PEAK_SIZES = (1024, 2048)


class Unavailable(Exception):
    """A side cannot run here; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a workload: its operations, and the other values of its row.

    Attributes:
        operations: a function without arguments for each of the workload's operations that this side supports.
        parameters: the number of trained parameters.
        packages: the packages whose versions the result lists.
    """

    operations: dict[str, Callable[[], Any]]
    parameters: int
    packages: list[str] = field(default_factory=list)


def training_step(parameters: Iterable[Any], loss: Callable[[], Any]) -> Callable[[], None]:
    """Return a training step: loss, gradient, AdamW; the same optimizer for every side that uses torch."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def evaluation(model: Any, call: Callable[[], Any]) -> Callable[[], None]:
    """Return the call without gradients in evaluation mode; it restores training mode afterwards."""
    import torch

    def run() -> None:
        model.eval()
        with torch.no_grad():
            call()
        model.train()

    return run


def count(model: Any) -> int:
    """Return the number of trained parameters of a torch module."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def load_workload(name: str) -> ModuleType:
    """Import a workload by its path, because its name may also be that of a package."""
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"workload_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def matrix_peak(threads: int) -> dict[str, float]:
    """Measure the best rate of a square matrix product in GFLOP/s, the reference of the column `of the peak`.

    The rate is the faster of torch.mm and of the oneDNN operation that torch's compiler uses for a linear map.
    A CPU without bfloat16 instructions has no peak in bfloat16.
    """
    import torch

    from loglik.cpu.private import onednn_linear
    from loglik.training.precision import multiplies_bfloat16

    torch.set_num_threads(threads)
    peaks = {}
    dtypes = {"float32": torch.float32}
    if multiplies_bfloat16(torch.device("cpu")):
        dtypes["bfloat16"] = torch.bfloat16
    for name, dtype in dtypes.items():
        best = 0.0
        for size in PEAK_SIZES:
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            for product in (lambda: torch.mm(a, b), lambda: onednn_linear(a, b, None)):  # noqa: B023
                product()
                for _ in range(6):
                    start = time.perf_counter()
                    product()
                    best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
        peaks[name] = best
    return peaks


def flops(operation: Callable[[], Any]) -> int:
    """Count the floating-point operations of the matrix products, convolutions and attention in one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        operation()
    return counter.get_total_flops()


def seconds_per_call(operation: Callable[[], Any], calls: int) -> float:
    """Return the mean time of consecutive calls."""
    start = time.perf_counter()
    for _ in range(calls):
        operation()
    return (time.perf_counter() - start) / calls


def _build(workload: str, side: str) -> tuple[Side, dict[str, Any]]:
    """Build a side, warm it up, choose the number of calls per run, and count the FLOPs."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if side == "ours":  # as `fit` does
        from loglik.cpu.memory import keep_freed_memory

        keep_freed_memory()
    built: Side = load_workload(workload).SIDES[side]()
    calls = {}
    for name, operation in built.operations.items():
        seconds_per_call(operation, WARM_UP)
        calls[name] = max(1, round(RUN_SECONDS / seconds_per_call(operation, 1)))
    work = {name: flops(operation) for name, operation in built.operations.items()}
    versions = {package: importlib.metadata.version(package) for package in ["torch", *built.packages]}
    return built, {"parameters": built.parameters, "calls": calls, "flops": work, "versions": versions}


def serve(workload: str, side: str) -> None:
    """Answer the parent's lines: an operation's name with the seconds of one call, until the input ends.

    The first answer describes the side, or gives the reason why it is not available.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints must not mix with the answers

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        built, description = _build(workload, side)
        answer(description)
        for line in sys.stdin:
            name = json.loads(line)
            answer({"seconds": seconds_per_call(built.operations[name], description["calls"][name])})
    except Unavailable as reason:
        answer({"unavailable": str(reason)})
    except Exception as error:  # an error of a peer is a row of the table and does not end the measurement
        answer({"unavailable": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    sys.modules["harness"] = sys.modules["__main__"]  # so that a workload's Unavailable is the one caught here
    serve(*sys.argv[1:])
