"""The device that a benchmark measures on: its choice, its clock, its limits. Everything CUDA-specific is here.

run.py passes the choice to each side's process in the environment variable BENCH_DEVICE.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

__all__ = ["autocast", "bandwidth", "describe", "is_cpu", "matrix_peak", "module", "record", "selected", "synchronize"]

CPU_SIZES = (1024, 2048)  # of the square matrices whose product gives the peak
GPU_SIZES = (4096, 8192)
COPY_BYTES = 2**30  # copied to measure a GPU's memory bandwidth, more than any cache holds
SETTINGS = "BENCH_DEVICE"


def selected() -> str:
    """Return the name of the selected device: `cpu` by default."""
    return os.environ.get(SETTINGS, "cpu")


def is_cpu() -> bool:
    """Return whether the CPU is selected."""
    return selected() == "cpu"


def module() -> Any:
    """Return torch's module for the selected device, such as torch.cuda."""
    import torch

    return torch.get_device_module(selected())


def synchronize() -> None:
    """Wait until the device has done all work; call it before each look at the clock."""
    if not is_cpu():
        module().synchronize()


def autocast(enabled: bool = True) -> Any:
    """Return a context of autocast to bfloat16; the device meta, which tests use, has none."""
    import torch

    if selected() == "meta":
        return nullcontext()
    return torch.autocast(torch.device(selected()).type, torch.bfloat16, enabled=enabled)


def record(step: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that replays the step as a CUDA graph; the first call records it."""
    graph: Any = None

    def replay() -> None:
        nonlocal graph
        if graph is None:
            cuda = module()
            stream = cuda.Stream()
            stream.wait_stream(cuda.current_stream())
            with cuda.stream(stream):
                for _ in range(3):
                    step()
            cuda.current_stream().wait_stream(stream)
            recorded = cuda.CUDAGraph()
            with cuda.graph(recorded):
                step()
            graph = recorded
        graph.replay()

    return replay


def _fastest(call: Callable[[], Any], calls: int = 6) -> float:
    """Return the seconds of the fastest of several calls after one to warm up."""
    call()
    best = float("inf")
    for _ in range(calls):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def matrix_peak(threads: int) -> dict[str, float]:
    """Measure the best rate of a square matrix product in GFLOP/s, the reference of the column `of the peak`.

    On the CPU the rate is the faster of torch.mm and of the oneDNN operation that torch's compiler uses for a linear
    map. A CPU without bfloat16 instructions has no peak in bfloat16. On a GPU float32 is without TF32, torch's default.
    """
    import torch

    from loglik.cpu.private import onednn_linear
    from loglik.training.precision import multiplies_bfloat16

    torch.set_num_threads(threads)
    dtypes = {"float32": torch.float32}
    if not is_cpu() or multiplies_bfloat16(torch.device("cpu")):
        dtypes["bfloat16"] = torch.bfloat16
    peaks = {}
    for name, dtype in dtypes.items():
        rates = []
        for size in CPU_SIZES if is_cpu() else GPU_SIZES:
            a, b = (torch.randn(size, size, device=selected()).to(dtype) for _ in range(2))
            products = [lambda: torch.mm(a, b)]  # noqa: B023
            if is_cpu():
                products.append(lambda: onednn_linear(a, b, None))  # noqa: B023
            rates += [2 * size**3 / _fastest(product) / 1e9 for product in products]
        peaks[name] = max(rates)
    return peaks


def bandwidth() -> float | None:
    """Measure the GB/s, read and written, of a copy in a GPU's memory; None on the CPU."""
    import torch

    if is_cpu():
        return None
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=selected())
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _fastest(lambda: target.copy_(source)) / 1e9


def describe() -> str:
    """Return the name of the GPU and its memory, or of the CPU with its cores and memory."""
    if not is_cpu():
        properties = module().get_device_properties(selected())
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    name, memory = platform.processor() or platform.machine(), ""
    info, size = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if info.is_file() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1]
    if size.is_file() and (found := re.search(r"MemTotal:\s*(\d+) kB", size.read_text())):
        memory = f", {int(found[1]) / 2**20:.0f} GiB"
    return f"{name}, {os.cpu_count()} cores{memory}"
