"""Devices by name, what they can do, and the state of their random numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "DeviceInfo",
    "available_devices",
    "describe_device",
    "fork_generators",
    "full_precision",
    "resolve_device",
]

SIDE = 4096  # of the matrices whose product is timed
NAMES = "auto, cpu, cuda, cuda:1 (or another number) or mps"


def available_devices() -> list[torch.device]:
    """Return the devices of this machine that torch can use: the CPU first."""
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    apple = [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [torch.device("cpu"), *gpus, *apple]


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; `auto` is the first CUDA GPU if there is one, else the CPU.

    `auto` leaves an Apple GPU alone, since torch has no float64 there, which log-probabilities are summed in. A
    `torch.device` is returned as it is.

    Raises ValueError for an unknown name, and for a device that this machine does not have.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if isinstance(name, torch.device):
        return name
    there = available_devices()
    if name == "auto":
        return next((device for device in there if device.type == "cuda"), there[0])
    found = re.fullmatch(r"cpu|mps|cuda(:\d+)?", name)
    if not found:
        raise ValueError(f"unknown device {name!r}: use {NAMES}")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device not in there:
        built = getattr(torch.backends, device.type).is_built()
        why = "" if built else f"; torch is built without {device.type}"
        raise ValueError(f"there is no device {name!r}: this machine has {', '.join(map(str, there))}{why}")
    return device


@dataclass(frozen=True)
class DeviceInfo:
    """What a device can do.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        memory: bytes of a CUDA GPU's memory; 0 for other devices.
        flops: operations per second of matrix products in bfloat16, measured on CUDA GPUs; 0 for other devices.
    """

    kind: str
    memory: int = 0
    flops: float = 0.0


@lru_cache
def describe_device(device: torch.device) -> DeviceInfo:
    """Return what a device can do, by a few timed products of matrices on a CUDA GPU; on others nothing is measured."""
    if device.type != "cuda":
        return DeviceInfo(device.type)
    a, b = (torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return DeviceInfo("cuda", torch.cuda.get_device_properties(device).total_memory, 2 * SIDE**3 / min(seconds))


@contextmanager
def fork_generators(device: torch.device) -> Iterator[None]:
    """Restore the random state of the CPU and of one device at the end of a block."""
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng([]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off in a block for x's device. The device meta has no autocast, and torch refuses it there."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
