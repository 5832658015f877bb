"""The commands. Heavy modules are imported inside them, so that help is quick."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import (
    MOST,
    Accumulate,
    DataArgument,
    Device,
    Devices,
    Json,
    Label,
    Nodes,
    Out,
    RunArgument,
    Samples,
    Seed,
    Settings,
    Strategy,
    as_options,
    folder_for,
    prompt_of,
    ranks_of,
    resume_command,
    settings_of,
    show,
    without_none,
)
from loglik.ranks import is_first_rank, restarted
from loglik.terminal import printable

__all__ = ["app"]

app = typer.Typer(
    help="Deep learning by maximum likelihood: every model is a density, every number is comparable.",
    epilog="Every command accepts --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
TEXT = "\n\t"  # the control characters of a text that a terminal shows as they are meant
COUNTS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}


@app.command()
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
    samples: Samples = None,
    seed: Seed = 0,
    set_: Settings = None,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
) -> int:
    """Train one density of each family and compare them: one table, one page."""
    from loglik.comparison import compare as run_comparison
    from loglik.data import TextSettings, as_data
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
    options |= ranks_of(devices, nodes, strategy, None)
    folder = folder_for(out, data, before="compare-")
    if is_first_rank():
        check_free(folder, resumable=False)  # before the data are read
    dataset = as_data(data, label=label, seed=seed, text=text, beside=folder)
    with ExitStack() as stack:
        if is_first_rank():
            new_folder(folder, resumable=False)
            stack.enter_context(locked(folder))
        show(dataset.describe())
        try:
            rows = run_comparison(
                dataset,
                models=names,
                budget=max_time,
                out=folder,
                samples=samples,
                seed=seed,
                device=device,
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
    kinds = max(1, sum(row.run is not None and row.result.steps > 0 for row in rows))
    title = f"{COUNTS.get(kinds, str(kinds))} kind{'s' * (kinds != 1)} of density on {dataset.name}"
    page = write_report(folder / "report.html", dataset, rows, title=title, seed=seed, split=dataset.scored_split)
    show(f"report: {page}")
    return 0


@app.command()
def fit(
    data: DataArgument,
    model: Annotated[str, typer.Option(metavar="NAME", help="The family; `loglik list models` lists all.")],
    out: Out = None,
    max_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest training time, such as 45s, 5m or 1h.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MOST, help="Maximal number of training steps.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Size of the networks: small, medium or large; small if omitted, on a fast GPU also medium."),
    ] = None,
    label: Label = None,
    seed: Seed = 0,
    set_: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
    accumulate: Accumulate = None,
) -> int:
    """Train one density and write it as a run."""
    from loglik.comparison import evaluate_run
    from loglik.data import TextSettings, as_data
    from loglik.evaluation import summary
    from loglik.report import samples_file, write_report, write_samples
    from loglik.runs import check_free
    from loglik.tasks import draw
    from loglik.training import Interrupted
    from loglik.training import fit as train

    if resume and out is None:
        raise ValueError("--resume needs --out RUN, the run to continue")
    text, options = TextSettings.split_options(settings_of(set_))
    folder = folder_for(out, data, after=f"-{model.replace(':', '-')}")
    if not (resume or restarted()) and is_first_rank():
        check_free(folder)  # before the data are read
    dataset = as_data(data, label=label, seed=seed, text=text, beside=folder)
    options = {**options, **without_none(size=size, max_time=max_time, max_steps=max_steps)}
    options |= ranks_of(devices, nodes, strategy, accumulate)
    show(dataset.describe())
    try:
        run = train(model, dataset, out=folder, resume=resume, seed=seed, device=device, report=_report, **options)
    except Interrupted as stopped:
        if is_first_rank():
            sys.stderr.write(printable(f"{stopped}; continue with: {resume_command(folder)}") + "\n")
        return 128 + stopped.number
    if not is_first_rank():
        return 0
    row, split, spec = evaluate_run(run, dataset, seed=seed), dataset.scored_split, dataset.spec
    show(f"{split} split: {summary(row.result)}")
    for line in dict.fromkeys([*(row.latents.lines() if row.latents else []), *row.result.notes]):
        show(line)
    if row.result.event == "x":
        write_samples(draw(run.density, spec, 64, seed=seed), spec, samples_file(folder, spec))
    title = f"{model} on {dataset.name}"
    page = write_report(folder / "report.html", dataset, [row], title=title, seed=seed, split=split)
    show(f"run: {folder}")
    show(f"report: {page}")
    return 0


@app.command()
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
            max=MOST,
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


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, max=MOST, help="Number of samples; 64 by default, 1 for text from a prompt."),
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
        int | None, typer.Option(metavar="N", max=MOST, help="For text: the number of tokens to add.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="For text: below 1 for likelier tokens, 0 for the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(max=MOST, help="For text: draw among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="For text: draw among the likeliest tokens with this total probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="TOKEN", help="For text: stop after this token.")] = None,
    method: Annotated[
        str | None, typer.Option(help="For a diffusion: the sampler: ddpm, ddim, unipc, ipndm, ...")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", max=MOST, help="For a diffusion: the number of noise levels.")
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


@app.command()
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


@app.command()
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


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A folder that `loglik fit` wrote, or the name of a family, untrained."
        ),
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="By default the run's own data, or digits for a family.")
    ] = None,
    out: Out = None,
    label: Label = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Inspect a network: receptive fields, parameters and FLOPs, gradient flow, equivariance, cost."""
    from loglik.inspection import inspect as inspect_density
    from loglik.inspection import load_or_build, print_inspection, write_page
    from loglik.runs import new_folder

    run, dataset = load_or_build(model, data, label=label, seed=seed, device=device)
    folder = folder_for(out, model, before="inspect-")
    new_folder(folder, resumable=False)
    split, trained = "all" if data else None, run.path is not None
    found = inspect_density(run.density, dataset, split=split, model=run.model, trained=trained, seed=seed)
    print_inspection(found)
    show(f"page: {write_page(folder / 'inspection.html', found)}")


