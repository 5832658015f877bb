"""Measure on this CPU what `loglik.cpu.choices` decides: loglik's own operations against torch's.

Both sides run in turn and the fastest run of each counts, so that another process or a change of the clock rate rarely
decides. A measurement takes about 50 ms, once per machine. It draws no random numbers and restores the thread count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from loglik.cpu import private
from loglik.cpu.attention import unfused_attention
from loglik.cpu.choices import NEVER, Choices

__all__ = ["measure"]

MARGIN = 1.15  # how many times faster loglik's operation must be: choices near 1 would change from run to run
ROUNDS = 5
# (rows, inputs, outputs) of a linear map, of 2^21, 2^23 and 2^25 FLOPs
PRODUCTS = ((64, 128, 128), (128, 128, 256), (512, 128, 256))
PAUSE_SECONDS = 5e-5  # of Python between two operations of a small network, in which waiting threads fall asleep
MAX_SERIAL = 2**25  # most FLOPs that run on one thread, times the number of threads that wait for it
MAX_SECONDS = 0.05  # for finding what runs on one thread

now = time.perf_counter


def measure() -> Choices:
    """Return what is faster on this machine."""
    threads = torch.get_num_threads()
    with torch.autocast("cpu", enabled=False):
        with _threads(1), torch.no_grad():
            bfloat16 = _bfloat16_is_faster()
            roles = {role: _onednn_from(operands) for role, operands in ROLES.items()}
        with _threads(1), torch.enable_grad():
            attention = bfloat16 and _attention_is_faster()
        with torch.no_grad():
            single = _single_thread(threads) if threads > 1 else 0
    return Choices(**roles, single_thread=single, attention=attention, bfloat16=bfloat16)


def speedup(plain: Callable[[], object], other: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return how many times faster `other` is than `plain`, by the fastest of alternating runs."""
    best = [float("inf"), float("inf")]
    plain(), other()  # the first call prepares kernels
    for _ in range(rounds):
        for side, call in enumerate((plain, other)):
            start = now()
            call()
            best[side] = min(best[side], now() - start)
    return best[0] / best[1]


def _operands_forward(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return _filled(rows, inputs), _filled(outputs, inputs)


def _operands_grad_x(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return _filled(rows, outputs), _filled(outputs, inputs).t()


def _operands_grad_weight(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return _filled(rows, outputs).t(), _filled(rows, inputs).t()


# x and weight of the product x weightᵀ that computes each
ROLES = {"forward": _operands_forward, "grad_x": _operands_grad_x, "grad_weight": _operands_grad_weight}


def _onednn_from(operands: Callable[..., tuple[Tensor, Tensor]]) -> int:
    """Return the FLOPs from which oneDNN is faster; NEVER if it is not at the largest size."""
    found = NEVER
    if not private.HAS_ONEDNN:
        return found
    for shape in reversed(PRODUCTS):
        x, weight = operands(*shape)
        if speedup(lambda: F.linear(x, weight), lambda: private.onednn_linear(x, weight, None)) < MARGIN:  # noqa: B023
            break
        found = 2 * x.numel() * len(weight)
    return found


def _bfloat16_is_faster() -> bool:
    a = _filled(256, 256)
    half = a.bfloat16()
    once = speedup(lambda: a @ a, lambda: half @ half, rounds=1)  # without instructions for it a product takes long
    return once > 0.5 and speedup(lambda: a @ a, lambda: half @ half) >= MARGIN


def _attention_is_faster() -> bool:
    """Compare the two ways in bfloat16, with 128 keys."""
    q = _filled(4, 4, 128, 32).bfloat16().requires_grad_()
    grad = torch.ones_like(q)

    def fused() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, q, q, is_causal=True), q, grad)

    def unfused() -> None:
        torch.autograd.grad(unfused_attention(q, q, q, None, True), q, grad)

    return speedup(fused, unfused, rounds=3) >= MARGIN


def _single_thread(threads: int) -> int:
    """Return the FLOPs up to which all threads are not clearly faster than one at a product; 0 if they are at each.

    Beside other processes threads wait for one another, and the search would take long: one thread is then right. The
    answer is bounded, so that a wrong one costs little.
    """
    found, end = 0, now() + MAX_SECONDS
    sizes = [flops for flops in (2**power for power in range(19, 25)) if flops * threads <= MAX_SERIAL]
    for flops in sizes:
        x, weight = _filled(flops // 2**14, 64), _filled(128, 64)
        best = {1: float("inf"), threads: float("inf")}
        for _ in range(2 * ROUNDS):
            for count in best:
                with _threads(count):
                    _pause()
                    start = now()
                    F.linear(x, weight)
                    best[count] = min(best[count], now() - start)
            if now() > end:
                return sizes[-1]
        if best[1] > MARGIN * best[threads]:
            break
        found = flops
    return found


def _pause() -> None:
    start = now()
    while now() - start < PAUSE_SECONDS:
        pass


def _filled(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
