r"""Which positions of the input each element of each tensor depends on, tracked through a forward pass.

Every tensor has bounds: for each axis of the input (H and W of an image), the first and the last position that an
element depends on. Every operation has a rule on bounds, with minimum and maximum instead of sums: a convolution
returns the extremes over its taps, a sum of two branches the extremes of both, a softmax or a mean the extremes over
the dimensions that it normalises. The rules need no knowledge of the network's modules, and they are exact at the
border of the image: a tap in the padding sees nothing.

A `Window` per axis holds the recursion for an image without border (Araujo et al. 2019, eq. 2): with kernel k, stride
s, dilation d and padding p,
$RF_l = RF_{l-1} + d_l (k_l - 1) \prod_{i<l} s_i$ and $start_l = start_{l-1} - p_l \prod_{i<l} s_i$.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["NOTHING", "Bounds", "Window", "compact", "join_windows", "windows"]

NOTHING = 2**30  # the first position of an element that depends on nothing; its last is -NOTHING


@dataclass(frozen=True)
class Window:
    """Unit i sees the `size` positions from `start` + i · `jump` of an input without border."""

    start: int = 0
    size: int = 1
    jump: int = 1

    def slide(self, kernel: int, stride: int, padding: int, dilation: int) -> Window:
        """Return the window of a convolution or a pooling over units with this window."""
        return Window(
            self.start - padding * self.jump, self.size + dilation * (kernel - 1) * self.jump, self.jump * stride
        )

    def join(self, other: Window) -> Window | None:
        """Return the smallest window around two branches; None if their strides differ."""
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Window(start, end - start, self.jump) if self.jump == other.jump else None


@dataclass(frozen=True)
class Bounds:
    """First and last position along each input axis that each element of a tensor depends on.

    `ends` has three tensors of the tensor's shape per axis: minus the first position, the last position, and a marker
    of the element's position that no border clips. With this sign every rule is a maximum. The markers distinguish
    spatial dimensions from others when all elements see the whole input. `windows` is the formula; None after a global
    operation.
    """

    ends: list[Tensor]
    windows: tuple[Window, ...] | None

    @staticmethod
    def of_input(x: Tensor, axes: Sequence[int]) -> Bounds:
        """Return the bounds of the input: each element depends on its own position."""
        ends = []
        for axis in axes:
            shape = [1] * x.dim()
            shape[axis] = x.shape[axis]
            position = torch.arange(x.shape[axis], dtype=torch.int32).view(shape).expand(x.shape)
            ends += [-position, position, position]
        return Bounds([compact(e).expand(x.shape) for e in ends], (Window(),) * len(axes))

    def intervals(self) -> list[tuple[Tensor, Tensor]]:
        """Return minus the first position and the last position along each axis."""
        return list(zip(self.ends[::3], self.ends[1::3], strict=True))

    def with_windows(self, windows: Sequence[Window]) -> Bounds:
        """Return the bounds with the windows of a convolution or pooling, and markers that follow from them."""
        ends = list(self.ends)
        shape = ends[0].shape
        for axis, window in enumerate(windows):
            dim = len(shape) - len(windows) + axis
            markers = window.start + window.jump * torch.arange(shape[dim], dtype=torch.int32)
            ends[3 * axis + 2] = markers.view(-1, *[1] * (len(shape) - 1 - dim)).expand(shape)
        return Bounds(ends, tuple(windows))

    def map(self, rule: Callable[[Tensor], Tensor], *, keep: bool = True) -> Bounds:
        """Apply a rule to every tensor; keep the formula, or drop it."""
        return Bounds([rule(end) for end in self.ends], self.windows if keep else None)


def compact(x: Tensor) -> Tensor:
    """Return x with every expanded dimension cut to length 1."""
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def windows(
    x: Shaped[Tensor, "..."],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    fill: float,
    outputs: Sequence[int] | None = None,
) -> Shaped[Tensor, "..."]:
    """Return windows over the last dimensions, as of a convolution, with one new dimension per tap."""
    n = len(kernel)
    pads: list[int] = []
    for i in reversed(range(n)):  # F.pad starts at the last dimension
        length, reach = x.shape[i - n], dilation[i] * (kernel[i] - 1) + 1
        # pooling in ceil mode has windows that extend over the border
        over = 0 if outputs is None else max(0, (outputs[i] - 1) * stride[i] + reach - length - 2 * padding[i])
        pads += [padding[i], padding[i] + over]
    x = F.pad(x, pads, value=fill)
    for i in range(n):
        reach = dilation[i] * (kernel[i] - 1) + 1
        x = x.unfold(-n, reach, stride[i])[..., :: dilation[i]]  # each unfold adds a dimension, so the next is -n again
    return x


def join_windows(known: Sequence[Bounds]) -> tuple[Window, ...] | None:
    """Return the smallest windows around all bounds; None if one has no formula, or their strides differ."""
    if any(b.windows is None for b in known):
        return None
    joined = list(known[0].windows or ())
    for b in known[1:]:
        for i, window in enumerate(b.windows or ()):
            both = joined[i].join(window)
            if both is None:
                return None
            joined[i] = both
    return tuple(joined)
