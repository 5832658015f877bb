r"""Receptive fields by the formula: which part of the input a unit of each layer depends on.

B batch, C channels, H W image. Positions count from 0; a field is a first and a last position along each input axis.
`measured_fields` measures the same by gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from loglik.inspection.bounds import Bounds, Window
from loglik.inspection.layers import device_of, evaluating, first_tensor, hooked, kind_of
from loglik.inspection.tracker import Tracker

__all__ = ["Interval", "ReceptiveField", "receptive_fields", "spatial_axes"]

Interval = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a layer; tuples have one value per axis of the input.

    Attributes:
        layer: the name of the module.
        kind: its type.
        shape: of its output, without the batch.
        size: the field by the formula, on an input without border. A layer that mixes all positions has the input's.
        jump: the distance between the fields of neighbouring units; None if the units have no positions.
        start: the first position of the first unit's field, negative in the padding; None likewise.
        unit: the middle unit of the output, as an index without the batch.
        seen: the first and last position that this unit depends on in this input; None if it depends on nothing.
        whole: whether every unit sees every position.
        assumed: operations without a rule before this layer, which are assumed to mix everything.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    jump: tuple[int, ...] | None
    start: tuple[int, ...] | None
    unit: tuple[int, ...]
    seen: tuple[Interval, ...] | None
    whole: bool
    assumed: tuple[str, ...] = ()

    @property
    def clipped(self) -> bool:
        """Return whether the border of the input cuts the middle unit's field."""
        lengths = None if self.seen is None else tuple(last - first + 1 for first, last in self.seen)
        return self.jump is None or lengths != self.size


def receptive_fields(
    network: nn.Module, x: Shaped[Tensor, "B ..."], *, axes: Sequence[int] | None = None
) -> list[ReceptiveField]:
    r"""Return the receptive field of every layer of a network, in the order in which they run.

    $RF_l = RF_{l-1} + d_l (k_l - 1) \prod_{i<l} s_i$ for kernel k, stride s and dilation d. If branches meet, the field
    is the smallest that contains those of all branches. Any network works, because the fields follow its operations
    rather than its modules.

    Args:
        network: maps x to anything; it runs once, in evaluation mode.
        x: an input; only the first example is used.
        axes: the spatial dimensions of x; by default (2, 3) for images (B, C, H, W), all from the third on for other
            shapes, and 1 for rows (B, D). Pass (1,) for a sequence of vectors (B, T, E).

    References: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks"; the notes,
    "receptive field".

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, dilation=2))
    >>> [field.size for field in receptive_fields(net, torch.zeros(1, 1, 32, 32))]
    [(3, 3), (4, 4), (12, 12)]
    """
    x = x[:1].detach().clone().cpu()
    axes = spatial_axes(x, axes)
    if device_of(network).type != "cpu":
        network = copy.deepcopy(network).cpu()  # bounds are tracked on the CPU
    tracker = Tracker()
    fields: list[ReceptiveField] = []
    recorded: dict[int, tuple[Tensor, Bounds]] = {}

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        bounds = tracker.get(out)
        if out is None or bounds is None or out.dim() < 2:
            return
        if id(out) in recorded and recorded[id(out)][1] is bounds:
            return  # a container returns its last layer's output
        recorded[id(out)] = (out, bounds)
        fields.append(_field(name, module, out, bounds, [x.shape[a] for a in axes], tracker.unknown))

    with torch.no_grad(), evaluating(network), hooked(network, after=after), tracker:
        start = Bounds.of_input(x, axes)
        tracker.put(x, start)
        recorded[id(x)] = (x, start)
        network(x)
    return fields


def _field(
    name: str, module: nn.Module, out: Tensor, bounds: Bounds, lengths: Sequence[int], unknown: Iterable[str]
) -> ReceptiveField:
    """Return the field of a layer: the formula if there is one, and the bounds of the middle unit."""
    unit = tuple(n // 2 for n in out.shape[1:])
    pairs = bounds.intervals()
    seen = [(-int(low[0][unit]), int(high[0][unit])) for low, high in pairs]
    whole = all(
        -int(low.min()) <= 0 and int(high.min()) >= n - 1 for (low, high), n in zip(pairs, lengths, strict=True)
    )
    window: tuple[Window, ...] | None = None if whole and bounds.windows is None else bounds.windows
    if window is None:  # there is no formula: use the widest field of any unit
        sizes = tuple(max(0, int((low.long() + high.long()).max()) + 1) for low, high in pairs)
    else:
        sizes = tuple(w.size for w in window)
    return ReceptiveField(
        layer=name,
        kind=kind_of(module),
        shape=tuple(out.shape[1:]),
        size=sizes,
        jump=None if window is None else tuple(w.jump for w in window),
        start=None if window is None else tuple(w.start for w in window),
        unit=unit,
        seen=None if any(first > last for first, last in seen) else tuple(seen),
        whole=whole,
        assumed=tuple(sorted(unknown)),
    )


def spatial_axes(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    """Return the spatial dimensions of x: `axes` if they are valid, or the default if None.

    Raises:
        ValueError: for an axis that x does not have.
    """
    if axes is None:
        return list(range(2, x.dim())) if x.dim() > 2 else [1]
    bad = [a for a in axes if not 1 <= a < x.dim()]
    if bad:
        raise ValueError(f"axes must lie in 1 ... {x.dim() - 1} for an input of shape {tuple(x.shape)}, got {bad[0]}")
    return list(axes)
