"""Trainer state on disk, without pickle: tensors in safetensors, the rest as JSON in its header.

A checkpoint is written under a temporary name and renamed, and its SHA-256 stands beside it, so that a crash in the
middle of writing leaves the one before it in use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["flatten_optimizers", "load_newest", "restore_optimizers", "save"]

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint of a step; keep it and the one before, and remove all others (later ones were damaged)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    temporary = path.with_suffix(".partial")
    # safetensors takes no two names for one memory: clone what shares
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        temporary,
        {"state": json.dumps(state)},
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


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose checksum holds; None where there is none."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        checksum = path.with_suffix(".sha256")
        if checksum.exists() and checksum.read_text().strip() == _digest(path):
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def flatten_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' per-parameter state as named tensors."""
    return {
        f"optimizer.{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `flatten_optimizers`."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
