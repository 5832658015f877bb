"""Activation checkpointing: repeated blocks are computed again for the backward pass, and not kept until then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from loglik.noise import same_part

__all__ = ["recomputed", "repeated_blocks"]

METHODS = ("forward", "encode")  # of a network's block; of a flow's transform


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that a module has several of side by side, not those within another block.

    Raises ValueError if there are none.
    """
    found = list(_blocks(module))
    if not found:
        raise ValueError("checkpoint=True is for networks of repeated blocks, and this model has none: leave it out")
    return found


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    for child in children:
        alike = sum(type(other) is type(child) for other in children)
        lists = isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(
            child, (nn.ModuleList, nn.Sequential)
        )
        if lists and alike > 1 and any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child
        else:
            yield from _blocks(child)


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of blocks until the backward pass, which must be within; noise is drawn as before."""
    wrapped = [(block, name) for block in blocks for name in METHODS if hasattr(type(block), name)]
    for block, name in wrapped:
        method = getattr(block, name)
        setattr(block, name, partial(checkpoint, method, use_reentrant=False, context_fn=_contexts))
    try:
        yield
    finally:
        for block, name in wrapped:
            delattr(block, name)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first computation and of the second."""
    return nullcontext(), same_part()
