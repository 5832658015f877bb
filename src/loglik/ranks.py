"""The launcher of a training on several processes, and this process's rank, before Lightning Fabric is launched.

Fabric's cluster environments read what torchrun, srun and other launchers leave in the environment. Without a
launcher neither torch nor Fabric is imported, so the command line starts quickly.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

__all__ = ["is_first_rank", "launched_processes", "restarted"]

# One of these is set wherever a launcher, or Fabric, started the process; MPI sets one of the last three.
VARIABLES = (
    "LOCAL_RANK",
    "NODE_RANK",
    "SLURM_NTASKS",
    "LSB_DJOB_RANKFILE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMIX_RANK",
)


def is_first_rank() -> bool:
    """Return whether this process is the first of its training, the one that writes and prints.

    Raises ValueError where the launcher's variables contradict each other.
    """
    environment = _environment()
    if environment is None:
        return True
    from lightning_fabric.plugins.environments import LightningEnvironment

    if isinstance(environment, LightningEnvironment):  # which knows its global rank only after the launch
        return environment.node_rank() == environment.local_rank() == 0
    return environment.global_rank() == 0


def launched_processes() -> tuple[int, int] | None:
    """Return the processes on each machine and the machines that torchrun or srun started; None without either."""
    environment = _environment()
    if environment is None:
        return None
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    per_node = {TorchElasticEnvironment: "LOCAL_WORLD_SIZE", SLURMEnvironment: "SLURM_NTASKS_PER_NODE"}
    name = per_node.get(type(environment))
    if name is None:
        return None
    world = environment.world_size()
    devices = int(os.environ.get(name) or world)
    return devices, max(1, world // devices)


def restarted() -> bool:
    """Return whether torchrun or Slurm started this training again after it was interrupted."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _environment() -> ClusterEnvironment | None:
    """Return the environment that Fabric will find; None where nothing started this process."""
    if not any(name in os.environ for name in VARIABLES):
        return None
    from lightning_fabric.plugins import environments

    kinds = (
        environments.TorchElasticEnvironment,
        environments.SLURMEnvironment,
        environments.LSFEnvironment,
        environments.MPIEnvironment,
    )
    try:  # in Fabric's order
        return next((kind() for kind in kinds if kind.detect()), environments.LightningEnvironment())
    except RuntimeError as error:
        raise ValueError(f"the launcher's environment cannot be used: {error}") from error
