"""The commands that look at data and models: `describe`, `inspect`, `verify` and `list`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loglik.cli.options import (
    Columns,
    DataArgument,
    Device,
    From,
    Json,
    Label,
    Missing,
    Out,
    Seed,
    Settings,
    as_options,
    folder_for,
    load_model,
    settings_of,
    show,
    table_of,
)

if TYPE_CHECKING:
    from loglik.data.dataset import Data
    from loglik.runs import Run

__all__ = ["describe", "inspect", "list_data", "list_models", "verify"]


def describe(
    data: DataArgument,
    label: Label = None,
    column: Columns = None,
    missing: Missing = None,
    set_: Settings = None,
    json: Json = None,
) -> None:
    """Show what data are read as: each column of a table, its type, missing values, range and examples."""
    from json import dumps

    from loglik import files
    from loglik.data import TextSettings
    from loglik.data import describe as describe_data

    text, rest = TextSettings.split_options(settings_of(set_))
    if rest:
        raise ValueError(f"--set {next(iter(rest))}: only the settings of text, {', '.join(TextSettings.names())}")
    found = describe_data(data, label=label, text=text, table=table_of(column, missing))
    for line in str(found).splitlines():
        show(as_options(line))
    if json is not None:
        with files.replacing(json) as temporary:
            temporary.write_text(dumps(found.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")


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
    from_: From = None,
    set_: Settings = None,
    device: Device = "auto",
) -> None:
    """Inspect a network: receptive fields, parameters and FLOPs, gradient flow, equivariance, cost."""
    from loglik.inspection import inspect as inspect_density
    from loglik.inspection import print_inspection, write_page
    from loglik.runs import new_folder

    run, dataset = _model_and_data(model, data, from_, label=label, seed=seed, settings=set_, device=device)
    folder = folder_for(out, model, before="inspect-")
    new_folder(folder, resumable=False)
    split, trained = "all" if data else None, run.path is not None
    found = inspect_density(run.density, dataset, split=split, model=run.model, trained=trained, seed=seed)
    print_inspection(found)
    show(f"page: {write_page(folder / 'inspection.html', found)}")


def verify(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A folder that `loglik fit` wrote, or a family, untrained.")
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The run's own, or digits for a family, by default.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Names of checks, or beginnings of names: elbo,normalised.")
    ] = None,
    out: Out = None,
    json: Json = None,
    label: Label = None,
    seed: Seed = 0,
    from_: From = None,
    set_: Settings = None,
    device: Device = "auto",
) -> int:
    """Check the theorems of the notes on a model: what holds, with the numbers; exit status 1 if one fails."""
    from loglik.runs import new_folder
    from loglik.verification import print_verification, write_page
    from loglik.verification.verify import selected, subject_of, verify_subject

    checks = selected(None if only is None else [name.strip() for name in only.split(",") if name.strip()])
    run, dataset = _model_and_data(model, data, from_, label=label, seed=seed, settings=set_, device=device)
    folder = folder_for(out, model, before="verify-")
    new_folder(folder, resumable=False)
    verification = verify_subject(subject_of(run, dataset, split="all" if data else None, seed=seed), checks)
    print_verification(verification)
    if json is not None:
        verification.write_json(json)
    show(f"page: {write_page(folder / 'verification.html', verification)}")
    return int(bool(verification.failed))


def _model_and_data(
    model: str,
    data: str | None,
    kind: str | None,
    *,
    label: str | None,
    seed: int,
    settings: Sequence[str] | None,
    device: str,
) -> tuple[Run, Data]:
    """Return a run, an untrained model of a family, or a model of another library, with its data."""
    from loglik.inspection import load_or_build

    if kind is None:
        if settings:
            raise ValueError("--set goes with --from KIND")
        return load_or_build(model, data, label=label, seed=seed, device=device)
    return load_model(Path(model), kind, data, label=label, settings=settings, seed=seed, device=device)


def list_models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The model whose options to describe; all, in short, if omitted."),
    ] = None,
) -> None:
    """List the models and their options; with NAME, describe each option of one model."""
    from loglik.cli.reference import describe, overview
    from loglik.data.image_settings import ImageSettings
    from loglik.data.text_settings import TextSettings
    from loglik.data.tokenizers import KINDS

    if name is not None:
        print(describe(name))
        return
    print(overview())
    options = ", ".join(f"{k}={v}" for k, v in TextSettings().to_dict().items() if v is not None)
    print(f"\ntext, for any of them: {options}, window; tokenizer is {', '.join(KINDS)}")
    options = ", ".join(f"{k}={v}" for k, v in ImageSettings().to_dict().items() if v is not None)
    print(f"images, for any of them: resize, {options}, bits; fit is crop, pad or stretch")
    show("`loglik list models NAME` describes the options of a model.")


def list_data() -> None:
    """List the data sets that have a name."""
    from loglik.data import names

    for name, description in names().items():
        show(f"{name:<15} {description}")
