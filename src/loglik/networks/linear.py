"""Linear maps that are fast on CPUs of every make.

torch's float32 products are MKL's, which on CPUs that are not Intel's are half as fast as oneDNN's. To those
torch has a way too: the operation that its compiler puts for a linear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.networks.dispatch import is_plain
from loglik.networks.threads import threads_for

__all__ = ["Linear", "outputs_first", "product"]

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
SMALL = 2**23  # multiplications, up to which one thread is as fast as two that must be woken
FEWEST = 2**20  # multiplications, below which calling oneDNN takes longer than it saves


class Linear(nn.Linear):
    """`nn.Linear`, by `product`."""

    def forward(self, x: Shaped[Tensor, "*B E"]) -> Shaped[Tensor, "*B F"]:
        if x.dim() == 2:
            return product(x, self.weight, self.bias)
        return product(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def outputs_first(
    h: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"], reach: Sequence[int] | None = None
) -> Float[Tensor, "O B"]:
    """W hᵀ + b: `F.linear` with its result in memory outputs first. It is fastest where h, too, is features first.

    Row o of W is zero from column `reach[o]` on, if `reach` is given; it never falls. Most of those zeros are then not
    multiplied, and get no gradient.
    """
    if weight.numel() * len(h) < FEWEST or not _is_ours(h):
        return torch.addmm(bias.unsqueeze(1), weight, h.t())
    half = 0 if reach is None else len(weight) // 2
    columns = min(h.shape[1], -(-reach[half - 1] // 16) * 16) if reach is not None else 0  # 16: whole vectors
    return _OutputsFirst.apply(h, weight, bias, half, columns)


def product(
    x: Float[Tensor, "M E"], weight: Float[Tensor, "F E"], bias: Float[Tensor, " F"] | None = None
) -> Float[Tensor, "M F"]:
    """X Wᵀ + b for matrices in any order of memory, by oneDNN if x is float32, large and on a CPU."""
    if x.numel() * len(weight) < FEWEST or not _is_ours(x):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # for a part oneDNN has no fast kernel
        weight = weight.contiguous()
    with threads_for(x.numel() * len(weight), SMALL):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# what the compiler sees of it: oneDNN's operation itself it takes with weights that never change only
_SCHEMA = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
_multiply_compiled = torch.library.custom_op("loglik::linear", _multiply, mutates_args=(), schema=_SCHEMA)
_multiply_compiled.register_fake(lambda x, weight, bias: x.new_empty(len(x), len(weight)))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        multiply = _multiply_compiled if torch.compiler.is_compiling() else _multiply
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(to_y, weight.t()) if needs_x else None,
            product(to_y.t(), x.t()) if needs_weight else None,
            to_y.sum(0) if needs_bias else None,
        )


class _OutputsFirst(torch.autograd.Function):
    """W hᵀ + b where the first rows of W, if `half` is not 0, read the first columns only.

    Two parts for a staircase: more would be slower for their size. Products are so turned that the factor which comes
    first, and is copied if its memory is not in order, is the smaller one.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, half: int, columns: int) -> Tensor:
        ctx.half, ctx.columns = half, columns
        ctx.save_for_backward(h, weight)
        bias = bias.unsqueeze(1)
        with threads_for(h.numel() * len(weight), SMALL):
            if not half:
                return product(weight, h).add_(bias)
            y = h.new_empty(len(weight), len(h))
            torch.add(product(weight[:half, :columns], h[:, :columns]), bias[:half], out=y[:half])
            torch.add(product(weight[half:], h), bias[half:], out=y[half:])
            return y

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        half, columns = ctx.half, ctx.columns
        with threads_for(h.numel() * len(weight), SMALL):
            to_h = product(weight[half:].t(), to_y[half:].t()) if ctx.needs_input_grad[0] else None
            to_weight = product(to_y[half:], h.t())
            if half:
                first = product(to_y[:half], h[:, :columns].t())
                to_weight = torch.cat([F.pad(first, (0, h.shape[1] - columns)), to_weight])
                if to_h is not None:
                    to_first = product(weight[:half, :columns].t(), to_y[:half].t())
                    to_h = torch.cat([to_h[:columns] + to_first, to_h[columns:]])
            if to_h is not None:
                to_h = to_h.t().contiguous() if h.is_contiguous() else to_h.t()
            return to_h, to_weight, to_y.sum(1), None, None


def _is_ours(x: Tensor) -> bool:
    return AVAILABLE and is_plain(x) and not torch.is_autocast_enabled("cpu")
