"""Linear maps that are fast on processors of every make.

torch's float32 products are MKL's, which on processors that are not Intel's are half as fast as oneDNN's. To those
torch has a way too: the operation that its compiler puts for a linear map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["Linear", "outputs_first", "product"]

FEWEST = 2**20  # multiplications, below which calling oneDNN takes longer than it saves


class Linear(nn.Linear):
    """`nn.Linear`, by `product`."""

    def forward(self, x: Shaped[Tensor, "*B E"]) -> Shaped[Tensor, "*B F"]:
        if x.dim() == 2:
            return product(x, self.weight, self.bias)
        return product(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def outputs_first(
    h: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "O B"]:
    """W hᵀ + b: `F.linear` with its result in memory outputs first."""
    return product(weight, h) + bias.unsqueeze(1)


def product(
    x: Float[Tensor, "M E"], weight: Float[Tensor, "F E"], bias: Float[Tensor, " F"] | None = None
) -> Float[Tensor, "M F"]:
    """X Wᵀ + b for matrices in any order of memory, by oneDNN where a large float32 one is on a processor."""
    if x.numel() * len(weight) < FEWEST or not _is_ours(x):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(to_y, weight.t()) if needs_x else None,
            product(to_y.t(), x.t()) if needs_weight else None,
            to_y.sum(0) if needs_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, weight_dot: Tensor | None, bias_dot: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = [] if x_dot is None else [product(x_dot, weight)]
        parts += [] if weight_dot is None else [product(x, weight_dot)]
        parts += [] if bias_dot is None else [bias_dot.expand(len(x), -1)]
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Tensor | None) -> tuple[Tensor, int]:
        return torch.vmap(F.linear, in_dims)(*inputs), 0  # type: ignore[arg-type]


def _is_ours(x: Tensor) -> bool:
    """What a compiler or a counter of operations looks at stays torch's own."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
        and torch.backends.mkldnn.is_available()
    )
