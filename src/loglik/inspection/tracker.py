"""Run a network and track the bounds of its tensors; see `bounds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loglik.cpu.private import TorchDispatchMode, tree_leaves, tree_map
from loglik.inspection.bounds import NOTHING, Bounds, compact, join_windows
from loglik.inspection.mixing_rules import everything, hull
from loglik.inspection.rules import CUTS, MOVES, POINTWISE, REPEATABLE, RULES

__all__ = ["Tracker"]

aten = torch.ops.aten


class Tracker(TorchDispatchMode):
    """Track the bounds of tensors through every operation; `unknown` names the operations without a rule.

    An operation without a rule is assumed to mix everything, which can only overstate what a unit sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, Bounds]] = {}  # the tensor is kept, so that its id is not used again
        self.unknown: set[str] = set()

    def get(self, x: Any) -> Bounds | None:
        """Return the bounds of a tensor; None if it depends on no input."""
        return self.known[id(x)][1] if isinstance(x, Tensor) and id(x) in self.known else None

    def put(self, x: Tensor, bounds: Bounds) -> None:
        """Set the bounds of a tensor."""
        self.known[id(x)] = (x, bounds)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracked = [self.get(leaf) for leaf in tree_leaves((args, kwargs))]
        out = func(*args, **kwargs)
        if any(b is not None for b in tracked):
            for tensor, bounds in self._output_bounds(func, args, kwargs, out):
                self.put(tensor, bounds)
        return out

    def _output_bounds(self, func: Any, args: Any, kwargs: Any, out: Any) -> list[tuple[Tensor, Bounds]]:
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not tensors:
            return []
        packet = func.overloadpacket
        if packet in MOVES:
            return self._moved(func, args, kwargs, tensors)
        if torch.Tag.pointwise in func.tags or packet in POINTWISE:
            return [(tensors[0], self._joined(tree_leaves((args, kwargs)), tensors[0].shape))]
        rule = RULES.get(packet)
        if rule is None:
            self.unknown.add(str(packet))
            rule = everything
        bounds = rule(self.get, args, kwargs, tensors[0])
        if bounds is None:
            return []
        return [(t, bounds if t.shape == tensors[0].shape else hull(bounds, t.shape)) for t in tensors]

    def _moved(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> list[tuple[Tensor, Bounds]]:
        """Apply an operation that only moves elements to their bounds."""
        leaves = [self.get(leaf) for leaf in tree_leaves((args, kwargs))]
        first = next(b for b in leaves if b is not None)
        ends = []
        for i in range(len(first.ends)):

            def end(leaf: Any, i: int = i) -> Any:
                bounds = self.get(leaf)
                if bounds is not None:
                    return bounds.ends[i]
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    return torch.full((1,), -NOTHING, dtype=torch.int32).expand(leaf.shape)
                return torch.int32 if isinstance(leaf, torch.dtype) else leaf

            moved_args, moved_kwargs = tree_map(end, (args, kwargs))
            if func.overloadpacket is aten.constant_pad_nd:
                moved_args, moved_kwargs = [*moved_args[:2], -NOTHING], {}
            packet = REPEATABLE.get(func.overloadpacket, func)
            ends.append([t for t in tree_leaves(packet(*moved_args, **moved_kwargs)) if isinstance(t, Tensor)])
        sliced = func.overloadpacket in CUTS and tensors[0].numel() != _numel(args[0])
        window = join_windows([b for b in leaves if b is not None]) if not sliced else None
        return [(t, Bounds([axis[j] for axis in ends], window)) for j, t in enumerate(tensors)]

    def _joined(self, leaves: Sequence[Any], shape: torch.Size) -> Bounds:
        """Return the bounds of an elementwise operation."""
        known = [b for b in map(self.get, leaves) if b is not None]
        ends = []
        for parts in zip(*(b.ends for b in known), strict=True):
            total = compact(parts[0])
            for part in parts[1:]:
                total = torch.maximum(total, compact(part))
            ends.append(total.expand(shape))
        return Bounds(ends, join_windows(known))


def _numel(x: Any) -> int:
    return x.numel() if isinstance(x, Tensor) else sum(map(_numel, x))
