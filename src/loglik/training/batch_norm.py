"""Batch norm, whose statistics depend on the other examples, where a batch is computed in parts."""

from __future__ import annotations

from collections.abc import Callable

from lightning_fabric import Fabric
from torch import nn

from loglik.density import Density

__all__ = ["share_statistics"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def share_statistics(density: Density, fabric: Fabric, parts: int, report: Callable[[str], None]) -> None:
    """Let batch norms have the statistics of the whole batch, as far as torch can; report where it cannot.

    Ranks on GPUs exchange them (`SyncBatchNorm`). Ranks on CPUs and the parts of one rank do not.
    """
    if fabric.world_size * parts == 1 or not any(isinstance(module, BATCH_NORMS) for module in density.modules()):
        return
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(density)  # type: ignore[no-untyped-call]
        if parts == 1:
            return
    report("batch norm: its statistics are those of each part of the batch, not of the whole batch")
