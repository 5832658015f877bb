r"""The cost of a sequence of length n: attention, convolution and recurrence, measured and fitted.

Attention needs time $O(n^2 d)$, a convolution $O(k n d^2)$ and a recurrence $O(n d^2)$ in n sequential steps (Vaswani
et al. 2017, table 1; the notes, "complexity"). By the formula $\text{softmax}(QK^\top / \sqrt d)\,V$ attention also
needs memory $O(n^2)$ for the matrix of all weights. A fused kernel computes the weights in blocks, recomputes them in
the backward pass, and saves $O(n d)$ (Dao et al. 2022, "FlashAttention").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.inspection.counts import FlopCount
from loglik.networks.attention import attention, attention_formula

__all__ = ["FORMULA", "Cost", "PowerLaw", "fit_power", "saved_bytes", "sequence_cost"]

FORMULA = "softmax(QKᵀ)V"


@dataclass(frozen=True)
class PowerLaw:
    """$c\\,n^p$, with the coefficient of determination of the fit on logarithms."""

    c: float
    p: float
    r2: float


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of layer against the length of the sequence.

    Attributes:
        kind: attention (as the networks run it), `FORMULA` (the same, written out), convolution or recurrence.
        lengths: n.
        seconds: of a forward pass, the fastest of the repeats.
        flops: of a forward pass, counted.
        saved_bytes: what a training step saves for the backward pass, without the weights.
        law: the fit of the seconds.
        flops_law: the fit of the FLOPs.
        saved_law: the fit of the saved bytes.
        quadratic: for attention (a, b) of the fit $a n^2 + b n$ of the seconds; None for the others.
    """

    kind: str
    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    flops: tuple[float, ...]
    saved_bytes: tuple[int, ...]
    law: PowerLaw
    flops_law: PowerLaw
    saved_law: PowerLaw
    quadratic: tuple[float, float] | None


def sequence_cost(
    lengths: Sequence[int] = (512, 1024, 2048, 4096), *, width: int = 64, repeats: int = 7, seed: int = 0
) -> list[Cost]:
    """Fit $c\\,n^p$ to the time, FLOPs and memory of attention, a convolution of kernel 3 and a GRU, on the CPU.

    Each layer runs on sequences (1, n, width). Memory is the tensors that autograd saves: for attention by its formula
    they include $4 n^2$ bytes of weights.

    Args:
        lengths: at least two values of n. Short ones measure the cost of a call rather than that of n.
        width: of the vectors, and of the one attention head.
        repeats: timings per layer and length, after one that is not counted; the kinds alternate.

    Raises:
        ValueError: for fewer than two lengths.
    """
    if len(set(lengths)) < 2 or min(lengths) < 1:
        raise ValueError(f"lengths must have at least two different lengths above 0, got {list(lengths)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        qkv, conv, gru = nn.Linear(width, 3 * width), nn.Conv1d(width, width, 3, padding=1), nn.GRU(width, width)

    def heads(x: Tensor) -> tuple[Tensor, ...]:
        return qkv(x).unsqueeze(1).chunk(3, dim=-1)

    layers: dict[str, Callable[[Tensor], object]] = {
        "attention": lambda x: attention(*heads(x)),
        FORMULA: lambda x: attention_formula(*heads(x)),
        "convolution": lambda x: conv(x.transpose(1, 2)),
        "recurrence": lambda x: gru(x.transpose(0, 1)),
    }
    weights = [*qkv.parameters(), *conv.parameters(), *gru.parameters()]
    inputs = [torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed)) for n in lengths]
    times: dict[str, list[list[float]]] = {kind: [[] for _ in lengths] for kind in layers}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for kind, layer in layers.items():
                for i, x in enumerate(inputs):
                    start = time.perf_counter()
                    layer(x)
                    if turn:
                        times[kind][i].append(time.perf_counter() - start)
    costs = []
    for kind, layer in layers.items():
        seconds = [min(t) for t in times[kind]]  # other work on the machine can only add time
        flops = [_flops(kind, layer, x, width) for x in inputs]
        saved = [saved_bytes(lambda layer=layer, x=x: layer(x), weights) for x in inputs]  # type: ignore[misc]
        quadratic = _quadratic(lengths, seconds) if kind == "attention" else None
        laws = fit_power(lengths, seconds), fit_power(lengths, flops), fit_power(lengths, saved)
        costs.append(Cost(kind, tuple(lengths), tuple(seconds), tuple(flops), tuple(saved), *laws, quadratic))
    return costs


def saved_bytes(call: Callable[[], object], weights: Iterable[Tensor] = ()) -> int:
    """Count the bytes that autograd saves for the backward pass of a call: each storage once, and no weights."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    saved: dict[int, Tensor] = {}  # the tensors are kept, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda x: x):
        result = call()
    size = sum(x.untyped_storage().nbytes() for address, x in saved.items() if address not in own)
    del result  # it keeps the graph alive
    return size


def fit_power(n: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """Fit $\\log v = \\log c + p \\log n$ by least squares.

    >>> law = fit_power([10, 20, 40], [300, 1200, 4800])
    >>> round(law.c, 6), round(law.p, 6)
    (3.0, 2.0)
    """
    x = torch.tensor(n, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).clamp_min(1e-12).log()
    centred = x - x.mean()
    p = float((centred * y).sum() / centred.square().sum())
    c = float(y.mean()) - p * float(x.mean())
    spread = float((y - y.mean()).square().sum())
    residual = float((y - c - p * x).square().sum())
    return PowerLaw(math.exp(c), p, 1 - residual / spread if spread > 0 else 1.0)


def _quadratic(lengths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return a and b of the fit a n² + b n, in relative error, so that every length has the same weight."""
    n, t = torch.tensor(lengths, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([n.square(), n], dim=1) / t[:, None]
    a, b = torch.linalg.lstsq(columns, torch.ones(len(n), 1, dtype=torch.float64)).solution.flatten().tolist()
    return a, b


def _flops(kind: str, layer: Callable[[Tensor], object], x: Tensor, width: int) -> float:
    if kind == "recurrence":  # six matrix-vector products per step; running it under the counter is slow
        return 12.0 * x.shape[1] * width**2
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCount() as counter:
        layer(x)
    return float(counter.total)
