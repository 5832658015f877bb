"""The commands that give a run to others: `export` and `push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loglik.cli.options import MAX_COUNT, RunArgument, Samples, Seed, show, without_none
from loglik.terminal import printable

__all__ = ["export", "push"]


def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="`onnx`, or `torch.export`.")] = "onnx",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder; export/ in the run by default.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="log_prob, sample, probabilities, logits, encode, decode or denoise; repeatable. By default log_prob "
            "and sample, of a classifier log_prob and probabilities.",
        ),
    ] = None,
    samples: Samples = None,
    method: Annotated[str | None, typer.Option(help="For a diffusion: the sampler: ddpm, ddim, unipc, ...")] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", max=MAX_COUNT, help="For a diffusion: the sampler's noise levels.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write a run's density as graphs for other programs, each checked against the density by running it."""
    from loglik.export import export as write
    from loglik.runs import load

    sampler = without_none(method=method, steps=steps)
    for done in write(load(run), to, out, parts=part or (), samples=samples or 1, seed=seed, **sampler):
        show(done.describe())


def push(
    run: RunArgument,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face Hub, or OWNER/NAME/FOLDER@REVISION.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data to score for the model card; the run's own by default.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the files to a folder, and upload nothing.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and what would be uploaded, and upload nothing.")
    ] = False,
    license: Annotated[
        str, typer.Option("--license", metavar="NAME", help="Of the weights: mit, apache-2.0, cc-by-4.0, ...")
    ] = "unknown",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the upload.")] = False,
    seed: Seed = 0,
) -> None:
    """Upload a run with a model card to the Hugging Face Hub, or write the same files to a folder."""
    from loglik.export import prepare
    from loglik.runs import load

    with prepare(load(run), repository, to=to, data=data, license=license, seed=seed) as files:
        for line in files.describe():
            show(line)
        if dry_run:
            print(printable((files.folder / "README.md").read_text(encoding="utf-8"), keep="\n"))
        if to is not None or dry_run:
            show(f"nothing was uploaded; the files for {files.address} are in {to}" if to else "nothing was uploaded")
            return
        if not yes:
            if not sys.stdin.isatty():
                raise ValueError("an upload makes these files public: pass --yes")
            typer.confirm(f"Upload to {files.address}?", abort=True)
        show(f"pushed: {files.upload(private=private)}")
