"""The layers on the path of the signal from the data to the loss, found in the autograd graph.

A *trunk* output is one that every path from the source to the loss goes through. A residual network has its blocks as
layers therefore, and not the insides of a branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from loglik.inspection.layers import WHOLE, first_tensor, kind_of, owners

__all__ = ["Layer", "Recorder", "path_layers"]

NO_LAYER = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)  # these pass gradients on unchanged
MIN_LAYERS = 3


@dataclass
class Output:
    """A module's output, and how many modules had run by then."""

    name: str
    module: nn.Module
    inputs: Tensor | None
    output: Tensor
    node: Any
    n_calls: int


@dataclass
class Call:
    """One call of a module, and the autograd node of its output."""

    name: str
    module: nn.Module
    node: Any


@dataclass
class Layer:
    """A layer of the path: `before` is the output of the layer before it, or its own input."""

    name: str
    kind: str
    depth: int
    before: Tensor | None
    output: Tensor
    parameters: list[nn.Parameter]


class Recorder:
    """A forward hook that records the calls of all modules and the outputs that need gradients."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.calls: list[Call] = []

    def after(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        self.calls.append(Call(name, module, None if out is None else out.grad_fn))
        if out is None or not out.requires_grad:
            return
        if self.outputs and out.grad_fn is self.outputs[-1].node:  # a container returns its last layer's output
            self.outputs[-1].n_calls = len(self.calls)
        else:
            self.outputs.append(Output(name, module, first_tensor(inputs), out, out.grad_fn, len(self.calls)))


def path_layers(
    network: nn.Module, record: Recorder, loss: Tensor, *, source: Tensor | None, first: str | None
) -> list[Layer]:
    """Return the layers of the trunk, or all modules with weights if the trunk has fewer than 3 layers.

    Args:
        network: the module that was run.
        record: what its hooks recorded.
        loss: the loss, with its graph.
        source: the tensor that the path starts from; the output of `first` if None.
        first: the module that reads the data; the first that ran if None.
    """
    trunk, reached = _trunk(record.outputs, loss, source, first)
    owned = owners(network, {_module_name(call.name) for call in record.calls})
    layers = _trunk_layers(trunk, record.calls, reached, owned, source)
    if len(layers) >= MIN_LAYERS:
        return layers
    maps = _maps(record.calls, owned)
    return [
        Layer(out.name, kind_of(out.module), depth, out.inputs, out.output, owned[_module_name(out.name)])
        for out, depth in _depths([out for out in record.outputs if _module_name(out.name) in maps], loss)
    ]


def _trunk(
    outputs: list[Output], loss: Tensor, source: Tensor | None, first: str | None
) -> tuple[list[Output], set[Any]]:
    """Return the outputs on every path from the source to the loss, and all nodes that such a path reaches.

    A node lies on all paths if (paths from the source to it) x (paths from it to the loss) is the number of all paths.
    """
    if not outputs or loss.grad_fn is None:
        return [], set()
    order = _topological(loss.grad_fn)
    if source is not None and source.requires_grad:
        start = source.grad_fn if source.grad_fn is not None else source.view_as(source).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    else:
        start = next((out.node for out in outputs if out.name == first), outputs[0].node)
    from_loss: dict[Any, int] = {loss.grad_fn: 1}
    for node in order:
        for child in _children(node):
            from_loss[child] = from_loss.get(child, 0) + from_loss.get(node, 0)
    to_source: dict[Any, int] = {}
    for node in reversed(order):
        to_source[node] = 1 if node is start else sum(to_source.get(child, 0) for child in _children(node))
    total = to_source.get(loss.grad_fn, 0)
    trunk, nodes = [], set()
    for out in outputs:
        on_all = total and from_loss.get(out.node, 0) * to_source.get(out.node, 0) == total
        if on_all and out.node not in nodes and out.name != WHOLE and not isinstance(out.module, NO_LAYER):
            nodes.add(out.node)
            trunk.append(out)
    return trunk, {node for node, paths in to_source.items() if paths}


def _trunk_layers(
    trunk: list[Output], calls: list[Call], reached: set[Any], owned: dict[str, list[nn.Parameter]],
    source: Tensor | None,
) -> list[Layer]:  # fmt: skip
    """Group the trunk's outputs into layers: a module with weights, and those without that follow it.

    Returns an empty list if other weights follow the trunk, such as a decoder's beside the other terms of a bound.
    """
    maps = _maps(calls, owned)
    modules = {_module_name(call.name): call.module for call in calls}
    layers: list[Layer] = []
    start, output = 0, source
    for out in trunk:
        passed = list(dict.fromkeys(_module_name(c.name) for c in calls[start : out.n_calls] if c.node in reached))
        inner = [name for name in passed if name in maps]
        parameters = [p for name in passed for p in owned.get(name, [])]
        if inner:
            name, module = _enclosing(out, inner, maps, modules)
            layers.append(Layer(name, kind_of(module), len(layers) + 1, output, out.output, parameters))
        elif layers:
            layers[-1].output = out.output
            layers[-1].kind += "" if any(out.module.children()) else f", {kind_of(out.module)}"
            layers[-1].parameters += parameters
        else:
            continue  # a norm of the input belongs to the first layer
        start, output = out.n_calls, out.output
    return [] if any(_module_name(c.name) in maps and c.node in reached for c in calls[start:]) else layers


def _depths(maps: list[Output], loss: Tensor) -> list[tuple[Output, int]]:
    """Return each map with the number of maps on the longest path to its output; parallel maps count once."""
    nodes = {out.node for out in maps}
    depth: dict[Any, int] = {}
    for node in reversed(_topological(loss.grad_fn)) if maps else ():
        depth[node] = max((depth[child] for child in _children(node)), default=0) + (node in nodes)
    return [(out, depth[out.node]) for out in maps if out.node in depth]


def _enclosing(out: Output, inner: list[str], maps: set[str], modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """Return the module that contains exactly the maps of a layer, such as a residual block, or the last that ran."""
    if all(f"{name}.".startswith(f"{_module_name(out.name)}.") for name in inner):
        return out.name, out.module
    name = max((n for n in modules if all(other.startswith(f"{n}.") for other in inner)), key=len, default="")
    within = {other for other in maps if other.startswith(f"{name}.")}
    return (name, modules[name]) if name in modules and within == set(inner) else (out.name, out.module)


def _maps(calls: list[Call], owned: dict[str, list[nn.Parameter]]) -> set[str]:
    """Return the innermost modules with weights, except norms and activations, which belong to the map before."""
    named = {_module_name(call.name): call.module for call in calls}
    names = {name for name, module in named.items() if name in owned and not _is_elementwise(module)} - {WHOLE}
    outer = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    return names - outer


def _is_elementwise(module: nn.Module) -> bool:
    """Return whether a module with weights is a norm or an activation."""
    return "norm" in type(module).__name__.lower() or isinstance(module, nn.PReLU)


def _module_name(name: str) -> str:
    """Return the module's name without the number of its call."""
    return name.partition("#")[0]


def _children(node: Any) -> list[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _topological(root: Any) -> list[Any]:
    """Return the nodes of a graph, each before those that it leads to."""
    order, done, stack = [], set(), [(root, False)]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node) if child not in done)
    return order[::-1]
