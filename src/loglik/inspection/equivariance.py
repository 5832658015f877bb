r"""Equivariance as measured: $f(g\,x) = g'\,f(x)$ for a translation g of an image, or a permutation of a sequence."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.inspection.layers import evaluating, first_tensor, hooked
from loglik.inspection.receptive import ReceptiveField, receptive_fields

__all__ = ["Translation", "invariance_error", "permutation_error", "translation_error"]


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
        before, after = (network(images).flatten(1).double() for images in (x, moved))
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
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(x.shape[1], generator=generator).to(x.device)
    added = torch.zeros_like(x[0]) if positions is None else positions
    with torch.no_grad(), evaluating(network, seed):
        before = first_tensor(network(x + added))
        after = first_tensor(network(x[:, order] + added))
    assert before is not None and after is not None
    return _relative(before[:, order], after)


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
    return float((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-30))
