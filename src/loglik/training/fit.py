"""fit: train a density on data, and return the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loglik import files, recipes, runs
from loglik.cpu.memory import keep_freed_memory
from loglik.data import as_data
from loglik.data.text_settings import TextSettings
from loglik.density import Density
from loglik.devices import fork_generators
from loglik.ranks import restarted
from loglik.training.checks import check_fits, check_trainable
from loglik.training.config import check_same_config, run_config, split_options
from loglik.training.fabric import as_launched, launch_fabric, on_first_rank
from loglik.training.loop import Trainer
from loglik.training.lost_ranks import together
from loglik.training.progress import progress_bar
from loglik.training.settings import TrainingSettings, with_device

__all__ = ["fit"]


def fit(
    density: Density | str,
    data: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    label: str | None = None,
    settings: TrainingSettings | None = None,
    device: str | None = None,
    progress: bool | None = None,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> runs.Run:
    r"""Maximise the likelihood of the training split: minimise `density.loss`, in nats per example.

    Args:
        density: a density, trained in place, or a family's name for its recipe's default.
        data: a name, a path, an array, a pair (x, y), or `Data`.
        out: the run's folder; None keeps the run in memory.
        resume: continue the run in `out` from its newest checkpoint; also where torchrun or Slurm started it again.
        label: the name of the label's column, if data is the path of a table.
        settings: how to train; the recipe's own if None.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA GPU if there is one, else the CPU; it sets
            `accelerator` and, with a number, `devices`. The settings' own if None.
        progress: show a progress bar; on a terminal only if None.
        report: called with one line about where a resumed training begins, and for each checkpoint that is skipped.
        **options: fields of `TrainingSettings` (`max_time="30s"`, `batch_size=64`, ...), of `TextSettings` for text
            (`tokenizer="characters"`, ...) and, for a family's name, options of its recipe (`size="medium"`, ...).

    Returns the run, with the weights of the best validation.

    Raises ValueError for data, options or a device that do not fit and for a run that cannot be resumed,
    FileExistsError if `out` is in use, OSError, with the file's name, if a file cannot be written, and `NotFinite` if
    training diverges.
    """
    path = None if out is None else Path(out)
    text, options = TextSettings.split_options(options)
    chosen, options = split_options(density, options)
    chosen = with_device(device, chosen)
    base = settings or TrainingSettings()
    data = as_data(data, label=label, seed=replace(base, **chosen).seed, text=text, beside=path)
    if settings is None and isinstance(density, str):
        base = TrainingSettings(**recipes.recipe(density).training(data.spec))
    settings = as_launched(replace(base, **chosen).with_limit())
    resume = resume or (restarted() and path is not None and (path / "config.yaml").is_file())
    if resume:
        _check_resumable(path)

    keep_freed_memory()
    fabric = launch_fabric(settings)
    writes = fabric.is_global_zero
    with fork_generators(fabric.device):
        torch.manual_seed(settings.seed)
        name = density if isinstance(density, str) else None
        built = recipes.build(density, data.spec, **options) if isinstance(density, str) else density
        check_fits(built, data)
        check_trainable(built, name)
        config = run_config(name, options, data, settings)
        if path is not None:
            on_first_rank(fabric, lambda: _open_folder(path, config, resume))
        with _resumable(path), together(fabric):
            trainer = Trainer(fabric, built, data, settings, path, report)
            start = time.perf_counter()
            if trainer.trainable:
                with progress_bar(name or type(built).__name__, progress and fabric.is_global_zero) as bar:
                    trainer.run(bar, resume)
            else:
                trainer.initialise_only()
            config["steps"] = trainer.step
            seconds = trainer.elapsed if trainer.trainable else time.perf_counter() - start
            config["train_seconds"] = round(seconds, 3)
            if path is not None and writes:
                runs.write_weights(path, built)
                runs.write_metrics(path, trainer.history)
                runs.write_config(path, config)
    return runs.Run(built.eval(), data.spec, config, trainer.history, path)


def _check_resumable(path: Path | None) -> None:
    """Raise ValueError unless the path is a run."""
    if path is None:
        raise ValueError("nothing to resume: without out, there is no run")
    if (path / "config.yaml").is_file():
        return
    what = "is no run"
    if path.is_dir() and [child.name for child in path.iterdir()] == ["config.yaml.partial"]:
        what = "was stopped before its config.yaml was written: start it without resume=True"
    elif (path / runs.WEIGHTS).exists() or (path / "checkpoints").exists():
        what = "has no config.yaml: copy it from where it is intact, or train anew with another out="
    raise ValueError(f"nothing to resume: {path} {what}")


@contextmanager
def _resumable(path: Path | None) -> Iterator[None]:
    """Say how to continue the run where the disk is full."""
    try:
        yield
    except OSError as error:
        if path is None or error.errno not in files.FULL:
            raise
        failure = OSError(f"{error}, then pass resume=True to continue")
        failure.errno = error.errno
        raise failure from error


def _open_folder(path: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the run's folder with its config.yaml; if resuming, check that the run there has the same."""
    if resume:
        check_same_config(runs.read_config(path), config, path)
    else:
        runs.new_folder(path)
        runs.write_config(path, config)
