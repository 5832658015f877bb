"""Trainer state on disk, without pickle: tensors in safetensors, the rest as JSON in its header.

A checkpoint is written under a temporary name and renamed, and its SHA-256 is in a file beside it. So a crash while
writing leaves the checkpoint before it in use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from loglik.training.state import TrainerState

__all__ = ["flatten_optimizers", "load_newest", "restore_optimizers", "save"]

KEEP = 2  # checkpoints in a folder


def save(folder: Path, tensors: dict[str, Tensor], state: TrainerState) -> None:
    """Write a checkpoint; keep it and the one before, and remove all others (later ones were damaged)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:09d}.safetensors"
    temporary = path.with_suffix(".partial")
    # safetensors refuses two names for one memory: clone what is shared
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        temporary,
        {"state": json.dumps(state.to_dict())},
    )
    digest = _digest(temporary)
    temporary.rename(path)
    partial = path.with_suffix(".sha256.partial")
    partial.write_text(digest)
    os.replace(partial, path.with_suffix(".sha256"))
    every = sorted(folder.glob("step-*.safetensors"))
    end = every.index(path) + 1
    for other in every[: max(0, end - KEEP)] + every[end:]:
        other.unlink()
        other.with_suffix(".sha256").unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], TrainerState] | None:
    """Return the newest checkpoint whose checksum is right; None if there is none.

    Raises ValueError, in one line, if its state cannot be read although the checksum is right.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        checksum = path.with_suffix(".sha256")
        if checksum.exists() and checksum.read_text().strip() == _digest(path):
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                try:
                    return tensors, TrainerState.from_dict(json.loads((file.metadata() or {}).get("state", "")))
                except ValueError as error:
                    what = f"the trainer's state in {path} is damaged ({error})"
                    raise ValueError(f"{what}: delete this file to resume from the checkpoint before it") from error
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def flatten_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' per-parameter state as named tensors."""
    return {
        f"optimizer.{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load the state that `flatten_optimizers` returned, among other tensors, into the optimizers."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
