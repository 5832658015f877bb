"""Lightning Fabric from the training settings: device, precision, ranks."""

from __future__ import annotations

import atexit
import logging

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from loglik.training.precision import multiplies_bfloat16
from loglik.training.settings import TrainingSettings

__all__ = ["launch_fabric", "make_fabric"]


def make_fabric(settings: TrainingSettings) -> Fabric:
    """Return the Fabric of the settings; `precision="auto"` is bf16-mixed where the device multiplies in bfloat16.

    Raises ValueError for a device, strategy or precision that this machine does not have.
    """
    precision = settings.precision
    if precision == "auto":
        on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
        fast = multiplies_bfloat16(torch.device("cuda" if on_gpu else "cpu"))
        precision = "bf16-mixed" if fast else "32-true"
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # it announces the precision
    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            num_nodes=settings.num_nodes,
            precision=precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        requested = f"accelerator={settings.accelerator}, devices={settings.devices}, strategy={settings.strategy}"
        raise ValueError(f"cannot train with {requested}, precision={settings.precision}: {error}") from error


def launch_fabric(settings: TrainingSettings) -> Fabric:
    """Return the Fabric of the settings, with its processes started."""
    fabric = make_fabric(settings)
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_end_processes)
    return fabric


def _end_processes() -> None:
    """End the process group while Python still runs: its threads may release a tensor later and abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
