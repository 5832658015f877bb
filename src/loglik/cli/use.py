"""The commands that use a run's density: `evaluate`, `sample`, `encode`, `fill` and `predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loglik.cli.options import (
    MAX_COUNT,
    Device,
    From,
    Json,
    Label,
    RunArgument,
    Samples,
    Seed,
    Settings,
    Target,
    load_model,
    prompt_of,
    show,
    without_none,
)
from loglik.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

    from loglik.runs import Run
    from loglik.tasks import Samples as DrawnLater

__all__ = ["encode", "evaluate", "fill", "predict", "sample"]

TEXT = "\n\t"  # the control characters of a text that a terminal shows as they are meant


def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="Data to score; by default the run's own test split.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all; `all` by default where DATA is passed.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    json: Json = None,
    per_row: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write each row's log-likelihood and its standard error as CSV."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="For a diffusion: `vlb`, a lower bound, or `ode`, an estimate.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            max=MAX_COUNT,
            help="Number of steps: T for `vlb` (continuous time if omitted), or solver steps for `ode`.",
        ),
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            metavar="score|refuse", help="A table's categories that the run has not seen: scored, or an error."
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMNS",
            help="Of a table: score log p(the other columns | these), as a,b; repeatable, for names with commas.",
        ),
    ] = None,
    of: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMNS", help="With --given: the columns to score; all others by default."),
    ] = None,
    from_: From = None,
    label: Label = None,
    target: Target = None,
    set_: Settings = None,
    device: Device = "auto",
) -> None:
    """Score a run's density on data, in nats and bits/dim."""
    from loglik.evaluation import evaluate as score
    from loglik.evaluation import score_in_words, summary, write_json
    from loglik.evaluation.split import SOLVED_ROWS
    from loglik.report import print_classes

    how_read: dict[str, Any] = {"label": label, "target": target, "settings": set_, "seed": seed, "device": device}
    trained, dataset = load_model(run, from_, data, **how_read)
    if given or of:
        if per_row is not None or method is not None or steps is not None:
            raise ValueError("--given and --of score columns: they do not go with --per-row, --method and --steps")
        _score_columns(trained, dataset, given, of, split=split, samples=samples, seed=seed, json=json)
        return
    how = without_none(method=method, steps=steps, unseen=unseen)
    result = score(trained, dataset, split=split, samples=samples, seed=seed, per_row=per_row, **how)
    draws = "" if result.unit == "token" else f", {result.samples} sample{'s' * (result.samples > 1)} each"
    if draws and per_row is not None and samples is None and result.samples > 1:
        draws += " on average"
    show(f"{result.n} {result.unit}s{draws}: {summary(result)}")
    if result.incomplete:
        show(f"  {result.incomplete:,} of the rows have missing values, and are scored by their observed values")
    for note in result.notes:
        show(f"  {note}")
    for name, value in result.terms.items():
        show(f"  {name}: {value:.3f} nats")
    if result.numerical_error is not None:
        rows = min(SOLVED_ROWS, result.n)
        show(f"  the solver's error: about {result.numerical_error:.2g} nats per example, on the first {rows}")
    for name, scores in result.targets.items():
        show(f"  {name}: " + ", ".join(score_in_words(key, value) for key, value in scores.items()))
    if result.confusion is not None:
        print_classes(result.confusion, trained.spec.classes)
    if json is not None:
        write_json([result], json)


