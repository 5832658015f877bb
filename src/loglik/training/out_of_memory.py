"""Which batch of a training would have fit in memory, by trying smaller ones."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor

from loglik.density import Density
from loglik.memory import OutOfMemory, is_out_of_memory, release

__all__ = ["explain", "largest_batch"]

REFINEMENTS = 2  # tries between a batch that fits and its double


def largest_batch(density: Density, event: Tensor, context: Tensor | None, fabric: Fabric) -> int:
    """Return about the largest number of the batch's examples whose loss and gradient fit in memory; 0 for none.

    It is at least three quarters of the largest.
    """
    fits, fails = 0, len(event) + 1
    size = len(event)
    while size >= 1:
        if _fits(density, event[:size], None if context is None else context[:size], fabric):
            fits = size
            break
        fails, size = size, size // 2
    for _ in range(REFINEMENTS):
        size = (fits + fails) // 2
        if not fits < size < fails:
            break
        if _fits(density, event[:size], None if context is None else context[:size], fabric):
            fits = size
        else:
            fails = size
    return fits


def _fits(density: Density, event: Tensor, context: Tensor | None, fabric: Fabric) -> bool:
    """Return whether a loss and its gradient fit in memory."""
    fitted = True
    try:
        with torch.enable_grad(), fabric.autocast():
            loss = density.loss(event, context)
        loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    density.zero_grad(set_to_none=True)
    release(fabric.device)
    return fitted


def explain(
    density: Density, batch: tuple[Tensor, Tensor | None], fabric: Fabric, *, step: int, why: str
) -> OutOfMemory:
    """Return the error of a training that ran out of memory: one line with a batch size that fits.

    Args:
        density: as it was trained.
        batch: the event and the context of a batch of this rank.
        fabric: of the training.
        step: the step that failed.
        why: the first error's message.
    """
    event, context = batch
    release(fabric.device)
    size, ranks = len(event), fabric.world_size
    fits = largest_batch(density, event, context, fabric)
    where = f"step {step} does not fit in the memory of {fabric.device} with batch_size={size * ranks}"
    if fits == size:
        reason = why.splitlines()[0][:200] if why else "no reason given"
        return OutOfMemory(f"training ran out of memory at step {step}, though its batch fits: {reason}")
    if fits == 0:
        return OutOfMemory(f"{where}, nor with batch_size={ranks}: choose a smaller model, such as size=small")
    return OutOfMemory(f"{where}; pass batch_size={fits * ranks}, which fits, or choose a smaller model")
