"""The commands. Everything heavy is imported inside them, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import (
    DataArgument,
    Json,
    Label,
    Out,
    RunArgument,
    Samples,
    Seed,
    Settings,
    as_options,
    folder_for,
    follower,
    prompt_of,
    settings_of,
    without_none,
)

__all__ = ["app"]

app = typer.Typer(
    help="Deep learning by maximum likelihood: every model is a density, every number is comparable.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
COUNTS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}


@app.command()
def compare(
    data: DataArgument,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Families to train; all that fit by default.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Training time of each model: 20s, 1m.")] = "40s",
    out: Out = None,
    json: Json = None,
    label: Label = None,
    samples: Samples = None,
    seed: Seed = 0,
    set_: Settings = None,
) -> None:
    """Train one density of each family and compare them: one table, one page."""
    from loglik.comparison import compare as run_comparison
    from loglik.comparison import write_json
    from loglik.data import TextSettings, as_data
    from loglik.report import print_comparison, write_report
    from loglik.runs import new_folder
    from loglik.training import seconds

    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    if names == []:
        raise ValueError("--models names no model: write flow,vae, or leave it out")
    each = seconds(budget)
    text, options = TextSettings.split_options(settings_of(set_))
    folder = folder_for(out, data, before="compare-")
    held = as_data(data, label=label, seed=seed, text=text, beside=folder)
    if not follower():
        new_folder(folder, resumable=False)
    print(held.describe())
    entries = run_comparison(
        held, models=names, budget=each, out=folder, samples=samples, seed=seed, say=_tell, **options
    )
    if follower():
        return
    print_comparison(entries, held)
    for path in filter(None, (json, folder / "comparison.json")):
        write_json([entry.result for entry in entries], path)
    kinds = max(1, sum(entry.run is not None and entry.result.steps > 0 for entry in entries))
    title = f"{COUNTS.get(kinds, str(kinds))} kind{'s' * (kinds != 1)} of density on {held.name}"
    page = write_report(folder / "report.html", held, entries, title=title, seed=seed, split=held.held_out)
    print(f"report: {page}")


@app.command()
def fit(
    data: DataArgument,
    model: Annotated[str, typer.Option(metavar="NAME", help="The family; `loglik list models` names them.")],
    out: Out = None,
    max_time: Annotated[str | None, typer.Option(metavar="TIME", help="45s, 5m, 1h.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1)] = None,
    size: Annotated[str, typer.Option(help="small, medium or large.")] = "small",
    label: Label = None,
    seed: Seed = 0,
    set_: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train one density and write it as a run."""
    from loglik.comparison import judge, summary
    from loglik.data import TextSettings, as_data
    from loglik.report import draw, samples_file, write_report, write_samples
    from loglik.training import fit as train

    if resume and out is None:
        raise ValueError("--resume needs --out RUN, the run to go on with")
    text, options = TextSettings.split_options(settings_of(set_))
    folder = folder_for(out, data, after=f"-{model.replace(':', '-')}")
    held = as_data(data, label=label, seed=seed, text=text, beside=folder)
    options = {"size": size, **options, **without_none(max_time=max_time, max_steps=max_steps)}
    print(held.describe())
    run = train(model, held, out=folder, resume=resume, seed=seed, **options)
    if follower():
        return
    entry, split = judge(run, held, seed=seed), held.held_out
    print(f"{split} split: {summary(entry.result)}")
    for line in dict.fromkeys([*(entry.latents.lines() if entry.latents else []), *entry.result.notes]):
        print(line)
    if entry.result.event == "x":
        write_samples(draw(run.density, held.spec, 64, seed=seed), held.spec, samples_file(folder, held.spec))
    page = write_report(folder / "report.html", held, [entry], title=f"{model} on {held.name}", seed=seed, split=split)
    print(f"run: {folder}\nreport: {page}")


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The run's own test split by default.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all; a given DATA is used whole.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    json: Json = None,
    per_row: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write each row's log-likelihood and its standard error as CSV."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Of a diffusion: vlb, a lower bound, or ode, an estimate by the flow.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of the method: a bound in N steps (else continuous), or the solver's."),
    ] = None,
) -> None:
    """Score a run's density on data, in nats and bits/dim."""
    from loglik.comparison import evaluate as score
    from loglik.comparison import summary, write_json
    from loglik.evaluation.evaluate import SOLVED
    from loglik.report import print_classes
    from loglik.runs import load

    trained = load(run)
    result = score(trained, data, split=split, samples=samples, seed=seed, per_row=per_row, method=method, steps=steps)
    each = "" if result.unit == "token" else f", {result.samples} sample{'s' * (result.samples > 1)} each"
    if each and per_row is not None and samples is None and result.samples > 1:
        each += " on average"
    print(f"{result.n} {result.unit}s{each}: {summary(result)}")
    for name, value in result.terms.items():
        print(f"  {name}: {value:.3f} nats")
    if result.numerical_error is not None:
        rows = min(SOLVED, result.n)
        print(f"  the solver's error: about {result.numerical_error:.2g} nats per example, on the first {rows}")
    if result.confusion is not None:
        print_classes(result.confusion, trained.spec.classes)
    if json is not None:
        write_json([result], json)


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many; 64 by default, or 1 that goes on from a prompt.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=".png, .csv, .txt or .npy.")] = None,
    label: Annotated[str | None, typer.Option(help="The class to draw from, of a conditional density.")] = None,
    seed: Seed = 0,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Of text: how it begins; @FILE reads it.")] = None,
    length: Annotated[int | None, typer.Option(metavar="N", help="Of text: how many tokens to add.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of text: below 1 for likelier tokens, 0 for the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Of text: draw among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Of text: draw among the likeliest tokens that hold this probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="TOKEN", help="Of text: end with this token.")] = None,
    method: Annotated[str | None, typer.Option(help="Of a diffusion: ddpm, ddim, unipc, ipndm, ...")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Of a diffusion: noise levels.")] = None,
    until: Annotated[
        float | None, typer.Option(help="Of a diffusion: the last log-SNR; 3 or 4 for images in 10 to 20 steps.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(metavar="W", help="Of a diffusion: above 1 to agree more with the label.")
    ] = None,
) -> None:
    """Draw samples from a run's density, in the units of the data; text goes on from a prompt, on the terminal."""
    from loglik.report import continue_text, draw, numbered, samples_file, write_samples
    from loglik.runs import load

    loaded = load(run)
    density, spec = loaded.density, loaded.spec
    if density.event == "y":
        raise ValueError(f"{run} is a classifier, p(label | data): it has no data to draw; use another family")
    asked = without_none(length=length, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)
    if prompt is not None or asked:
        n, start = n or 1, prompt_of(prompt)
        say = _say if n == 1 and out is None and sys.stdout.isatty() else None
        texts = continue_text(density, spec, prompt=start, n=n, seed=seed, label=label, say=say, **asked)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(numbered(texts), encoding="utf-8")
        print(f"{len(texts)} samples: {out}" if out else "" if say else numbered(texts).removesuffix("\n"))
        return
    n = n or 64
    if how := without_none(method=method, steps=steps, until=until, guidance=guidance):
        from loglik.diffusion import with_sampler

        density = with_sampler(density, **how)
    path = out or samples_file(run, spec)
    write_samples(draw(density, spec, n, seed=seed, label=label), spec, path)
    print(f"{n} samples: {path}")


@app.command()
def encode(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `loglik fit --model vae` wrote.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The run's own data by default.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A .csv; latents.csv in the run by default.")] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "all",
) -> None:
    """Write the latents of examples, a row each: a table of embeddings."""
    from loglik.latents import write_latents
    from loglik.runs import load

    path = out or run / "latents.csv"
    print(f"{write_latents(load(run), path, data, split=split)} rows of latents: {path}")


@app.command()
def fill(
    run: RunArgument,
    data: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A table with missing values: .csv, .json, .parquet, ...")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the filled .csv goes.")] = Path("filled.csv"),
    seed: Seed = 0,
) -> None:
    """Fill a table's missing values with draws from a run's density, given the rest of each row."""
    from loglik.filling import fill_table
    from loglik.runs import load

    print(f"{fill_table(load(run), data, out, seed=seed)} missing values filled: {out}")


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A folder that `loglik fit` wrote, or a family, untrained.")
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The run's own, or digits for a family, by default.")
    ] = None,
    out: Out = None,
    label: Label = None,
    seed: Seed = 0,
) -> None:
    """Look inside a network: receptive fields, parameters and FLOPs, gradient flow, equivariance, cost."""
    from loglik.inspection import find, print_inspection, write_page
    from loglik.inspection import inspect as look
    from loglik.runs import new_folder

    density, held, name, trained = find(model, data, label=label, seed=seed)
    folder = folder_for(out, model, before="inspect-")
    new_folder(folder, resumable=False)
    found = look(density, held, split="all" if data else None, model=name, trained=trained, seed=seed)
    print_inspection(found)
    print(f"page: {write_page(folder / 'inspection.html', found)}")


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
) -> int:
    """Check the theorems of the notes on a model: what holds, with the numbers; exit status 1 if one fails."""
    from loglik.inspection import find
    from loglik.runs import new_folder
    from loglik.verification import print_verification, write_page
    from loglik.verification.subject import Subject
    from loglik.verification.verify import selected, verify_subject

    checks = selected(None if only is None else [name.strip() for name in only.split(",") if name.strip()])
    density, dataset, name, _ = find(model, data, label=label, seed=seed)
    folder = folder_for(out, model, before="verify-")
    new_folder(folder, resumable=False)
    subject = Subject(density, dataset, name, split="all" if data else dataset.held_out, seed=seed)
    verification = verify_subject(subject, checks)
    print_verification(verification)
    if json is not None:
        verification.write_json(json)
    print(f"page: {write_page(folder / 'verification.html', verification)}")
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
    from loglik.data.text import TextSettings
    from loglik.data.tokenizers import KINDS

    if name is not None:
        print(describe(name))
        return
    print(overview())
    options = ", ".join(f"{k}={v}" for k, v in TextSettings().to_dict().items() if v is not None)
    print(f"\ntext, for any of them: {options}, window; tokenizer is {', '.join(KINDS)}")
    print("`loglik list models NAME` describes the options of a model.")


@listing.command("data")
def list_data() -> None:
    """The data sets that are known by name."""
    from loglik.data import names

    for name, what in names().items():
        print(f"{name:<15} {what}")


def _tell(line: str) -> None:
    print(as_options(line))


def _say(text: str) -> None:
    print(text, end="", flush=True)
