"""Parameters, floating-point operations and memory of each layer, and the parameters of a dense layer instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from loglik.cpu.private import TorchDispatchMode
from loglik.inspection.layers import WHOLE, evaluating, first_tensor, hooked, kind_of, owners

__all__ = ["FlopCount", "LayerCount", "layer_counts"]


aten = torch.ops.aten


class FlopCount(TorchDispatchMode):
    """Count floating-point operations by torch's formulas, in `total`.

    `FlopCounterMode` also hooks modules, and a loss that uses `torch.func` fails with these hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := RECURRENT.get(func.overloadpacket)) is not None:
            self.total += formula(*args)
        elif (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _lstm(x: Tensor, weight: Tensor, recurrent: Tensor, *rest: Any) -> int:
    return 2 * x.shape[0] * x.shape[1] * (weight.numel() + recurrent.numel())


def _cudnn(x: Tensor, weights: Sequence[Tensor], *rest: Any) -> int:
    return 2 * x.shape[0] * x.shape[1] * sum(w.numel() for w in weights if w.dim() > 1)


# kernels of a whole recurrence: torch has no formula for them
RECURRENT: dict[Any, Callable[..., int]] = {aten.mkldnn_rnn_layer: _lstm, aten._cudnn_rnn: _cudnn}


@dataclass(frozen=True)
class LayerCount:
    """The cost of one layer.

    Attributes:
        layer: the name of the module; submodules that run as layers are not counted again.
        kind: its type.
        inputs: the shape without the batch; None if the layer does not map one tensor to one tensor.
        output: likewise.
        parameters: trained or not.
        dense_parameters: of a dense layer between the same input and output, for a convolution; else None.
        flops: of one example's forward pass. A multiplication and an addition are two. Only matrix products,
            convolutions, recurrences and attention are counted.
        activation_bytes: of one example's output; 0 if it shares its input's memory, or if its submodules are listed.
    """

    layer: str
    kind: str
    inputs: tuple[int, ...] | None
    output: tuple[int, ...] | None
    parameters: int
    dense_parameters: int | None
    flops: float
    activation_bytes: int


def layer_counts(network: nn.Module, call: Callable[[], Any], *, batch: int = 1, seed: int = 0) -> list[LayerCount]:
    r"""Count the parameters, FLOPs and activation bytes of each layer, in the order in which they first run.

    A convolution has $k^2 C_{in} C_{out} + C_{out}$ parameters; a dense layer between the same input and output has
    $H W C_{in} \cdot H' W' C_{out} + H' W' C_{out}$. The rows sum to the FLOPs and parameters of the network.
    A parameter counts under the innermost layer that ran and contains it, or else as the network's own.

    Args:
        network: the module whose layers are counted.
        call: runs it, such as `lambda: network(x)`; without gradients, in evaluation mode.
        batch: the number of examples in this call, to divide by.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    >>> [(c.parameters, c.dense_parameters) for c in layer_counts(net, lambda: net(torch.zeros(1, 3, 4, 4)))]
    [(224, 6272), (0, None), (1290, None)]
    """
    rows: dict[str, _Row] = {}
    stack = [0.0]  # the FLOPs of the submodules of each running layer
    starts: list[float] = []
    leaf = [True]  # whether no submodule of each running layer has run
    counter = FlopCount()

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        starts.append(counter.total)
        stack.append(0.0)
        leaf[-1] = False
        leaf.append(True)

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        total = counter.total - starts.pop()
        own = total - stack.pop()
        stack[-1] += total
        row = rows.setdefault(name.split("#")[0], _Row(module, first_tensor(inputs), first_tensor(output)))
        row.flops += own / batch
        out = first_tensor(output)
        same = out is first_tensor(inputs) or isinstance(module, (nn.Flatten, nn.Unflatten))
        if leaf.pop() and out is not None and not same:
            row.bytes += out.numel() * out.element_size() // batch

    # attention as matrix products: their FLOPs can be counted on any machine
    products = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), evaluating(network, seed), hooked(network, before=before, after=after), products, counter:
        call()
    rest = counter.total / batch - sum(row.flops for row in rows.values())
    owned = {name: sum(p.numel() for p in own) for name, own in owners(network, rows).items()}
    counted = [_count(name, row, owned.get(name, 0)) for name, row in rows.items() if name != WHOLE]
    whole = rows.get(WHOLE, _Row(network, None, None))
    remaining, flops = owned.get(WHOLE, 0), whole.flops + rest
    if remaining or flops > 0.5:
        row = _count(WHOLE, whole, remaining)
        counted.append(replace(row, dense_parameters=None, flops=flops))
    names = {id(row.module): name for name, row in rows.items()}
    inner = {name for name, row in rows.items() if any(id(m) in names for m in list(row.module.modules())[1:])}
    return [c for c in counted if c.layer not in inner or c.parameters or c.flops]


@dataclass
class _Row:
    module: nn.Module
    inputs: Tensor | None
    output: Tensor | None
    flops: float = 0.0
    bytes: int = 0


def _count(name: str, row: _Row, parameters: int) -> LayerCount:
    inputs = None if row.inputs is None else tuple(row.inputs.shape[1:])
    output = None if row.output is None else tuple(row.output.shape[1:])
    dense = None
    if isinstance(row.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and inputs and output:
        units = math.prod(output)
        dense = math.prod(inputs) * units + (units if row.module.bias is not None else 0)
    return LayerCount(name, kind_of(row.module), inputs, output, parameters, dense, row.flops, row.bytes)
