r"""What a sequence of length n costs: attention, convolution and recurrence, measured and fitted.

Attention takes time $O(n^2 d)$, a convolution $O(k n d^2)$ and a recurrence $O(n d^2)$ in n steps that wait for one
another (Vaswani et al. 2017, table 1; the notes, "complexity"). By the formula $\text{softmax}(QK^\top / \sqrt d)\,V$
attention takes $O(n^2)$ of memory too, for the matrix of all weights. A fused kernel computes these in blocks and
again in the backward pass, and holds $O(n d)$ (Dao et al. 2022, "FlashAttention").
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

__all__ = ["FORMULA", "Cost", "PowerLaw", "fit_power", "held_bytes", "sequence_cost"]

FORMULA = "softmax(QKᵀ)V"


@dataclass(frozen=True)
class PowerLaw:
    """$c\\,n^p$, with the coefficient of determination of the fit on logarithms."""

    c: float
    p: float
    r2: float


@dataclass(frozen=True)
class Cost:
    """One kind of layer against the length of the sequence.

    Attributes:
        kind: attention (as the networks run it), `FORMULA` (the same, written out), convolution or recurrence.
        lengths: n.
        seconds: of a forward pass, the fastest of the repeats.
        flops: as counted; `flops_law` is their fit.
        held: bytes that a training step holds for the backward pass, weights not counted; `held_law` is their fit.
        law: the fit of the seconds.
        quadratic: for attention (a, b) of the fit $a n^2 + b n$ of the seconds; None for the others.
    """

    kind: str
    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    flops: tuple[float, ...]
    held: tuple[int, ...]
    law: PowerLaw
    flops_law: PowerLaw
    held_law: PowerLaw
    quadratic: tuple[float, float] | None


def sequence_cost(
    lengths: Sequence[int] = (512, 1024, 2048, 4096), *, width: int = 64, repeats: int = 7, seed: int = 0
) -> list[Cost]:
    """Fit $c\\,n^p$ to the time, FLOPs and memory of attention, a convolution of kernel 3 and a GRU, on the CPU.

    They run over sequences (1, n, width). Memory is counted from what autograd holds: $4 n^2$ bytes of it are the
    weights of attention by its formula.

    Args:
        lengths: at least two, n. Short ones show what a call costs, and not what n does.
        width: of the vectors, and of the one attention head.
        repeats: of each time, after one that is not counted; the kinds take turns.

    Raises ValueError for fewer than two lengths.
    """
    if len(set(lengths)) < 2 or min(lengths) < 1:
        raise ValueError(f"lengths must hold at least two different lengths above 0, got {list(lengths)}")
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
        seconds = [min(t) for t in times[kind]]  # other work on the machine only adds
        flops = [_flops(kind, layer, x, width) for x in inputs]
        held = [held_bytes(lambda layer=layer, x=x: layer(x), weights) for x in inputs]  # type: ignore[misc]
        quadratic = _quadratic(lengths, seconds) if kind == "attention" else None
        laws = fit_power(lengths, seconds), fit_power(lengths, flops), fit_power(lengths, held)
        costs.append(Cost(kind, tuple(lengths), tuple(seconds), tuple(flops), tuple(held), *laws, quadratic))
    return costs


def held_bytes(call: Callable[[], object], weights: Iterable[Tensor] = ()) -> int:
    """Count the bytes that autograd holds for the backward pass of a call, each memory once and no weights."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    held: dict[int, Tensor] = {}  # the tensors too, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x
        return x

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda x: x):
        result = call()
    size = sum(x.untyped_storage().nbytes() for address, x in held.items() if address not in own)
    del result  # the graph that holds them
    return size


def fit_power(n: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """The least squares fit of $\\log v = \\log c + p \\log n$.

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
    left = float((y - c - p * x).square().sum())
    return PowerLaw(math.exp(c), p, 1 - left / spread if spread > 0 else 1.0)


def _quadratic(lengths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """a and b of the fit a n² + b n, in relative error, so that every length counts alike."""
    n, t = torch.tensor(lengths, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([n.square(), n], dim=1) / t[:, None]
    a, b = torch.linalg.lstsq(columns, torch.ones(len(n), 1, dtype=torch.float64)).solution.flatten().tolist()
    return a, b


def _flops(kind: str, layer: Callable[[Tensor], object], x: Tensor, width: int) -> float:
    if kind == "recurrence":  # six products of a vector and a square matrix a step, which take long to count
        return 12.0 * x.shape[1] * width**2
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCount() as counter:
        layer(x)
    return float(counter.total)
