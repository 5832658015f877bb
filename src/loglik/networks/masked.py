r"""Masked networks: outputs for dimension d depend on the dimensions before d only (Germain et al. 2015, "MADE").

A hidden unit of degree m sees the first m dimensions. Units are sorted by degree, so each sees a prefix of the layer
below: masks are staircases, most of what they hide is not multiplied, and a unit is final once its prefix is.
Activations are held units first, (units, B), so a prefix is contiguous.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.dropout import FadingDropout

__all__ = ["MaskedMLP", "Walk"]

BLOCK = 256  # rows of a staircase that are multiplied together


class _Staircase(nn.Module):
    """A linear map whose row i reads the first `reach[i]` inputs; `reach` never falls."""

    mask: Tensor

    def __init__(self, inputs: int, reach: Sequence[int]) -> None:
        super().__init__()
        linear = nn.Linear(inputs, len(reach))
        self.weight, self.bias = linear.weight, linear.bias
        mask = torch.arange(inputs) < torch.tensor(list(reach)).unsqueeze(1)
        self.register_buffer("mask", mask.float(), persistent=False)
        count = max(1, round(len(reach) / BLOCK))
        edges = [len(reach) * block // count for block in range(count + 1)]
        self.blocks = [(start, stop, reach[stop - 1]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]

    def masked_weight(self) -> Float[Tensor, "O I"]:
        return self.weight * self.mask.to(self.weight.dtype)

    def forward(self, h: Float[Tensor, "I B"]) -> Float[Tensor, "O B"]:
        h, weight, bias = _autocast(h), _autocast(self.masked_weight()), _autocast(self.bias)
        if len(self.blocks) == 1 or torch.compiler.is_compiling():
            return _by_blocks(h, weight, bias, self.blocks)
        return _Blocks.apply(h, weight, bias, self.blocks)


Block = tuple[int, int, int]  # rows from, to; the columns that they read


def _autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _by_blocks(h: Tensor, weight: Tensor, bias: Tensor, blocks: Sequence[Block]) -> Tensor:
    bias = bias.unsqueeze(1)
    parts = [torch.addmm(bias[a:b], weight[a:b, :columns], h[:columns]) for a, b, columns in blocks]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Blocks(torch.autograd.Function):
    """`_by_blocks` with every product written where it belongs, forwards and backwards: no copy of the result."""

    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor, blocks: Sequence[Block]) -> Tensor:
        out, column = h.new_empty(len(weight), h.shape[1]), bias.unsqueeze(1)
        for a, b, columns in blocks:
            torch.addmm(column[a:b], weight[a:b, :columns], h[:columns], out=out[a:b])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Sequence[Block]], output: Tensor) -> None:
        h, weight, bias, ctx.blocks = inputs
        ctx.save_for_backward(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, to_out: Tensor) -> Any:
        h, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for
            return *torch.func.vjp(partial(_by_blocks, blocks=ctx.blocks), h, weight, bias)[1](to_out), None
        to_h = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        to_weight, before = torch.zeros_like(weight), 0
        for a, b, columns in ctx.blocks:
            torch.mm(to_out[a:b], h[:columns].T, out=to_weight[a:b, :columns])
            if to_h is not None and columns > before:  # the inputs that this block is the first to read
                torch.mm(weight[a:, before:columns].T, to_out[a:], out=to_h[before:columns])
            before = columns
        return to_h, to_weight, to_out.sum(1), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        h, weight, bias, blocks = inputs
        return torch.vmap(partial(_by_blocks, blocks=blocks), in_dims[:3])(h, weight, bias), 0


class MaskedMLP(nn.Module):
    r"""An MLP whose outputs for dimension d depend on $x_{<d}$ and the context only.

    Args:
        dims: D numbers in, in the order in which they may depend on one another.
        outputs: numbers out for each dimension; those of dimension d stand together.
        hidden: widths of the hidden layers.
        context: width of a context vector that every unit sees; 0 for none.
        dropout: the fraction of hidden units dropped in training; it fades with the number of training examples.

    Source: Germain et al. 2015, with degrees dealt out evenly; as PyTorch's linear layers start.
    """

    def __init__(
        self,
        dims: int,
        outputs: int,
        hidden: tuple[int, ...] = (256, 256),
        *,
        context: int = 0,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.dims, self.outputs, self.context = dims, outputs, context
        first = 0 if context or dims == 1 else 1  # a unit that sees nothing would be a constant
        below = list(range(1, dims + 1))  # how many dimensions must be known for each input to be there
        self.degrees = [sorted(first + unit % max(1, dims - first) for unit in range(width)) for width in hidden]
        layers: list[nn.Module] = []
        inputs, extra = dims, context
        for degrees in self.degrees:
            layers.append(_Staircase(extra + inputs, [extra + bisect_right(below, m) for m in degrees]))
            inputs, below, extra = len(degrees), degrees, 0
        last = [extra + bisect_right(below, d) for d in range(dims)]
        self.layers = nn.ModuleList(layers)
        self.output = _Staircase(extra + inputs, [reach for reach in last for _ in range(outputs)])
        owners = [*self.degrees, [d for d in range(dims) for _ in range(outputs)]]
        readable = [[0] * context + list(range(1, dims + 1)), *self.degrees]
        self.cuts = [_cuts(owner, below, dims) for owner, below in zip(owners, readable, strict=True)]
        self.activation = activation()
        self.dropout = FadingDropout(dropout)

    def forward(self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B O"]:
        h = (x if context is None else torch.cat([context, x], dim=1)).T
        for layer in self.layers:
            h = self.dropout(self.activation(layer(h)))
        return self.output(h).T

    def walk(self, n: int, context: Float[Tensor, "n E"] | None = None) -> Walk:
        """Go through the dimensions one at a time, for n events at once."""
        return Walk(self, n, context)


class Walk:
    """The outputs for each dimension in turn, given those before: every hidden unit is computed once in total.

    `outputs()` gives what the network says of the next dimension; `append(x)` takes that dimension's value. In
    evaluation mode: nothing is dropped.
    """

    def __init__(self, network: MaskedMLP, n: int, context: Tensor | None) -> None:
        self.network, self.at = network, 0
        layers: list[_Staircase] = [*network.layers, network.output]  # type: ignore[list-item]
        weights = [layer.masked_weight() for layer in layers]
        self.steps = [
            [(weight[a:b, :columns], layer.bias[a:b].unsqueeze(1)) for a, b, columns in cuts]
            for weight, layer, cuts in zip(weights, layers, network.cuts, strict=True)
        ]
        self.values = [_Rows(weight.shape[1], n, weight) for weight in weights]
        if context is not None:
            self.values[0].append(context.T)
        self._advance()

    def outputs(self) -> Float[Tensor, "P n"]:
        weight, bias = self.steps[-1][self.at]
        return torch.addmm(bias, weight, self.values[-1].rows)

    def append(self, x: Float[Tensor, " n"]) -> None:
        self.values[0].append(x.unsqueeze(0))
        self.at += 1
        if self.at < self.network.dims:
            self._advance()

    def _advance(self) -> None:
        """Compute the units that became final."""
        for number, steps in enumerate(self.steps[:-1]):
            weight, bias = steps[self.at]
            if len(bias):
                new = torch.addmm(bias, weight, self.values[number].rows)
                self.values[number + 1].append(self.network.activation(new))


class _Rows:
    """Rows that are appended: into one buffer where no gradient is recorded, which would need each state kept."""

    def __init__(self, most: int, n: int, like: Tensor) -> None:
        self.buffer = like.new_empty(most, n)
        self.rows = self.buffer[:0]

    def append(self, new: Float[Tensor, "R n"]) -> None:
        if torch.is_grad_enabled():
            self.rows = torch.cat([self.rows, new])
        else:
            end = len(self.rows) + len(new)
            self.buffer[len(self.rows) : end] = new
            self.rows = self.buffer[:end]


def _cuts(owners: Sequence[int], below: Sequence[int], dims: int) -> list[tuple[int, int, int]]:
    """For each dimension the rows (from, to) of a layer that its step computes, and the columns known by then."""
    return [(bisect_right(owners, d - 1), bisect_right(owners, d), bisect_right(below, d)) for d in range(dims)]
