"""The folder of a run that is trained: started once, held by one process, and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loglik import files, runs
from loglik.lock import locked

__all__ = ["config_to_resume", "explain_full_disk", "open_folder"]


def config_to_resume(path: Path | None) -> dict[str, Any]:
    """Return the configuration of the run to resume. Raises ValueError if the path is not a run, or a damaged one."""
    if path is None:
        raise ValueError("nothing to resume: without out, there is no run")
    if (path / runs.CONFIG).is_file():
        runs.read_metrics(path)
        return runs.read_config(path)
    what = "is no run"
    if runs.only_leftovers(path):
        what = "was stopped before its config.yaml was written: start it without resume=True"
    elif (path / runs.WEIGHTS).exists() or (path / "checkpoints").exists():
        what = "has no config.yaml: copy it from where it is intact, or train anew with another out="
    raise ValueError(f"nothing to resume: {path} {what}")


@contextmanager
def open_folder(path: Path, config: dict[str, Any], resume: bool) -> Iterator[None]:
    """Hold the run's folder; unless resuming, make it with its config.yaml."""
    if not resume:
        runs.new_folder(path)
    with locked(path):
        if not resume:
            runs.check_empty(path)
            runs.write_config(path, config)
        yield


@contextmanager
def explain_full_disk(path: Path | None) -> Iterator[None]:
    """Add to the error of a full disk how to continue the run."""
    try:
        yield
    except OSError as error:
        if path is None or error.errno not in files.FULL:
            raise
        failure = OSError(f"{error}, then pass resume=True to continue")
        failure.errno = error.errno
        raise failure from error
