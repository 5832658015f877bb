r"""Equivariance as measured: $f(g\,x) = g'\,f(x)$ for a translation g of an image, or a permutation of a sequence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.private import tree_map
from loglik.inspection.layers import evaluating, first_tensor, hooked
from loglik.inspection.receptive import ReceptiveField, receptive_fields
from loglik.networks.attention import SelfAttention

__all__ = [
    "Permutation",
    "Translation",
    "invariance_error",
    "permutation_error",
    "permutation_errors",
    "translation_error",
]

POSITION = re.compile(r"(^|[._])pos(ition|_|$)")  # names of parameters: `positions`, `position_embedding`, `pos_embed`


class _Reached(Exception):
    """The layer that was asked for has run."""


@dataclass(frozen=True)
class Translation:
    """How far a layer's maps are from moving with the image.

    Attributes:
        layer: the module's name.
        shift: of the image, in pixels, down and to the right: the layer's total stride.
        side: of the random images, the least that has units whose field lies within.
        inside: the relative error over the units whose field lies within both images; None where no unit's does.
        everywhere: over all units that both images have, with those at the border, where the padding shows.
    """

    layer: str
    shift: tuple[int, int]
    side: tuple[int, int]
    inside: float | None
    everywhere: float


def translation_error(
    network: nn.Module, x: Float[Tensor, "B C H W"], layer: str | None = None, *, seed: int = 0
) -> Translation | None:
    r"""$\lVert f(T_s x) - T_1 f(x) \rVert / \lVert f(x) \rVert$ for a translation T by the layer's total stride s.

    Two windows of one random image, s pixels apart, go through the network; the maps of one, moved by one unit, should
    be the maps of the other: exactly (to rounding) inside, not at the border. The images are made large enough for
    the field of a few units to lie within, as the layers before `layer` take any size.

    Args:
        network: from images.
        x: an image, for its size and channels.
        layer: a layer that gives maps (B, C, h, w); the last whose field has a formula if None.

    Returns None where no layer gives such maps.
    """
    fields = [f for f in receptive_fields(network, x) if len(f.shape) == 3 and f.jump is not None]
    if layer is not None:
        fields = [f for f in fields if f.layer == layer]
    if not fields:
        return None
    field = fields[-1]
    assert field.jump is not None and field.start is not None
    jump = (field.jump[0], field.jump[1])
    side = tuple(
        max(n, -(-(2 * size + 4 * s) // s) * s) for n, size, s in zip(x.shape[2:], field.size, jump, strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(2, x.shape[1], side[0] + jump[0], side[1] + jump[1], generator=generator).to(x)
    try:
        still = _maps(network, large[:, :, jump[0] :, jump[1] :], field.layer)
        moved = _maps(network, large[:, :, : side[0], : side[1]], field.layer)
    except (RuntimeError, ValueError, AssertionError):  # a network for one size of image: so be it
        side = (x.shape[2], x.shape[3])
        large = large[:, :, : side[0] + jump[0], : side[1] + jump[1]]
        still = _maps(network, large[:, :, jump[0] :, jump[1] :], field.layer)
        moved = _maps(network, large[:, :, : side[0], : side[1]], field.layer)
    # the moved image shows the same things one unit further down and to the right
    a, b = still[:, :, :-1, :-1], moved[:, :, 1:, 1:]
    if not a.numel():
        return None
    rows, columns = (_inside(field, axis, side[axis], a.shape[2 + axis]) for axis in (0, 1))
    inside = None
    if rows.any() and columns.any():
        inside = _relative(a[:, :, rows][..., columns], b[:, :, rows][..., columns])
    return Translation(field.layer, jump, (side[0], side[1]), inside, _relative(a, b))


def invariance_error(network: nn.Module, x: Float[Tensor, "B C H W"], *, shift: int = 1) -> float:
    r"""$\lVert f(T_s x) - f(x) \rVert / \lVert f(x) \rVert$ of features f, for images moved s pixels to the right.

    0 for features that do not change, 1.4 for features that are as if of another image. The pixels of the left edge
    are repeated where the image has moved away. The features of x have their mean over the batch taken off, or a
    common bias would hide the change.
    """
    moved = F.pad(x, (shift, 0, 0, 0), mode="replicate")[..., : x.shape[-1]]
    with torch.no_grad(), evaluating(network):
        before, after = (network(images).flatten(1).cpu().double() for images in (x, moved))
    centred = before - before.mean(0) if len(x) > 1 else before
    return float((after - before).norm() / centred.norm().clamp_min(1e-30))


def permutation_error(
    network: nn.Module,
    x: Float[Tensor, "B T E"],
    positions: Float[Tensor, "T E"] | None = None,
    *,
    seed: int = 0,
) -> float:
    r"""$\lVert f(P x) - P f(x) \rVert / \lVert f(x) \rVert$ for a random permutation P of a sequence.

    Self-attention is an operation on a set: without positions the error is rounding. With `positions` added to the
    sequence after it is permuted, $f(P x + p)$ against $P f(x + p)$, the order counts, and the error is not.
    """
    order = _order(x, seed)
    added = torch.zeros_like(x[0]) if positions is None else positions.to(x)
    with torch.no_grad(), evaluating(network, seed):
        before = first_tensor(network(x + added))
        after = first_tensor(network(x[:, order] + added))
    assert before is not None and after is not None
    return _relative(before[:, order], after)


@dataclass(frozen=True)
class Permutation:
    """What a permutation of the sequence does to a part of a network.

    Attributes:
        layer: the part, from the sequence that the network embeds to the output of this layer.
        without: the relative error without positions.
        with_positions: the relative error with the positions of the network; None where none were found, or where
            they are not added to the sequence.
    """

    layer: str
    without: float
    with_positions: float | None


def permutation_errors(network: nn.Module, call: Callable[[], Any], *, seed: int = 0) -> list[Permutation]:
    r"""$\lVert f(P c + p) - P f(c + p) \rVert / \lVert f(c + p) \rVert$ for the attention inside a network, as it runs.

    c is the sequence that the first module with attention receives where all positions of the network are zero, c + p
    what it receives with them, and P a random permutation. f leads from there, with the norms on the way, to the output
    of the first attention layer, and to that of the last module with attention that reads nothing else.

    Positions are parameters and buffers by their names (`positions`, `pos_embed`), and the rotations of
    `SelfAttention`.

    Args:
        network: the module whose layers are followed.
        call: runs it on a batch, such as `lambda: network(x)`; without gradients, in evaluation mode.

    Returns the first attention layer and the whole, or one of them where they are the same, or nothing where no module
    with attention maps sequences (B, T, E) to sequences of the same shape.
    """
    entry, layers = _attention(network, call, seed)
    if not layers:
        return []

    def run(x: Tensor | None = None, *, still: bool) -> dict[str, Tensor]:
        """The sequence and the outputs, for x in the place of the sequence; `still` without positions."""
        seen: dict[str, Tensor] = {}

        def before(name: str, module: nn.Module, inputs: Any) -> Any:
            if name == entry:
                seen[""] = own = inputs[0][0]
                if x is not None:
                    inputs = tree_map(lambda value: x if value is own else value, inputs)
            return _unrotated(module, inputs) if still else inputs

        def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            out = first_tensor(output)
            if name in layers and out is not None:
                seen[name] = out

        with torch.no_grad(), evaluating(network, seed), hooked(network, before=before, after=after):
            call()
        return seen

    with _no_positions(network):
        plain = run(still=True)
        content = plain[""]
        order = _order(content, seed)
        moved = run(content[:, order], still=True)
    placed = run(still=False)
    positions = placed[""] - content
    together = run(content[:, order] + positions, still=False)
    added = float((positions - positions[:1]).abs().max()) <= 1e-4 * float(placed[""].abs().max())
    found = added and any(not torch.equal(plain[name], placed[name]) for name in layers)
    return [
        Permutation(
            name,
            _relative(plain[name][:, order], moved[name]),
            _relative(placed[name][:, order], together[name]) if found else None,
        )
        for name in layers
    ]


def _attention(network: nn.Module, call: Callable[[], Any], seed: int) -> tuple[str, list[str]]:
    """The first module with attention that maps sequences, the first attention layer, and the last module in a row."""
    started: dict[str, Tensor] = {}
    ended: dict[str, Tensor] = {}

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        args = inputs[0]
        sequence = bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 3 and args[0].is_floating_point()
        if sequence and any("attention" in type(part).__name__.lower() for part in module.modules()):
            started[name] = args[0]

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name in started and out is not None and out.shape == started[name].shape:
            ended[name] = out

    with torch.no_grad(), evaluating(network, seed), hooked(network, before=before, after=after):
        call()
    order = [name for name in started if name in ended]
    if not order:
        return "", []
    last = order[0]
    for name in order:
        if started[name] is ended[last]:
            last = name
    return order[0], list(dict.fromkeys([next(iter(ended)), last]))


@contextmanager
def _no_positions(network: nn.Module) -> Iterator[None]:
    """Set the positions that a network holds to zero, and restore them at the end."""
    held = [
        (tensor, tensor.detach().clone())
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if POSITION.search(name) and tensor.is_floating_point()
    ]
    try:
        with torch.no_grad():
            for tensor, _ in held:
                tensor.zero_()
        yield
    finally:
        with torch.no_grad():
            for tensor, values in held:
                tensor.copy_(values)


def _unrotated(module: nn.Module, inputs: Any) -> Any:
    """The inputs of a layer without the rotation of its queries and keys."""
    args, kwargs = inputs
    if not isinstance(module, SelfAttention):
        return inputs
    return (*args[:2], *[None] * len(args[2:3]), *args[3:]), {k: v for k, v in kwargs.items() if k != "rotation"}


def _order(x: Tensor, seed: int) -> Tensor:
    """A random permutation of the positions of x (B, T, E), which moves some where there are two."""
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    still = bool((order == torch.arange(len(order))).all())
    return (order.roll(1) if still else order).to(x.device)


def _maps(network: nn.Module, x: Tensor, layer: str) -> Tensor:
    """The output of a layer; what comes after it does not run."""
    caught: list[Tensor] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name == layer and out is not None:
            caught.append(out)
            raise _Reached

    with suppress(_Reached), torch.no_grad(), evaluating(network), hooked(network, after=after):
        network(x)
    return caught[0]


def _inside(field: ReceptiveField, axis: int, side: int, units: int) -> Tensor:
    """Which units see no padding, in the one image and, one unit further, in the other."""
    assert field.start is not None and field.jump is not None
    first = field.start[axis] + field.jump[axis] * torch.arange(units)
    return (first >= 0) & (first + field.jump[axis] + field.size[axis] <= side)


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu().double(), b.cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))
