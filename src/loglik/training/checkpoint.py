"""Trainer state on disk, without pickle: tensors in safetensors, the rest as JSON in its header.

A checkpoint is written under a temporary name and renamed, and its SHA-256 is in a file beside it. So a crash while
writing leaves the checkpoint before it in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loglik import files
from loglik.training.state import TrainerState

__all__ = ["flatten_optimizers", "load_newest", "name_of", "restore_optimizers", "save"]


def save(folder: Path, tensors: dict[str, Tensor], state: TrainerState, *, keep: int = 2) -> None:
    """Write a checkpoint; keep the newest `keep` up to it, and remove all others (later ones were damaged).

    The others are removed once the new one was read back as it was written.

    Raises OSError, with the file's name, if the disk does not return what was written.
    """
    path = folder / f"{name_of(state.step)}.safetensors"
    with files.naming(path):
        folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        files.write_tensors(temporary, tensors, {"state": json.dumps(state.to_dict())})
        digest = files.digest(temporary)
    files.write_text(path.with_suffix(".sha256"), digest)
    every = sorted(folder.glob("step-*.safetensors"))
    end = every.index(path) + 1
    old = every[: max(0, end - keep)] + every[end:]
    if old and files.digest(path) != digest:
        raise OSError(f"{path} is not as it was written: check the disk; the checkpoint before it is kept")
    for other in old:
        other.unlink()
        other.with_suffix(".sha256").unlink(missing_ok=True)


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint, without the suffix."""
    return f"step-{step:09d}"


def load_newest(
    folder: Path, report: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Tensor], TrainerState] | None:
    """Return the newest checkpoint whose checksum is right; None if there is none. Report each that is skipped.

    Raises ValueError, in one line, if a checkpoint cannot be read although the checksum is right.
    """
    for path in sorted(filter(Path.is_file, folder.glob("step-*.safetensors")), reverse=True):
        checksum = path.with_suffix(".sha256")
        if not checksum.is_file():
            report(f"checkpoint {path} is skipped: it has no SHA-256, as where writing it was interrupted")
            continue
        with files.naming(path):
            if checksum.stat().st_size > 100 or checksum.read_bytes().strip() != files.digest(path).encode():
                report(f"checkpoint {path} is skipped: it is damaged, since its SHA-256 is not the one beside it")
                continue
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                state = TrainerState.from_dict(json.loads((file.metadata() or {}).get("state", "")))
            if path.stem != name_of(state.step):
                raise ValueError(f"its step is {state.step}")
            return tensors, state
        except (ValueError, RecursionError, SafetensorError) as error:
            what = f"the trainer's state in {path} is damaged ({str(error).splitlines()[0]})"
            raise ValueError(f"{what}: delete this file to resume from the checkpoint before it") from error
    return None


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
