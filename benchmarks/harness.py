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

import device

__all__ = [
    "Side",
    "Unavailable",
    "count",
    "evaluation",
    "load_workload",
    "moved",
    "plain",
    "serve",
    "training_step",
    "training_steps",
]

RUN_SECONDS = float(os.environ.get("BENCH_RUN_SECONDS", "0.3"))  # an operation is repeated until a run takes this long
WARM_UP = 3
COMPILED, GRAPH = ", compiled", ", CUDA graph"  # how the name of an operation ends; see `training_steps`


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

    on_meta = device.selected() == "meta"  # has no fused kernels
    capturable = not (device.is_cpu() or on_meta)  # as a CUDA graph requires
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=not on_meta, capturable=capturable)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def training_steps(
    parameters: Iterable[Any], loss: Callable[[], Any], *, bf16: bool = False, name: str = "training step"
) -> dict[str, Callable[[], None]]:
    """Return the training steps to measure, by name.

    One in float32; one under autocast to bfloat16 if requested; on a GPU the last of these also compiled, as a CUDA
    graph, and both. Every side has the same ones.
    """
    import torch

    parameters = list(parameters)

    def half(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with device.autocast(bf16):
                return call()

        return run

    steps = {name: training_step(parameters, loss)}
    if bf16:
        name += ", bf16"
        steps[name] = training_step(parameters, half(loss))
    if not device.is_cpu():
        compiled = half(torch.compile(loss))
        steps[name + COMPILED] = training_step(parameters, compiled)
        steps[name + GRAPH] = device.record(training_step(parameters, half(loss)))
        steps[name + COMPILED + GRAPH] = device.record(training_step(parameters, compiled))
    return steps


def evaluation(model: Any, call: Callable[[], Any]) -> Callable[[], None]:
    """Return the call without gradients in evaluation mode; it restores training mode afterwards."""
    import torch

    def run() -> None:
        model.eval()
        with torch.no_grad():
            call()
        model.train()

    return run


def moved(build: Callable[[], Any]) -> Any:
    """Return a module that is built on the CPU, where its constructor may read values, and moved to the device."""
    import torch

    with torch.device("cpu"):
        return build().to(device.selected())


def count(model: Any) -> int:
    """Return the number of trained parameters of a torch module."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def load_workload(name: str) -> ModuleType:
    """Import a workload by its path, because its name may also be that of a package.

    `NAME large` is the workload with the shapes of its `LARGE`, those of a GPU that is fully used.
    """
    file, _, large = name.partition(" ")
    path = Path(__file__).parent / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"workload_{file}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if large:
        module.SHAPES |= module.LARGE
    return module


def flops(operation: Callable[[], Any]) -> int:
    """Count the floating-point operations of the matrix products, convolutions and attention in one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        operation()
    return counter.get_total_flops()


def bytes_moved(operation: Callable[[], Any]) -> int:
    """Count the bytes of the tensors that each operation of one call reads and writes: the traffic of eager kernels."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    total = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal total
            output = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves = tree_leaves((args, kwargs, output))
                total += sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))
            return output

    with Count():
        operation()
    return total


def seconds_per_call(operation: Callable[[], Any], calls: int) -> float:
    """Return the mean time of consecutive calls, until the device has done them."""
    device.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        operation()
    device.synchronize()
    return (time.perf_counter() - start) / calls


def _build(workload: str, side: str) -> tuple[Side, dict[str, Any]]:
    """Build a side on the device, warm it up, choose the number of calls per run, and count FLOPs and bytes.

    An operation that fails has no calls, and its reason is in `failed`.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if side == "ours":  # as `fit` does
        from loglik.cpu.allocator import keep_freed_memory

        keep_freed_memory()
    with torch.device(device.selected()):
        built: Side = load_workload(workload).SIDES[side]()
    calls, work, traffic, failed = {}, {}, {}, {}
    for name, operation in built.operations.items():
        try:
            seconds_per_call(operation, WARM_UP)
            calls[name] = max(1, round(RUN_SECONDS / seconds_per_call(operation, 1)))
            if not name.endswith((COMPILED, GRAPH)):
                work[name] = flops(operation)
                if not device.is_cpu():
                    traffic[name] = bytes_moved(operation)
        except Exception as error:
            calls.pop(name, None)
            failed[name] = _reason(error)
    for name in calls:  # what a compiled step computes is counted in the plain one
        work[name] = work.get(plain(name), 0)
    if not device.is_cpu():
        device.module().empty_cache()  # other sides need the memory
    versions = {package: importlib.metadata.version(package) for package in ["torch", *built.packages]}
    described = {"parameters": built.parameters, "calls": calls, "flops": work, "bytes": traffic, "failed": failed}
    return built, described | {"versions": versions}


def plain(name: str) -> str:
    """Return the name of the operation whose compiled or recorded variant this is."""
    return name.removesuffix(GRAPH).removesuffix(COMPILED)


def _reason(error: Exception) -> str:
    """Return why a side or an operation is not available, in one line."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


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
    except Exception as error:  # an error of a peer is a row of the table and does not end the measurement
        answer({"unavailable": _reason(error)})


if __name__ == "__main__":
    sys.modules["harness"] = sys.modules["__main__"]  # so that a workload's Unavailable is the one caught here
    serve(*sys.argv[1:])
