"""fit: train a density on data, and return the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from loglik.lock import locked
from loglik.training.checks import check_fits, check_trainable
from loglik.training.config import begun_settings, check_same_config, run_config, split_options
from loglik.training.fabric import launch_fabric, on_first_rank
from loglik.training.loop import Trainer
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
        resume: continue the run in `out` from its newest checkpoint. Settings and options that are not passed are the
            run's own; a limit replaces all of its limits.
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
    FileExistsError if `out` is in use, BlockingIOError if another process trains there, OSError, with the file's name,
    if a file cannot be written, `NotFinite` if training diverges, and `Interrupted` (a KeyboardInterrupt) after SIGINT
    or SIGTERM, once the step is finished and its checkpoint written.
    """
    path = None if out is None else Path(out)
    text, options = TextSettings.split_options(options)
    chosen, options = split_options(density, options)
    chosen = with_device(device, chosen)
    run = _begun(path) if resume else None
    base = settings or (begun_settings(run, chosen) if run else TrainingSettings())
    data = as_data(data, label=label, seed=replace(base, **chosen).seed, text=text, beside=path)
    trained = path is not None and run is not None and (path / runs.WEIGHTS).exists()
    if run and run["model"] == density:
        options = {**(run["options"] if trained else {}), **options}
    elif settings is None and isinstance(density, str):
        base = TrainingSettings(**recipes.recipe(density).training(data.spec))
    settings = replace(base, **chosen).with_limit()

    keep_freed_memory()
    fabric = launch_fabric(settings)
    writes = path is not None and fabric.is_global_zero
    with ExitStack() as stack:
        stack.enter_context(fork_generators(fabric.device))
        torch.manual_seed(settings.seed)
        name = density if isinstance(density, str) else None
        config = run_config(name, options, data, settings)
        if path is not None and run is not None:
            check_same_config(run, config, path)
        if not isinstance(density, str):
            built = density
        elif path is not None and trained:
            built = runs.build_within(path, density, data.spec, options)
        else:
            built = recipes.build(density, data.spec, **options)
        check_fits(built, data)
        check_trainable(built, name)
        if path is not None:
            on_first_rank(fabric, lambda: stack.enter_context(_open_folder(path, config, resume)))
        with _resumable(path):
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


def _begun(path: Path | None) -> dict[str, Any]:
    """Return the configuration of the run to resume. Raises ValueError if the path is not a run, or a damaged one."""
    if path is None:
        raise ValueError("nothing to resume: without out, there is no run")
    if (path / runs.CONFIG).is_file():
        runs.read_metrics(path)
        return runs.read_config(path)
    what = "is no run"
    if runs.begun(path):
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


@contextmanager
def _open_folder(path: Path, config: dict[str, Any], resume: bool) -> Iterator[None]:
    """Hold the run's folder; unless resuming, make it with its config.yaml."""
    if not resume:
        runs.new_folder(path)
    with locked(path):
        if not resume:
            runs.check_empty(path)
            runs.write_config(path, config)
        yield
