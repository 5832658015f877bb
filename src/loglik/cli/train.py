"""The commands that train: `compare` and `fit`. Heavy modules are imported inside, so that help is quick."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loglik.cli.options import (
    MAX_COUNT,
    Accumulate,
    Columns,
    DataArgument,
    Device,
    Devices,
    Json,
    Label,
    Missing,
    Nodes,
    Out,
    Samples,
    Seed,
    Settings,
    Strategy,
    Target,
    as_options,
    folder_for,
    ranks_of,
    resume_command,
    settings_of,
    show,
    show_data,
    table_of,
    without_none,
)
from loglik.ranks import is_first_rank, restarted
from loglik.terminal import printable

if TYPE_CHECKING:
    from loglik.data.dataset import Data
    from loglik.runs import Run

__all__ = ["compare", "fit"]

COUNTS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}


def compare(
    data: DataArgument,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Families to train; by default all that fit the data.")
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Training time of each model, such as 20s or 1m.")
    ] = "40s",
    out: Out = None,
    json: Json = None,
    label: Label = None,
    target: Target = None,
    column: Columns = None,
    missing: Missing = None,
    samples: Samples = None,
    seed: Seed = 0,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="KIND:PATH[,KEY=VALUE]",
            help="A model that is trained already: KIND is one of `evaluate --from`, KEY a setting of its adapter, or "
            "method and steps of a diffusion's likelihood; repeatable.",
        ),
    ] = None,
    set_: Settings = None,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
) -> int:
    """Train one density of each family and compare them: one table, one page."""
    from loglik.comparison import compare as run_comparison
    from loglik.data import ImageSettings, TextSettings, as_data
    from loglik.devices import resolve_device
    from loglik.evaluation import write_json
    from loglik.lock import locked
    from loglik.report import print_comparison, write_report
    from loglik.runs import check_free, new_folder
    from loglik.training import Interrupted, seconds

    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    if names == []:
        raise ValueError("--models names no model: write flow,vae, or leave it out")
    max_time = seconds(budget)
    resolve_device(device)
    text, options = TextSettings.split_options(settings_of(set_))
    table = table_of(column, missing)
    images, options = ImageSettings.split_options(options)
    options |= ranks_of(devices, nodes, strategy, None)
    folder = folder_for(out, data, before="compare-")
    if is_first_rank():
        check_free(folder, resumable=False)  # before the data are read
    dataset = as_data(data, label=label, target=target, seed=seed, text=text, table=table, images=images, beside=folder)
    others = _others(with_, dataset, device)
    with ExitStack() as stack:
        if is_first_rank():
            new_folder(folder, resumable=False)
            stack.enter_context(locked(folder))
        show_data(dataset)
        try:
            rows = run_comparison(
                dataset,
                models=names,
                budget=max_time,
                out=folder,
                samples=samples,
                seed=seed,
                device=device,
                with_=others,
                report=_report,
                **options,
            )
        except Interrupted as stopped:
            if is_first_rank():
                sys.stderr.write(printable(f"{stopped}; a comparison starts anew, with another --out") + "\n")
            return 128 + stopped.number
    if not is_first_rank():
        return 0
    print_comparison(rows, dataset)
    for path in filter(None, (json, folder / "comparison.json")):
        write_json([row.result for row in rows], path)
    kinds = max(1, len(others) + sum(row.run is not None and row.result.steps > 0 for row in rows))
    title = f"{COUNTS.get(kinds, str(kinds))} kind{'s' * (kinds != 1)} of density on {dataset.name}"
    page = write_report(folder / "report.html", dataset, rows, title=title, seed=seed, split=dataset.scored_split)
    show(f"report: {page}")
    return 0


def fit(
    data: DataArgument,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The family; `loglik list models` lists all. With --target, mixture if omitted."
        ),
    ] = None,
    out: Out = None,
    max_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest training time, such as 45s, 5m or 1h.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MAX_COUNT, help="Maximal number of training steps.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Size of the networks: small, medium or large; by default small, or medium on a fast GPU."),
    ] = None,
    label: Label = None,
    target: Target = None,
    column: Columns = None,
    missing: Missing = None,
    seed: Seed = 0,
    set_: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
    accumulate: Accumulate = None,
    keep: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Newest checkpoints that stay; 2 by default.", show_default=False),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Where the numbers of the training also go: tensorboard, mlflow, wandb."),
    ] = None,
) -> int:
    """Train one density and write it as a run."""
    from loglik.comparison import evaluate_run
    from loglik.data import ImageSettings, TextSettings, as_data
    from loglik.evaluation import score_in_words, summary
    from loglik.report import samples_file, write_report, write_samples
    from loglik.runs import check_free
    from loglik.tasks import draw
    from loglik.training import Interrupted
    from loglik.training import fit as train
    from loglik.training.loggers import loggers_of

    callbacks = loggers_of(log)
    if model is None and target is None:
        raise typer.BadParameter("--model NAME, or --target COLUMN, is needed; `loglik list models` lists the families")
    model = "mixture" if model is None else model
    if resume and out is None:
        raise ValueError("--resume needs --out RUN, the run to continue")
    text, options = TextSettings.split_options(settings_of(set_))
    table = table_of(column, missing)
    images, options = ImageSettings.split_options(options)
    folder = folder_for(out, data, after=f"-{model.replace(':', '-')}")
    if not (resume or restarted()) and is_first_rank():
        check_free(folder)  # before the data are read
    dataset = as_data(data, label=label, target=target, seed=seed, text=text, table=table, images=images, beside=folder)
    options = {**options, **without_none(size=size, max_time=max_time, max_steps=max_steps)}
    options |= ranks_of(devices, nodes, strategy, accumulate) | without_none(keep=keep)
    show_data(dataset)
    try:
        how: dict[str, Any] = {
            "resume": resume,
            "seed": seed,
            "device": device,
            "report": _report,
            "callbacks": callbacks,
        }
        run = train(model, dataset, out=folder, **how, **options)
    except Interrupted as stopped:
        if is_first_rank():
            sys.stderr.write(printable(f"{stopped}; continue with: {resume_command(folder)}") + "\n")
        return 128 + stopped.number
    if not is_first_rank():
        return 0
    row, split, spec = evaluate_run(run, dataset, seed=seed), dataset.scored_split, dataset.spec
    show(f"{split} split: {summary(row.result)}")
    for name, scores in row.result.targets.items():
        show(f"  {name}: " + ", ".join(score_in_words(key, value) for key, value in scores.items()))
    for line in dict.fromkeys([*(row.latents.lines() if row.latents else []), *row.result.notes]):
        show(line)
    if row.result.event == "x" and not spec.inputs:
        write_samples(draw(run.density, spec, 64, seed=seed), spec, samples_file(folder, spec))
    title = f"{model} on {dataset.name}"
    page = write_report(folder / "report.html", dataset, [row], title=title, seed=seed, split=split)
    show(f"run: {folder}")
    show(f"report: {page}")
    return 0


def _others(words: Sequence[str] | None, data: Data, device: str) -> dict[str, Run]:
    """Return the models of --with by their names, each of which is different."""
    from loglik.adapters.loading import load, split_name
    from loglik.diffusion import with_likelihood

    runs: dict[str, Run] = {}
    for word in words or ():
        kind, rest = split_name(word)
        path, *pairs = re.split(r",(?=\w+=)", rest)
        settings = settings_of(pairs)
        likelihood = {name: settings.pop(name) for name in ("method", "steps") if name in settings}
        run = load(kind, path, data.spec, device=device, **settings)
        if likelihood:
            run.density = with_likelihood(run.density, **{"method": "vlb", **likelihood})
        name = ", ".join([run.model, *pairs])
        runs[name if name not in runs else f"{name} ({len(runs) + 1})"] = run
    return runs


def _report(line: str) -> None:
    show(as_options(line))
