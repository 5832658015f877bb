"""An ensemble of MLPs of equal shape, computed together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.dropout import ByteDropout

__all__ = ["EnsembleMLP"]


class EnsembleMLP(nn.Module):
    """M independent MLPs with SiLU and a linear shortcut from the input to the output, each on the same input.

    Args:
        members: M.
        inputs, outputs: numbers of features.
        width, depth: of the hidden layers of each.
        dropout: the fraction of hidden units dropped in training.

    The output maps start at zero, so that all outputs start as their biases.
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, *, width: int = 64, depth: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [inputs, *[width] * depth]
        self.weights = nn.ParameterList(
            torch.randn(members, before, after) * math.sqrt(2 / before)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(members * width) for _ in range(depth))  # vectors do not decay
        self.shortcut = nn.Parameter(torch.zeros(members, inputs, outputs))
        self.output = nn.Parameter(torch.zeros(members, width, outputs))
        self.dropout = ByteDropout(dropout)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "M B O"]:
        shared = x.expand(len(self.shortcut), *x.shape)
        h = self.dropout(shared)
        out = torch.bmm(shared, self.shortcut)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = self.dropout(F.silu(torch.baddbmm(bias.view(len(h), 1, -1), h, weight)))
        return torch.baddbmm(out, h, self.output)