@app.command()
def verify(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A folder that `loglik fit` wrote, or a family, untrained.")
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The run's own, or digits for a family, by default.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Names of checks, or beginnings of names: flow,normalised.")
    ] = None,
    out: Out = None,
    json: Json = None,
    label: Label = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> int:
    """Check the theorems of the notes on a model: what holds, with the numbers; exit status 1 if one fails."""
    from loglik.inspection import load_or_build
    from loglik.runs import new_folder
    from loglik.verification import print_verification, write_page
    from loglik.verification.verify import selected, subject_of, verify_subject

    checks = selected(None if only is None else [name.strip() for name in only.split(",") if name.strip()])
    run, dataset = load_or_build(model, data, label=label, seed=seed, device=device)
    folder = folder_for(out, model, before="verify-")
    new_folder(folder, resumable=False)
    verification = verify_subject(subject_of(run, dataset, split="all" if data else None, seed=seed), checks)
    print_verification(verification)
    if json is not None:
        verification.write_json(json)
    show(f"page: {write_page(folder / 'verification.html', verification)}")
    return int(bool(verification.failed))


listing = typer.Typer(no_args_is_help=True, help="List the models or the named data sets.")
app.add_typer(listing, name="list")


@listing.command("models")
def list_models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The model whose options to describe; all, in short, if omitted."),
    ] = None,
) -> None:
    """List the models and their options; with NAME, describe each option of one model."""
    from loglik.cli.reference import describe, overview
    from loglik.data.text_settings import TextSettings
    from loglik.data.tokenizers import KINDS

    if name is not None:
        print(describe(name))
        return
    print(overview())
    options = ", ".join(f"{k}={v}" for k, v in TextSettings().to_dict().items() if v is not None)
    print(f"\ntext, for any of them: {options}, window; tokenizer is {', '.join(KINDS)}")
    show("`loglik list models NAME` describes the options of a model.")


@listing.command("data")
def list_data() -> None:
    """List the data sets that have a name."""
    from loglik.data import names

    for name, description in names().items():
        show(f"{name:<15} {description}")


def _report(line: str) -> None:
    show(as_options(line))


def _print_piece(text: str) -> None:
    print(printable(text, keep=TEXT), end="", flush=True)
