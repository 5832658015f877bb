"""Linear maps that are fast on every make of CPU.

torch computes float32 matrix products with MKL, which is half as fast as oneDNN on some CPUs with AVX-512, and as fast
or faster on others. `loglik.cpu.choices` says from which size oneDNN computes a map and each of its gradients. Where
oneDNN does not apply (another device or dtype, autocast, a small product, a transform of functions) torch's own product
runs. B batch, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.cpu import private
from loglik.cpu.choices import MIN_ONEDNN_FLOPS, onednn_flops
from loglik.cpu.dispatch import is_plain
from loglik.cpu.threads import threads_for

__all__ = ["linear", "linear_outputs_first"]

VECTOR = 16  # float32 numbers that one instruction computes with


def linear(
    x: Shaped[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Shaped[Tensor, "*B O"]:
    """Return X Wᵀ + b, whatever the matrices' order in memory."""
    if not _gains(x, weight):
        return F.linear(x, weight, bias)
    if x.dim() == 2:
        return _Product.apply("forward", x, weight, bias)
    return _Product.apply("forward", x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def linear_outputs_first(
    h: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"], reach: Sequence[int] | None = None
) -> Float[Tensor, "O B"]:
    """Return W hᵀ + b: `linear` with its outputs first in memory. It is fastest where h has its inputs first, too.

    Args:
        h, weight, bias: as in `linear`.
        reach: row o of W is zero from column `reach[o]` on; never falls. Most of these zeros are then left out of the
            product, and get no gradient.
    """
    if not _gains(h, weight):
        return torch.addmm(bias.unsqueeze(1), weight, h.t())
    half = 0 if reach is None else len(weight) // 2
    columns = min(h.shape[1], -(-reach[half - 1] // VECTOR) * VECTOR) if reach is not None else 0
    return _OutputsFirst.apply(h, weight, bias, half, columns)


def _gains(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN is faster at the map or at one of its gradients."""
    if torch.compiler.is_exporting():
        return False
    flops = _flops(x, weight)
    return flops >= MIN_ONEDNN_FLOPS and flops >= onednn_flops("smallest") and _suits_onednn(x)


def _flops(x: Tensor, weight: Tensor) -> int:
    return 2 * x.numel() * len(weight)


def _suits_onednn(x: Tensor) -> bool:
    return private.HAS_ONEDNN and is_plain(x) and not torch.is_autocast_enabled("cpu")


def _product(role: str, x: Float[Tensor, "M I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "M O"]:
    """Return X Wᵀ by the library that is faster in this role."""
    if _flops(x, weight) < onednn_flops(role) or not _suits_onednn(x):
        return F.linear(x, weight)
    return _Product.apply(role, x, weight, None)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # oneDNN has no fast kernel for a part of a matrix
        weight = weight.contiguous()
    with threads_for(_flops(x, weight)):
        return private.onednn_linear(x, weight, bias)


# what the compiler sees: it accepts oneDNN's own operation only with weights that never change
_SCHEMA = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
_multiply_compiled = torch.library.custom_op("loglik::linear", _multiply, mutates_args=(), schema=_SCHEMA)
_multiply_compiled.register_fake(lambda x, weight, bias: x.new_empty(len(x), len(weight)))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, role: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if _flops(x, weight) < onednn_flops(role):
            return F.linear(x, weight, bias)
        multiply = _multiply_compiled if torch.compiler.is_compiling() else _multiply
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            None,
            _product("grad_x", grad_y, weight.t()) if needs_x else None,
            _product("grad_weight", grad_y.t(), x.t()) if needs_weight else None,
            grad_y.sum(0) if needs_bias else None,
        )


class _OutputsFirst(torch.autograd.Function):
    """W hᵀ + b where the first `half` rows of W read the first `columns` inputs only.

    A staircase of zeros is cut into two parts: more parts would be too small to be fast. The first factor of a product
    is copied if it is out of order in memory, so the smaller one comes first.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, half: int, columns: int) -> Tensor:
        ctx.half, ctx.columns = half, columns
        ctx.save_for_backward(h, weight)
        bias = bias.unsqueeze(1)
        with threads_for(_flops(h, weight)):
            if not half:
                return _product("forward", weight, h).add_(bias)
            y = h.new_empty(len(weight), len(h))
            torch.add(_product("forward", weight[:half, :columns], h[:, :columns]), bias[:half], out=y[:half])
            torch.add(_product("forward", weight[half:], h), bias[half:], out=y[half:])
            return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        half, columns = ctx.half, ctx.columns
        with threads_for(_flops(h, weight)):
            grad_h = _product("grad_x", weight[half:].t(), grad_y[half:].t()) if ctx.needs_input_grad[0] else None
            grad_weight = _product("grad_weight", grad_y[half:], h.t())
            if half:
                first = _product("grad_weight", grad_y[:half], h[:, :columns].t())
                grad_weight = torch.cat([F.pad(first, (0, h.shape[1] - columns)), grad_weight])
                if grad_h is not None:
                    first = _product("grad_x", weight[:half, :columns].t(), grad_y[:half].t())
                    grad_h = torch.cat([grad_h[:columns] + first, grad_h[columns:]])
            if grad_h is not None:
                grad_h = grad_h.t().contiguous() if h.is_contiguous() else grad_h.t()
            return grad_h, grad_weight, grad_y.sum(1), None, None
