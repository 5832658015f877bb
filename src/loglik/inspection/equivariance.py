r"""Translation equivariance, measured: $f(T_s\,x) = T_1\,f(x)$ for images x moved by the total stride s of f.

`permutation` measures the same of a permuted sequence.
"""

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

__all__ = ["Translation", "invariance_error", "relative_error", "translation_error"]


class _LayerReached(Exception):
    """The requested layer has run."""


@dataclass(frozen=True)
class Translation:
    """The error of a layer's maps against maps that move with the image.

    Attributes:
        layer: the name of the module.
        shift: of the image, in pixels, down and to the right: the layer's total stride.
        side: of the random images, the smallest at which the fields of some units are inside the image.
        inside: the relative error over the units whose fields are inside both images; None if there is no such unit.
        everywhere: the relative error over all units that both images have, including those at the padded border.
    """

    layer: str
    shift: tuple[int, int]
    side: tuple[int, int]
    inside: float | None
    everywhere: float


def translation_error(
    network: nn.Module, x: Float[Tensor, "B C H W"], layer: str | None = None, *, seed: int = 0
) -> Translation | None:
    r"""Return $\lVert f(T_s x) - T_1 f(x) \rVert / \lVert f(x) \rVert$ for a translation T by the total stride s.

    Two windows of one random image, s pixels apart, pass through the network. The maps of one, moved by one unit, equal
    the maps of the other up to rounding inside the image, but not at the border. The images are large enough that the
    fields of a few units are inside, if the layers before `layer` accept any size.

    Args:
        network: maps images to anything.
        x: an image; only its size and channels are used.
        layer: a layer whose output has shape (B, C, h, w); if None, the last one whose field has a formula.

    Returns None if no layer has such an output.
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
    except (RuntimeError, ValueError, AssertionError):  # the network accepts one size of image only
        side = (x.shape[2], x.shape[3])
        large = large[:, :, : side[0] + jump[0], : side[1] + jump[1]]
        still = _maps(network, large[:, :, jump[0] :, jump[1] :], field.layer)
        moved = _maps(network, large[:, :, : side[0], : side[1]], field.layer)
    # the moved image shows the same content one unit further down and to the right
    a, b = still[:, :, :-1, :-1], moved[:, :, 1:, 1:]
    if not a.numel():
        return None
    rows, columns = (_inside(field, axis, side[axis], a.shape[2 + axis]) for axis in (0, 1))
    inside = None
    if rows.any() and columns.any():
        inside = relative_error(a[:, :, rows][..., columns], b[:, :, rows][..., columns])
    return Translation(field.layer, jump, (side[0], side[1]), inside, relative_error(a, b))


def invariance_error(network: nn.Module, x: Float[Tensor, "B C H W"], *, shift: int = 1) -> float:
    r"""Return $\lVert f(T_s x) - f(x) \rVert / \lVert f(x) \rVert$ for images moved s pixels to the right.

    The error is 0 for features that do not change, and about 1.4 for features as different as those of another image.
    The pixels of the left edge fill the space that the image leaves. The mean of f(x) over the batch is subtracted
    from f(x), because a common bias would hide the change.
    """
    moved = F.pad(x, (shift, 0, 0, 0), mode="replicate")[..., : x.shape[-1]]
    with torch.no_grad(), evaluating(network):
        before, after = (network(images).flatten(1).cpu().double() for images in (x, moved))
    centred = before - before.mean(0) if len(x) > 1 else before
    return float((after - before).norm() / centred.norm().clamp_min(1e-30))


def relative_error(a: Tensor, b: Tensor) -> float:
    r"""Return $\lVert a - b \rVert / \lVert a \rVert$ in float64."""
    a, b = a.cpu().double(), b.cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


def _maps(network: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Return the output of a layer, without running the layers after it."""
    outputs: list[Tensor] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name == layer and out is not None:
            outputs.append(out)
            raise _LayerReached

    with suppress(_LayerReached), torch.no_grad(), evaluating(network), hooked(network, after=after):
        network(x)
    return outputs[0]


def _inside(field: ReceptiveField, axis: int, side: int, units: int) -> Tensor:
    """Return which units see no padding, both in one image and, one unit further, in the other."""
    assert field.start is not None and field.jump is not None
    first = field.start[axis] + field.jump[axis] * torch.arange(units)
    return (first >= 0) & (first + field.jump[axis] + field.size[axis] <= side)
