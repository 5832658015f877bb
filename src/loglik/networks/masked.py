r"""Masked networks: the outputs for dimension d depend only on the dimensions before d.

A hidden unit of degree m reads the first m dimensions. Units are sorted by degree, so that each reads a prefix of the
layer below: masks are staircases, and a unit can be computed once its prefix is known.

Reference: Germain et al. 2015, "MADE: masked autoencoder for distribution estimation".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.linear import linear_outputs_first
from loglik.networks.dropout import FadingDropout

__all__ = ["IncrementalOutputs", "MaskedMLP"]


class _Staircase(nn.Module):
    """A linear map whose row i reads the first `reach[i]` inputs; `reach` does not decrease."""

    mask: Tensor

    def __init__(self, inputs: int, reach: Sequence[int]) -> None:
        super().__init__()
        self.reach = tuple(reach)
        layer = nn.Linear(inputs, len(reach))
        self.weight, self.bias = layer.weight, layer.bias
        mask = torch.arange(inputs) < torch.tensor(list(reach)).unsqueeze(1)
        self.register_buffer("mask", mask.float(), persistent=False)

    def masked_weight(self) -> Float[Tensor, "O I"]:
        return self.weight * self.mask.to(self.weight.dtype)

    def forward(self, h: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        return linear_outputs_first(h, self.masked_weight(), self.bias).T


class MaskedMLP(nn.Module):
    r"""An MLP whose outputs for dimension d depend only on $x_{<d}$ and the context.

    Args:
        dims: D, in the order in which the dimensions may depend on one another.
        outputs: number of outputs for each dimension; those of one dimension are contiguous.
        hidden: widths of the hidden layers.
        context: width of a context vector that every unit reads; 0 for none.
        dropout: the fraction of hidden units dropped in training; it falls with the number of training rows.
        activation: class of the activation after each hidden layer.

    Degrees are distributed evenly over the units. Weights start as those of PyTorch's linear layers.

    Reference: Germain et al. 2015, "MADE".
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
        first = 0 if context or dims == 1 else 1  # a unit that reads nothing would be a constant
        below = list(range(1, dims + 1))  # how many dimensions each input needs
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
        h = x if context is None else torch.cat([context, x], dim=1)
        for layer in self.layers:
            h = self.dropout(self.activation(layer(h)))
        return linear_outputs_first(h, self.output.masked_weight(), self.output.bias, self.output.reach).T

    def incremental(self, n: int, context: Float[Tensor, "n E"] | None = None) -> IncrementalOutputs:
        """Return the outputs for one dimension after another, for n events at once."""
        return IncrementalOutputs(self, n, context)


class IncrementalOutputs:
    """The outputs of a masked network for one dimension after another; each hidden unit is computed once in total.

    `next()` returns the outputs for the next dimension, and `append(x)` adds that dimension's values. There is no
    dropout, as in evaluation mode.
    """

    def __init__(self, network: MaskedMLP, n: int, context: Tensor | None) -> None:
        self.network, self.dim = network, 0
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

    def next(self) -> Float[Tensor, "P n"]:
        """Return the outputs for the next dimension."""
        weight, bias = self.steps[-1][self.dim]
        return torch.addmm(bias, weight, self.values[-1].rows)

    def append(self, x: Float[Tensor, " n"]) -> None:
        """Add the values of the next dimension."""
        self.values[0].append(x.unsqueeze(0))
        self.dim += 1
        if self.dim < self.network.dims:
            self._advance()

    def _advance(self) -> None:
        """Compute the hidden units whose inputs are now complete."""
        for number, steps in enumerate(self.steps[:-1]):
            weight, bias = steps[self.dim]
            if len(bias):
                new = torch.addmm(bias, weight, self.values[number].rows)
                self.values[number + 1].append(self.network.activation(new))


class _Rows:
    """Rows to append to: in one buffer, or by concatenation where a recorded gradient needs each earlier state."""

    def __init__(self, capacity: int, n: int, like: Tensor) -> None:
        self.buffer = like.new_empty(capacity, n)
        self.rows = self.buffer[:0]

    def append(self, new: Float[Tensor, "R n"]) -> None:
        if torch.is_grad_enabled():
            self.rows = torch.cat([self.rows, new])
        else:
            end = len(self.rows) + len(new)
            self.buffer[len(self.rows) : end] = new
            self.rows = self.buffer[:end]


def _cuts(owners: Sequence[int], below: Sequence[int], dims: int) -> list[tuple[int, int, int]]:
    """Return for each dimension the rows [a, b) of a layer that its step computes, and how many columns they read."""
    return [(bisect_right(owners, d - 1), bisect_right(owners, d), bisect_right(below, d)) for d in range(dims)]
