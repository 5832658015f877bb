"""fit: train a density on data, and return the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loglik import recipes, runs
from loglik.cpu.allocator import keep_freed_memory
from loglik.cpu.choices import choices, use_choices
from loglik.data import as_data
from loglik.data.dataset import Data
from loglik.data.image_settings import ImageSettings
from loglik.data.novelty import with_novelty
from loglik.data.ranges import with_ranges
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings
from loglik.density import Density
from loglik.devices import fork_generators
from loglik.evaluation.scores import arguments
from loglik.memory import is_out_of_memory
from loglik.ranks import restarted
from loglik.training.config import check_same_config, recorded_choices, recorded_settings, run_config, split_options
from loglik.training.defaults import auto_choices, recipe_settings, suit_device
from loglik.training.fabric import as_launched, launch_fabric, on_first_rank
from loglik.training.folder import config_to_resume, explain_full_disk, open_folder
from loglik.training.loop import Trainer
from loglik.training.lost_ranks import together
from loglik.training.out_of_memory import explain
from loglik.training.progress import Progress, progress_bar
from loglik.training.reflow import attach_first_flow, with_first_options
from loglik.training.requirements import check_fits, check_trainable
from loglik.training.settings import TrainingSettings, with_device

__all__ = ["fit"]


def fit(
    density: Density | str,
    data: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    label: str | None = None,
    target: str | Sequence[str] | None = None,
    settings: TrainingSettings | None = None,
    device: str | None = None,
    progress: bool | None = None,
    report: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> runs.Run:
    r"""Maximise the likelihood of the training split: minimise `density.loss`, in nats per example.

    Args:
        density: a density, trained in place, or a family's name for its recipe's default.
        data: a name, a path, an array, a data frame, a pair (x, y), a dict of arrays, a `torch.utils.data.Dataset`, a
            Hugging Face `Dataset`, or `Data`.
        out: the run's folder; None keeps the run in memory.
        resume: continue the run in `out` from its newest checkpoint; also where torchrun or Slurm started it again.
            Settings and options that are not passed are the run's own; a limit replaces all of its limits.
        label: the name of the label's column, if data is a table.
        target: the names of a table's columns to model given all others, in a list or a text with commas.
        settings: how to train; the recipe's own if None.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA GPU if there is one, else the CPU; it sets
            `accelerator` and, with a number, `devices`. The settings' own if None.
        progress: show a progress bar; on a terminal only if None.
        report: called with one line for each of the data's notes, about where a resumed training begins, for each
            checkpoint that is skipped, and about compilation.
        callbacks: instances of `loglik.training.Callback`, called on the first rank after steps and validations and at
            the end; they may stop the training.
        **options: fields of `TrainingSettings` (`max_time="30s"`, `batch_size=64`, ...), of `TextSettings` for text
            (`tokenizer="characters"`, ...), of `TableSettings` for tables (`missing="refuse"`, ...), of `ImageSettings`
            for image files (`resize=64`, ...) and, for a family's name, options of its recipe (`size="medium"`, ...).

    Returns the run, with the weights of the best validation.

    Raises ValueError for data, options or a device that do not fit and for a run that cannot be resumed,
    FileExistsError if `out` is in use, BlockingIOError if another process trains there, OutOfMemory, with a batch size
    that fits, OSError, with the file's name, if a file cannot be written, `NotFinite` if training diverges, and
    `Interrupted` (a KeyboardInterrupt) after SIGINT or SIGTERM, once the step is finished and its checkpoint written.
    """
    path = None if out is None else Path(out)
    name = density if isinstance(density, str) else None
    text, options = TextSettings.split_options(options)
    table, options = TableSettings.split_options(options)
    images, options = ImageSettings.split_options(options)
    chosen, options = split_options(density, options)
    options = with_first_options(options)
    chosen = with_device(device, chosen)
    resume = resume or (restarted() and path is not None and (path / runs.CONFIG).is_file())
    run = config_to_resume(path) if resume else None
    base = settings or (recorded_settings(run, chosen) if run else TrainingSettings())
    notes_said = isinstance(data, Data)
    read: dict[str, Any] = {"seed": replace(base, **chosen).seed, "text": text, "table": table, "images": images}
    data = as_data(data, label=label, target=target, beside=path, **read)
    for note in () if notes_said else data.grouped_notes():
        report(note)
    data = with_ranges(with_novelty(data))
    trained = path is not None and run is not None and (path / runs.WEIGHTS).exists()
    if run and name == run["model"]:  # without weights, whose header bounds the network, only the size is believed
        known = run["options"] if trained else {k: v for k, v in run["options"].items() if k == "size"}
        options = {**known, **options}
    elif settings is None and name is not None:
        base = TrainingSettings(**recipe_settings(name, data, chosen))
    recipes_own = settings is None and run is None
    settings = as_launched(replace(base, **chosen).with_limit())

    keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(use_choices(recorded_choices(run, report) if run else None))
        auto = auto_choices(settings, run or {})
        fabric = launch_fabric(replace(settings, precision=auto.get("precision", settings.precision)))
        if fabric.world_size > 1 and fabric.device.type == "cpu":
            stack.enter_context(use_choices(fabric.broadcast(choices() if fabric.is_global_zero else None)))
        if name is not None and recipes_own:
            settings, options = suit_device(name, data, settings, chosen, options, fabric)
        stack.enter_context(fork_generators(fabric.device))
        torch.manual_seed(settings.seed)
        config = run_config(name, options, data, settings, auto)
        if fabric.device.type == "cpu":
            config["cpu"] = choices().to_dict()
        if path is not None and run is not None:
            check_same_config(run, config, path)
        if not isinstance(density, str):
            built = density
        elif path is not None and trained:
            built = runs.build_within(path, density, data.spec, options)
        else:
            built = recipes.build(density, data.spec, **options)
        attach_first_flow(built, options, data.spec)
        check_fits(built, data)
        check_trainable(built, name)
        if path is not None:
            on_first_rank(fabric, lambda: stack.enter_context(open_folder(path, config, resume)))
        stack.enter_context(explain_full_disk(path))
        stack.enter_context(together(fabric))
        trainer = Trainer(fabric, built, data, settings, path, report, auto, callbacks, config)
        start = time.perf_counter()
        if trainer.trainable:
            with progress_bar(name or type(built).__name__, progress and fabric.is_global_zero) as bar:
                _run(trainer, bar, resume)
        else:
            trainer.initialise_only()
        config["steps"] = trainer.step
        seconds = trainer.elapsed if trainer.trainable else time.perf_counter() - start
        config["train_seconds"] = round(seconds, 3)
        if path is not None and fabric.is_global_zero:
            runs.write_weights(path, built)
            runs.write_metrics(path, trainer.history)
            runs.write_config(path, config)
    finished = runs.Run(built.eval(), data.spec, config, trainer.history, path)
    trainer.callbacks.on_end(trainer.step, trainer.history[-1] if trainer.history else {}, finished)
    return finished


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
