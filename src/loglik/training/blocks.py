"""The repeated blocks of a network, such as the layers of a Transformer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import nn

__all__ = ["blocks_of"]


def blocks_of(module: nn.Module, accept: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """Return the modules that a list or sequence has several of, of one class, where `accept` returns True.

    Blocks within another block are left out, and so are modules without layers inside.
    """
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for parent in module.modules():
        if not isinstance(parent, (nn.ModuleList, nn.Sequential)) or parent in inside:
            continue
        counts = Counter(map(type, parent.children()))
        repeated = [b for b in parent.children() if counts[type(b)] > 1 and _has_layers(b) and accept(b)]
        blocks += repeated
        inside.update(part for block in repeated for part in block.modules())
    return blocks


def _has_layers(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())
