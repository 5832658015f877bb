"""Multi-layer perceptrons: plain, and residual with a conditioning vector in every block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.linear import Linear
from loglik.networks.norms import make_norm
from loglik.regions import region

__all__ = ["ACTIVATIONS", "MLP", "ResidualMLP"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Module):
    r"""Hidden layers $h_{l} = \text{act}(W_l h_{l-1} + b_l)$, then one linear map to the output.

    Args:
        inputs, outputs: numbers of input and output features; an input of any shape is flattened.
        hidden: widths of the hidden layers.
        context: width of a context vector that is concatenated to the input; 0 for none.
        dropout: the fraction of hidden units dropped in training.
        activation: class of the activation after each hidden layer.
        norm: `none`, or the norm between each hidden linear map and its activation: `batch` or `layer`, see
            `loglik.networks.norms`.

    Hidden weights start normal with variance 2 / fan-in (He et al. 2015, "Delving deep into rectifiers"), so that
    neither signals nor gradients vanish with depth. The output map starts as PyTorch's linear layers do.

    Raises:
        ValueError: an unknown norm; in training, batch norm with a batch of one, which has no variance.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: tuple[int, ...] = (256, 256),
        *,
        context: int = 0,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.SiLU,
        norm: str = "none",
    ) -> None:
        super().__init__()
        if norm not in ("none", "batch", "layer"):
            raise ValueError(f"unknown norm {norm!r}: use none, batch or layer")
        self.norm = norm
        widths = [inputs + context, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            linear = Linear(before, after)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if norm != "none":
                layers.append(make_norm(norm, after))
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.output = Linear(widths[-1], outputs)
        self.outputs = outputs

    @region
    def forward(self, x: Float[Tensor, "B ..."], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B O"]:
        h = x.flatten(1)
        if self.training and self.norm == "batch" and len(h) == 1:
            raise ValueError(
                "batch norm needs at least 2 examples per batch in training, got 1: use norm='layer' or a larger batch"
            )
        if context is not None:
            h = torch.cat([h, context], dim=1)
        return self.output(self.body(h))


class ResidualMLP(nn.Module):
    r"""Blocks $h \leftarrow h + W_2\,\text{SiLU}(W_1 \text{LN}(h) \odot (1 + s) + b)$, $(s, b)$ linear in the context.

    Args:
        inputs, outputs: numbers of input and output features; an input of any shape is flattened.
        width, depth: width of the residual stream and number of blocks.
        context: width of a conditioning vector that scales and shifts every block; 0 for none.

    The last map of each block starts at zero, so that the network starts as a linear map (Zhang et al. 2019,
    "Fixup initialization").
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 256,
        depth: int = 3,
        context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input = Linear(inputs, width)
        self.blocks = nn.ModuleList([_ResidualBlock(width, context, dropout) for _ in range(depth)])
        self.norm = make_norm("layer", width)
        self.output = Linear(width, outputs)
        self.outputs = outputs

    def forward(self, x: Float[Tensor, "B ..."], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B O"]:
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, context)
        return self.output(self.norm(h))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm("layer", width)
        self.first = Linear(width, width)
        self.modulation = Linear(context, 2 * width) if context else None
        self.dropout = nn.Dropout(dropout)
        self.second = Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    @region
    def forward(self, h: Float[Tensor, "B W"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B W"]:
        u = self.first(self.norm(h))
        if self.modulation is not None:
            scale, shift = self.modulation(context).chunk(2, dim=1)
            u = torch.addcmul(shift, u, 1 + scale)  # one pass over memory
        return h + self.second(self.dropout(nn.functional.silu(u)))
