"""If a rank ends, the others end too, within seconds, with one line.

gloo and NCCL report a closed connection at once, or only after a timeout of minutes. So a thread also watches the
processes that Fabric started, and the process that started them. Under torchrun and srun the launcher ends the others.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

__all__ = ["LostRank", "launch", "together"]

PARENT = "LOGLIK_PARENT"  # the process that started this one by Fabric's launcher
PERIOD = 0.25  # seconds between looks at the other processes
GRACE = 2.0  # seconds in which this process may end by itself


class LostRank(ConnectionError):
    """Another process of the training ended, so this one stopped; the run continues from its newest checkpoint."""

    def __init__(self, rank: int) -> None:
        super().__init__(
            f"rank {rank}: another process of this training ended: training stopped; pass resume=True to continue"
        )


def launch(fabric: Fabric) -> None:
    """Start Fabric's processes; their group ends while Python still runs.

    The group's threads may otherwise release a tensor later and abort the process.

    Raises ConnectionError where the processes cannot connect.
    """
    # convolutions of one row or column have several layouts, which the gradients' buckets copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    before = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    try:
        _connect_again(fabric)
        fabric.launch()
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        raise ConnectionError(
            f"the processes of this training cannot connect ({str(error).splitlines()[0]}): check MASTER_ADDR "
            "and MASTER_PORT"
        ) from error
    finally:
        os.environ.pop(PARENT) if before is None else os.environ.update({PARENT: before})
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_end_group)


def _connect_again(fabric: Fabric) -> None:
    """Connect the processes that torchrun started again, before Fabric does.

    torchrun keeps its store, in which the addresses of the processes that ended still are, so each attempt has its own
    prefix.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or not hasattr(fabric.strategy, "cluster_environment") or torch.distributed.is_initialized():
        return
    device = fabric.strategy.root_device
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=size,
        device_id=None if device.type == "cpu" else device,
    )


def _end_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """Leave the block together with all ranks; where another ended in it, raise `LostRank`, or end the process.

    The process is ended if it is still in the block 2 s after another process ended.
    """
    if fabric.world_size == 1:
        yield
        return
    done = threading.Event()
    if lost := _watches(fabric):
        threading.Thread(target=_watch, args=(lost, done, fabric.global_rank), name="ranks", daemon=True).start()
    try:
        yield
        fabric.barrier()
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        atexit.unregister(_end_group)  # which would wait for the process that ended
        raise LostRank(fabric.global_rank) from error
    finally:
        done.set()


def _is_of_communication(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(sign in str(error) for sign in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))


def _watches(fabric: Fabric) -> Callable[[], bool] | None:
    """Return a function that says whether a process of Fabric's launcher ended, other than this one; None without."""
    launcher: Any = fabric.strategy.launcher
    children = list(getattr(launcher, "procs", ()))
    if children:
        return lambda: any(child.poll() for child in children)
    parent = os.getppid()
    if os.environ.get(PARENT) == str(parent):
        return lambda: os.getppid() != parent
    return None


def _watch(lost: Callable[[], bool], done: threading.Event, rank: int) -> None:
    while not lost():
        if done.wait(PERIOD):
            return
    if not done.wait(GRACE):
        print(f"error: {LostRank(rank)}", file=sys.stderr, flush=True)
        os._exit(1)
