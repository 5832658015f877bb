"""fit: train a density on data, and return the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from loglik import files, recipes, runs
from loglik.cpu.choices import choices, use_choices
from loglik.cpu.memory import keep_freed_memory
from loglik.data import as_data
from loglik.data.text_settings import TextSettings
from loglik.density import Density
from loglik.devices import fork_generators
from loglik.evaluation.scores import arguments
from loglik.memory import is_out_of_memory
from loglik.training.checks import check_fits, check_trainable
from loglik.training.config import check_same_config, recorded_choices, run_config, split_options
from loglik.training.defaults import auto_choices, recipe_settings, suit_device
from loglik.training.fabric import launch_fabric
from loglik.training.loop import Trainer
from loglik.training.out_of_memory import explain
from loglik.training.progress import Progress, progress_bar
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
        data: a name, a path, an array, a pair (x, y), a `torch.utils.data.Dataset`, or `Data`.
        out: the run's folder; None keeps the run in memory.
        resume: continue the run in `out` from its newest checkpoint.
        label: the name of the label's column, if data is the path of a table.
        settings: how to train; the recipe's own if None.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA GPU if there is one, else the CPU; it sets
            `accelerator` and, with a number, `devices`. The settings' own if None.
        progress: show a progress bar; on a terminal only if None.
        report: called with one line about where a resumed training begins, for each checkpoint that is skipped, and
            about compilation.
        **options: fields of `TrainingSettings` (`max_time="30s"`, `batch_size=64`, ...), of `TextSettings` for text
            (`tokenizer="characters"`, ...) and, for a family's name, options of its recipe (`size="medium"`, ...).

    Returns the run, with the weights of the best validation.

    Raises ValueError for data, options or a device that do not fit and for a run that cannot be resumed,
    FileExistsError if `out` is in use, OutOfMemory, with a batch size that fits, OSError, with the file's name, if a
    file cannot be written, and `NotFinite` if training diverges.
    """
    path = None if out is None else Path(out)
    text, options = TextSettings.split_options(options)
    chosen, options = split_options(density, options)
    chosen = with_device(device, chosen)
    base, named = settings or TrainingSettings(), density if settings is None and isinstance(density, str) else None
    data = as_data(data, label=label, seed=replace(base, **chosen).seed, text=text, beside=path)
    if named is not None:
        base = TrainingSettings(**recipe_settings(named, data, chosen))
    settings = replace(base, **chosen).with_limit()
    old = _resumable_config(path) if resume else {}

    keep_freed_memory()
    recorded = recorded_choices(path, report) if resume and path is not None else None
    chosen_by_auto = auto_choices(settings, old)
    with use_choices(recorded):
        fabric = launch_fabric(replace(settings, precision=chosen_by_auto.get("precision", settings.precision)))
        if named is not None:
            settings, options = suit_device(named, data, settings, chosen, options, fabric, old)
    writes = fabric.is_global_zero
    with fork_generators(fabric.device), use_choices(recorded):
        torch.manual_seed(settings.seed)
        name = density if isinstance(density, str) else None
        built = recipes.build(density, data.spec, **options) if isinstance(density, str) else density
        check_fits(built, data)
        check_trainable(built, name)
        config = run_config(name, options, data, settings, chosen_by_auto)
        if fabric.device.type == "cpu":
            config["cpu"] = asdict(choices())
        if path is not None and writes:
            _open_folder(path, config, resume)
        with _resumable(path):
            trainer = Trainer(fabric, built, data, settings, path, report, chosen_by_auto)
            start = time.perf_counter()
            if trainer.trainable:
                with progress_bar(name or type(built).__name__, progress and fabric.is_global_zero) as bar:
                    _run(trainer, bar, resume)
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


def _run(trainer: Trainer, bar: Progress, resume: bool) -> None:
    """Train; where memory runs out, raise OutOfMemory, which says which batch would fit."""
    why = None
    try:
        trainer.run(bar, resume)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = str(error)
    if why is not None:  # the error, which holds the step's tensors, has ended
        batch = arguments(trainer.density, *trainer.batches.batch(trainer.step))
        raise explain(trainer.density, batch, trainer.fabric, step=trainer.step, why=why)


def _resumable_config(path: Path | None) -> dict[str, Any]:
    """Return the config.yaml of a run; raise ValueError unless the path is one."""
    if path is None:
        raise ValueError("nothing to resume: without out, there is no run")
    if (path / "config.yaml").is_file():
        return runs.read_config(path)
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