def sample(
    run: RunArgument,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, max=MAX_COUNT, help="Number of samples; 64 by default, 1 for text from a prompt."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .png, .txt or .npy file, or a table (.csv, .parquet, .feather, .json, .jsonl); without a suffix, "
            "a folder with a .png of each image.",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="For a conditional density: the class to draw from.")] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="For targets given inputs: draw -n samples, 1 by default, for each row of DATA."
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Of a table: carat=1..2, 'cut=Ideal|Premium', 'price<500', day=2013-07; repeatable, all must hold.",
        ),
    ] = None,
    beyond: Annotated[
        bool,
        typer.Option(
            "--beyond", help="Of a table: keep values beyond the range of the training data, instead of new draws."
        ),
    ] = False,
    seed: Seed = 0,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For text: the beginning; @FILE reads it from a file.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(metavar="N", max=MAX_COUNT, help="For text: the number of tokens to add.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="For text: below 1 for likelier tokens, 0 for the likeliest.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(max=MAX_COUNT, help="For text: draw among the k likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="For text: draw among the likeliest tokens with this total probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="TOKEN", help="For text: stop after this token.")] = None,
    method: Annotated[
        str | None, typer.Option(help="For a diffusion: the sampler: ddpm, ddim, unipc, ipndm, ...")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", max=MAX_COUNT, help="For a diffusion: the number of noise levels.")
    ] = None,
    until: Annotated[
        float | None, typer.Option(help="For a diffusion: the last log-SNR; 3 or 4 for images in 10 to 20 steps.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="W", help="For a diffusion: the guidance weight; above 1 samples agree more with the label."
        ),
    ] = None,
    from_: From = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="With --from: data whose form the samples have, such as a table's columns."),
    ] = None,
    set_: Settings = None,
    device: Device = "auto",
) -> None:
    """Draw samples from a run's density, in the units of the data, or continue a text from a prompt."""
    from loglik.report import numbered, samples_file, write_samples
    from loglik.tasks import Samples as Drawn
    from loglik.tasks import continue_text, sample_given, samples_of

    if like is not None and from_ is None:
        raise ValueError("--like goes with --from KIND: a run of `loglik fit` has the form of its own data")
    trained, _ = load_model(run, from_, like, settings=set_, seed=seed, device=device, sampling=True)
    options = without_none(length=length, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)
    if trained.density.event == "x" and (prompt is not None or options):
        n = n or 1
        on_text = _print_piece if n == 1 and out is None and sys.stdout.isatty() else None
        texts = continue_text(trained, prompt_of(prompt), n=n, seed=seed, label=label, on_text=on_text, **options)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(numbered(texts), encoding="utf-8")
        shown = "" if on_text else printable(numbered(texts).removesuffix("\n"), keep=TEXT)
        print(printable(f"{len(texts)} samples: {out}") if out else shown)
        return
    sampler = without_none(method=method, steps=steps, until=until, guidance=guidance)
    path = out or samples_file(Path() if from_ else run, trained.spec)
    x: DrawnLater | Tensor
    if given:
        if sampler:
            raise ValueError("--given does not go with --method, --steps, --until and --guidance")
        under = sample_given(trained, n or 64, given, seed=seed, label=label)
        x = under.x
        for line in under.describe():
            show(line)
    else:
        x = samples_of(trained, n, label=label, inputs=inputs, seed=seed, beyond=beyond, **sampler)
    write_samples(x, trained.spec, path)
    if isinstance(x, Drawn) and x.redrawn:
        rows = "1 row" if x.redrawn == 1 else f"{x.redrawn:,} rows"
        show(f"{rows} with a value beyond the range of the data drawn again: --beyond keeps such rows")
    show(f"{len(x)} samples: {path}")


def _score_columns(
    run: Run,
    data: Any,
    given: list[str] | None,
    of: list[str] | None,
    *,
    split: str | None,
    samples: int | None,
    seed: int,
    json: Path | None,
) -> None:
    """Print log p(some columns | others)."""
    from loglik.evaluation import write_json
    from loglik.tasks import evaluate_given

    names = [column.name for column in run.spec.columns]
    lists = [
        None if words is None else [name for word in words for name in ([word] if word in names else word.split(","))]
        for words in (given, of)
    ]
    score = evaluate_given(run, data, given=lists[0] or [], of=lists[1], split=split, samples=samples, seed=seed)
    for line in score.describe():
        show(line)
    if json is not None:
        write_json([score], json)


def encode(
    run: RunArgument,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="Data to encode; by default the run's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv file; latents.csv in the run by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "all",
    device: Device = "auto",
) -> None:
    """Write a table of embeddings: the latents of each example in a row."""
    from loglik.runs import load
    from loglik.tasks import write_latents

    path = out or run / "latents.csv"
    show(f"{write_latents(load(run, device=device), path, data, split=split)} rows of latents: {path}")


def fill(
    run: RunArgument,
    data: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A table with missing values: .csv, .json, .parquet, ...")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The filled table: .csv, .parquet, .json, ...")] = Path(
        "filled.csv"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fill a table's missing values with draws from a run's density, given the rest of each row."""
    from loglik.runs import load
    from loglik.tasks import fill_table

    show(f"{fill_table(load(run, device=device), data, out, seed=seed)} missing values filled: {out}")


def predict(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="A table with the inputs; by default the run's own test split."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv file; predictions.csv in the run by default.")
    ] = None,
    quantiles: Annotated[
        str, typer.Option(metavar="A,B", help="Levels of the quantiles of real and integer targets.")
    ] = "0.05,0.95",
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all; `all` by default where DATA is passed.")
    ] = None,
    seed: Seed = 0,
    from_: From = None,
    label: Label = None,
    target: Target = None,
    set_: Settings = None,
    device: Device = "auto",
) -> None:
    """Predict targets or classes: the mean, median, std and quantiles, or the probabilities, of each row."""
    from loglik.tasks import predict as predict_table
    from loglik.tasks import write_predictions

    try:
        levels = [float(level) for level in quantiles.split(",")]
    except ValueError:
        raise ValueError(f"--quantiles must be numbers between 0 and 1 with commas, got {quantiles!r}") from None
    how_read: dict[str, Any] = {"label": label, "target": target, "settings": set_, "seed": seed, "device": device}
    trained, dataset = load_model(run, from_, data, **how_read)
    table = predict_table(trained, dataset, quantiles=levels, split=split, seed=seed)
    path = out or (Path() if from_ else run) / "predictions.csv"
    write_predictions(table, path)
    show(f"{table.height:,} rows of predictions: {path}")


def _print_piece(text: str) -> None:
    print(printable(text, keep=TEXT), end="", flush=True)
