"""The commands. Everything heavy is imported inside them, so that help is quick."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loglik.comparison import Entry
    from loglik.data import Data, DataSpec


__all__ = ["app", "main"]

app = typer.Typer(
    help="Deep learning by maximum likelihood: every model is a density, every number is comparable.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A name (digits, fashion-mnist, ...), a folder of images or text, a .csv, .parquet, .npy, .npz or "
        "text file, or hf:NAME.",
        show_default=False,
    ),
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="The label's column, of a table.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; a new folder under runs/ by default.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Monte Carlo samples per example, for bounds.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes the split, the initial weights and all noise.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A training setting or recipe option; repeatable."),
]

# What fit and compare take besides settings: never through --set.
OWN_OPTIONS = {
    "seed": "--seed",
    "label": "--label",
    "out": "--out",
    "resume": "--resume",
    "samples": "--samples",
    "models": "--models",
    "budget": "--budget",
    "max_time": "--max-time or --budget",
}
COUNTS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}
NOT_SETTINGS = {"data", "density", "settings", "progress", "say"}


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
    from loglik.report import write_report
    from loglik.runs import new_folder
    from loglik.training import seconds

    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    if names == []:
        raise ValueError("--models names no model: write flow,vae, or leave it out")
    each = seconds(budget)
    text, options = TextSettings.split_options(_settings(set_))
    folder = _folder(out, f"compare-{_stem(data)}")
    held = as_data(data, label=label, seed=seed, text=text, beside=folder)
    if not _follower():
        new_folder(folder)
    print(f"{held.name}: {held.spec.describe()}; {_sizes(held)}")
    entries = run_comparison(
        held, models=names, budget=each, out=folder, samples=samples, seed=seed, say=print, **options
    )
    if _follower():
        return
    _print_table(entries, held)
    if json is not None:
        write_json([entry.result for entry in entries], json)
    write_json([entry.result for entry in entries], folder / "comparison.json")
    kinds = max(1, sum(entry.run is not None and entry.result.steps > 0 for entry in entries))
    split = held.held_out
    title = f"{COUNTS.get(kinds, str(kinds))} kind{'s' * (kinds != 1)} of density on {held.name}"
    page = write_report(folder / "report.html", held, entries, title=title, seed=seed, split=split)
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
    from loglik.comparison import Entry, scored, summary
    from loglik.data import TextSettings, as_data
    from loglik.evaluation import evaluate_split
    from loglik.report import write_report, write_samples
    from loglik.training import fit as train

    if resume and out is None:
        raise ValueError("--resume needs --out RUN, the run to go on with")
    text, chosen = TextSettings.split_options(_settings(set_))
    folder = _folder(out, f"{_stem(data)}-{model.replace(':', '-')}")
    held = as_data(data, label=label, seed=seed, text=text, beside=folder)
    options: dict[str, Any] = {"size": size, **chosen}
    if max_time is not None:
        options["max_time"] = max_time
    if max_steps is not None:
        options["max_steps"] = max_steps
    print(f"{held.name}: {held.spec.describe()}; {_sizes(held)}")
    run = train(model, held, out=folder, resume=resume, seed=seed, **options)
    if _follower():
        return
    result = evaluate_split(
        run.density,
        scored(held),
        held.spec,
        model=model,
        train_seconds=run.train_seconds,
        steps=run.steps,
        seed=seed,
    )
    split = held.held_out
    print(f"{split} split: {summary(result)}")
    if result.event == "x":
        x = _draw(run.density, held.spec, 64, None, seed)
        write_samples(x, held.spec, folder / f"samples{_suffix(held.spec)}")
    page = write_report(
        folder / "report.html", held, [Entry(result, run)], title=f"{model} on {held.name}", seed=seed, split=split
    )
    print(f"run: {folder}\nreport: {page}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `loglik fit` wrote.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The run's own test split by default.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all; a given DATA is used whole.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    json: Json = None,
    per_row: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write each row's log-likelihood as CSV.")
    ] = None,
) -> None:
    """Score a run's density on data, in nats and bits/dim."""
    from loglik.comparison import evaluate as score
    from loglik.comparison import summary, write_json
    from loglik.runs import load

    trained = load(run)
    result = score(
        trained, data, split=split or ("all" if data else "test"), samples=samples, seed=seed, per_row=per_row
    )
    each = "" if result.unit == "token" else f", {result.samples} sample{'s' * (result.samples > 1)} each"
    print(f"{result.n} {result.unit}s{each}: {summary(result)}")
    for name, value in result.terms.items():
        print(f"  {name}: {value:.3f} nats")
    if result.confusion is not None:
        _print_classes(result.confusion, trained.spec.classes)
    if json is not None:
        write_json([result], json)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `loglik fit` wrote.")],
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
) -> None:
    """Draw samples from a run's density, in the units of the data; text goes on from a prompt, on the terminal."""
    from loglik.report import continue_text, write_samples
    from loglik.runs import load

    loaded = load(run)
    if loaded.density.event == "y":
        raise ValueError(f"{run} is a classifier, p(label | data): it has no data to draw; use another family")
    asked: dict[str, Any] = {"length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop}
    asked = {name: value for name, value in asked.items() if value is not None}
    if prompt is not None or asked:
        alone = n in (None, 1) and out is None and sys.stdout.isatty()
        texts = continue_text(
            loaded.density,
            loaded.spec,
            prompt=_prompt(prompt or ""),
            n=n or 1,
            seed=seed,
            label=label,
            say=_say if alone else None,
            **asked,
        )
        heads = [f"--- sample {i} ---\n" if len(texts) > 1 else "" for i in range(1, len(texts) + 1)]
        whole = "".join(f"{head}{text}\n" for head, text in zip(heads, texts, strict=True))
        if out is not None:
            out.write_text(whole, encoding="utf-8")
        print("" if alone else f"{len(texts)} samples: {out}" if out else whole.removesuffix("\n"))
        return
    n = n or 64
    x = _draw(loaded.density, loaded.spec, n, label, seed)
    path = out or run / f"samples{_suffix(loaded.spec)}"
    write_samples(x, loaded.spec, path)
    print(f"{n} samples: {path}")


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
    folder = _folder(out, f"inspect-{_stem(model)}")
    new_folder(folder)
    found = look(density, held, model=name, trained=trained, seed=seed)
    print_inspection(found)
    print(f"page: {write_page(folder / 'inspection.html', found)}")


listing = typer.Typer(no_args_is_help=True, help="List the models or the named data sets.")
app.add_typer(listing, name="list")


@listing.command("models")
def list_models() -> None:
    """The families, and what they take."""
    from loglik.data.text import TextSettings
    from loglik.data.tokenizers import KINDS
    from loglik.recipes import RECIPES

    for recipe in RECIPES.values():
        variants = f"\n{'':<15} variants: {', '.join(f'{recipe.name}:{k}' for k in recipe.kinds)}" * bool(recipe.kinds)
        options = ", ".join(f"{k}={v}" for k, v in recipe.options.items() if v is not None)
        print(f"{recipe.name:<15} {recipe.summary}\n{'':<15} options: {options}{variants}")
    read = TextSettings()
    options = ", ".join(f"{k}={v}" for k, v in read.to_dict().items() if v is not None)
    print(f"\ntext, for any of them: {options}, window; tokenizer is {', '.join(KINDS)}")


@listing.command("data")
def list_data() -> None:
    """The data sets that are known by name."""
    from loglik.data import names

    for name, what in names().items():
        print(f"{name:<15} {what}")


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2."""
    # threads that wait asleep, not spinning: beside other work on the machine a step is then 5 to 60 times faster
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _follower():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _follower() -> bool:
    """Whether this process is a further rank of a training on several devices: the first one writes and prints."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("LOCAL_RANK", "NODE_RANK"))


def _settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`key=value` words as a dictionary."""
    settings = {}
    for pair in pairs or ():
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise ValueError(f"--set takes key=value, got {pair!r}")
        if key in OWN_OPTIONS or key in NOT_SETTINGS:
            raise ValueError(f"--set cannot set {key!r}" + (f": use {OWN_OPTIONS[key]}" if key in OWN_OPTIONS else ""))
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    """A number (YAML takes 1e-3 for a text), or what YAML makes of it."""
    import yaml

    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set: {text!r} is not a value") from None


def _stem(data: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(data).stem or "data").strip("-") or "data"


def _folder(out: Path | None, name: str) -> Path:
    """The folder asked for, or the first free one under runs/."""
    if out is not None:
        return out
    path, number = Path("runs") / name, 2
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _sizes(data: Data) -> str:
    if data.whole is not None:  # a text
        train, validation, test = (len(s.x.stream) for s in (data.train, data.validation, data.test))  # type: ignore[union-attr]
        return f"{train:,} tokens to train on, {validation:,} to validate, {test:,} to test on"
    return f"{len(data.train):,} to train on, {len(data.test):,} to test on"


def _prompt(text: str) -> str:
    """A prompt, or what the file after an @ holds."""
    return Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") and len(text) > 1 else text


def _say(text: str) -> None:
    print(text, end="", flush=True)


def _suffix(spec: DataSpec) -> str:
    return {"image": ".png", "table": ".csv", "text": ".txt", "array": ".npy"}[spec.kind]


def _draw(density: Any, spec: DataSpec, n: int, label: str | None, seed: int) -> Any:
    import torch

    from loglik.evaluation import labels_in_turn

    if label is not None and not density.conditional:
        raise ValueError("this density is not conditional: train one with --set conditional=true to draw from a label")
    if label is not None and label not in spec.classes:
        raise ValueError(f"no class {label!r}: the classes are {', '.join(spec.classes)}")
    context = None
    if density.conditional:
        context = labels_in_turn(spec, n) if label is None else torch.full((n,), spec.classes.index(label))
        context = context.to(next(density.parameters()).device)
    torch.manual_seed(seed)
    with torch.no_grad():
        return density.sample(n, context)


def _print_table(entries: Sequence[Entry], data: Data) -> None:
    """The densities of the data in one table, the classifier on a line of its own: its event is the label."""
    from rich.console import Console
    from rich.table import Table

    from loglik.report.numbers import count

    rows = [entry for entry in entries if entry.result.event == "x"]
    discrete = any(entry.result.bits_per_dim is not None for entry in rows)
    text = any(r.result.unit == "token" for r in rows)
    unit = "bits/byte" if any(r.result.bits_per_byte is not None for r in rows) else "bits/dim"
    split, per = data.held_out, "per token of" if text else "of"
    table = Table(
        title=f"{data.name}: log-likelihood {per} {entries[0].result.n:,} {split} {'tokens' if text else 'examples'}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    digits = 3 if text else 2
    names = ["model", "nats", "±", unit if discrete else "", "perplexity" if text else ""]
    names += ["number", "params", "steps", "time"]
    for name in filter(None, names):
        table.add_column(name, justify="left" if name in ("model", "number") else "right", no_wrap=True)
    best = max((entry.result.nats for entry in rows if entry.run and not entry.conditional), default=None)
    for entry in rows:
        r = entry.result
        cells = [r.model, f"{r.nats:.{digits}f}", "" if r.stderr is None else f"{r.stderr:.{digits}f}"]
        if discrete:
            bits = r.bits_per_dim if r.bits_per_byte is None else r.bits_per_byte
            cells.append("" if bits is None else f"{bits:.3f}")
        if text:
            cells.append("" if r.perplexity is None else f"{r.perplexity:.2f}")
        time = f"{r.train_seconds:.0f} s" if r.steps else ""
        cells += [_kind(entry), count(r.params) if r.params else "", f"{r.steps:,}" if r.steps else "", time]
        table.add_row(*cells, style="bold" if r.nats == best else None)
    Console().print(table)
    for entry in entries:
        r = entry.result
        if r.event == "y":
            print(
                f"{r.model}, p(label | data): accuracy {r.accuracy:.1%}, {r.nats:.3f} ± {r.stderr or 0:.3f} nats a "
                f"label, calibration error {r.calibration_error:.1%}"
            )


def _print_classes(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Precision, recall and F1 of each class, and what it is mistaken for most."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from loglik.classification.calibration import per_class

    matrix = torch.tensor(confusion)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("class", "precision", "recall", "F1", "examples", "mistaken most for"):
        table.add_column(name, justify="left" if name.startswith(("class", "mistaken")) else "right")
    for k, score in enumerate(per_class(matrix)):
        mistakes = matrix[k].clone()
        mistakes[k] = 0
        worst = f"{classes[int(mistakes.argmax())]} ({int(mistakes.max())})" if mistakes.any() else ""
        rates = [f"{100 * rate:.1f}%" for rate in (score.precision, score.recall, score.f1)]
        table.add_row(classes[k], *rates, f"{score.count:,}", worst)
    Console().print(table)


def _kind(entry: Entry) -> str:
    if entry.run is None:
        return "code length"
    given = " given label" if entry.conditional else ""
    return entry.result.bound + (f", K={entry.result.samples}" if entry.result.samples > 1 else "") + given


if __name__ == "__main__":
    main()
