"""The command `anomalies`: unlikely rows, and the columns to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import (
    MAX_COUNT,
    Device,
    From,
    RunArgument,
    Samples,
    Seed,
    Settings,
    load_model,
    share_of,
    show,
)

__all__ = ["anomalies"]


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
    from_: From = None,
    set_: Settings = None,
    device: Device = "auto",
) -> None:
    """Find unlikely rows: p-values against the run's rows, and the columns to blame. Write a table and a page."""
    from loglik.report import write_anomalies
    from loglik.tasks import find_anomalies

    share, path = share_of(rate, "--rate"), out or (Path() if from_ else run) / "anomalies.csv"
    if path.suffix.lower() != ".csv":
        raise ValueError(f"--out must be a .csv file, got {path}: the page is written beside it, as .html")
    if from_ is not None and normal is None:
        raise ValueError("--from needs --normal DATA too: the rows that the p-values are against")
    trained, known = load_model(run, from_, normal, settings=set_, seed=seed, device=device)
    found = find_anomalies(
        trained, data, rate=share, fdr=fdr, score=score, normal=known, explain=explain,
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
    for note in found.notes:
        show(f"  {note}")
    for row in frame.head(5).iter_rows(named=True):
        blamed = f", {row['columns'] or 'no column stands out'}" if explain else ""
        show(f"  row {row['row']}: p {row['p']:.2g}{blamed}")
