"""Lightning Fabric from the training settings: device, precision, ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import STRATEGY_REGISTRY
from lightning_fabric.utilities.exceptions import MisconfigurationException

from loglik.devices import resolve_device
from loglik.ranks import launched_processes
from loglik.training.lost_ranks import launch
from loglik.training.precision import multiplies_bfloat16
from loglik.training.settings import TrainingSettings
from loglik.training.sharding import sharded_strategy

__all__ = ["as_launched", "auto_precision", "launch_fabric", "make_fabric", "on_first_rank", "on_gpu"]


def as_launched(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with the numbers of devices and machines for which torchrun or srun started processes.

    Raises ValueError where the settings ask for other numbers.
    """
    launched = launched_processes()
    if launched is None or launched == (1, 1):
        return settings
    devices, nodes = launched
    if settings.devices not in (1, "auto", devices) or settings.num_nodes not in (1, nodes):
        raise ValueError(
            f"the launcher started {devices} processes on each of {nodes} machines, but devices={settings.devices} and "
            f"num_nodes={settings.num_nodes}: leave both out, or launch as many"
        )
    return replace(settings, devices=devices, num_nodes=nodes)


def make_fabric(settings: TrainingSettings) -> Fabric:
    """Return the Fabric of the settings; `precision="auto"` is bf16-mixed where the device multiplies in bfloat16.

    Raises ValueError for a device, strategy or precision that this machine does not have.
    """
    if settings.strategy not in ("auto", "fsdp2", *STRATEGY_REGISTRY.available_strategies()):
        raise ValueError(f"unknown strategy {settings.strategy!r}: use ddp or fsdp2")
    precision, accelerator = settings.precision, settings.accelerator
    if accelerator == "auto" and torch.backends.mps.is_available():
        accelerator = resolve_device("auto").type  # Fabric would take the Apple GPU
    if precision == "auto":
        precision = auto_precision(settings)
    # they announce the precision and each rank
    for name in ("lightning_fabric.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return Fabric(
            accelerator=accelerator,
            devices=settings.devices,
            strategy=sharded_strategy() if settings.strategy == "fsdp2" else settings.strategy,
            num_nodes=settings.num_nodes,
            precision=precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        requested = f"accelerator={settings.accelerator}, devices={settings.devices}, strategy={settings.strategy}"
        raise ValueError(f"cannot train with {requested}, precision={settings.precision}: {error}") from error


def on_gpu(settings: TrainingSettings) -> bool:
    """Return whether the settings train on a CUDA GPU of this machine."""
    return settings.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def auto_precision(settings: TrainingSettings) -> str:
    """Return the precision that `auto` stands for: bf16-mixed where the device multiplies in bfloat16, else 32-true."""
    fast = multiplies_bfloat16(torch.device("cuda" if on_gpu(settings) else "cpu"))
    return "bf16-mixed" if fast else "32-true"


def launch_fabric(settings: TrainingSettings) -> Fabric:
    """Return the Fabric of the settings, with its processes started."""
    fabric = make_fabric(settings)
    launch(fabric)
    return fabric


def on_first_rank(fabric: Fabric, action: Callable[[], object]) -> None:
    """Run an action on the first rank; if it fails, it raises there, and the other ranks end without a message."""
    failed: Exception | None = None
    if fabric.is_global_zero:
        try:
            action()
        except Exception as error:
            failed = error
    if fabric.world_size > 1 and fabric.broadcast(failed is not None) and not failed:
        raise SystemExit(2)
    if failed:
        raise failed
