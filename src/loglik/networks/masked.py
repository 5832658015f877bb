r"""Masked networks: outputs for dimension d depend on the dimensions before d only (Germain et al. 2015, "MADE").

A hidden unit of degree m sees the first m dimensions. Units are sorted by degree, so each sees a prefix of the layer
below: masks are staircases, and a unit is final once its prefix is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.linear import linear_outputs_first
from loglik.networks.dropout import FadingDropout

__all__ = ["MaskedMLP", "Walk"]


class _Staircase(nn.Module):
    """A linear map whose row i reads the first `reach[i]` inputs; `reach` never falls."""

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
        h = x if context is None else torch.cat([context, x], dim=1)
        for layer in self.layers:
            h = self.dropout(self.activation(layer(h)))
        return linear_outputs_first(h, self.output.masked_weight(), self.output.bias, self.output.reach).T

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
