"""The command `report`: a run's page anew, with whether its samples can stand for the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import MAX_COUNT, Device, Json, RunArgument, Seed, show

__all__ = ["report"]


def report(
    run: RunArgument,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The data of the run, if they are no longer where they were.")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", min=10, max=MAX_COUNT, help="Samples and rows that are compared, at most; 5,000 by default."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An .html file; report.html in the run by default.")
    ] = None,
    json: Json = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write a run's page; of a table, say how like the data its samples are, and whether they give rows away."""
    from json import dumps

    from loglik import files
    from loglik.comparison import evaluate_run
    from loglik.report import write_report
    from loglik.runs import load
    from loglik.tasks import has_synthetic_rows, synthetic_report

    trained = load(run, device=device)
    rows = has_synthetic_rows(trained)
    if not rows and (n is not None or json is not None):
        raise ValueError(f"-n and --json are for samples of a table, and {run} has {trained.spec.describe()}")
    path = out or run / "report.html"
    if path.suffix.lower() != ".html":
        raise ValueError(f"--out must be an .html file, got {path}")
    dataset = trained.data_for(data)
    found = synthetic_report(trained, dataset, n=n, seed=seed) if rows else None
    row, split = evaluate_run(trained, dataset, seed=seed), dataset.scored_split
    title = f"{trained.model} on {dataset.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    page = write_report(path, dataset, [row], title=title, seed=seed, split=split, synthetic=found)
    for line in found.describe() if found else ():
        show(line)
    if found and json is not None:
        with files.replacing(json) as temporary:
            temporary.write_text(dumps(found.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    show(f"report: {page}")
