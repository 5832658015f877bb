r"""Permutation equivariance, measured: $f(P\,x) = P\,f(x)$ for a permutation P of the positions of a sequence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.private import tree_map
from loglik.inspection.equivariance import relative_error
from loglik.inspection.layers import evaluating, first_tensor, hooked
from loglik.networks.attention import ATTENTION_TYPES, SelfAttention

__all__ = ["Permutation", "permutation_error", "permutation_errors"]

POSITION = re.compile(r"(^|[._])pos(ition|_|$)")  # names of parameters: `positions`, `position_embedding`, `pos_embed`


def permutation_error(
    network: nn.Module,
    x: Float[Tensor, "B T E"],
    positions: Float[Tensor, "T E"] | None = None,
    *,
    seed: int = 0,
) -> float:
    r"""Return $\lVert f(P x) - P f(x) \rVert / \lVert f(x) \rVert$ for a random permutation P of a sequence.

    Self-attention is an operation on a set: without positions the error is rounding. With `positions`, which are added
    to the sequence after the permutation, $f(P x + p)$ is compared with $P f(x + p)$: the order matters.
    """
    order = _random_order(x, seed)
    added = torch.zeros_like(x[0]) if positions is None else positions.to(x)
    with torch.no_grad(), evaluating(network, seed):
        before = first_tensor(network(x + added))
        after = first_tensor(network(x[:, order] + added))
    assert before is not None and after is not None
    return relative_error(before[:, order], after)


@dataclass(frozen=True)
class Permutation:
    """The effect of a permutation of the sequence on a part of a network.

    Attributes:
        layer: the last layer of the part, which starts at the sequence that the network embeds.
        without: the relative error without positions.
        with_positions: the relative error with the positions of the network; None if none were found, or if they are
            not added to the sequence.
    """

    layer: str
    without: float
    with_positions: float | None


def permutation_errors(network: nn.Module, call: Callable[[], Any], *, seed: int = 0) -> list[Permutation]:
    r"""Return $\lVert f(P c + p) - P f(c + p) \rVert / \lVert f(c + p) \rVert$ for the attention inside a network.

    c is the sequence that the first module with attention receives if all positions of the network are zero, c + p the
    sequence that it receives with them, and P a random permutation. f leads from there to the output of the first
    attention layer, and to the output of the last module with attention that reads nothing else, including the norms
    on the way.

    Positions are parameters and buffers, found by their names (`positions`, `pos_embed`), and the rotations of
    `SelfAttention`.

    Args:
        network: the module whose layers are followed.
        call: runs it on a batch, such as `lambda: network(x)`; without gradients, in evaluation mode.

    Returns the first attention layer and the last module, one of them if they are the same, or an empty list if no
    module with attention maps sequences (B, T, E) to sequences of the same shape.
    """
    start, layers = _attention_layers(network, call, seed)
    if not layers:
        return []

    def run(x: Tensor | None = None, *, rotated: bool) -> dict[str, Tensor]:
        """Return the sequence and the layers' outputs; x replaces the sequence."""
        outputs: dict[str, Tensor] = {}

        def before(name: str, module: nn.Module, inputs: Any) -> Any:
            if name == start:
                outputs[""] = own = inputs[0][0]
                if x is not None:
                    inputs = tree_map(lambda value: x if value is own else value, inputs)
            return inputs if rotated else _without_rotation(module, inputs)

        def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            out = first_tensor(output)
            if name in layers and out is not None:
                outputs[name] = out

        with torch.no_grad(), evaluating(network, seed), hooked(network, before=before, after=after):
            call()
        return outputs

    with _no_positions(network):
        plain = run(rotated=False)
        content = plain[""]
        order = _random_order(content, seed)
        plain_permuted = run(content[:, order], rotated=False)
    placed = run(rotated=True)
    positions = placed[""] - content
    placed_permuted = run(content[:, order] + positions, rotated=True)
    added = float((positions - positions[:1]).abs().max()) <= 1e-4 * float(placed[""].abs().max())
    found = added and any(not torch.equal(plain[name], placed[name]) for name in layers)
    return [
        Permutation(
            name,
            relative_error(plain[name][:, order], plain_permuted[name]),
            relative_error(placed[name][:, order], placed_permuted[name]) if found else None,
        )
        for name in layers
    ]


def _attention_layers(network: nn.Module, call: Callable[[], Any], seed: int) -> tuple[str, list[str]]:
    """Return the first module with attention that maps sequences, and the layers whose outputs are compared.

    These are the first attention layer, and the last of the modules that follow one another.
    """
    inputs_of: dict[str, Tensor] = {}
    outputs_of: dict[str, Tensor] = {}

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        args = inputs[0]
        sequence = bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 3 and args[0].is_floating_point()
        if sequence and any(isinstance(part, ATTENTION_TYPES) for part in module.modules()):
            inputs_of[name] = args[0]

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name in inputs_of and out is not None and out.shape == inputs_of[name].shape:
            outputs_of[name] = out

    with torch.no_grad(), evaluating(network, seed), hooked(network, before=before, after=after):
        call()
    order = [name for name in inputs_of if name in outputs_of]
    if not order:
        return "", []
    last = order[0]
    for name in order:
        if inputs_of[name] is outputs_of[last]:
            last = name
    return order[0], list(dict.fromkeys([next(iter(outputs_of)), last]))


@contextmanager
def _no_positions(network: nn.Module) -> Iterator[None]:
    """Set the positions of a network to zero, and restore them at the end."""
    saved = [
        (tensor, tensor.detach().clone())
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if POSITION.search(name) and tensor.is_floating_point()
    ]
    try:
        with torch.no_grad():
            for tensor, _ in saved:
                tensor.zero_()
        yield
    finally:
        with torch.no_grad():
            for tensor, values in saved:
                tensor.copy_(values)


def _without_rotation(module: nn.Module, inputs: Any) -> Any:
    """Return the inputs of a layer without the rotation of its queries and keys."""
    args, kwargs = inputs
    if not isinstance(module, SelfAttention):
        return inputs
    return (*args[:2], *[None] * len(args[2:3]), *args[3:]), {k: v for k, v in kwargs.items() if k != "rotation"}


def _random_order(x: Tensor, seed: int) -> Tensor:
    """Return a random permutation of the positions of x (B, T, E) that is not the identity if T > 1."""
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    identity = bool((order == torch.arange(len(order))).all())
    return (order.roll(1) if identity else order).to(x.device)
