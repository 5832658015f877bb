r"""What part of the input each element of each tensor can depend on, carried through a network as it runs.

Beside the tensors of one forward pass run their bounds: for each axis of the input (H and W of an image) the first
and the last position that an element depends on. Each operation of the forward pass has its image on bounds, with
minimum and maximum in the place of sums: a convolution takes the extremes over its taps, a sum of two branches the
extremes of both, a softmax or a mean the extremes over what it normalises. So nothing need be known of the network's
modules, and the border of the image is met as it is: a tap in the padding sees nothing.

Beside the bounds runs the recursion for an image without border (Araujo et al. 2019, eq. 2), a `Window` an axis: with
kernel k, stride s, dilation d and padding p,
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

NOTHING = 2**30  # the first position of what depends on nothing; its last is minus that


@dataclass(frozen=True)
class Window:
    """Unit i of a layer sees the `size` positions from `start` + i · `jump` on, of an input without border."""

    start: int = 0
    size: int = 1
    jump: int = 1

    def slide(self, kernel: int, stride: int, padding: int, dilation: int) -> Window:
        """The window of the units of a convolution or a pooling over units of this window."""
        return Window(
            self.start - padding * self.jump, self.size + dilation * (kernel - 1) * self.jump, self.jump * stride
        )

    def join(self, other: Window) -> Window | None:
        """The least window around two branches; None where their strides differ."""
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Window(start, end - start, self.jump) if self.jump == other.jump else None


@dataclass(frozen=True)
class Bounds:
    """First and last position along each input axis that each element of a tensor depends on.

    `ends` holds for each axis in turn minus the first, the last, and a mark of the element's place that no border
    clips, each of the tensor's shape, so that every rule is a maximum. The marks tell dimensions that are places
    from others where all elements see the whole input. `windows` is the formula where it holds: None after a global
    operation.
    """

    ends: list[Tensor]
    windows: tuple[Window, ...] | None

    @staticmethod
    def of_input(x: Tensor, axes: Sequence[int]) -> Bounds:
        """Each element depends on its own position."""
        ends = []
        for axis in axes:
            shape = [1] * x.dim()
            shape[axis] = x.shape[axis]
            place = torch.arange(x.shape[axis], dtype=torch.int32).view(shape).expand(x.shape)
            ends += [-place, place, place]
        return Bounds([compact(e).expand(x.shape) for e in ends], (Window(),) * len(axes))

    def intervals(self) -> list[tuple[Tensor, Tensor]]:
        """Minus the first and the last position along each axis."""
        return list(zip(self.ends[::3], self.ends[1::3], strict=True))

    def slid(self, windows: Sequence[Window]) -> Bounds:
        """The same with the formula of a convolution or pooling over the last dimensions, and marks by it."""
        ends = list(self.ends)
        shape = ends[0].shape
        for axis, window in enumerate(windows):
            dim = len(shape) - len(windows) + axis
            marks = window.start + window.jump * torch.arange(shape[dim], dtype=torch.int32)
            ends[3 * axis + 2] = marks.view(-1, *[1] * (len(shape) - 1 - dim)).expand(shape)
        return Bounds(ends, tuple(windows))

    def map(self, rule: Callable[[Tensor], Tensor], *, keep: bool = True) -> Bounds:
        return Bounds([rule(end) for end in self.ends], self.windows if keep else None)


def compact(x: Tensor) -> Tensor:
    """The tensor with every dimension along which it is only repeated cut to one."""
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
    """The windows that a convolution or a pooling takes over the last dimensions: theirs, then one for each tap."""
    n = len(kernel)
    pads: list[int] = []
    for i in reversed(range(n)):  # F.pad begins at the last
        length, reach = x.shape[i - n], dilation[i] * (kernel[i] - 1) + 1
        # a pooling in ceil mode ends with windows that stand over the border
        over = 0 if outputs is None else max(0, (outputs[i] - 1) * stride[i] + reach - length - 2 * padding[i])
        pads += [padding[i], padding[i] + over]
    x = F.pad(x, pads, value=fill)
    for i in range(n):
        reach = dilation[i] * (kernel[i] - 1) + 1
        x = x.unfold(-n, reach, stride[i])[..., :: dilation[i]]  # the next dimension is -n again: each adds one
    return x


def join_windows(known: Sequence[Bounds]) -> tuple[Window, ...] | None:
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
