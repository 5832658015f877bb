"""What tests of several processes share: launchers' variables, and the bytes that ranks exchange."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

TORCHRUN = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "15000", "SLURM_JOB_NAME": "test", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
LAUNCHERS = {  # the variables of the first and of the second process
    "torchrun": [
        TORCHRUN | {"RANK": r, "LOCAL_RANK": r, "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"} for r in ("0", "1")
    ],
    "torchrun on two machines": [
        TORCHRUN | {"RANK": r, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": r} for r in ("0", "1")
    ],
    "srun on two machines": [
        SRUN | {"SLURM_PROCID": r, "SLURM_LOCALID": "0", "SLURM_NODEID": r, "SLURM_NTASKS_PER_NODE": "1"}
        for r in ("0", "1")
    ],
}
PREFIXES = ("LOCAL_", "NODE_", "SLURM_", "TORCHELASTIC_", "GROUP_", "MASTER_", "OMPI_", "PMI")


def alone() -> dict[str, str]:
    """The environment without what launchers and Fabric leave in it."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE") and not k.startswith(PREFIXES)}


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Start Python with these words."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env=alone() | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(code: str, folder: Path, *words: str) -> None:
    """Run a script, which Fabric can start again for the other ranks."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    process = start([str(script), *words], PYTHONPATH=os.pathsep.join(sys.path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Bytes(TorchDispatchMode):
    """Count the bytes of each kind of collective call: of its whole tensor, on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            tensors = args[1] if name == "reduce_scatter_base" else args[0]
            tensors = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            count = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            self.sent[name] = self.sent.get(name, 0) + count
        return func(*args, **(kwargs or {}))
