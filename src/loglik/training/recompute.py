"""Activation checkpointing: repeated blocks are computed again for the backward pass, and not kept until then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from loglik.noise import same_part
from loglik.training.blocks import blocks_of

__all__ = ["recomputed", "repeated_blocks"]

METHODS = ("forward", "encode")  # of a network's block; of a flow's transform


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a network or flow.

    Raises ValueError if there are none.
    """
    found = blocks_of(module, lambda block: not isinstance(block, (nn.ModuleList, nn.Sequential)))
    if not found:
        raise ValueError("checkpoint=True is for networks of repeated blocks, and this model has none: leave it out")
    return found


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
