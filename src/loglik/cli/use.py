"""The commands that use a run's density: `evaluate`, `sample`, `encode`, `fill` and `anomalies`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import (
    MAX_COUNT,
    Device,
    Json,
    RunArgument,
    Samples,
    Seed,
    prompt_of,
    share_of,
    show,
    without_none,
)
from loglik.terminal import printable

__all__ = ["anomalies", "encode", "evaluate", "fill", "sample"]

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
    device: Device = "auto",
) -> None:
    """Score a run's density on data, in nats and bits/dim."""
    from loglik.evaluation import evaluate as score
    from loglik.evaluation import summary, write_json
    from loglik.evaluation.split import SOLVED_ROWS
    from loglik.report import print_classes
    from loglik.runs import load

    trained = load(run, device=device)
    result = score(trained, data, split=split, samples=samples, seed=seed, per_row=per_row, method=method, steps=steps)
    draws = "" if result.unit == "token" else f", {result.samples} sample{'s' * (result.samples > 1)} each"
    if draws and per_row is not None and samples is None and result.samples > 1:
        draws += " on average"
    show(f"{result.n} {result.unit}s{draws}: {summary(result)}")
    for name, value in result.terms.items():
        show(f"  {name}: {value:.3f} nats")
    if result.numerical_error is not None:
        rows = min(SOLVED_ROWS, result.n)
        show(f"  the solver's error: about {result.numerical_error:.2g} nats per example, on the first {rows}")
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
            help="A .png, .csv, .txt or .npy file; without a suffix, a folder with a .png of each image.",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="For a conditional density: the class to draw from.")] = None,
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
    device: Device = "auto",
) -> None:
    """Draw samples from a run's density, in the units of the data, or continue a text from a prompt."""
    from loglik.report import numbered, samples_file, write_samples
    from loglik.runs import load
    from loglik.tasks import continue_text, samples_of

    trained = load(run, device=device)
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
    x = samples_of(trained, n or 64, label=label, seed=seed, **sampler)
    path = out or samples_file(run, trained.spec)
    write_samples(x, trained.spec, path)
    show(f"{len(x)} samples: {path}")


def encode(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `loglik fit --model vae` wrote.")],
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
    out: Annotated[Path, typer.Option(metavar="FILE", help="The filled table, a .csv file.")] = Path("filled.csv"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fill a table's missing values with draws from a run's density, given the rest of each row."""
    from loglik.runs import load
    from loglik.tasks import fill_table

    show(f"{fill_table(load(run, device=device), data, out, seed=seed)} missing values filled: {out}")


def anomalies(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Rows to score; by default the run's own, each against the others."),
    ] = None,
    rate: Annotated[
        str, typer.Option(metavar="SHARE", help="Share of normal rows to flag, as 1% or 0.01; see --fdr.")
    ] = "1%",
    fdr: Annotated[
        bool,
        typer.Option("--fdr", help="Let SHARE limit the false discovery rate: the normal rows among the flagged ones."),
    ] = False,
    score: Annotated[
        str,
        typer.Option(
            help="`kernel`: the kernel density of the run's rows; `nats`: -log p of the run's density; "
            "`typicality`: its distance from the usual; `auto` is kernel, and nats for text and for a density of "
            "targets."
        ),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv file; anomalies.csv in the run by default.")
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The data of the run, if they are no longer where they were."),
    ] = None,
    explain: Annotated[
        int, typer.Option(metavar="N", min=0, max=MAX_COUNT, help="Name the columns to blame of the N worst rows.")
    ] = 100,
    samples: Samples = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find unlikely rows: p-values against the run's rows, and the columns to blame. Write a table and a page."""
    from loglik.report import write_anomalies
    from loglik.runs import load
    from loglik.tasks import find_anomalies

    share, path = share_of(rate, "--rate"), out or run / "anomalies.csv"
    if path.suffix.lower() != ".csv":
        raise ValueError(f"--out must be a .csv file, got {path}: the page is written beside it, as .html")
    found = find_anomalies(
        load(run, device=device), data, rate=share, fdr=fdr, score=score, normal=normal, explain=explain,
        samples=samples, seed=seed,
    )  # fmt: skip
    page = write_anomalies(found, path, title=f"Anomalies in {Path(data).name if data else 'the rows of ' + run.name}")
    frame = found.frame
    show(f"{frame['flagged'].sum()} of {frame.height} rows flagged at {rate}{' (FDR)' if fdr else ''}: {path}, {page}")
    show(f"  score: {found.score}; p-values against {found.known} rows")
    if not fdr and share * (found.known + 1) < 1:
        show(f"  no row can be flagged: with {found.known} rows the smallest p-value is {1 / (found.known + 1):.2g}")
    if explain:
        show(f"  columns: {found.blame}, in nats above usual")
    for row in frame.head(5).iter_rows(named=True):
        blamed = f", {row['columns'] or 'no column stands out'}" if explain else ""
        show(f"  row {row['row']}: p {row['p']:.2g}{blamed}")


def _print_piece(text: str) -> None:
    print(printable(text, keep=TEXT), end="", flush=True)
